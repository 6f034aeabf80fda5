//! Open tables. A handle holds the file list of its table in memory, so only the most recently used stay open.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use deltalake::DeltaTable;
use lake_shared::identity::TableKey;

/// Handles that wait until the table they are of is no longer in use.
const RENEWED_MAX: usize = 8;

/// A bounded set of handles. Whoever needs one takes it out and puts it back.
#[derive(Debug)]
pub(super) struct Handles {
    open_max: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    clock: u64,
    tables: HashMap<TableKey, (u64, DeltaTable)>,
    /// Tables in use with a checkpoint that their handles do not know: the version of the last handle that does not, and one that does, if
    /// there is one.
    outdated: HashMap<TableKey, (u64, Option<DeltaTable>)>,
}

impl Handles {
    pub(super) fn new(open_max: usize) -> Self {
        Self { open_max: open_max.max(1), open: Mutex::default() }
    }

    /// Takes a handle out, if it is open.
    pub(super) fn take(&self, key: &TableKey) -> Option<DeltaTable> {
        self.locked().tables.remove(key).map(|(_, table)| table)
    }

    /// Puts a handle back; the one that was used longest ago closes when there are too many.
    pub(super) fn put(&self, key: TableKey, table: DeltaTable) {
        let mut open = self.locked();
        let table = match open.outdated.remove(&key) {
            // It does not fold what it has gathered; the other one is brought to the last version when it is used.
            Some((outdated, renewed)) if table.version().is_some_and(|version| version >= outdated) => renewed,
            _ => Some(table),
        };
        let Some(table) = table else { return };
        open.clock += 1;
        let now = open.clock;
        open.tables.insert(key, (now, table));
        if open.tables.len() > self.open_max {
            let oldest = open.tables.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                open.tables.remove(&oldest);
            }
        }
    }

    /// There is a checkpoint of this version: a handle does not fold what it has gathered, so the table is opened anew.
    pub(super) fn outdate(&self, key: &TableKey, version: u64) {
        let mut open = self.locked();
        if open.tables.remove(key).is_none() {
            open.outdated.insert(key.clone(), (version, None));
        }
    }

    /// There is a checkpoint of this version, and a handle that knows it takes the place of the open one. It need not be at the last version.
    pub(super) fn renew(&self, key: &TableKey, table: DeltaTable, version: u64) {
        let mut open = self.locked();
        if let Some((_, held)) = open.tables.get_mut(key) {
            *held = table;
            return;
        }
        // In use, or closed. Not many wait for their use: handles are large.
        let waiting = open.outdated.values().filter(|(_, table)| table.is_some()).count();
        open.outdated.insert(key.clone(), (version, Some(table).filter(|_| waiting < RENEWED_MAX)));
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Open> {
        // A panic elsewhere cannot leave the map half changed.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::sync::Arc;

    use lake_shared::identity::{Kind, Space};
    use object_store::memory::InMemory;
    use object_store::prefix::PrefixStore;
    use serde_json::json;
    use url::Url;

    use super::*;
    use crate::table_store::delta::commit;

    fn key(name: &str) -> TableKey {
        TableKey { space: Space { domain: "demo".into(), kind: Kind::Case }, document_type: name.into() }
    }

    /// A handle of a table with so many commits.
    async fn table(commits: u64) -> DeltaTable {
        let store = Arc::new(InMemory::new());
        let url = Url::parse("memory:///table/").unwrap();
        let folder = Arc::new(PrefixStore::new(Arc::clone(&store), "table"));
        let log = deltalake::logstore::default_logstore(folder, store, &url, &Default::default());
        let protocol = json!({ "protocol": { "minReaderVersion": 1, "minWriterVersion": 2 } });
        let field = json!({ "name": "a", "type": "string", "nullable": true, "metadata": {} });
        let schema = json!({ "type": "struct", "fields": [field] }).to_string();
        let metadata = json!({ "metaData": {
            "id": "t", "format": { "provider": "parquet", "options": {} }, "schemaString": schema, "partitionColumns": [],
            "configuration": {},
        } });
        for version in 0..commits {
            let text =
                if version == 0 { format!("{protocol}\n{metadata}\n") } else { "{\"commitInfo\":{}}\n".to_owned() };
            let entry = deltalake::logstore::CommitOrBytes::LogBytes(text.into());
            log.write_commit_entry(version, entry, uuid::Uuid::nil()).await.unwrap();
        }
        let mut table = DeltaTable::new(log);
        assert!(commit::load(&mut table).await.unwrap());
        table
    }

    fn version(handles: &Handles, name: &str) -> Option<u64> {
        handles.take(&key(name)).and_then(|table| table.version())
    }

    #[tokio::test]
    async fn the_handle_that_was_used_longest_ago_closes() {
        let (handles, one) = (Handles::new(2), table(1).await);
        handles.put(key("a"), one.clone());
        handles.put(key("b"), one.clone());
        let a = handles.take(&key("a")).unwrap();
        handles.put(key("a"), a);
        handles.put(key("c"), one);
        assert_eq!((version(&handles, "a"), version(&handles, "b"), version(&handles, "c")), (Some(0), None, Some(0)));
    }

    #[tokio::test]
    async fn a_handle_that_knows_the_checkpoint_takes_the_place_of_the_other() {
        let (handles, old, new) = (Handles::new(9), table(1).await, table(2).await);
        handles.put(key("idle"), old.clone());
        handles.renew(&key("idle"), new.clone(), 0);
        assert_eq!(version(&handles, "idle"), Some(1));
        // In use when the checkpoint is done.
        handles.renew(&key("used"), new.clone(), 0);
        assert_eq!(version(&handles, "used"), None);
        handles.put(key("used"), old.clone());
        assert_eq!(version(&handles, "used"), Some(1));
        handles.put(key("used"), old.clone());
        assert_eq!(version(&handles, "used"), Some(0), "only once");
        // Nobody could make one: the table is opened anew.
        handles.put(key("idle"), old.clone());
        handles.outdate(&key("idle"), 0);
        assert_eq!(version(&handles, "idle"), None);
        handles.outdate(&key("used"), 0);
        handles.put(key("used"), old.clone());
        assert_eq!(version(&handles, "used"), None);
        // It is another table, or was opened after all that.
        handles.outdate(&key("used"), 7);
        handles.put(key("used"), old);
        assert_eq!(version(&handles, "used"), Some(0));
        for n in 0..=RENEWED_MAX {
            handles.renew(&key(&n.to_string()), new.clone(), 0);
        }
        let waiting = handles.locked().outdated.values().filter(|(_, table)| table.is_some()).count();
        assert_eq!(waiting, RENEWED_MAX);
    }
}

//! Open tables. A handle holds the file list of its table in memory, about 3 kB a file, so only the most recently used stay open.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use deltalake::DeltaTable;
use lake_shared::identity::TableKey;

/// Handles that wait until the table they are of is no longer in use.
const RENEWED_MAX: usize = 8;

/// A bounded set of handles. A commit takes the one that it needs out and puts it back.
#[derive(Debug)]
pub(crate) struct OpenTables {
    open_max: usize,
    files_max: usize,
    open: Mutex<OpenSet>,
}

#[derive(Debug, Default)]
struct OpenSet {
    clock: u64,
    tables: HashMap<TableKey, OpenTable>,
    /// Tables in use with a checkpoint that their handles do not know: the version of the last handle that does not, and one that does, if
    /// there is one.
    outdated: HashMap<TableKey, (u64, Option<DeltaTable>)>,
}

#[derive(Debug)]
struct OpenTable {
    /// When it was put back.
    used: u64,
    files: usize,
    table: DeltaTable,
}

impl OpenTables {
    /// At most so many handles, with so many data files in all; one stays open in any case.
    pub(crate) fn new(open_max: usize, files_max: usize) -> Self {
        Self { open_max, files_max, open: Mutex::default() }
    }

    /// Takes a handle out, if it is open.
    pub(crate) fn take(&self, key: &TableKey) -> Option<DeltaTable> {
        self.locked().tables.remove(key).map(|held| held.table)
    }

    /// Puts a handle back; the one that was used longest ago closes when there are too many.
    pub(crate) fn put(&self, key: TableKey, table: DeltaTable) {
        let mut open = self.locked();
        let table = match open.outdated.remove(&key) {
            // It does not fold what it has gathered; the other one is brought to the last version when it is used.
            Some((outdated, renewed)) if table.version().is_some_and(|version| version >= outdated) => renewed,
            _ => Some(table),
        };
        let Some(table) = table else { return };
        open.clock += 1;
        let held = OpenTable { used: open.clock, files: files_of(&table), table };
        open.tables.insert(key, held);
        let mut files: usize = open.tables.values().map(|held| held.files).sum();
        while open.tables.len() > 1 && (open.tables.len() > self.open_max || files > self.files_max) {
            let oldest = open.tables.iter().min_by_key(|(_, held)| held.used).map(|(key, _)| key.clone());
            let closed = oldest.and_then(|oldest| open.tables.remove(&oldest));
            files -= closed.map_or(0, |closed| closed.files);
        }
    }

    /// There is a checkpoint of this version: a handle does not fold what it has gathered, so the table is opened anew.
    pub(crate) fn outdate(&self, key: &TableKey, version: u64) {
        let mut open = self.locked();
        if open.tables.remove(key).is_none() {
            open.outdated.insert(key.clone(), (version, None));
        }
    }

    /// There is a checkpoint of this version, and a handle that knows it takes the place of the open one. It need not be at the last version.
    pub(crate) fn renew(&self, key: &TableKey, table: DeltaTable, version: u64) {
        let mut open = self.locked();
        if let Some(held) = open.tables.get_mut(key) {
            (held.files, held.table) = (files_of(&table), table);
            return;
        }
        // In use, or closed. Not many wait for their use: handles are large.
        let waiting = open.outdated.values().filter(|(_, table)| table.is_some()).count();
        open.outdated.insert(key.clone(), (version, Some(table).filter(|_| waiting < RENEWED_MAX)));
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, OpenSet> {
        // A panic elsewhere cannot leave the map half changed.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn files_of(table: &DeltaTable) -> usize {
    table.snapshot().map_or(0, |snapshot| snapshot.log_data().num_files())
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
    use crate::table_store::delta::log::checkpoints::{self, LastCheckpoint};
    use crate::table_store::delta::log::commit;

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

    /// A handle of a table with so many files.
    async fn table_of(files: usize) -> DeltaTable {
        let mut table = table(1).await;
        let log = table.log_store();
        let add = |n: usize| {
            json!({ "add": {
                "path": format!("{n}.parquet"), "partitionValues": {}, "size": 1, "modificationTime": 0, "dataChange": true,
            } })
        };
        let text: String = (0..files).map(|n| format!("{}\n", add(n))).collect();
        let entry = deltalake::logstore::CommitOrBytes::LogBytes(text.into());
        log.write_commit_entry(1, entry, uuid::Uuid::nil()).await.unwrap();
        assert!(commit::load(&mut table).await.unwrap());
        table
    }

    #[tokio::test]
    async fn tables_with_many_files_close_earlier() {
        let handles = OpenTables::new(9, 100);
        let (small, large) = (table_of(30).await, table_of(99).await);
        for name in ["a", "b", "c", "d"] {
            handles.put(key(name), small.clone());
        }
        let held = || handles.locked().tables.len();
        assert_eq!((held(), version(&handles, "a"), version(&handles, "b")), (3, None, Some(1)));
        // One is open in any case, and there is room again when it has fewer.
        handles.put(key("large"), table_of(101).await);
        assert_eq!(held(), 1);
        handles.renew(&key("large"), large, 0);
        handles.put(key("one"), table_of(1).await);
        assert_eq!(held(), 2);
    }

    fn version(handles: &OpenTables, name: &str) -> Option<u64> {
        handles.take(&key(name)).and_then(|table| table.version())
    }

    #[tokio::test]
    async fn the_handle_that_was_used_longest_ago_closes() {
        let (handles, one) = (OpenTables::new(2, 100), table(1).await);
        handles.put(key("a"), one.clone());
        handles.put(key("b"), one.clone());
        let a = handles.take(&key("a")).unwrap();
        handles.put(key("a"), a);
        handles.put(key("c"), one);
        assert_eq!((version(&handles, "a"), version(&handles, "b"), version(&handles, "c")), (Some(0), None, Some(0)));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_checkpoint_renews_the_handle() {
        let (handles, old, new) = (Arc::new(OpenTables::new(9, 100)), table(1).await, table(3).await);
        handles.put(key("t"), old);
        checkpoints::make(&key("t"), 2, new, Arc::clone(&handles), LastCheckpoint::default()).await;
        assert_eq!(version(&handles, "t"), Some(2));
    }

    #[tokio::test]
    async fn a_handle_that_knows_the_checkpoint_takes_the_place_of_the_other() {
        let (handles, old, new) = (OpenTables::new(9, 100), table(1).await, table(2).await);
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
        // A newer one could not be made: the table is opened anew.
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

//! Open tables. A handle holds the file list of its table in memory, so only the most recently used stay open.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use deltalake::DeltaTable;
use lake_shared::identity::TableKey;

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
    /// Tables with a checkpoint that their handles do not know yet, with the version of the last one that does not.
    outdated: HashMap<TableKey, u64>,
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
        if let Some(outdated) = open.outdated.remove(&key)
            && table.version().is_some_and(|version| version >= outdated)
        {
            return;
        }
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
            open.outdated.insert(key.clone(), version);
        }
    }

    /// There is a checkpoint of this version, and a handle that knows it takes the place of the open one. It need not be at the last version.
    pub(super) fn renew(&self, key: &TableKey, table: DeltaTable, version: u64) {
        if let Some((_, held)) = self.locked().tables.get_mut(key) {
            *held = table;
            return;
        }
        // In use, or closed.
        self.outdate(key, version);
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Open> {
        // A panic elsewhere cannot leave the map half changed.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

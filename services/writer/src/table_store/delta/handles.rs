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

    fn locked(&self) -> std::sync::MutexGuard<'_, Open> {
        // A panic elsewhere cannot leave the map half changed.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

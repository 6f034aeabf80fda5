//! What one call of `apply` has done so far, over all its plans.

use std::collections::HashMap;

use crate::table_store::delta::space::state::SpaceState;
use crate::table_store::delta::space::table::Freshness;
use crate::table_store::delta::table_number::TableNumber;
use crate::table_store::delta::upsert::change::Change;
use crate::table_store::{Applied, AppliedTable};

/// Rows upserted and deleted, by table number, with the order of the last commits.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    counts: HashMap<TableNumber, Counts>,
    commits: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    upserted: u64,
    deleted: u64,
    last_commit: usize,
    freshness: Freshness,
}

impl Progress {
    /// A change was committed.
    pub(crate) fn add(&mut self, change: &Change) {
        self.commits += 1;
        let counts = self.counts.entry(change.number).or_default();
        counts.upserted += change.incoming.len() as u64;
        counts.deleted += change.deleted;
        counts.last_commit = self.commits;
        counts.freshness.include(change.incoming.freshness());
    }

    /// The answer of the call.
    pub(crate) fn applied(&self, state: &SpaceState) -> Applied {
        let mut changed: Vec<(&TableNumber, &Counts)> = self.counts.iter().collect();
        changed.sort_by_key(|(_, counts)| counts.last_commit);
        let tables = changed.into_iter().map(|(number, counts)| {
            let table = state.table(*number);
            AppliedTable {
                table: table.key().clone(),
                version: table.version().unwrap_or_default(),
                rows_upserted: counts.upserted,
                rows_deleted: counts.deleted,
                rows_total: table.rows().unsigned_abs(),
                files: table.files().len() as u64,
                bytes: table.bytes().unsigned_abs(),
                newest_published_us: counts.freshness.newest_published_us,
                newest_fetched_us: counts.freshness.newest_fetched_us,
            }
        });
        Applied { tables: tables.collect() }
    }
}

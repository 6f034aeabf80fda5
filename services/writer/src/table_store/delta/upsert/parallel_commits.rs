//! Commits to tables that have nothing to do with each other, several at once.
//!
//! The state is only read while commits are under way. Each one that happened then becomes part of it, whatever became of the others: the
//! state never knows less than the tables. A call that is dropped half-way takes the state along, and the next load reads the tables.

use std::collections::VecDeque;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};

use crate::table_store::SpaceBatch;
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::space::state::SpaceState;
use crate::table_store::delta::table_number::TableNumber;
use crate::table_store::delta::upsert::adopt::adopt;
use crate::table_store::delta::upsert::apply::Upserter;
use crate::table_store::delta::upsert::change::{Change, CommittedChange};
use crate::table_store::delta::upsert::plan::decide::Decisions;
use crate::table_store::delta::upsert::plan::grouping::TableChange;
use crate::table_store::delta::upsert::plan::rewrite_or_deletion_vectors::{BudgetLeft, Replacement, replacement};
use crate::table_store::delta::upsert::progress::Progress;
use crate::table_store::delta::upsert::rows::incoming::IncomingRows;

/// Tables that are committed at once. Most of a commit is waiting for the store.
const TABLES_AT_ONCE: usize = 16;

/// Most bytes of tables that may be read for copy on write at once, as stored; in memory they are about ten times as many.
const COPIED_BYTES_AT_ONCE: u64 = 16 << 20;

/// A copy on write streams: larger tables do not need more memory than this much of them, about a row group read and one written.
const COPIED_BYTES_EACH: u64 = 8 << 20;

/// Index entries that may wait to become part of the state, 32 bytes each; with more, no further commit is begun before they have.
const ENTRIES_WAITING: usize = 1_000_000;

/// Failures after which no further commit is begun: it is the store that has trouble, not the tables.
const FAILURES_MAX: usize = TABLES_AT_ONCE;

/// How the commit to a table ended; `None`: another program committed in between.
type CommitResult = Result<Option<CommittedChange>, EngineError>;

/// What is under way, or waits to become part of the state.
#[derive(Debug, Default)]
struct InFlight {
    tables: usize,
    copied_bytes: u64,
    entries: usize,
    failures: usize,
}

impl InFlight {
    /// Whether another commit may begin.
    fn allows(&self, copied_bytes: u64) -> bool {
        self.tables < TABLES_AT_ONCE
            && self.copied_bytes + copied_bytes <= COPIED_BYTES_AT_ONCE
            && self.entries < ENTRIES_WAITING
            && self.failures < FAILURES_MAX
    }

    fn begun(&mut self, copied_bytes: u64) {
        self.tables += 1;
        self.copied_bytes += copied_bytes;
    }

    fn ended(&mut self, copied_bytes: u64, ended: &CommitResult) {
        self.tables -= 1;
        self.copied_bytes -= copied_bytes;
        match ended {
            Ok(committed) => self.entries += committed.as_ref().map_or(0, CommittedChange::entries),
            Err(_) => self.failures += 1,
        }
    }
}

impl Upserter {
    /// Commits changes of tables that stand alone. Answers the tables in which another program committed; an error is the first one, and
    /// the other tables may have been committed all the same.
    pub(crate) async fn commit_independent(
        &self,
        state: &mut SpaceState,
        changes: Vec<TableChange>,
        batch: &SpaceBatch,
        decisions: &Decisions,
        progress: &mut Progress,
    ) -> Result<Vec<TableNumber>, EngineError> {
        let mut waiting = VecDeque::from(changes);
        let (mut conflicts, mut failure, mut failures) = (Vec::new(), None, 0);
        let mut broken = Vec::new();
        while !waiting.is_empty() && failures < FAILURES_MAX {
            for (number, ended) in self.commit_some(state, &mut waiting, batch, decisions).await {
                match ended {
                    Ok(Some(committed)) => adopt(state, committed, progress),
                    Ok(None) => conflicts.push(number),
                    // The first one is left to the caller; the others are not to cost a plan each.
                    Err(EngineError::Broken { number, source }) if failure.is_some() => broken.push((number, source)),
                    Err(error) => {
                        failures += 1;
                        failure.get_or_insert(error);
                    }
                }
            }
        }
        for (number, error) in broken {
            self.loader.disable_unless_changed(state, number, &error).await?;
        }
        failure.map_or(Ok(conflicts), Err)
    }

    /// Commits as many of the changes as memory allows before they become part of the state, but at least one.
    async fn commit_some(
        &self,
        state: &SpaceState,
        waiting: &mut VecDeque<TableChange>,
        batch: &SpaceBatch,
        decisions: &Decisions,
    ) -> Vec<(TableNumber, CommitResult)> {
        let (mut in_flight, mut done) = (InFlight::default(), Vec::new());
        let mut under_way = FuturesUnordered::new();
        loop {
            while let Some(change) = waiting.pop_front() {
                let (number, copied_bytes) = (change.number, self.copied_bytes(state, change.number));
                if !in_flight.allows(copied_bytes) {
                    waiting.push_front(change);
                    break;
                }
                in_flight.begun(copied_bytes);
                let committing = async move {
                    let ended = self.commit_table_change(state, change, batch, decisions).await;
                    (number, copied_bytes, ended)
                };
                under_way.push(committing.boxed());
            }
            let Some((number, copied_bytes, ended)) = under_way.next().await else { return done };
            in_flight.ended(copied_bytes, &ended);
            done.push((number, ended));
        }
    }

    async fn commit_table_change(
        &self,
        state: &SpaceState,
        change: TableChange,
        batch: &SpaceBatch,
        decisions: &Decisions,
    ) -> CommitResult {
        // Not before its turn, so that rows are not held twice for longer than needed.
        let incoming = match change.rows {
            Some(position) => IncomingRows::of(&batch.upserts[position], &decisions.upserts[position]),
            None => IncomingRows::default(),
        };
        let TableChange { number, dead, deleted, .. } = change;
        self.commit_change(state, Change { number, incoming, dead, deleted }).await
    }

    /// Bytes that count for the copy on write of a table, whether all of its files are read or not.
    fn copied_bytes(&self, state: &SpaceState, number: TableNumber) -> u64 {
        let table = state.table(number);
        let bytes = table.bytes();
        match replacement(&self.options.of_table(table.name()), bytes, 0, BudgetLeft::Unlimited) {
            Replacement::Rewrite => bytes.unsigned_abs().min(COPIED_BYTES_EACH),
            Replacement::DeletionVectors => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_bounds_what_is_under_way_and_one_table_always_may_begin() {
        let mut in_flight = InFlight::default();
        assert!(in_flight.allows(COPIED_BYTES_EACH));
        let mut large = 0;
        while in_flight.allows(COPIED_BYTES_EACH) {
            in_flight.begun(COPIED_BYTES_EACH);
            large += 1;
        }
        assert_eq!(large, COPIED_BYTES_AT_ONCE / COPIED_BYTES_EACH);
        while in_flight.allows(0) {
            in_flight.begun(0);
        }
        assert_eq!(in_flight.tables, TABLES_AT_ONCE);
        in_flight.ended(COPIED_BYTES_EACH, &Ok(None));
        assert!(in_flight.allows(COPIED_BYTES_EACH));
        in_flight.entries = ENTRIES_WAITING;
        assert!(!in_flight.allows(0));
    }
}

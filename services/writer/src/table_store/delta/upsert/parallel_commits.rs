//! Commits to tables that have nothing to do with each other, several at once.
//!
//! The state is only read while commits are under way. Each one that happened then becomes part of it, whatever became of the others: the
//! state never knows less than the tables. Whoever is waited for no longer takes the state along, and the next load reads the tables.

use std::collections::VecDeque;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};

use crate::table_store::SpaceBatch;
use crate::table_store::delta::space::state::SpaceState;
use crate::table_store::delta::upsert::apply::{Committed, Progress};
use crate::table_store::delta::upsert::decide::Decisions;
use crate::table_store::delta::upsert::grouping::Share;
use crate::table_store::delta::upsert::rows::incoming::Arriving;
use crate::table_store::delta::upsert::write_change::Change;
use crate::table_store::delta::{DeltaTableStore, EngineError};

/// Tables that are committed at once. Most of a commit is waiting for the store.
pub(crate) const TABLES_AT_ONCE: usize = 16;

/// Most bytes of tables that may be read for copy on write at once, as stored; in memory they are about ten times as many.
const COPIED_BYTES_AT_ONCE: u64 = 16 << 20;

/// A copy on write streams: larger tables do not need more memory than this much of them, about a row group read and one written.
const COPIED_BYTES_EACH: u64 = 8 << 20;

/// Index entries that may wait to become part of the state, 32 bytes each; with more, no further commit is begun before they have.
const ENTRIES_WAITING: usize = 1_000_000;

/// Failures after which no further commit is begun: it is the store that has trouble, not the tables.
const FAILURES_MAX: usize = TABLES_AT_ONCE;

/// How the commit to a table ended; `None`: somebody else committed in between.
type Ended = Result<Option<Committed>, EngineError>;

/// What is under way, or waits to become part of the state.
#[derive(Debug, Default)]
struct Load {
    tables: usize,
    copied_bytes: u64,
    entries: usize,
    failures: usize,
}

impl Load {
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

    fn ended(&mut self, copied_bytes: u64, ended: &Ended) {
        self.tables -= 1;
        self.copied_bytes -= copied_bytes;
        match ended {
            Ok(committed) => self.entries += committed.as_ref().map_or(0, Committed::entries),
            Err(_) => self.failures += 1,
        }
    }
}

impl DeltaTableStore {
    /// Commits changes of tables that stand alone. Answers the tables in which somebody else committed; an error is the first one, and
    /// the other tables may have been committed all the same.
    pub(crate) async fn commit_apart(
        &self,
        state: &mut SpaceState,
        shares: Vec<Share>,
        batch: &SpaceBatch,
        decisions: &Decisions,
        progress: &mut Progress,
    ) -> Result<Vec<u32>, EngineError> {
        let mut waiting = VecDeque::from(shares);
        let (mut conflicts, mut failure, mut failures) = (Vec::new(), None, 0);
        let mut broken = Vec::new();
        while !waiting.is_empty() && failures < FAILURES_MAX {
            for (number, ended) in self.commit_some(state, &mut waiting, batch, decisions).await {
                match ended {
                    Ok(Some(committed)) => self.adopt(state, committed, progress),
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
            self.give_up(state, number, &error).await?;
        }
        failure.map_or(Ok(conflicts), Err)
    }

    /// Commits as many of the changes as memory allows before they become part of the state, but at least one.
    async fn commit_some(
        &self,
        state: &SpaceState,
        waiting: &mut VecDeque<Share>,
        batch: &SpaceBatch,
        decisions: &Decisions,
    ) -> Vec<(u32, Ended)> {
        let (mut load, mut done) = (Load::default(), Vec::new());
        let mut under_way = FuturesUnordered::new();
        loop {
            while let Some(share) = waiting.pop_front() {
                let (number, copied_bytes) = (share.number, self.copied_bytes(state, share.number));
                if !load.allows(copied_bytes) {
                    waiting.push_front(share);
                    break;
                }
                load.begun(copied_bytes);
                let committing = async move {
                    let ended = self.commit_share(state, share, batch, decisions).await;
                    (number, copied_bytes, ended)
                };
                under_way.push(committing.boxed());
            }
            let Some((number, copied_bytes, ended)) = under_way.next().await else { return done };
            load.ended(copied_bytes, &ended);
            done.push((number, ended));
        }
    }

    async fn commit_share(&self, state: &SpaceState, share: Share, batch: &SpaceBatch, decisions: &Decisions) -> Ended {
        // Not before its turn, so that rows are not held twice for longer than needed.
        let arriving = match share.rows {
            Some(position) => Arriving::of(&batch.upserts[position], &decisions.entering[position]),
            None => Arriving::default(),
        };
        let Share { number, dead, deleted, .. } = share;
        self.commit_change(state, Change { number, arriving, dead, deleted }).await
    }

    /// Bytes that count for the copy on write of a table, whether all of its files are read or not.
    fn copied_bytes(&self, state: &SpaceState, number: u32) -> u64 {
        let slot = state.slot(number);
        let bytes = slot.bytes();
        if self.options.of_table(&slot.name).marks(bytes) { 0 } else { bytes.unsigned_abs().min(COPIED_BYTES_EACH) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_bounds_what_is_under_way_and_one_table_always_may_begin() {
        let mut load = Load::default();
        assert!(load.allows(COPIED_BYTES_EACH));
        let mut large = 0;
        while load.allows(COPIED_BYTES_EACH) {
            load.begun(COPIED_BYTES_EACH);
            large += 1;
        }
        assert_eq!(large, COPIED_BYTES_AT_ONCE / COPIED_BYTES_EACH);
        while load.allows(0) {
            load.begun(0);
        }
        assert_eq!(load.tables, TABLES_AT_ONCE);
        load.ended(COPIED_BYTES_EACH, &Ok(None));
        assert!(load.allows(COPIED_BYTES_EACH));
        load.entries = ENTRIES_WAITING;
        assert!(!load.allows(0));
    }
}

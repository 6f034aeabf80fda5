//! Remembered deletions, which are in the metastore, and settling them with rows that were read out of files: a row that its tombstone beats
//! must leave, a tombstone that a row has outlived is forgotten.

use std::time::Instant;

use crate::key_index::IdHash;
use crate::metastore::StoredTombstone;
use crate::table_store::by_id_hash::ByIdHash;
use crate::table_store::delta::space::state::{Found, SpaceState};
use crate::table_store::delta::upsert::decide::Decisions;
use crate::table_store::delta::{DeltaTableStore, EngineError};
use crate::table_store::order_guard::TombstoneOrder;

/// Tombstones that are settled at once when a space is loaded.
const SETTLED_AT_ONCE: u32 = 20_000;

/// Tombstones of some ids.
pub(crate) type Tombstones = ByIdHash<TombstoneOrder>;

impl DeltaTableStore {
    /// Learns which ids of a space may have tombstones, and settles all of them. A row whose tombstone was remembered just before a crash
    /// leaves, too.
    pub(crate) async fn load_tombstones(&self, state: &mut SpaceState) -> Result<(), EngineError> {
        let mut behind = None;
        loop {
            let page = self.metastore.tombstones(&state.space, behind, SETTLED_AT_ONCE).await;
            let page = page.map_err(EngineError::Metastore)?;
            let Some(last) = page.last() else { return Ok(()) };
            behind = Some(last.id_hash);
            let now = Instant::now();
            page.iter().for_each(|tombstone| state.tombstones.insert(tombstone.id_hash, now));
            self.settle(state, by_id(page)).await?;
        }
    }

    /// The tombstones of some ids.
    pub(crate) async fn tombstones_of(&self, state: &SpaceState, ids: &[IdHash]) -> Result<Tombstones, EngineError> {
        let asked: Vec<IdHash> = ids.iter().copied().filter(|id| state.tombstones.may_have(*id)).collect();
        if asked.is_empty() {
            return Ok(Tombstones::default());
        }
        self.metastore.tombstones_of(&state.space, &asked).await.map(by_id).map_err(EngineError::Metastore)
    }

    /// Makes the tombstones durable before anything depends on them.
    pub(crate) async fn remember(&self, state: &mut SpaceState, decisions: &Decisions) -> Result<(), EngineError> {
        if decisions.remembered.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        decisions.remembered.iter().for_each(|tombstone| state.tombstones.insert(tombstone.id_hash, now));
        let written = self.metastore.remember_tombstones(&state.space, &decisions.remembered).await;
        written.map_err(EngineError::Metastore)
    }

    /// Forgets the tombstones of ids that have come back. Left in place they would change nothing, so a failure may wait. `before`: those
    /// that there were before the batch.
    pub(crate) async fn forget_outlived(
        &self,
        state: &SpaceState,
        decisions: &Decisions,
        before: &Tombstones,
    ) -> Result<(), EngineError> {
        let entered = decisions.entering.iter().flatten().map(|row| row.id);
        let outlived: Vec<IdHash> = entered.filter(|id| before.contains_key(id)).collect();
        self.metastore.forget_tombstones(&state.space, &outlived).await.map_err(EngineError::Metastore)
    }

    /// Settles the tombstones of ids that may have some.
    pub(crate) async fn settle_buried(&self, state: &mut SpaceState, ids: &[IdHash]) -> Result<(), EngineError> {
        let tombstones = self.tombstones_of(state, ids).await?;
        self.settle(state, tombstones).await
    }

    async fn settle(&self, state: &mut SpaceState, tombstones: Tombstones) -> Result<(), EngineError> {
        if tombstones.is_empty() {
            return Ok(());
        }
        let found = loop {
            match self.found_with_observation(state, &tombstones).await {
                // The rows of that table do not count any more.
                Err(EngineError::Broken { number, source }) => self.give_up_reading(state, number, &source).await?,
                found => break found?,
            }
        };
        let mut outlived = Vec::new();
        for (id, Found { position, order, .. }) in found {
            if tombstones.get(&id).is_some_and(|tombstone| tombstone.beats_row(order)) {
                state.live_mut().condemn(position);
            } else {
                outlived.push(id);
            }
        }
        self.metastore.forget_tombstones(&state.space, &outlived).await.map_err(EngineError::Metastore)
    }

    /// The rows of ids with tombstones; where the instant of observation decides, it is known.
    async fn found_with_observation(
        &self,
        state: &mut SpaceState,
        tombstones: &Tombstones,
    ) -> Result<ByIdHash<Found>, EngineError> {
        let mut found = state.find(tombstones.keys().copied().collect()).await?;
        let questions = found.iter().filter_map(|(id, row)| {
            let tombstone = tombstones.get(id)?;
            tombstone.asks_observation(row.order.version_us).then_some((*id, tombstone.observed_us))
        });
        let questions: Vec<(IdHash, i64)> = questions.collect();
        self.observe(state, &mut found, &questions).await?;
        Ok(found)
    }
}

fn by_id(tombstones: Vec<StoredTombstone>) -> Tombstones {
    tombstones.into_iter().map(|tombstone| (tombstone.id_hash, tombstone.order)).collect()
}

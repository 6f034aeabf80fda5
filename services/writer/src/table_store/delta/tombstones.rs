//! Settling remembered deletions with rows that were read out of files: a row that its tombstone beats must leave, a tombstone that a
//! row has outlived is forgotten.

use std::time::Duration;

use super::space::{Found, SpaceState};
use super::{DeltaTableStore, EngineError};
use crate::key_index::IdHash;
use crate::table_store::by_id_hash::ByIdHash;

impl DeltaTableStore {
    /// Loads the tombstones of a space and settles all of them. A row whose tombstone was remembered just before a crash leaves, too.
    pub(super) async fn load_tombstones(&self, state: &mut SpaceState) -> Result<(), EngineError> {
        let tombstones = self.metastore.tombstones(&state.space).await.map_err(EngineError::Metastore)?;
        state.tombstones = tombstones.into_iter().map(|tombstone| (tombstone.id_hash, tombstone.order)).collect();
        let ids = state.tombstones.keys().copied().collect();
        self.settle_tombstones(state, ids).await
    }

    /// Settles the tombstones of some ids.
    pub(super) async fn settle_tombstones(&self, state: &mut SpaceState, ids: Vec<IdHash>) -> Result<(), EngineError> {
        if ids.is_empty() {
            return Ok(());
        }
        let found = loop {
            match self.found_with_observation(state, ids.clone()).await {
                // The rows of that table do not count any more.
                Err(EngineError::Broken { number, source }) => state.set_aside(number, &source, Duration::ZERO),
                found => break found?,
            }
        };
        let mut outlived = Vec::new();
        for (id, Found { position, order, .. }) in found {
            if state.tombstones.get(&id).is_some_and(|tombstone| tombstone.beats_row(order)) {
                state.live_mut().condemn(position);
            } else {
                state.tombstones.remove(&id);
                outlived.push(id);
            }
        }
        self.metastore.forget_tombstones(&state.space, &outlived).await.map_err(EngineError::Metastore)
    }

    /// The rows of ids with tombstones; where the instant of observation decides, it is known.
    async fn found_with_observation(
        &self,
        state: &mut SpaceState,
        ids: Vec<IdHash>,
    ) -> Result<ByIdHash<Found>, EngineError> {
        let mut found = state.find(ids).await?;
        let questions = found.iter().filter_map(|(id, row)| {
            let tombstone = state.tombstones.get(id)?;
            tombstone.asks_observation(row.order.version_us).then_some((*id, tombstone.observed_us))
        });
        let questions: Vec<(IdHash, i64)> = questions.collect();
        self.observe(state, &mut found, &questions).await?;
        Ok(found)
    }
}

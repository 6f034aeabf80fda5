//! Remembered deletions, which are in the metastore, and resolving them with rows that were read out of files: a row that its tombstone
//! beats must leave, a tombstone that a row has superseded is forgotten.

use std::time::{Duration, Instant};

use crate::boot_clock::BootInstant;
use crate::key_index::IdHash;
use crate::metastore::StoredTombstone;
use crate::order_guard::TombstoneOrder;
use crate::table_store::by_id_hash::ByIdHash;
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::space::loader::SpaceLoader;
use crate::table_store::delta::space::state::{RowLocation, SpaceState};

/// Tombstones that are resolved at once when a space is loaded.
const RESOLVED_AT_ONCE: u32 = 20_000;

/// What was being written while the tombstones were read last may have come after it: no write of the metastore takes so long.
const READ_AGAIN: Duration = Duration::from_secs(300);

/// Tombstones of some ids.
pub(crate) type Tombstones = ByIdHash<TombstoneOrder>;

impl SpaceLoader {
    /// Learns which ids of a space may have tombstones, and resolves all of them. A row whose tombstone was remembered just before a crash
    /// leaves, too.
    pub(crate) async fn load_tombstones(&self, state: &mut SpaceState) -> Result<(), EngineError> {
        let began = BootInstant::now();
        let mut behind = None;
        loop {
            let page = self.metastore().tombstones(state.space(), behind, RESOLVED_AT_ONCE).await;
            let page = page.map_err(EngineError::Metastore)?;
            let Some(last) = page.last() else { break };
            behind = Some(last.id_hash);
            let now = Instant::now();
            page.iter().for_each(|tombstone| state.tombstones_mut().insert(tombstone.id_hash, now));
            self.resolve(state, by_id(page)).await?;
        }
        state.tombstones_mut().set_read(began);
        Ok(())
    }

    /// Learns which ids have got tombstones since the metastore was read last: whoever committed to a table of a loaded space may have
    /// remembered some before, such as a writer that held the lease before this one. Answers the ids that were not known to have any.
    pub(crate) async fn learn_new_tombstones(&self, state: &mut SpaceState) -> Result<Vec<IdHash>, EngineError> {
        // While a space is being loaded all of them are still to be read.
        let Some(ago) = state.tombstones().read_ago() else { return Ok(Vec::new()) };
        let began = BootInstant::now();
        let within_us = i64::try_from(ago.saturating_add(READ_AGAIN).as_micros()).unwrap_or(i64::MAX);
        let (mut behind, mut unknown) = (None, Vec::new());
        loop {
            let page = self.metastore().tombstones_since(state.space(), within_us, behind, RESOLVED_AT_ONCE).await;
            let page = page.map_err(EngineError::Metastore)?;
            let Some(last) = page.last() else { break };
            behind = Some(last.id_hash);
            let now = Instant::now();
            for id in page.iter().map(|tombstone| tombstone.id_hash) {
                if !state.tombstones().may_have(id) {
                    unknown.push(id);
                }
                state.tombstones_mut().insert(id, now);
            }
        }
        state.tombstones_mut().set_read(began);
        Ok(unknown)
    }

    /// The tombstones of some ids.
    pub(crate) async fn tombstones_of(&self, state: &SpaceState, ids: &[IdHash]) -> Result<Tombstones, EngineError> {
        let asked: Vec<IdHash> = ids.iter().copied().filter(|id| state.tombstones().may_have(*id)).collect();
        if asked.is_empty() {
            return Ok(Tombstones::default());
        }
        self.metastore().tombstones_of(state.space(), &asked).await.map(by_id).map_err(EngineError::Metastore)
    }

    /// Makes tombstones durable before anything depends on them.
    pub(crate) async fn remember(
        &self,
        state: &mut SpaceState,
        tombstones: &[StoredTombstone],
    ) -> Result<(), EngineError> {
        if tombstones.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        tombstones.iter().for_each(|tombstone| state.tombstones_mut().insert(tombstone.id_hash, now));
        let written = self.metastore().remember_tombstones(state.space(), tombstones).await;
        written.map_err(EngineError::Metastore)
    }

    /// Forgets tombstones of ids that have come back. Left in place they would change nothing, so a failure may wait.
    pub(crate) async fn forget_superseded(
        &self,
        state: &SpaceState,
        superseded: &[(IdHash, TombstoneOrder)],
    ) -> Result<(), EngineError> {
        self.metastore().forget_tombstones(state.space(), superseded).await.map_err(EngineError::Metastore)
    }

    /// Resolves the tombstones of ids that may have some.
    pub(crate) async fn resolve_tombstoned(&self, state: &mut SpaceState, ids: &[IdHash]) -> Result<(), EngineError> {
        let tombstones = self.tombstones_of(state, ids).await?;
        self.resolve(state, tombstones).await
    }

    async fn resolve(&self, state: &mut SpaceState, tombstones: Tombstones) -> Result<(), EngineError> {
        if tombstones.is_empty() {
            return Ok(());
        }
        let found = loop {
            match self.found_with_versions(state, &tombstones).await {
                // The rows of that table do not count any more.
                Err(EngineError::Broken { number, source }) => {
                    self.disable_while_loading(state, number, &source).await?
                }
                found => break found?,
            }
        };
        let mut superseded = Vec::new();
        for (id, RowLocation { position, order, .. }) in found {
            match tombstones.get(&id) {
                Some(tombstone) if tombstone.beats_row(order) => state.mark_stale(position),
                Some(tombstone) => superseded.push((id, *tombstone)),
                None => {}
            }
        }
        self.forget_superseded(state, &superseded).await
    }

    /// The rows of ids with tombstones; where the version decides, it is known.
    async fn found_with_versions(
        &self,
        state: &mut SpaceState,
        tombstones: &Tombstones,
    ) -> Result<ByIdHash<RowLocation>, EngineError> {
        let mut found = state.find(tombstones.keys().copied().collect()).await?;
        let tie_breakers_needed = found.iter().filter_map(|(id, row)| {
            let tombstone = tombstones.get(id)?;
            Some((*id, tombstone.tie_breaker(row.order.observed_us)?))
        });
        let tie_breakers_needed: Vec<(IdHash, i64)> = tie_breakers_needed.collect();
        self.load_tie_breakers(state, &mut found, &tie_breakers_needed).await?;
        Ok(found)
    }
}

fn by_id(tombstones: Vec<StoredTombstone>) -> Tombstones {
    tombstones.into_iter().map(|tombstone| (tombstone.id_hash, tombstone.order)).collect()
}

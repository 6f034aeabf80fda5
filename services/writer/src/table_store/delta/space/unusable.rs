//! Tables that somebody altered or damaged beyond what the lake writes. One of them keeps only itself from work.
//!
//! Its files are taken out of what the engine knows, so that no decision depends on them; rows for it are refused before anything else
//! of their batch is applied; tombstones are remembered as ever. It is tried again from time to time, and by every clean-up. Once it can
//! be read, its files are like new ones: rows that are elsewhere too and rows that were deleted meanwhile leave.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lake_shared::error_chain::Chain;
use lake_shared::identity::{Space, TableKey};

use crate::metric_names;
use crate::table_store::delta::log::base_version;
use crate::table_store::delta::permanent_error;
use crate::table_store::delta::space::state::SpaceState;
use crate::table_store::delta::{DeltaTableStore, EngineError};

/// Least time between two tries for the sake of arriving rows.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Between two tries passes so many times the time that the last one took: its keys may all have to be read.
const TRY_SHARE: u32 = 20;

/// Why a table cannot be used. It counts in the metric as long as it is held.
#[derive(Debug)]
pub(crate) struct Unusable {
    pub(crate) reason: String,
    try_again: Instant,
}

impl Unusable {
    fn new(reason: String, try_again: Instant) -> Self {
        metrics::gauge!(metric_names::UNUSABLE_TABLES).increment(1);
        Self { reason, try_again }
    }
}

impl Drop for Unusable {
    fn drop(&mut self) {
        metrics::gauge!(metric_names::UNUSABLE_TABLES).decrement(1);
    }
}

impl EngineError {
    /// Says which table an error is about, if its files cannot be read and that lasts.
    pub(crate) fn of_table(self, number: u32) -> Self {
        let is_about_files = matches!(self, Self::File(_) | Self::Corrupt(_) | Self::Store(_));
        if is_about_files && permanent_error::is_lasting(&self) {
            return Self::Broken { number, source: Box::new(self) };
        }
        self
    }
}

impl SpaceState {
    /// Takes a table out of everything that decisions are made by.
    pub(crate) fn set_aside(&mut self, number: u32, error: &EngineError, took: Duration) {
        let reason = Chain(error).to_string();
        let held = self.slot_mut(number).unusable.take();
        self.take_out(number);
        let slot = self.slot_mut(number);
        if held.is_none_or(|held| held.reason != reason) {
            tracing::warn!(
                table = %slot.key, path = slot.path, reason,
                "table cannot be used and is left alone, its rows go to quarantine; repair or restore the table, or delete its \
                 folder so that a backfill builds it anew"
            );
        }
        let try_again = Instant::now() + TRY_AGAIN_AFTER.max(took * TRY_SHARE);
        slot.unusable = Some(Arc::new(Unusable::new(reason, try_again)));
    }

    /// A table has been read whole again.
    pub(crate) fn readmit(&mut self, number: u32) {
        let slot = self.slot_mut(number);
        if slot.unusable.take().is_some() {
            tracing::info!(table = %slot.key, "table can be used again");
        }
    }

    /// Refuses rows for tables that cannot take them.
    pub(crate) fn check_usable(&self, numbers: &[u32]) -> Result<(), EngineError> {
        let slots = numbers.iter().map(|number| self.slot(*number));
        let unusable = slots.filter_map(|slot| Some((slot, slot.unusable.as_ref()?))).next();
        unusable.map_or(Ok(()), |(slot, unusable)| {
            Err(EngineError::Unusable { table: slot.key.clone(), reason: unusable.reason.clone() })
        })
    }

    /// The tables that cannot be used.
    fn unusable(&self) -> impl Iterator<Item = u32> + '_ {
        (0..).zip(&self.slots).filter(|(_, slot)| slot.unusable.is_some()).map(|(number, _)| number)
    }
}

impl DeltaTableStore {
    /// Gives an unusable table another try if it is time for one.
    pub(crate) async fn try_if_due(&self, state: &mut SpaceState, number: u32) -> Result<(), EngineError> {
        let is_due = |unusable: &Arc<Unusable>| unusable.try_again <= Instant::now();
        if state.slot(number).unusable.as_ref().is_some_and(is_due) {
            self.refresh(state, number).await?;
        }
        Ok(())
    }

    /// Files of a table cannot be read while its rows are changed. Perhaps it is not the same table or version any more; otherwise it is
    /// left alone.
    pub(crate) async fn give_up(
        &self,
        state: &mut SpaceState,
        number: u32,
        error: &EngineError,
    ) -> Result<(), EngineError> {
        match self.give_up_reading(state, number, error).await {
            Err(EngineError::Contended(_)) => self.refresh(state, number).await,
            outcome => outcome,
        }
    }

    /// The same while a table is read into the state, which begins anew if it is not the same any more.
    pub(crate) async fn give_up_reading(
        &self,
        state: &mut SpaceState,
        number: u32,
        error: &EngineError,
    ) -> Result<(), EngineError> {
        if !self.is_as_known(state, number).await? {
            return Err(EngineError::Contended(state.slot(number).key.clone()));
        }
        state.set_aside(number, error, Duration::ZERO);
        Ok(())
    }

    /// Whether a table is still the one that is known, at the same version.
    async fn is_as_known(&self, state: &SpaceState, number: u32) -> Result<bool, EngineError> {
        let slot = state.slot(number);
        match self.opened(&slot.path).await {
            Ok(Some(table)) => {
                let id = base_version::id_of(table.snapshot().map_err(EngineError::delta)?);
                Ok(table.version() == slot.version && slot.id.as_ref().is_none_or(|held| *held == id))
            }
            Ok(None) => Ok(false),
            Err(error) if permanent_error::is_lasting(&error) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Gives each unusable table of a space that is in use another try.
    pub(crate) async fn try_unusable(&self, space: &Space) -> Result<(), EngineError> {
        let shared = self.shared(space);
        let mut guard = shared.state.lock().await;
        let Some(state) = guard.as_mut().filter(|state| !state.torn) else { return Ok(()) };
        let numbers: Vec<u32> = state.unusable().collect();
        for number in numbers {
            self.refresh(state, number).await?;
        }
        self.record(state).await
    }

    /// The tables of a space that cannot be used. `None`: nobody knows, as the space is not loaded.
    pub(crate) async fn unusable_tables(&self, space: &Space) -> Option<BTreeSet<TableKey>> {
        let shared = self.shared(space);
        let guard = shared.state.lock().await;
        let state = guard.as_ref().filter(|state| !state.torn)?;
        Some(state.unusable().map(|number| state.slot(number).key.clone()).collect())
    }

    /// It is time to try every unusable table again.
    #[cfg(test)]
    pub(crate) async fn make_due(&self, space: &Space) {
        let shared = self.shared(space);
        let mut guard = shared.state.lock().await;
        for slot in guard.iter_mut().flat_map(|state| &mut state.slots) {
            if let Some(unusable) = slot.unusable.take() {
                slot.unusable = Some(Arc::new(Unusable::new(unusable.reason.clone(), Instant::now())));
            }
        }
    }
}

//! Disabling tables that cannot be used, and trying them again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use lake_shared::identity::TableKey;

use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::space::cell::SpaceCell;
use crate::table_store::delta::space::loader::SpaceLoader;
use crate::table_store::delta::space::state::SpaceState;
use crate::table_store::delta::table_number::TableNumber;

impl SpaceLoader {
    /// Gives an unusable table another try if it is time for one.
    pub(crate) async fn try_if_due(&self, state: &mut SpaceState, number: TableNumber) -> Result<(), EngineError> {
        if state.table(number).unusable().is_some_and(|unusable| unusable.is_due(Instant::now())) {
            self.refresh(state, number).await?;
        }
        Ok(())
    }

    /// Files of a table cannot be read while its rows are changed. If the log has another version by now, that is loaded; otherwise the
    /// table is disabled.
    pub(crate) async fn disable_unless_changed(
        &self,
        state: &mut SpaceState,
        number: TableNumber,
        error: &EngineError,
    ) -> Result<(), EngineError> {
        match self.disable_while_loading(state, number, error).await {
            Err(EngineError::Contended(_)) => self.refresh(state, number).await,
            outcome => outcome,
        }
    }

    /// The same while a table is read into the state.
    ///
    /// # Errors
    /// [`EngineError::Contended`] when the table is not the known version any more: the loading begins anew.
    pub(crate) async fn disable_while_loading(
        &self,
        state: &mut SpaceState,
        number: TableNumber,
        error: &EngineError,
    ) -> Result<(), EngineError> {
        if !self.access().is_unchanged(&state.table(number).known()).await? {
            return Err(EngineError::Contended(state.table(number).key().clone()));
        }
        state.disable(number, error, Duration::ZERO);
        Ok(())
    }

    /// Gives each unusable table of a loaded space another try.
    pub(crate) async fn try_unusable(&self, cell: &SpaceCell) -> Result<(), EngineError> {
        let mut guard = cell.state.lock().await;
        let Some(state) = guard.as_mut().filter(|state| !state.is_poisoned()) else { return Ok(()) };
        let numbers: Vec<TableNumber> = state.unusable().collect();
        for number in numbers {
            self.refresh(state, number).await?;
        }
        self.report_state(state).await
    }
}

/// The tables of a space that cannot be used. `None`: not known, as the space is not loaded.
pub(crate) async fn unusable_tables(cell: &SpaceCell) -> Option<BTreeSet<TableKey>> {
    let guard = cell.state.lock().await;
    let state = guard.as_ref().filter(|state| !state.is_poisoned())?;
    Some(state.unusable().map(|number| state.table(number).key().clone()).collect())
}

/// It is time to try every unusable table again.
#[cfg(test)]
pub(crate) async fn make_due(cell: &SpaceCell) {
    let mut guard = cell.state.lock().await;
    let Some(state) = guard.as_mut() else { return };
    let numbers: Vec<TableNumber> = state.unusable().collect();
    for number in numbers {
        state.make_due(number);
    }
}

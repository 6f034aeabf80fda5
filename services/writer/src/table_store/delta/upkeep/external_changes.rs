//! Noticing commits of other programs to tables without batches, and tables that were dropped or made anew.

use std::sync::Arc;

use deltalake::DeltaTable;
use futures::{StreamExt, stream};
use lake_shared::identity::TableKey;

use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::log::base_version::ProbeResult;
use crate::table_store::delta::permanent_error;
use crate::table_store::delta::space::cell::SpaceCell;
use crate::table_store::delta::space::loader::SpaceLoader;
use crate::table_store::delta::table_number::TableNumber;

/// Tables that one round probes, per space.
const TABLES_A_ROUND: usize = 32;

/// Probes of a round under way at once.
const PROBES_AT_ONCE: usize = 8;

/// Follows what other programs do to tables.
pub(crate) struct ExternalChanges {
    loader: Arc<SpaceLoader>,
}

impl ExternalChanges {
    pub(crate) const fn new(loader: Arc<SpaceLoader>) -> Self {
        Self { loader }
    }

    /// Probes the next tables of a loaded space, and reloads those that another program has committed to or taken away.
    ///
    /// # Errors
    /// The first error of a table; the others have been probed.
    pub(crate) async fn probe(&self, cell: &SpaceCell) -> Result<(), EngineError> {
        let (generation, probes) = {
            let mut guard = cell.state.lock().await;
            let Some(state) = guard.as_mut().filter(|state| !state.is_poisoned()) else { return Ok(()) };
            let numbers = state.next_probed(TABLES_A_ROUND);
            let probe = |number| Ok((number, self.loader.access().probe(&state.table(number).known())?));
            (state.generation(), numbers.into_iter().map(probe).collect::<Result<Vec<_>, EngineError>>()?)
        };
        let probing = probes.into_iter().map(|(number, probe)| async move { (number, probe.run().await) });
        let results: Vec<_> = stream::iter(probing).buffered(PROBES_AT_ONCE).collect().await;
        let mut failure = None;
        for (number, result) in results {
            let noticed = match result {
                Ok(result) => self.notice(cell, generation, number, result).await,
                Err(error) => Err(error),
            };
            failure = failure.or(noticed.err());
        }
        failure.map_or(Ok(()), Err)
    }

    async fn notice(
        &self,
        cell: &SpaceCell,
        generation: u64,
        number: TableNumber,
        result: ProbeResult,
    ) -> Result<(), EngineError> {
        // Let go between two tables: a batch waits for one at most.
        let mut guard = cell.state.lock().await;
        let Some(state) = guard.as_mut().filter(|state| !state.is_poisoned() && state.generation() == generation)
        else {
            return Ok(());
        };
        let table = state.table(number);
        // Commits of this writer since the probe began are known.
        if table.version() != result.version() || table.unusable().is_some() {
            return Ok(());
        }
        if state.probed(number, result) {
            let table = state.table(number);
            tracing::info!(
                table = %table.key(), version = table.version(), "another program has changed the table; reading its log"
            );
            self.loader.refresh(state, number).await?;
            self.loader.report_state(state).await?;
        }
        Ok(())
    }

    /// Brings one table of a loaded space in step with its log; one that cannot be used gets another try.
    ///
    /// # Errors
    /// When the table cannot be loaded for now.
    pub(crate) async fn follow(&self, cell: &SpaceCell, key: &TableKey) -> Result<(), EngineError> {
        let path = {
            let mut guard = cell.state.lock().await;
            let Some(state) = guard.as_mut().filter(|state| !state.is_poisoned()) else { return Ok(()) };
            let Some(number) = state.number_of(&key.document_type) else { return Ok(()) };
            if state.table(number).unusable().is_some() {
                self.loader.refresh(state, number).await?;
                return self.loader.report_state(state).await;
            }
            state.table(number).path().to_owned()
        };
        let loaded = match self.loader.access().latest(&path).await {
            // The reload finds out what is wrong with it.
            Err(error) if permanent_error::is_permanent(&error) => None,
            loaded => loaded?,
        };
        self.compare(cell, key, loaded.as_ref()).await
    }

    /// Compares a version that was loaded for another purpose (`None`: there is no table) with what is known of the table.
    ///
    /// # Errors
    /// When the table says something new and cannot be reloaded for now.
    pub(crate) async fn compare(
        &self,
        cell: &SpaceCell,
        key: &TableKey,
        loaded: Option<&DeltaTable>,
    ) -> Result<(), EngineError> {
        let mut guard = cell.state.lock().await;
        let Some(state) = guard.as_mut().filter(|state| !state.is_poisoned()) else { return Ok(()) };
        let Some(number) = state.number_of(&key.document_type) else { return Ok(()) };
        let table = state.table(number);
        if table.unusable().is_none() && table.known().is_outdated_by(loaded)? {
            self.loader.refresh(state, number).await?;
            self.loader.report_state(state).await?;
        }
        Ok(())
    }
}

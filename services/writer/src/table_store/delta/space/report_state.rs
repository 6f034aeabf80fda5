//! Telling the metastore what commits made of the tables.

use crate::metastore::TableState;
use crate::metric_names;
use crate::table_store::delta::space::state::{Slot, SpaceState};
use crate::table_store::delta::{DeltaTableStore, EngineError};

impl DeltaTableStore {
    /// Tells the metastore what the commits made of their tables, of all of them at once. What it does not hear now it hears with the next
    /// batch. A schema is only said when it is not the one that was said last.
    pub(crate) async fn record(&self, state: &mut SpaceState) -> Result<(), EngineError> {
        let is_due = |slot: &Slot| slot.unrecorded.is_some() && slot.unusable.is_none();
        let unrecorded = state.slots.iter().filter(|slot| is_due(slot));
        let states: Vec<_> = unrecorded.map(|slot| (slot.key.clone(), table_state(slot))).collect();
        if states.is_empty() {
            return Ok(());
        }
        if !self.metastore.record_commits(&states).await.map_err(EngineError::Metastore)? {
            tracing::warn!(space = %state.space, "the metastore does not know a table any more; the space is loaded anew");
            state.torn = true;
        }
        for slot in state.slots.iter_mut().filter(|slot| is_due(slot)) {
            tell(slot);
            slot.unrecorded = None;
            slot.schema_recorded = true;
        }
        Ok(())
    }
}

fn table_state(slot: &Slot) -> TableState {
    let unrecorded = slot.unrecorded.unwrap_or_default();
    TableState {
        version: slot.version.and_then(|version| i64::try_from(version).ok()),
        schema: (!slot.schema_recorded).then(|| slot.schema.to_delta().to_string()),
        rows: slot.rows(),
        files: slot.files.len() as i64,
        bytes: slot.bytes(),
        newest_published_us: unrecorded.newest_published_us,
        newest_fetched_us: unrecorded.newest_fetched_us,
        last_commit_us: None,
    }
}

/// The figures of a table, for whoever watches.
fn tell(slot: &Slot) {
    if let Some(published_us) = slot.unrecorded.and_then(|unrecorded| unrecorded.newest_published_us) {
        metrics::gauge!(metric_names::FRESHNESS_SECONDS, "table" => slot.name.clone()).set(published_us as f64 / 1e6);
    }
    metrics::gauge!(metric_names::TABLE_ROWS, "table" => slot.name.clone()).set(slot.rows() as f64);
    metrics::gauge!(metric_names::TABLE_FILES, "table" => slot.name.clone()).set(slot.files.len() as f64);
    metrics::gauge!(metric_names::TABLE_BYTES, "table" => slot.name.clone()).set(slot.bytes() as f64);
}

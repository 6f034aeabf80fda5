//! Telling the metastore what commits made of the tables, and callers what a table is.

pub(crate) mod measured_tables;

use crate::metastore;
use crate::metric_names;
use crate::table_store::InMemoryTable;
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::data_file::DataFile;
use crate::table_store::delta::space::loader::SpaceLoader;
use crate::table_store::delta::space::state::SpaceState;
use crate::table_store::delta::space::table::TableState;
use crate::table_store::delta::table_number::TableNumber;

impl SpaceLoader {
    /// Tells the metastore what the commits made of their tables, of all of them at once. What it does not hear now it hears with the next
    /// batch. A schema is only said when it is not the one that was said last.
    ///
    /// # Errors
    /// When the metastore fails. Nothing is lost: the next call tells it again.
    pub(crate) async fn report_state(&self, state: &mut SpaceState) -> Result<(), EngineError> {
        let numbers = state.numbered_tables().filter(|(_, table)| is_due(table)).map(|(number, _)| number);
        let numbers: Vec<TableNumber> = numbers.collect();
        if numbers.is_empty() {
            return Ok(());
        }
        let tables = numbers.iter().map(|number| state.table(*number));
        let reports: Vec<_> = tables.map(|table| (table.key().clone(), report(table))).collect();
        if !self.metastore().record_commits(&reports).await.map_err(EngineError::Metastore)? {
            tracing::warn!(
                space = %state.space(), "the metastore does not know a table any more; the space is loaded anew"
            );
            state.poison();
        }
        if reports.iter().any(|(_, report)| report.schema.is_some()) {
            self.changes().tell();
        }
        for number in numbers {
            if self.measured_tables().has(state.table(number).name()) {
                set_metrics(state.table(number));
            }
            state.table_mut(number).set_reported();
        }
        Ok(())
    }
}

fn is_due(table: &TableState) -> bool {
    table.unreported().is_some() && table.unusable().is_none()
}

fn report(table: &TableState) -> metastore::RecordedState {
    let freshness = table.unreported().unwrap_or_default();
    metastore::RecordedState {
        version: table.version().and_then(|version| i64::try_from(version).ok()),
        schema: (!table.is_schema_reported()).then(|| table.schema().to_delta().to_string()),
        rows: table.rows(),
        files: table.files().len() as i64,
        bytes: table.bytes(),
        newest_published_us: freshness.newest_published_us,
        newest_fetched_us: freshness.newest_fetched_us,
        delays: table.recorded_delays(),
        last_commit_us: None,
    }
}

fn set_metrics(table: &TableState) {
    let name = || table.name().to_owned();
    if let Some(published_us) = table.unreported().and_then(|freshness| freshness.newest_published_us) {
        metrics::gauge!(metric_names::FRESHNESS_SECONDS, "table" => name()).set(published_us as f64 / 1e6);
    }
    metrics::gauge!(metric_names::TABLE_ROWS, "table" => name()).set(table.rows() as f64);
    metrics::gauge!(metric_names::TABLE_FILES, "table" => name()).set(table.files().len() as f64);
    metrics::gauge!(metric_names::TABLE_BYTES, "table" => name()).set(table.bytes() as f64);
}

impl TableState {
    /// The table as the port describes it.
    pub(crate) fn describe(&self) -> InMemoryTable {
        let vectors = self.files().filter_map(DataFile::deleted_rows);
        InMemoryTable {
            version: self.version(),
            rows: self.rows().unsigned_abs(),
            rows_hidden: vectors.clone().map(|rows| rows.len()).sum(),
            files: self.files().len() as u64,
            files_with_deletion_vectors: vectors.count() as u64,
            bytes: self.bytes().unsigned_abs(),
            unusable: self.unusable().map(|unusable| unusable.reason().to_owned()),
            not_compacted: None,
        }
    }
}

//! A look at the log of a table, for operators. It changes nothing, so that any writer may take it, also one that stands by.

use std::sync::Arc;

use deltalake::kernel::LogicalFileView;
use futures::{StreamExt, TryStreamExt, stream};

use super::error::EngineError;
use super::log::history;
use super::log::table_access::TableAccess;
use super::options::DeltaOptions;
use crate::table_store::lake_store::LakeStore;

pub use super::log::history::TableVersion;

/// Entries of the log that are read at once.
const ENTRIES_AT_ONCE: usize = 8;

/// A data file of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableFile {
    /// Path in the folder of the table.
    pub path: String,
    /// Bytes, as it is stored.
    pub bytes: u64,
    /// Rows in it, hidden ones included; `None`: the log does not say it.
    pub rows: Option<u64>,
    /// Rows that its deletion vector hides.
    pub rows_hidden: u64,
    /// When it was written, as the log says, milliseconds since 1970.
    pub written_ms: i64,
}

/// Why a table cannot be looked at.
#[derive(Debug, thiserror::Error)]
#[error("the log of the table cannot be read")]
pub struct InspectError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl From<EngineError> for InspectError {
    fn from(error: EngineError) -> Self {
        Self(Box::new(error))
    }
}

/// Looks at tables.
pub struct TableInspector {
    access: TableAccess,
}

impl TableInspector {
    /// One for the tables of a lake.
    pub fn new(lake: Arc<LakeStore>) -> Self {
        Self { access: TableAccess::new(lake, None, &DeltaOptions::default()) }
    }

    /// Versions of a table that its log still has, newest first: those before a version, or the newest ones.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn versions(
        &self,
        path: &str,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<TableVersion>, InspectError> {
        let Some(table) = self.access.latest(path).await? else { return Ok(Vec::new()) };
        let end = table.version().map_or(0, |version| version + 1);
        let end = before.map_or(end, |before| before.min(end));
        let log_store = table.log_store();
        let numbers = (end.saturating_sub(limit as u64)..end).rev();
        let read = numbers.map(|version| {
            let log_store = Arc::clone(&log_store);
            async move {
                let entry = log_store.read_commit_entry(version).await.map_err(EngineError::delta)?;
                Ok::<_, InspectError>(entry.map(|entry| history::version_of(version, &entry)))
            }
        });
        let read: Vec<Option<TableVersion>> = stream::iter(read).buffered(ENTRIES_AT_ONCE).try_collect().await?;
        // Where one has been cleaned up, so have those before it.
        Ok(read.into_iter().map_while(|version| version).collect())
    }

    /// The data files of the latest version of a table by path, and that version: those behind a path. `None`: there is no table.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn files(
        &self,
        path: &str,
        behind: &str,
        limit: usize,
    ) -> Result<Option<(u64, Vec<TableFile>)>, InspectError> {
        let Some(table) = self.access.latest(path).await? else { return Ok(None) };
        let snapshot = table.snapshot().map_err(EngineError::delta)?;
        let mut files: Vec<TableFile> = snapshot
            .log_data()
            .iter()
            .map(|view| TableFile {
                path: view.path().into_owned(),
                bytes: u64::try_from(view.size()).unwrap_or_default(),
                rows: view.num_records().map(|rows| rows as u64),
                rows_hidden: hidden_rows(&view),
                written_ms: view.modification_time(),
            })
            .filter(|file| file.path.as_str() > behind)
            .collect();
        files.sort_by(|one, other| one.path.cmp(&other.path));
        files.truncate(limit);
        Ok(Some((snapshot.version(), files)))
    }
}

fn hidden_rows(view: &LogicalFileView) -> u64 {
    view.deletion_vector_descriptor().map_or(0, |vector| u64::try_from(vector.cardinality).unwrap_or_default())
}

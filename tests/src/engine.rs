//! The engine under test, seen from outside: only the port, on folders that survive it, and the batches that it gets.

mod rows;
mod source;

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lake_shared::escaped_names;
use lake_test_kit::delegating_store::DelegatingStore;
use lake_test_kit::faults::Faults;
pub use lake_test_kit::rows::{Cell, NewRow, record_batch, space, tombstone};
use lake_test_kit::waiting;
use lake_writer::metastore::sqlite::SqliteMetastore;
use lake_writer::metastore::{Metastore, TableRecord};
use lake_writer::table_store::TableStore;
use lake_writer::table_store::delta::DeltaTableStore;
pub use lake_writer::table_store::delta::{DeletionVectors, DeltaOptions};
use lake_writer::table_store::lake_store::{LakeStore, LakeStoreConfig};
use tempfile::TempDir;

pub use self::rows::{batch, write_parquet};
pub use self::source::{Expected, State, Word, space_batch};
use crate::readers::Snapshot;

/// Partition columns that tables may have.
pub const LAYOUTS: [&[&str]; 2] = [&[], &["month", "supervisor_id"]];

/// The option for these partition columns.
pub fn partition_by(columns: &[&str]) -> Vec<String> {
    columns.iter().map(|column| (*column).to_owned()).collect()
}

/// Small limits, so that little data meets all of them.
pub fn small() -> DeltaOptions {
    DeltaOptions {
        retention_hours: 0,
        orphan_hours: 24,
        tombstone_retention_hours: 1,
        columns_max: 24,
        target_file_bytes: bytes(20_000),
        small_file_bytes: 8_000,
        small_files_max: 3,
        deleted_share_max: 0.15,
        overlap_max: 3,
        copy_on_write_below_bytes: 10_000,
        copy_on_write_bytes_per_second: 8 << 20,
        checkpoint_every_commits: 64,
        tiny_file_bytes: 4_000,
        index_entries_in_memory_max: 16,
        tables_open_max: 2,
        ..DeltaOptions::default()
    }
}

/// A size that is not 0.
///
/// # Panics
/// When it is.
pub fn bytes(size: u64) -> NonZeroU64 {
    NonZeroU64::new(size).expect("not 0")
}

/// A lake in temporary folders, which outlives the engines that are opened on it.
#[derive(Debug)]
pub struct EngineLake {
    folder: TempDir,
    /// What the engine keeps beside the lake: the database of the metastore, and derived data.
    own: TempDir,
    /// Tells when a data file is about to be written. Nothing fails.
    faults: Arc<Faults>,
}

impl EngineLake {
    /// An empty lake.
    ///
    /// # Errors
    /// When folders or the metastore cannot be made.
    pub async fn new() -> anyhow::Result<Self> {
        Self::with_prefix("lake-test-").await
    }

    /// An empty lake in a folder whose name begins so.
    ///
    /// # Errors
    /// When folders or the metastore cannot be made.
    pub async fn with_prefix(prefix: &str) -> anyhow::Result<Self> {
        let (folder, own) = (TempDir::with_prefix(prefix)?, TempDir::with_prefix("lake-test-own-")?);
        let lake = Self { folder, own, faults: Arc::default() };
        lake.metastore().migrate().await?;
        Ok(lake)
    }

    /// A file: a call that is dropped half-way takes its connection with it, and a database in memory would go too.
    fn metastore(&self) -> SqliteMetastore {
        SqliteMetastore::file(&self.own.path().join("metastore.sqlite"))
    }

    /// An engine that knows nothing yet but what it finds on disk, as after a start.
    ///
    /// # Errors
    /// When the lake's root cannot be opened.
    pub fn open(&self, options: &DeltaOptions) -> anyhow::Result<DeltaTableStore> {
        self.open_with_index(options, Some(self.own.path().join("index")))
    }

    /// The same with the key index in another folder, or in none: then it is built anew at every start.
    ///
    /// # Errors
    /// When the lake's root cannot be opened.
    pub fn open_with_index(
        &self,
        options: &DeltaOptions,
        index_folder: Option<PathBuf>,
    ) -> anyhow::Result<DeltaTableStore> {
        let root = self.folder.path().display().to_string();
        let store = LakeStore::open(&LakeStoreConfig::of_root(root))?;
        let store = store.wrapped(|inner| DelegatingStore::over(inner, Arc::clone(&self.faults)));
        let options = DeltaOptions { index_folder, ..options.clone() };
        Ok(DeltaTableStore::new(Arc::new(store), Arc::new(self.metastore()), options))
    }

    /// Does something while compaction writes the files that it has chosen, or after it if it writes none.
    pub async fn beside_compaction<T>(&self, store: &DeltaTableStore, work: impl Future<Output = T>) -> T {
        let space = space();
        // Whether compaction succeeds is not what is tested.
        waiting::beside(&self.faults.writing, store.compact(&space), work).await
    }

    /// The folder of a table.
    pub fn table(&self, document_type: &str) -> PathBuf {
        self.folder.path().join(escaped_names::table_path(&lake_test_kit::rows::table(document_type)))
    }

    /// The folder of the whole lake.
    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    /// The registered tables, in the order of their names.
    ///
    /// # Errors
    /// When the metastore cannot be read.
    pub async fn tables(&self) -> anyhow::Result<Vec<TableRecord>> {
        Ok(self.metastore().tables(None).await?)
    }

    /// Leaves the folder on disk, so that a person can look at its tables.
    pub fn keep(self) -> PathBuf {
        self.folder.keep()
    }

    /// A folder for what a test itself writes.
    pub fn scratch(&self) -> &Path {
        self.own.path()
    }

    /// A table as its files are.
    ///
    /// # Errors
    /// When a file is not as the log says.
    pub async fn snapshot(&self, document_type: &str) -> anyhow::Result<Option<Snapshot>> {
        Snapshot::read(&self.table(document_type), None).await
    }
}

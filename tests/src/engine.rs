//! The engine under test, seen from outside: only the port, on folders that survive it, and the batches that it gets.

mod rows;
mod source;

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lake_shared::names;
use lake_test_kit::delegating_store::DelegatingStore;
use lake_test_kit::faults::Faults;
pub use lake_test_kit::rows::{Cell, NewRow, record_batch, space, tombstone};
use lake_test_kit::waiting;
use lake_writer::metastore::Metastore;
use lake_writer::metastore::sqlite::SqliteMetastore;
use lake_writer::table_store::TableStore;
pub use lake_writer::table_store::delta::DeletionVectors;
use lake_writer::table_store::delta::{DeltaOptions, DeltaTableStore};
use lake_writer::table_store::lake_store::{LakeStore, LakeStoreConfig};
use rand::RngExt;
use rand::rngs::StdRng;
use tempfile::TempDir;

pub use self::rows::{batch, write_parquet};
pub use self::source::{Expected, State, Word, space_batch};
use crate::readers::Snapshot;

/// How an engine is set up in a test: what every test may choose, whatever the engine calls it.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Partition columns of tables made under it; empty for none. Fixed for the life of a lake.
    pub partition_by: &'static [&'static str],
    /// May change whenever the engine is opened again.
    pub deletion_vectors: DeletionVectors,
    /// How long superseded files stay.
    pub retention_hours: u64,
    /// How long files stay that no log speaks of.
    pub orphan_hours: u64,
    /// Most columns of a table.
    pub columns_max: usize,
    /// Bytes at which a data file is closed.
    pub target_file_bytes: u64,
    /// Bytes below which a data file is small.
    pub small_file_bytes: u64,
    /// Small files that a table may have.
    pub small_files_max: usize,
    /// Share of hidden rows above which a file is rewritten.
    pub deleted_share_max: f64,
    /// Files with the same place in the order of a table before they are sorted into each other.
    pub overlap_max: usize,
    /// Bytes below which a table is rewritten instead of getting deletion vectors, when that is `Auto`.
    pub copy_on_write_below_bytes: u64,
    /// Bytes a second that are rewritten for that.
    pub copy_on_write_bytes_per_second: u64,
    /// Commits between checkpoints of the log.
    pub checkpoint_every_commits: u64,
    /// Files up to this size are folded by upserts.
    pub tiny_file_bytes: u64,
    /// Entries of the key index in memory.
    pub index_entries_in_memory_max: usize,
    /// Whether the key index survives the engine; otherwise it is built anew at every start.
    pub index_kept: bool,
    /// Tables whose handles stay open.
    pub tables_open_max: usize,
}

impl Setting {
    /// The layouts that tables may have.
    pub const LAYOUTS: [&'static [&'static str]; 2] = [&[], &["month", "supervisor_id"]];

    /// Small limits, so that little data meets all of them.
    pub fn small() -> Self {
        Self {
            partition_by: &[],
            deletion_vectors: DeletionVectors::Auto,
            retention_hours: 0,
            orphan_hours: 24,
            columns_max: 24,
            target_file_bytes: 20_000,
            small_file_bytes: 8_000,
            small_files_max: 3,
            deleted_share_max: 0.15,
            overlap_max: 3,
            copy_on_write_below_bytes: 10_000,
            copy_on_write_bytes_per_second: 8 << 20,
            checkpoint_every_commits: 64,
            tiny_file_bytes: 4_000,
            index_entries_in_memory_max: 16,
            index_kept: true,
            tables_open_max: 2,
        }
    }

    /// Draws everything that may be another one each time the engine is opened; the layout and the retention stay.
    pub fn redraw(&mut self, random: &mut StdRng) {
        use DeletionVectors::{Auto, Off, On};
        self.deletion_vectors = [Auto, On, On, Off][random.random_range(0..4)];
        self.orphan_hours = [1, 2, 24][random.random_range(0..3)];
        self.target_file_bytes = [4_000, 20_000, 1 << 20][random.random_range(0..3)];
        self.small_file_bytes = [0, 2_000, 8_000][random.random_range(0..3)];
        self.small_files_max = random.random_range(1..6);
        self.deleted_share_max = [0.0, 0.15, 0.6, 1.0][random.random_range(0..4)];
        self.overlap_max = random.random_range(1..6);
        self.copy_on_write_below_bytes = [0, 5_000, 1 << 20][random.random_range(0..3)];
        self.copy_on_write_bytes_per_second = [0, 2_000, 8 << 20][random.random_range(0..3)];
        self.checkpoint_every_commits = random.random_range(1..6);
        self.tiny_file_bytes = [0, 4_000, 64 << 10][random.random_range(0..3)];
        self.index_entries_in_memory_max = [1, 16, 500_000][random.random_range(0..3)];
        self.index_kept = random.random_range(0..8) > 0;
        self.tables_open_max = random.random_range(1..5);
        // Often compaction finds something to do, and batches mark the files that it is about.
        if random.random_range(0..2) == 0 {
            self.deletion_vectors = On;
            (self.tiny_file_bytes, self.small_file_bytes, self.target_file_bytes) = (0, 64 << 10, 1 << 20);
            self.small_files_max = random.random_range(1..3);
            self.deleted_share_max = [0.0, 0.15][random.random_range(0..2)];
        }
    }

    /// The engine's own options, with the key index in this folder. The one place where a setting becomes them; a new option of the engine is
    /// filled in here.
    pub fn options(&self, index_folder: &Path) -> DeltaOptions {
        DeltaOptions {
            columns_max: self.columns_max,
            target_file_bytes: NonZeroU64::new(self.target_file_bytes).unwrap_or(NonZeroU64::MIN),
            small_file_bytes: self.small_file_bytes,
            small_files_max: self.small_files_max,
            deleted_share_max: self.deleted_share_max,
            overlap_max: self.overlap_max,
            deletion_vectors: self.deletion_vectors,
            copy_on_write_below_bytes: self.copy_on_write_below_bytes,
            copy_on_write_bytes_per_second: self.copy_on_write_bytes_per_second,
            checkpoint_every_commits: self.checkpoint_every_commits,
            tiny_file_bytes: self.tiny_file_bytes,
            partition_by: self.partition_by.iter().map(|column| (*column).to_owned()).collect(),
            index_folder: self.index_kept.then(|| index_folder.to_owned()),
            index_entries_in_memory_max: self.index_entries_in_memory_max,
            tables_open_max: self.tables_open_max,
            retention_hours: self.retention_hours,
            orphan_hours: self.orphan_hours,
            tombstone_retention_hours: 1,
            ..DeltaOptions::default()
        }
    }
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
    pub fn open(&self, setting: &Setting) -> anyhow::Result<DeltaTableStore> {
        let root = self.folder.path().display().to_string();
        let store = LakeStore::open(&LakeStoreConfig { root, sync: true, s3: None })?;
        let store = store.wrapped(|inner| DelegatingStore::over(inner, Arc::clone(&self.faults)));
        Ok(DeltaTableStore::new(
            Arc::new(store),
            Arc::new(self.metastore()),
            setting.options(&self.own.path().join("index")),
        ))
    }

    /// Does something while compaction writes the files that it has chosen, or after it if it writes none.
    pub async fn beside_compaction<T>(&self, store: &DeltaTableStore, work: impl Future<Output = T>) -> T {
        let space = space();
        // Whether compaction succeeds is not what is tested.
        waiting::beside(&self.faults.writing, store.compact(&space), work).await
    }

    /// The folder of a table.
    pub fn table(&self, document_type: &str) -> PathBuf {
        self.folder.path().join(names::table_path(&lake_test_kit::rows::table(document_type)))
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

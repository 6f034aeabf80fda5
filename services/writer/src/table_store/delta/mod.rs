//! The engine on Delta Lake tables: upserts and deletions by key whose cost follows the change, not the table.
//!
//! The key index of a space ([`crate::key_index`]) says where the row of each id stands. A batch becomes, for each table, one file of
//! new rows, one file of deletion vectors for the rows they replace, and one commit ([`change`]); small tables are rewritten
//! instead and stay free of deletion vectors. Tables between which no rows move are committed beside each other ([`plan`], [`apart`]).
//! Compaction ([`compact`]) runs beside it.
//!
//! Order of durability, each step before the next: tombstones in the metastore, data files and deletion vectors, the commit (a put
//! that fails when the version exists), the index in memory, the metastore's record of the table, the answer. A crash between
//! any two steps is repaired by applying the batch again: what is done already is recognised and left alone. The index is
//! derived data: its checkpoints say which files it stands for, what came after is read from the tables ([`stamp`], [`load`]).
//!
//! One space is changed by one call at a time. Commits of anybody else are noticed by their version: the files of the table are compared
//! with those that the index knows, and the batch is planned again ([`strangers`]). A table that they made unusable is left alone, the
//! others of its space go on ([`unusable`]).

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use chrono::Utc;
use deltalake::{DeltaTable, DeltaTableError};
use lake_shared::identity::{Space, TableKey};
use tokio::sync::Mutex;

use self::compact::yield_to_batches::Batches;
use self::files::write_memory_budget::WriterMemory;
use self::log::checkpoints::LogCheckpoints;
use self::log::open_tables::Handles;
use self::space::eviction::Residence;
use self::space::index::folder::IndexFolder;
use self::space::state::SpaceState;
use self::upsert::apply::Progress;
use self::upsert::rewrite_budget::CopyBudget;
use super::lake_store::{LakeStore, LakeStoreError};
use super::{Applied, Compacted, Maintained, SpaceBatch, StoreError, TableStore};
use crate::key_index::{IndexError, IndexOptions};
use crate::metastore::{Metastore, MetastoreError};

pub use self::options::{DeletionVectors, DeltaOptions, NamedTableOptions, TableOptions};
pub use self::upkeep::startup_check::PresenceError;

mod compact;
mod files;
mod log;
mod options;
mod permanent_error;
mod space;
#[cfg(test)]
mod tests;
mod upkeep;
mod upsert;

/// How often a batch is planned again after commits of somebody else.
const PLANS_MAX: usize = 5;

/// What goes wrong inside the engine.
#[derive(Debug, thiserror::Error)]
enum EngineError {
    #[error("{0}")]
    BadRows(String),
    #[error("table {table} cannot be used: {reason}")]
    Unusable { table: TableKey, reason: String },
    /// Lasting trouble with the files of a table, met while something else was done.
    #[error("files of a table cannot be used")]
    Broken { number: u32, source: Box<EngineError> },
    #[error("the table is not as the lake writes it: {0}")]
    Corrupt(String),
    /// Its protocol asks for what the engine does not do. Trying again is of no use before somebody has changed the table.
    #[error("{0}")]
    Unwritable(String),
    #[error("table log or data file cannot be read or written")]
    Delta(#[source] Box<DeltaTableError>),
    /// Whatever the store answers to a put, it says nothing about what the table holds.
    #[error("a file cannot be written")]
    Unwritten(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("data file cannot be read")]
    File(#[source] parquet::errors::ParquetError),
    #[error("rows cannot be rearranged")]
    Arrow(#[source] arrow::error::ArrowError),
    #[error("metadata of a table cannot be understood")]
    Json(#[source] serde_json::Error),
    #[error("object store cannot be read or written")]
    Store(#[source] object_store::Error),
    #[error("lake root cannot be used")]
    Lake(#[source] LakeStoreError),
    #[error("metastore failed")]
    Metastore(#[source] MetastoreError),
    #[error("files cannot be merged")]
    Merge(#[source] crate::compaction::MergeError),
    #[error("key index failed")]
    Index(#[source] IndexError),
    #[error("a task of the engine was interrupted")]
    Interrupted(#[source] tokio::task::JoinError),
    #[error("somebody else commits to table {0} all the time; is a second writer running?")]
    Contended(TableKey),
}

impl EngineError {
    fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt(what.into())
    }
    fn delta(error: DeltaTableError) -> Self {
        Self::Delta(Box::new(error))
    }
    fn unwritten(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Unwritten(error.into())
    }
    fn read_file(error: parquet::errors::ParquetError) -> Self {
        Self::File(error)
    }
    fn arrow(error: arrow::error::ArrowError) -> Self {
        Self::Arrow(error)
    }
    fn json(error: serde_json::Error) -> Self {
        Self::Json(error)
    }
    fn interrupted(error: tokio::task::JoinError) -> Self {
        Self::Interrupted(error)
    }
    /// Whether the index on disk cannot be used any more.
    fn is_index_lost(&self) -> bool {
        let Self::Index(error) = self else { return false };
        // A file with too many rows would be refused by the next index as well.
        !matches!(error, IndexError::Io { .. } | IndexError::Locked { .. } | IndexError::RowTooLarge { .. })
    }
}

/// One space, shared by whoever works on it.
#[derive(Default)]
struct SpaceCell {
    /// Held for a batch.
    state: Mutex<Option<SpaceState>>,
    /// Held for a round of compaction.
    compacting: Mutex<()>,
    /// Whether the index is being saved.
    saving: AtomicBool,
    /// Number of the newest data file when the index was last saved.
    saved: AtomicU32,
    /// Since a merge of runs failed.
    merge_rests: Rest,
    residence: Residence,
}

/// A time in which something is not tried.
#[derive(Default)]
struct Rest(StdMutex<Option<Instant>>);

impl Rest {
    fn begin(&self, time: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + time);
    }

    fn is_over(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_none_or(|until| until <= Instant::now())
    }
}

type SharedSpace = Arc<SpaceCell>;

/// The engine.
pub struct DeltaTableStore {
    lake: Arc<LakeStore>,
    metastore: Arc<dyn Metastore>,
    options: DeltaOptions,
    handles: Arc<Handles>,
    log_checkpoints: Arc<LogCheckpoints>,
    spaces: StdMutex<HashMap<Space, SharedSpace>>,
    index_folder: IndexFolder,
    index_options: IndexOptions,
    copy_budget: CopyBudget,
    writer_memory: WriterMemory,
    batches: Batches,
    /// Counts uses of spaces.
    uses: AtomicU64,
    /// Spaces whose index was found damaged.
    lost_indexes: Arc<StdMutex<HashSet<Space>>>,
}

impl DeltaTableStore {
    /// An engine on a lake; spaces are loaded when they are first used. Run [`LakeStore::probe`] before.
    pub fn new(lake: Arc<LakeStore>, metastore: Arc<dyn Metastore>, options: DeltaOptions) -> Self {
        let handles = Arc::new(Handles::new(options.tables_open_max, options.files_open_max));
        let index_folder = IndexFolder::new(options.index_folder.clone());
        let index_options = IndexOptions {
            entries_in_memory_max: options.index_entries_in_memory_max.max(1),
            ..IndexOptions::default()
        };
        let log_checkpoints = Arc::new(LogCheckpoints::new(options.checkpoint_every_commits));
        let copy_budget = CopyBudget::new(options.copy_on_write_bytes_per_second);
        let (spaces, lost_indexes, writer_memory, batches, uses) = Default::default();
        Self {
            lake,
            metastore,
            options,
            handles,
            log_checkpoints,
            spaces,
            index_folder,
            index_options,
            copy_budget,
            writer_memory,
            batches,
            uses,
            lost_indexes,
        }
    }

    /// Forgets what is held in memory about a space; to be called when its ownership is lost. The next use loads it anew.
    pub async fn forget(&self, space: &Space) {
        let shared = self.shared(space);
        *shared.state.lock().await = None;
    }

    /// Makes the indexes of all spaces durable, so that the next start finds them up to date. Without it the next start reads what
    /// came since the last checkpoint.
    pub async fn close(&self) {
        let spaces: Vec<SharedSpace> = self.locked_spaces().values().cloned().collect();
        for shared in spaces {
            if let Some(state) = shared.state.lock().await.take().filter(|state| !state.torn)
                && let Err(error) = self.checkpoint_index(&state).await
            {
                tracing::warn!(space = %state.space, %error, "key index could not be saved; the next start catches up");
            }
        }
    }

    fn locked_spaces(&self) -> std::sync::MutexGuard<'_, HashMap<Space, SharedSpace>> {
        self.spaces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shared(&self, space: &Space) -> SharedSpace {
        Arc::clone(self.locked_spaces().entry(space.clone()).or_default())
    }

    fn lost_indexes(&self) -> std::sync::MutexGuard<'_, HashSet<Space>> {
        self.lost_indexes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers that the index of a space must be built anew, if that is what an error means.
    fn note_lost_index(&self, space: &Space, error: &EngineError) {
        if error.is_index_lost() {
            tracing::warn!(%space, %error, "the key index is damaged; it is built anew");
            self.lost_indexes().insert(space.clone());
        }
    }

    /// A handle that has loaded nothing yet.
    fn closed(&self, path: &str) -> Result<DeltaTable, EngineError> {
        Ok(DeltaTable::new(self.lake.log_store(path).map_err(EngineError::Lake)?))
    }
}

#[async_trait]
impl TableStore for DeltaTableStore {
    async fn apply(&self, batch: SpaceBatch) -> Result<Applied, StoreError> {
        let shared = self.shared(&batch.space);
        let under_way = self.batches.begin();
        let mut guard = shared.state.lock().await;
        let mut progress = Progress::default();
        let outcome = self.apply_to(&mut guard, &batch, &mut progress).await;
        self.note_use(&shared, guard.as_ref());
        drop((guard, under_way));
        self.make_room().await;
        outcome.map_err(|error| {
            self.note_lost_index(&batch.space, &error);
            store_error(&batch.space, "applying a batch", error)
        })
    }

    async fn compact(&self, space: &Space) -> Result<Compacted, StoreError> {
        let outcome = self.compaction_round(space).await;
        outcome.map_err(|error| {
            self.note_lost_index(space, &error);
            store_error(space, "compaction", error)
        })
    }

    async fn maintain(&self, space: &Space) -> Result<Maintained, StoreError> {
        self.load_for_maintenance(space).await;
        let tried = self.try_unusable(space).await;
        let compacted = self.compact(space).await;
        let cleaned = self.clean_space(space).await;
        self.make_room().await;
        let outcome = tried.and(cleaned);
        let (compacted, maintained) = (compacted?, outcome.map_err(|error| store_error(space, "maintenance", error))?);
        Ok(Maintained { files_compacted: compacted.files_before, held_up_max: compacted.held_up_max, ..maintained })
    }

    async fn close(&self) {
        Self::close(self).await;
    }

    fn spaces_in_use(&self) -> Vec<Space> {
        self.locked_spaces().keys().cloned().collect()
    }
}

fn store_error(space: &Space, action: &'static str, error: EngineError) -> StoreError {
    match error {
        EngineError::BadRows(reason) => StoreError::BadRows { space: space.clone(), reason },
        EngineError::Unusable { table, reason } => StoreError::UnusableTable { table, reason },
        other => StoreError::Unavailable { space: space.clone(), action, source: Box::new(other) },
    }
}

/// Now, in microseconds since 1970.
fn now_us() -> i64 {
    Utc::now().timestamp_micros()
}

//! The engine on Delta Lake tables, copy-on-write.
//!
//! Order of durability, each step before the next: tombstones in the metastore, data files, the commit (a put that fails when the
//! version exists), the index in memory, the metastore's record of the table, the answer. A crash between any two steps is
//! repaired by applying the batch again: what is done already is recognised and left alone.
//!
//! One space is changed by one call at a time. Commits of anybody else are noticed by their version: the part of the index they
//! concern is loaded anew and the batch is planned again.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use chrono::Utc;
use deltalake::{DeltaTable, DeltaTableError};
use lake_shared::identity::{Space, TableKey};
use lake_shared::names;
use serde::Deserialize;
use tokio::sync::Mutex;

use self::apply::Progress;
use self::handles::Handles;
use self::space::SpaceState;
use super::lake_store::{LakeStore, LakeStoreError};
use super::schema_plan::COLUMNS_MAX;
use super::{Applied, Maintained, SpaceBatch, StoreError, TableStore};
use crate::metastore::{Metastore, MetastoreError};

mod apply;
mod arriving;
mod batch;
mod change;
mod commit;
mod files;
mod handles;
mod maintenance;
mod space;
#[cfg(test)]
mod tests;

/// Limits of the engine; section `[tables]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeltaOptions {
    /// Most columns of a table; text beyond them goes into the overflow column.
    pub columns_max: usize,
    /// Size at which a data file is closed and the next begins, bytes.
    pub target_file_bytes: NonZeroU64,
    /// A file below this size is small, bytes.
    pub small_file_bytes: u64,
    /// More small files than this in a table are folded into one.
    pub small_files_max: usize,
    /// Most tables whose handles stay open.
    pub tables_open_max: usize,
    /// How long superseded data files stay for running readers and time travel, hours.
    pub retention_hours: u64,
    /// How long deletions are remembered, so that a late row does not bring an id back, hours.
    pub tombstone_retention_hours: u64,
}

impl Default for DeltaOptions {
    /// 2,000 columns, files of 128 MiB, small below 8 MiB, 8 small files, 200 open tables, 7 days, 30 days.
    fn default() -> Self {
        Self {
            columns_max: COLUMNS_MAX,
            target_file_bytes: NonZeroU64::MIN.saturating_add((128 << 20) - 1),
            small_file_bytes: 8 << 20,
            small_files_max: 8,
            tables_open_max: 200,
            retention_hours: 7 * 24,
            tombstone_retention_hours: 30 * 24,
        }
    }
}

/// How often a batch is planned again after commits of somebody else.
const PLANS_MAX: usize = 5;

/// What goes wrong inside the engine.
#[derive(Debug, thiserror::Error)]
enum EngineError {
    #[error("{0}")]
    BadRows(String),
    #[error("the table is not as the lake writes it: {0}")]
    Corrupt(String),
    #[error("table log or data file cannot be read or written")]
    Delta(#[source] Box<DeltaTableError>),
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
    fn read_file(error: parquet::errors::ParquetError) -> Self {
        Self::File(error)
    }
    fn arrow(error: arrow::error::ArrowError) -> Self {
        Self::Arrow(error)
    }
    fn json(error: serde_json::Error) -> Self {
        Self::Json(error)
    }
}

type SharedSpace = Arc<Mutex<Option<SpaceState>>>;

/// The engine.
pub struct DeltaTableStore {
    lake: Arc<LakeStore>,
    metastore: Arc<dyn Metastore>,
    options: DeltaOptions,
    handles: Handles,
    spaces: StdMutex<HashMap<Space, SharedSpace>>,
}

impl DeltaTableStore {
    /// An engine on a lake; spaces are loaded when they are first used. Run [`LakeStore::probe`] before.
    pub fn new(lake: Arc<LakeStore>, metastore: Arc<dyn Metastore>, options: DeltaOptions) -> Self {
        let handles = Handles::new(options.tables_open_max);
        Self { lake, metastore, options, handles, spaces: StdMutex::default() }
    }

    /// Forgets what is held in memory about a space; to be called when its ownership is lost. The next use loads it anew.
    pub async fn forget(&self, space: &Space) {
        let shared = self.shared(space);
        *shared.lock().await = None;
    }

    fn shared(&self, space: &Space) -> SharedSpace {
        let mut spaces = self.spaces.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(spaces.entry(space.clone()).or_default())
    }

    /// Loads a space: every table that the metastore knows, every key, every tombstone.
    async fn load_space(&self, space: &Space) -> Result<SpaceState, EngineError> {
        let began = Instant::now();
        let mut state = SpaceState::new(space.clone());
        for record in self.metastore.tables(Some(space)).await.map_err(EngineError::Metastore)? {
            let number = state.add_slot(record);
            self.refresh(&mut state, number).await?;
        }
        let tombstones = self.metastore.tombstones(space).await.map_err(EngineError::Metastore)?;
        state.tombstones = tombstones.into_iter().map(|tombstone| (tombstone.id_hash, tombstone.order)).collect();
        let outlived = state.settle_tombstones();
        self.metastore.forget_tombstones(space, &outlived).await.map_err(EngineError::Metastore)?;
        let (tables, keys) = (state.slots.len(), state.index.len());
        let milliseconds = lake_shared::retry::milliseconds(began.elapsed());
        tracing::info!(%space, tables, keys, tombstones = state.tombstones.len(), milliseconds, "space loaded");
        metrics::gauge!(crate::telemetry::INDEX_KEYS).increment(keys as f64);
        Ok(state)
    }

    /// Brings a table's part of the state to the latest version in its log.
    async fn refresh(&self, state: &mut SpaceState, number: u32) -> Result<(), EngineError> {
        let slot = state.slot(number);
        let key = slot.key.clone();
        drop(self.handles.take(&key));
        let mut table = self.closed(&slot.path)?;
        if commit::load(&mut table).await? {
            state.refresh(number, &table).await?;
            self.handles.put(key, table);
        }
        Ok(())
    }

    /// A handle that has loaded nothing yet.
    fn closed(&self, path: &str) -> Result<DeltaTable, EngineError> {
        Ok(DeltaTable::new(self.lake.log_store(path).map_err(EngineError::Lake)?))
    }

    /// The number of a table, registering it when it is new. Registered before its first commit, so that no table with rows is
    /// ever unknown to the metastore; a registered table without a log harms nobody.
    async fn slot_of(&self, state: &mut SpaceState, key: &TableKey) -> Result<u32, EngineError> {
        if let Some(number) = state.by_type.get(&key.document_type) {
            return Ok(*number);
        }
        let path = names::table_path(key);
        let location = self.lake.location(&path);
        let record = self.metastore.register_table(key, &path, &location).await.map_err(EngineError::Metastore)?;
        let number = state.add_slot(record);
        self.refresh(state, number).await?;
        Ok(number)
    }
}

#[async_trait]
impl TableStore for DeltaTableStore {
    async fn apply(&self, batch: SpaceBatch) -> Result<Applied, StoreError> {
        let shared = self.shared(&batch.space);
        let mut guard = shared.lock().await;
        let mut progress = Progress::default();
        let outcome = self.apply_to(&mut guard, &batch, &mut progress).await;
        outcome.map_err(|error| store_error(&batch.space, "applying a batch", error))
    }

    async fn maintain(&self, space: &Space) -> Result<Maintained, StoreError> {
        let shared = self.shared(space);
        let mut guard = shared.lock().await;
        let outcome = self.maintain_space(&mut guard, space).await;
        outcome.map_err(|error| store_error(space, "maintenance", error))
    }
}

fn store_error(space: &Space, action: &'static str, error: EngineError) -> StoreError {
    match error {
        EngineError::BadRows(reason) => StoreError::BadRows { space: space.clone(), reason },
        other => StoreError::Unavailable { space: space.clone(), action, source: Box::new(other) },
    }
}

/// Now, in microseconds since 1970.
fn now_us() -> i64 {
    Utc::now().timestamp_micros()
}

//! Loading a space: the checkpoint of its key index, what happened to its tables since, what is not in the index yet.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use deltalake::DeltaTable;
use futures::{StreamExt, TryStreamExt, stream};
use lake_shared::identity::{Space, TableKey};
use lake_shared::names;

use super::file_writer::FileNumbers;
use super::keys::KeysToRead;
use super::live_files::WithStrays;
use super::space::{Found, SpaceState};
use super::stamp::{Stamp, StampedFile};
use super::{DeltaTableStore, EngineError, commit};
use crate::key_index::{IdHash, IndexError, KeyIndex};
use crate::metastore::TableRecord;

/// Logs opened at once.
const LOGS_AT_ONCE: usize = 8;

/// How long to wait for the index of a space, which a task of an abandoned call may still hold.
const INDEX_WAITS: u32 = 100;

/// New data files between two checkpoints of an index.
const FILES_BETWEEN_CHECKPOINTS: u32 = 500;

/// The index begins anew when so many files have been numbered.
pub(super) const NUMBERS_MAX: u32 = u32::MAX / 4 * 3;

type FilesByTable = HashMap<String, HashMap<String, StampedFile>>;

impl DeltaTableStore {
    /// Loads a space: every table that the metastore knows, every key, every tombstone.
    pub(super) async fn load_space(&self, space: &Space) -> Result<SpaceState, EngineError> {
        let began = Instant::now();
        let (index, stamp) = self.open_index(space).await?;
        let is_new = stamp.is_none();
        let mut stamp = stamp.unwrap_or_default();
        let mut state = SpaceState::new(space.clone(), index, FileNumbers::after(stamp.last_number));
        // Numbers of an index that was lost mean nothing to this one.
        self.shared(space).saved.store(state.numbers.last(), Ordering::Relaxed);
        let mut known: FilesByTable = stamp.files();
        let records = self.metastore.tables(Some(space)).await.map_err(EngineError::Metastore)?;
        let mut tables = stream::iter(records.into_iter().map(|record| self.opened(record))).buffered(LOGS_AT_ONCE);
        let mut to_read = KeysToRead::default();
        while let Some((record, table)) = tables.try_next().await? {
            let known = known.remove(&record.path).unwrap_or_default();
            let number = state.add_slot(record);
            let Some(table) = table else { continue };
            let unread = state.follow(number, &table, known).await?;
            to_read.add(&state, number, table.object_store(), unread);
            self.handles.put(state.slot(number).key.clone(), table);
        }
        drop(tables);
        for stray in stamp.strays() {
            state.live_mut().condemn(stray);
        }
        let (files, rows) = (to_read.files(), to_read.rows());
        self.read_keys(&mut state, to_read, is_new).await?;
        self.load_tombstones(&mut state).await?;
        let (tables, keys) = (state.slots.len(), state.index.entries());
        let milliseconds = lake_shared::retry::milliseconds(began.elapsed());
        let tombstones = state.tombstones.len();
        tracing::info!(
            %space, tables, keys, tombstones, files_read = files, rows_read = rows, index_is_new = is_new, milliseconds,
            "space loaded"
        );
        metrics::gauge!(crate::telemetry::INDEX_KEYS).increment(keys as f64);
        if is_new && rows > 0 {
            self.checkpoint_index(&state).await?;
            self.shared(space).saved.store(state.numbers.last(), Ordering::Relaxed);
        }
        Ok(state)
    }

    async fn opened(&self, record: TableRecord) -> Result<(TableRecord, Option<DeltaTable>), EngineError> {
        let mut table = self.closed(&record.path)?;
        let exists = commit::load(&mut table).await?;
        Ok((record, exists.then_some(table)))
    }

    /// Opens the index of a space, or begins a new one when there is none that can be trusted.
    async fn open_index(&self, space: &Space) -> Result<(KeyIndex, Option<Stamp>), EngineError> {
        let folder: PathBuf = self.index_folder.path().join(names::space_path(space));
        let options = self.index_options;
        let mut waits = 0;
        let is_lost = self.lost_indexes().remove(space);
        loop {
            let folder = folder.clone();
            let opening = tokio::task::spawn_blocking(move || {
                if !is_lost && let Some((index, stamp)) = KeyIndex::open(&folder, options)? {
                    // Numbers of files must never come round again: near their end the index begins anew.
                    if let Some(stamp) = Stamp::of_bytes(&stamp).filter(|stamp| stamp.last_number < NUMBERS_MAX) {
                        return Ok((index, Some(stamp)));
                    }
                    drop(index);
                }
                Ok((KeyIndex::create(&folder, options)?, None))
            });
            match opening.await.map_err(EngineError::interrupted)? {
                Err(IndexError::Locked { .. }) if waits < INDEX_WAITS => {
                    waits += 1;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                opened => return opened.map_err(EngineError::Index),
            }
        }
    }

    /// Makes what the index holds in memory durable, together with what it stands for.
    pub(super) async fn checkpoint_index(&self, state: &SpaceState) -> Result<(), EngineError> {
        let (index, stamp) = (state.index.clone(), Stamp::of(state));
        let writing = tokio::task::spawn_blocking(move || index.checkpoint(&stamp.to_bytes()));
        writing.await.map_err(EngineError::interrupted)?.map_err(EngineError::Index)
    }

    /// Merges runs of the index, and saves it from time to time, beside what else happens.
    pub(super) fn tend_index(&self, state: &SpaceState) {
        if let Some(job) = state.index.merge_due() {
            let (index, live) = (state.index.clone(), WithStrays(Arc::clone(&state.live)));
            let space = state.space.clone();
            tokio::task::spawn_blocking(move || match job.run(&live) {
                Ok(merged) => {
                    index.install(merged);
                }
                Err(error) => tracing::warn!(%space, %error, "runs of the key index could not be merged"),
            });
        }
        let shared = self.shared(&state.space);
        let unsaved = state.numbers.last().saturating_sub(shared.saved.load(Ordering::Relaxed));
        if unsaved < FILES_BETWEEN_CHECKPOINTS || shared.saving.swap(true, Ordering::AcqRel) {
            return;
        }
        shared.saved.store(state.numbers.last(), Ordering::Relaxed);
        let (index, stamp, space) = (state.index.clone(), Stamp::of(state), state.space.clone());
        // What is put from now on must not replace what the stamp stands for.
        index.seal();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = index.checkpoint(&stamp.to_bytes()) {
                tracing::warn!(%space, %error, "key index could not be saved; it is tried again later");
            }
            shared.saving.store(false, Ordering::Release);
        });
    }

    /// Puts a handle back after a commit, and has a checkpoint made from time to time, beside what else happens.
    pub(super) fn keep(&self, key: &TableKey, version: u64, table: Option<Box<DeltaTable>>) {
        let Some(table) = table else { return };
        self.log_checkpoints.committed(key, version, &table, &self.handles);
        self.handles.put(key.clone(), *table);
    }

    /// Loads the tombstones and settles them with the rows that are there. A tombstone that a row has outlived is forgotten; a row
    /// whose tombstone was remembered just before a crash must leave.
    async fn load_tombstones(&self, state: &mut SpaceState) -> Result<(), EngineError> {
        let tombstones = self.metastore.tombstones(&state.space).await.map_err(EngineError::Metastore)?;
        state.tombstones = tombstones.into_iter().map(|tombstone| (tombstone.id_hash, tombstone.order)).collect();
        let mut found = state.find(state.tombstones.keys().copied().collect()).await?;
        let questions = found.iter().filter_map(|(id, row)| {
            let tombstone = state.tombstones.get(id)?;
            tombstone.asks_observation(row.order.version_us).then_some((*id, tombstone.observed_us))
        });
        let questions: Vec<(IdHash, i64)> = questions.collect();
        self.observe(state, &mut found, &questions).await?;
        let mut outlived = Vec::new();
        for (id, Found { position, order, .. }) in found {
            if state.tombstones.get(&id).is_some_and(|tombstone| tombstone.beats_row(order)) {
                state.live_mut().condemn(position);
            } else {
                state.tombstones.remove(&id);
                outlived.push(id);
            }
        }
        self.metastore.forget_tombstones(&state.space, &outlived).await.map_err(EngineError::Metastore)
    }

    /// Brings a table's part of the state to the latest version in its log.
    pub(super) async fn refresh(&self, state: &mut SpaceState, number: u32) -> Result<(), EngineError> {
        state.torn = true;
        let slot = state.slot(number);
        let key = slot.key.clone();
        drop(self.handles.take(&key));
        let mut table = self.closed(&slot.path)?;
        if commit::load(&mut table).await? {
            let unread = state.follow(number, &table, HashMap::new()).await?;
            let mut to_read = KeysToRead::default();
            to_read.add(state, number, table.object_store(), unread);
            self.read_keys(state, to_read, false).await?;
            self.handles.put(key, table);
        } else {
            state.forget_table(number);
        }
        state.torn = false;
        Ok(())
    }
}

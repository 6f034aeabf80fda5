//! Loading a space: the checkpoint of its key index, what happened to its tables since, what is not in the index yet.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use deltalake::DeltaTable;
use futures::{StreamExt, stream};
use lake_shared::identity::{Space, TableKey};
use lake_shared::names;

use crate::key_index::{IndexError, KeyIndex};
use crate::metastore::TableRecord;
use crate::metric_names;
use crate::table_store::delta::files::file_writer::FileNumbers;
use crate::table_store::delta::log::commit;
use crate::table_store::delta::permanent_error;
use crate::table_store::delta::space::index::read_keys::{KeysRead, KeysToRead};
use crate::table_store::delta::space::index::snapshot::{Stamp, StampedFiles};
use crate::table_store::delta::space::live_files::WithStrays;
use crate::table_store::delta::space::state::SpaceState;
use crate::table_store::delta::{DeltaTableStore, EngineError};

/// Logs opened at once.
const LOGS_AT_ONCE: usize = 8;

/// How long to wait for the index of a space, which a task of an abandoned call may still hold.
const INDEX_WAITS: u32 = 500;

/// How long no merge is begun after one that failed.
const MERGE_RESTS: Duration = Duration::from_secs(60);

/// New data files between two checkpoints of an index.
const FILES_BETWEEN_CHECKPOINTS: u32 = 500;

/// The index begins anew when so many files have been numbered.
pub(crate) const NUMBERS_MAX: u32 = u32::MAX / 4 * 3;

impl DeltaTableStore {
    /// Loads a space: every table that the metastore knows, every key, every tombstone.
    pub(crate) async fn load_space(&self, space: &Space) -> Result<SpaceState, EngineError> {
        let began = Instant::now();
        let (index, stamp) = self.open_index(space).await?;
        let is_new = stamp.is_none();
        let mut stamp = stamp.unwrap_or_default();
        let mut state = SpaceState::new(space.clone(), index, FileNumbers::after(stamp.last_number));
        // Numbers of an index that was lost mean nothing to this one.
        self.shared(space).saved.store(state.numbers.last(), Ordering::Relaxed);
        let mut known = stamp.files();
        let records = self.metastore.tables(Some(space)).await.map_err(EngineError::Metastore)?;
        let opening = records.into_iter().map(|record| self.opened_of(record));
        let mut tables = stream::iter(opening).buffered(LOGS_AT_ONCE);
        let mut to_read = KeysToRead::default();
        while let Some((record, opened)) = tables.next().await {
            let known = known.remove(&record.path).unwrap_or_default();
            let recorded = record.state.version.map(|version| (version, record.state.rows));
            let number = state.add_slot(record);
            match self.enter(&mut state, number, recorded, opened, known, &mut to_read).await {
                Err(error) if permanent_error::is_lasting(&error) => state.set_aside(number, &error, Duration::ZERO),
                entered => entered?,
            }
        }
        drop(tables);
        for stray in stamp.strays() {
            state.live_mut().condemn(stray);
        }
        let (files, rows) = (to_read.files(), to_read.rows());
        let KeysRead { broken, .. } = self.read_keys(&mut state, to_read, is_new).await?;
        for (number, error) in broken {
            state.set_aside(number, &error, began.elapsed());
        }
        self.load_tombstones(&mut state).await?;
        let (tables, keys) = (state.slots.len(), state.index.entries());
        let milliseconds = lake_shared::retry::milliseconds(began.elapsed());
        let tombstones = state.tombstones.held();
        tracing::info!(
            %space, tables, keys, tombstones, files_read = files, rows_read = rows, index_is_new = is_new, milliseconds,
            "space loaded"
        );
        state.tell_keys();
        if is_new && rows > 0 {
            self.checkpoint_index(&state).await?;
            self.shared(space).saved.store(state.numbers.last(), Ordering::Relaxed);
        }
        Ok(state)
    }

    /// A table at its latest version; `None`: there is none.
    pub(crate) async fn opened(&self, path: &str) -> Result<Option<DeltaTable>, EngineError> {
        let mut table = self.closed(path)?;
        match commit::load(&mut table).await {
            Ok(exists) => return Ok(exists.then_some(table)),
            // The log may have been cleaned up while it was read. What is still wrong then is wrong.
            Err(error) if permanent_error::is_lasting(&error) => {}
            Err(error) => return Err(error),
        }
        let mut table = self.closed(path)?;
        Ok(commit::load(&mut table).await?.then_some(table))
    }

    async fn opened_of(&self, record: TableRecord) -> (TableRecord, Result<Option<DeltaTable>, EngineError>) {
        let opened = self.opened(&record.path).await;
        (record, opened)
    }

    /// Enters a table into a space that is being loaded, if there is one. Its new files are to be read. `recorded`: version and rows that the
    /// metastore knows.
    async fn enter(
        &self,
        state: &mut SpaceState,
        number: u32,
        recorded: Option<(i64, i64)>,
        opened: Result<Option<DeltaTable>, EngineError>,
        known: StampedFiles,
        to_read: &mut KeysToRead,
    ) -> Result<(), EngineError> {
        let Some(table) = opened? else {
            if let Some((version, rows)) = recorded {
                warn_gone(&state.slot(number).key, version, rows);
            }
            return Ok(());
        };
        let unread = state.follow(number, &table, known).await?;
        // A commit that the metastore has not heard of, as the process ended before it was told.
        if recorded.map(|(version, _)| version) != table.version().and_then(|version| i64::try_from(version).ok()) {
            state.slot_mut(number).unrecorded.get_or_insert_default();
        }
        to_read.add(state, number, table.object_store(), unread);
        self.handles.put(state.slot(number).key.clone(), table);
        Ok(())
    }

    /// Opens the index of a space, or begins a new one when there is none that can be trusted.
    async fn open_index(&self, space: &Space) -> Result<(KeyIndex, Option<Stamp>), EngineError> {
        let folder: PathBuf = self.index_folder.path().join(names::space_path(space));
        let options = self.index_options;
        let mut waits = 0;
        let is_lost = self.lost_indexes().contains(space);
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
                opened => {
                    let opened = opened.map_err(EngineError::Index)?;
                    self.lost_indexes().remove(space);
                    return Ok(opened);
                }
            }
        }
    }

    /// Makes what the index holds in memory durable, together with what it stands for.
    pub(crate) async fn checkpoint_index(&self, state: &SpaceState) -> Result<(), EngineError> {
        let (index, stamp) = (state.index.clone(), Stamp::of(state));
        let writing = tokio::task::spawn_blocking(move || index.checkpoint(&stamp.to_bytes()));
        writing.await.map_err(EngineError::interrupted)?.map_err(EngineError::Index)
    }

    /// Writes what the index holds in memory to disk, or fails: a batch more would add to it.
    pub(crate) async fn relieve(&self, state: &SpaceState) -> Result<(), EngineError> {
        let index = state.index.clone();
        let writing = tokio::task::spawn_blocking(move || index.flush());
        writing.await.map_err(EngineError::interrupted)?.map_err(EngineError::Index)
    }

    /// Merges runs of the index, and saves it from time to time, beside what else happens.
    pub(crate) fn tend_index(&self, state: &SpaceState) {
        let shared = self.shared(&state.space);
        if !shared.merge_rests.is_over() {
            // The disk is full, or worse.
        } else if let Some(job) = state.index.merge_due() {
            let (index, live) = (state.index.clone(), WithStrays(Arc::clone(&state.live)));
            let (space, lost) = (state.space.clone(), Arc::clone(&self.lost_indexes));
            let shared = Arc::clone(&shared);
            tokio::task::spawn_blocking(move || match job.run(&live).map_err(EngineError::Index) {
                Ok(merged) => {
                    index.install(merged);
                }
                Err(error) => {
                    shared.merge_rests.begin(MERGE_RESTS);
                    tracing::warn!(%space, %error, "runs of the key index could not be merged");
                    if error.is_index_lost() {
                        lost.lock().unwrap_or_else(PoisonError::into_inner).insert(space);
                    }
                }
            });
        }
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
    pub(crate) fn keep(&self, key: &TableKey, version: u64, table: Option<Box<DeltaTable>>) {
        let Some(table) = table else { return };
        self.log_checkpoints.committed(key, version, &table, &self.handles);
        self.handles.put(key.clone(), *table);
    }

    /// Brings a table's part of the state to the latest version in its log. A table that cannot be used, now or any more, is set aside.
    pub(crate) async fn refresh(&self, state: &mut SpaceState, number: u32) -> Result<(), EngineError> {
        let began = Instant::now();
        match self.reload(state, number).await {
            Err(error) if permanent_error::is_lasting(&error) => state.set_aside(number, &error, began.elapsed()),
            reloaded => reloaded?,
        }
        state.torn = false;
        Ok(())
    }

    async fn reload(&self, state: &mut SpaceState, number: u32) -> Result<(), EngineError> {
        let slot = state.slot(number);
        let (key, path, held) = (slot.key.clone(), slot.path.clone(), slot.unusable.clone());
        drop(self.handles.take(&key));
        let opened = self.opened(&path).await?;
        state.torn = true;
        let Some(table) = opened else {
            let slot = state.slot(number);
            if let Some(version) = slot.version {
                warn_gone(&key, version as i64, slot.rows());
            }
            state.forget_table(number);
            state.readmit(number);
            return Ok(());
        };
        let unread = state.follow(number, &table, StampedFiles::default()).await?;
        let mut to_read = KeysToRead::default();
        to_read.add(state, number, table.object_store(), unread);
        if held.is_some() {
            to_read.check_presence().await?;
        }
        let KeysRead { broken, buried } = self.read_keys(state, to_read, false).await?;
        if let Some((_, error)) = broken.into_iter().next() {
            return Err(error);
        }
        self.settle_buried(state, &buried).await?;
        let slot = state.slot_mut(number);
        // Or what had to be known to settle its rows could not be read.
        if slot.unusable.as_ref().map(Arc::as_ptr) == held.as_ref().map(Arc::as_ptr) {
            slot.unrecorded.get_or_insert_default();
            state.readmit(number);
            self.handles.put(key, table);
        }
        Ok(())
    }
}

/// Somebody has dropped a table, or it is not where it was. It is made anew by the next rows for it.
fn warn_gone(table: &TableKey, version: i64, rows: i64) {
    tracing::warn!(
        %table, version, rows,
        "table is gone from the lake; the next rows make it anew and earlier ones are not in it: put it back before that, or backfill"
    );
    metrics::counter!(metric_names::GONE_TABLES_TOTAL, "kind" => table.space.kind.name()).increment(1);
}

//! Opening, saving and merging the key indexes of spaces.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lake_shared::escaped_names;
use lake_shared::identity::Space;

use crate::key_index::{FileNumber, IndexError, IndexOptions, KeyIndex};
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::options::DeltaOptions;
use crate::table_store::delta::space::index::folder::IndexFolder;
use crate::table_store::delta::space::index::snapshot::IndexSnapshot;
use crate::table_store::delta::space::live_files::WithStaleRows;
use crate::table_store::delta::space::state::SpaceState;

/// How long to wait between two tries to open an index that is locked.
const INDEX_WAIT: Duration = Duration::from_millis(20);

/// How often to wait for the index of a space, which a task of an abandoned call may still hold: 10 s.
const INDEX_WAITS: u32 = 500;

/// How long no merge is begun after one that failed: the disk may be full.
const MERGE_COOLDOWN: Duration = Duration::from_secs(60);

/// New data files between two checkpoints of an index.
const FILES_BETWEEN_CHECKPOINTS: u32 = 500;

/// The index begins anew when so many files have been numbered.
const NUMBERS_MAX: FileNumber = FileNumber::new(u32::MAX / 4 * 3);

/// What goes on with the index of one space beside batches.
#[derive(Debug, Default)]
pub(crate) struct IndexUpkeep {
    is_saving: AtomicBool,
    /// Number of the newest data file when the index was last saved.
    saved_number: AtomicU32,
    merge_cooldown: Cooldown,
}

impl IndexUpkeep {
    /// Whether the index is being saved. Until then it cannot be opened again.
    pub(crate) fn is_saving(&self) -> bool {
        self.is_saving.load(Ordering::Acquire)
    }

    pub(crate) fn saved_number(&self) -> FileNumber {
        FileNumber::new(self.saved_number.load(Ordering::Relaxed))
    }

    /// The index on disk stands for files up to this number.
    pub(crate) fn set_saved(&self, number: FileNumber) {
        self.saved_number.store(number.get(), Ordering::Relaxed);
    }
}

/// A time in which something is not tried again.
#[derive(Debug, Default)]
struct Cooldown(Mutex<Option<Instant>>);

impl Cooldown {
    fn begin(&self, time: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + time);
    }

    fn is_over(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_none_or(|until| until <= Instant::now())
    }
}

/// The key indexes of all spaces of a writer.
pub(crate) struct KeyIndexes {
    folder: IndexFolder,
    options: IndexOptions,
    /// Spaces whose index was found damaged.
    lost: Arc<Mutex<HashSet<Space>>>,
}

impl KeyIndexes {
    pub(crate) fn new(options: &DeltaOptions) -> Self {
        Self {
            folder: IndexFolder::new(options.index_folder.clone()),
            options: IndexOptions {
                entries_in_memory_max: options.index_entries_in_memory_max.max(1),
                ..IndexOptions::default()
            },
            lost: Arc::default(),
        }
    }

    /// Whether the index of a space must be built anew.
    pub(crate) fn is_lost(&self, space: &Space) -> bool {
        locked(&self.lost).contains(space)
    }

    /// Remembers that the index of a space must be built anew.
    pub(crate) fn set_lost(&self, space: &Space) {
        locked(&self.lost).insert(space.clone());
    }

    /// The same, if that is what an error means.
    pub(crate) fn note_error(&self, space: &Space, error: &EngineError) {
        if error.is_index_lost() {
            tracing::warn!(%space, %error, "the key index is damaged; it is built anew");
            self.set_lost(space);
        }
    }

    /// Opens the index of a space with what it stands for, or begins a new one (`None`) when there is none that can be trusted.
    pub(crate) async fn open(&self, space: &Space) -> Result<(KeyIndex, Option<IndexSnapshot>), EngineError> {
        let folder: PathBuf = self.folder.path().join(escaped_names::space_path(space));
        let (options, is_lost) = (self.options, self.is_lost(space));
        let mut waits = 0;
        loop {
            let folder = folder.clone();
            let opening = tokio::task::spawn_blocking(move || {
                if !is_lost && let Some((index, snapshot)) = KeyIndex::open(&folder, options)? {
                    let snapshot = IndexSnapshot::of_bytes(&snapshot);
                    // Numbers of files must never come round again: near their end the index begins anew.
                    if let Some(snapshot) = snapshot.filter(|snapshot| snapshot.last_number < NUMBERS_MAX) {
                        return Ok((index, Some(snapshot)));
                    }
                    drop(index);
                }
                Ok((KeyIndex::create(&folder, options)?, None))
            });
            match opening.await.map_err(EngineError::interrupted)? {
                Err(IndexError::Locked { .. }) if waits < INDEX_WAITS => {
                    waits += 1;
                    tokio::time::sleep(INDEX_WAIT).await;
                }
                opened => {
                    let opened = opened.map_err(EngineError::Index)?;
                    locked(&self.lost).remove(space);
                    return Ok(opened);
                }
            }
        }
    }

    /// Makes what the index of a space holds in memory durable, together with what it stands for.
    pub(crate) async fn checkpoint(&self, state: &SpaceState) -> Result<(), EngineError> {
        let (index, snapshot) = (state.index().clone(), state.index_snapshot());
        let writing = tokio::task::spawn_blocking(move || index.checkpoint(&snapshot.to_bytes()));
        writing.await.map_err(EngineError::interrupted)?.map_err(EngineError::Index)
    }

    /// Writes what the index of a space holds in memory to disk, or fails: a batch more would add to it.
    pub(crate) async fn flush(&self, state: &SpaceState) -> Result<(), EngineError> {
        let index = state.index().clone();
        let writing = tokio::task::spawn_blocking(move || index.flush());
        writing.await.map_err(EngineError::interrupted)?.map_err(EngineError::Index)
    }

    /// Merges runs of the index of a space, and saves it from time to time, beside what else happens. A state whose file numbers are
    /// near their end is poisoned: its index begins anew.
    pub(crate) fn maintain(&self, state: &mut SpaceState, upkeep: &Arc<IndexUpkeep>) {
        self.merge_if_due(state, upkeep);
        let number = state.numbers().last();
        if number > NUMBERS_MAX {
            self.set_lost(state.space());
            state.poison();
        }
        let unsaved = number.files_after(upkeep.saved_number());
        if unsaved < FILES_BETWEEN_CHECKPOINTS || upkeep.is_saving.swap(true, Ordering::AcqRel) {
            return;
        }
        upkeep.set_saved(number);
        let (index, snapshot, space) = (state.index().clone(), state.index_snapshot(), state.space().clone());
        // What is put from now on must not replace what the snapshot stands for.
        index.seal();
        let upkeep = Arc::clone(upkeep);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = index.checkpoint(&snapshot.to_bytes()) {
                tracing::warn!(%space, %error, "key index could not be saved; it is tried again later");
            }
            upkeep.is_saving.store(false, Ordering::Release);
        });
    }

    fn merge_if_due(&self, state: &SpaceState, upkeep: &Arc<IndexUpkeep>) {
        if !upkeep.merge_cooldown.is_over() {
            return;
        }
        let Some(job) = state.index().merge_due() else { return };
        let (index, live) = (state.index().clone(), WithStaleRows(Arc::clone(state.live())));
        let (space, lost, upkeep) = (state.space().clone(), Arc::clone(&self.lost), Arc::clone(upkeep));
        tokio::task::spawn_blocking(move || match job.run(&live).map_err(EngineError::Index) {
            Ok(merged) => {
                index.install(merged);
            }
            Err(error) => {
                upkeep.merge_cooldown.begin(MERGE_COOLDOWN);
                tracing::warn!(%space, %error, "runs of the key index could not be merged");
                if error.is_index_lost() {
                    locked(&lost).insert(space);
                }
            }
        });
    }
}

fn locked(lost: &Mutex<HashSet<Space>>) -> MutexGuard<'_, HashSet<Space>> {
    // A panic elsewhere cannot leave the set half changed.
    lost.lock().unwrap_or_else(PoisonError::into_inner)
}

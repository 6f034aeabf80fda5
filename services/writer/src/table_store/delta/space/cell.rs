//! The spaces of a writer, and what is held while one of them is worked on.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};

use lake_shared::identity::Space;
use tokio::sync::Mutex;

use crate::table_store::delta::space::index::upkeep::IndexUpkeep;
use crate::table_store::delta::space::state::SpaceState;

/// One space, shared by all that work on it.
#[derive(Default)]
pub(crate) struct SpaceCell {
    /// Held for a batch; `None`: not loaded.
    pub(crate) state: Mutex<Option<SpaceState>>,
    /// Held for a round of compaction.
    pub(crate) compacting: Mutex<()>,
    /// Held for a clean-up.
    pub(crate) cleaning: Mutex<()>,
    pub(crate) index_upkeep: Arc<IndexUpkeep>,
    pub(crate) last_use: LastUse,
}

/// When a space was used last, and how much memory it took then.
#[derive(Debug, Default)]
pub(crate) struct LastUse {
    /// Number of the use, over all spaces.
    clock: AtomicU64,
    bytes: AtomicUsize,
}

impl LastUse {
    pub(super) fn clock(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn set_evicted(&self) {
        self.bytes.store(0, Ordering::Relaxed);
    }

    fn note(&self, clock: u64, bytes: usize) {
        self.clock.store(clock, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
    }
}

/// The spaces that were used since the start.
#[derive(Default)]
pub(crate) struct Spaces {
    cells: StdMutex<HashMap<Space, Arc<SpaceCell>>>,
    /// Counts uses of spaces.
    uses: AtomicU64,
}

impl Spaces {
    /// The cell of a space.
    pub(crate) fn cell(&self, space: &Space) -> Arc<SpaceCell> {
        Arc::clone(self.locked().entry(space.clone()).or_default())
    }

    /// The cell of a space that was used since the start.
    pub(crate) fn cell_in_use(&self, space: &Space) -> Option<Arc<SpaceCell>> {
        self.locked().get(space).cloned()
    }

    /// All cells.
    pub(crate) fn cells(&self) -> Vec<Arc<SpaceCell>> {
        self.locked().values().cloned().collect()
    }

    pub(crate) fn in_use(&self) -> Vec<Space> {
        self.locked().keys().cloned().collect()
    }

    /// To be called after a space was used, with its state.
    pub(crate) fn note_use(&self, cell: &SpaceCell, state: Option<&SpaceState>) {
        let clock = self.uses.fetch_add(1, Ordering::Relaxed) + 1;
        cell.last_use.note(clock, state.map_or(0, SpaceState::memory_bytes));
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<Space, Arc<SpaceCell>>> {
        // A panic elsewhere cannot leave the map half changed.
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

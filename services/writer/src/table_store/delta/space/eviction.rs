//! Which spaces stay in memory. All spaces of a writer share a budget; the one that was used longest ago is put away first. Its index is saved,
//! so that it comes back without reading keys.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use lake_shared::identity::Space;

use crate::table_store::delta::files::data_file::DataFile;
use crate::table_store::delta::space::state::{Slot, SpaceState};
use crate::table_store::delta::{DeltaTableStore, EngineError, SharedSpace, SpaceCell};

/// What a data file takes beside its path and its vector, its places in maps included.
const FILE_BYTES: usize = 320;

/// What a column takes, its names included. Not counted out, as wide tables have thousands and this is asked after every batch.
const COLUMN_BYTES: usize = 144;

/// What a table takes beside its files and columns.
const TABLE_BYTES: usize = 1_024;

/// When a space was used last, and how much memory it took then.
#[derive(Debug, Default)]
pub(crate) struct Residence {
    used: AtomicU64,
    bytes: AtomicUsize,
}

impl Residence {
    fn note(&self, clock: u64, bytes: usize) {
        self.used.store(clock, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
    }
}

/// The next space to be put away: of `spaces` with when they were used and how many bytes they take, but for the one in use, the one that was
/// used longest ago; `None` where they fit.
fn next_to_leave<T: Copy>(spaces: impl Iterator<Item = (T, u64, usize)> + Clone, bytes_max: usize) -> Option<T> {
    let total: usize = spaces.clone().map(|(_, _, bytes)| bytes).sum();
    let newest = spaces.clone().map(|(_, used, _)| used).max()?;
    let idle = spaces.filter(|(_, used, bytes)| *bytes > 0 && *used < newest);
    idle.min_by_key(|(_, used, _)| *used).filter(|_| total > bytes_max).map(|(space, _, _)| space)
}

impl SpaceState {
    /// About how many bytes it takes in memory.
    fn bytes(&self) -> usize {
        let slots: usize = self.slots.iter().map(slot_bytes).sum();
        self.index.memory_bytes() + self.tombstones.bytes() + slots
    }
}

fn slot_bytes(slot: &Slot) -> usize {
    let columns = COLUMN_BYTES * slot.schema.columns.len();
    let vector = |file: &DataFile| file.deleted_rows().map_or(0, |rows| rows.serialized_size());
    let files: usize = slot.files.values().map(|file| FILE_BYTES + file.path.len() + vector(file)).sum();
    TABLE_BYTES + columns + files
}

impl DeltaTableStore {
    /// To be called after a space was used.
    pub(crate) fn note_use(&self, shared: &SpaceCell, state: Option<&SpaceState>) {
        let clock = self.uses.fetch_add(1, Ordering::Relaxed) + 1;
        shared.residence.note(clock, state.map_or(0, SpaceState::bytes));
    }

    /// Puts spaces away until the others fit. One that is being used stays, and so does one whose index cannot be saved.
    pub(crate) async fn make_room(&self) {
        let mut spaces: Vec<SharedSpace> = self.locked_spaces().values().cloned().collect();
        loop {
            let figures = spaces.iter().enumerate().map(|(at, shared)| {
                let Residence { used, bytes } = &shared.residence;
                (at, used.load(Ordering::Relaxed), bytes.load(Ordering::Relaxed))
            });
            let Some(at) = next_to_leave(figures, self.options.spaces_bytes_max) else { return };
            let shared = spaces.swap_remove(at);
            if let Err(error) = self.put_away(&shared).await {
                tracing::warn!(%error, "a key index could not be saved; its space stays in memory");
            }
        }
    }

    async fn put_away(&self, shared: &SharedSpace) -> Result<(), EngineError> {
        let (Ok(_compacting), Ok(mut guard)) = (shared.compacting.try_lock(), shared.state.try_lock()) else {
            return Ok(());
        };
        // What goes on with its index would be in vain, and keep the index from being opened meanwhile.
        if shared.saving.load(Ordering::Acquire) || guard.as_ref().is_some_and(|state| state.index.is_merging()) {
            return Ok(());
        }
        if let Some(state) = guard.as_ref().filter(|state| !state.torn) {
            self.checkpoint_index(state).await?;
            tracing::debug!(space = %state.space, bytes = state.bytes(), "space put away");
        }
        *guard = None;
        shared.residence.bytes.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// Loads a space that is not in memory, for its maintenance. What cannot be loaded now is maintained as far as that goes.
    pub(crate) async fn load_for_maintenance(&self, space: &Space) {
        let shared: Arc<SpaceCell> = self.shared(space);
        let mut guard = shared.state.lock().await;
        guard.take_if(|state| state.torn);
        if guard.is_none() {
            match self.load_space(space).await {
                Ok(state) => *guard = Some(state),
                Err(error) => {
                    self.note_lost_index(space, &error);
                    tracing::warn!(%space, %error, "space could not be loaded for its maintenance");
                }
            }
        }
        self.note_use(&shared, guard.as_ref());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_space_that_was_used_longest_ago_leaves_and_never_the_last_one() {
        let spaces = [('a', 3, 10), ('b', 1, 0), ('c', 2, 20), ('d', 9, 70)];
        let next = |bytes_max| next_to_leave(spaces.into_iter(), bytes_max);
        assert_eq!((next(100), next(99), next(0)), (None, Some('c'), Some('c')));
        assert_eq!(next_to_leave([('d', 9, 70)].into_iter(), 0), None);
        assert_eq!(next_to_leave(std::iter::empty::<(char, u64, usize)>(), 0), None);
    }
}

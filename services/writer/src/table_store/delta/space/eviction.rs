//! Which spaces stay in memory. All spaces of a writer share a budget; the one that was used longest ago is evicted first. Its index is saved,
//! so that it comes back without reading keys.

use lake_shared::identity::Space;

use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::space::cell::{SpaceCell, Spaces};
use crate::table_store::delta::space::loader::SpaceLoader;

/// The next space to be evicted: of `spaces` with when they were used and how many bytes they take, but for the one in use, the one that was
/// used longest ago; `None` where they fit.
fn next_to_evict<T: Copy>(spaces: impl Iterator<Item = (T, u64, usize)> + Clone, bytes_max: usize) -> Option<T> {
    let total: usize = spaces.clone().map(|(_, _, bytes)| bytes).sum();
    let newest = spaces.clone().map(|(_, used, _)| used).max()?;
    let idle = spaces.filter(|(_, used, bytes)| *bytes > 0 && *used < newest);
    idle.min_by_key(|(_, used, _)| *used).filter(|_| total > bytes_max).map(|(space, _, _)| space)
}

impl SpaceLoader {
    /// Evicts spaces until the others fit into so many bytes. One that is being used stays, and so does one whose index cannot be saved.
    pub(crate) async fn evict_to_fit(&self, spaces: &Spaces, bytes_max: usize) {
        let mut cells = spaces.cells();
        loop {
            let uses = cells.iter().enumerate().map(|(at, cell)| (at, cell.last_use.clock(), cell.last_use.bytes()));
            let Some(at) = next_to_evict(uses, bytes_max) else { return };
            let cell = cells.swap_remove(at);
            if let Err(error) = self.evict(&cell).await {
                tracing::warn!(%error, "a key index could not be saved; its space stays in memory");
            }
        }
    }

    async fn evict(&self, cell: &SpaceCell) -> Result<(), EngineError> {
        let (Ok(_compacting), Ok(mut guard)) = (cell.compacting.try_lock(), cell.state.try_lock()) else {
            return Ok(());
        };
        // What goes on with its index would be for nothing, and keep the index from being opened meanwhile.
        if cell.index_upkeep.is_saving() || guard.as_ref().is_some_and(|state| state.index().is_merging()) {
            return Ok(());
        }
        if let Some(state) = guard.as_ref().filter(|state| !state.is_poisoned()) {
            self.indexes().checkpoint(state).await?;
            tracing::debug!(space = %state.space(), bytes = state.memory_bytes(), "space evicted");
        }
        *guard = None;
        cell.last_use.set_evicted();
        Ok(())
    }

    /// Loads a space that is not in memory, for its maintenance. What cannot be loaded now is maintained as far as that goes.
    pub(crate) async fn load_for_maintenance(&self, spaces: &Spaces, space: &Space) {
        if let Err(error) = self.load_if_absent(spaces, space).await {
            self.indexes().note_error(space, &error);
            tracing::warn!(%space, %error, "space could not be loaded for its maintenance");
        }
    }

    /// Loads a space that is not in memory.
    ///
    /// # Errors
    /// Where it cannot be loaded now.
    pub(crate) async fn load_if_absent(&self, spaces: &Spaces, space: &Space) -> Result<(), EngineError> {
        let cell = spaces.cell(space);
        let mut guard = cell.state.lock().await;
        guard.take_if(|state| state.is_poisoned());
        let loaded = match &*guard {
            Some(_) => Ok(()),
            None => self.load_space(space, &cell.index_upkeep).await.map(|state| *guard = Some(state)),
        };
        spaces.note_use(&cell, guard.as_ref());
        loaded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_space_that_was_used_longest_ago_leaves_and_never_the_last_one() {
        let spaces = [('a', 3, 10), ('b', 1, 0), ('c', 2, 20), ('d', 9, 70)];
        let next = |bytes_max| next_to_evict(spaces.into_iter(), bytes_max);
        assert_eq!((next(100), next(99), next(0)), (None, Some('c'), Some('c')));
        assert_eq!(next_to_evict([('d', 9, 70)].into_iter(), 0), None);
        assert_eq!(next_to_evict(std::iter::empty::<(char, u64, usize)>(), 0), None);
    }
}

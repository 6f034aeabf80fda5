//! How much memory all files in the making may take together.

use tokio::sync::{Semaphore, SemaphorePermit};

/// Bytes of one permit.
const UNIT: usize = 64 << 10;

/// Bytes that files in the making take at once, over all tables.
const BYTES_AT_ONCE: usize = 128 << 20;

/// Memory for writing the files of batches, shared by all that write some. A writer that holds some of it never asks for more, so there
/// is no deadlock.
#[derive(Debug)]
pub(crate) struct WriteMemoryBudget(Semaphore);

impl Default for WriteMemoryBudget {
    fn default() -> Self {
        Self(Semaphore::new(units(BYTES_AT_ONCE)))
    }
}

impl WriteMemoryBudget {
    /// Waits until so many bytes are free; they are until what is answered is dropped. A request for more than there is gets all of it.
    pub(crate) async fn room_for(&self, bytes: usize) -> Option<SemaphorePermit<'_>> {
        let units = units(bytes.min(BYTES_AT_ONCE));
        // Fails for a closed semaphore only, and this one is never closed.
        self.0.acquire_many(u32::try_from(units).unwrap_or(u32::MAX)).await.ok()
    }
}

const fn units(bytes: usize) -> usize {
    bytes.div_ceil(UNIT)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_request_for_more_than_there_is_waits_for_all_of_it() {
        let memory = WriteMemoryBudget::default();
        let half = memory.room_for(BYTES_AT_ONCE / 2).now_or_never();
        assert!(half.is_some());
        assert!(memory.room_for(usize::MAX).now_or_never().is_none());
        let other_half = memory.room_for(BYTES_AT_ONCE / 2).now_or_never();
        assert!(other_half.is_some() && memory.room_for(1).now_or_never().is_none());
        drop((half, other_half));
        assert!(memory.room_for(usize::MAX).now_or_never().is_some());
    }
}

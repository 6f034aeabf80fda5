//! Memory set aside before it is needed, so that what is held between Kafka and the queue stays within a number of bytes, whatever comes.
//!
//! Something larger than all of it is handled when nothing else holds any.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A permit of the semaphore stands for so many bytes.
const UNIT: usize = 1_024;

/// Bytes that may be held at once.
pub(crate) struct Budget {
    units: Arc<Semaphore>,
    units_max: usize,
}

/// Bytes that are set aside until it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Reservation(Option<OwnedSemaphorePermit>);

impl Budget {
    pub(crate) fn new(bytes: usize) -> Self {
        let units_max = (bytes / UNIT).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Self { units: Arc::new(Semaphore::new(units_max)), units_max }
    }

    /// All of it, bytes.
    pub(crate) fn bytes_max(&self) -> usize {
        self.units_max * UNIT
    }

    /// Sets so many bytes aside, or all there are; waits until they are free. Safe to cancel.
    pub(crate) async fn reserve(&self, bytes: usize) -> Reservation {
        // The semaphore is never closed.
        Reservation(Arc::clone(&self.units).acquire_many_owned(self.units_of(bytes)).await.ok())
    }

    /// Sets so many bytes aside if they are free now.
    pub(crate) fn try_reserve(&self, bytes: usize) -> Option<Reservation> {
        let permit = Arc::clone(&self.units).try_acquire_many_owned(self.units_of(bytes)).ok()?;
        Some(Reservation(Some(permit)))
    }

    fn units_of(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT).clamp(1, self.units_max)).unwrap_or(u32::MAX)
    }
}

impl Reservation {
    /// Gives back what is beyond so many bytes.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        if let Some(permit) = &mut self.0 {
            let excess = permit.num_permits().saturating_sub(bytes.div_ceil(UNIT));
            drop(permit.split(excess));
        }
    }

    /// Adds what another one has set aside of the same budget.
    pub(crate) fn merge(&mut self, other: Self) {
        match (&mut self.0, other.0) {
            (Some(permit), Some(other)) => permit.merge(other),
            (permit @ None, other) => *permit = other,
            (Some(_), None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use futures::FutureExt;

    use super::*;

    #[test]
    fn what_is_set_aside_is_bounded_and_comes_back() {
        let budget = Budget::new(10 * UNIT);
        let mut first = budget.reserve(6 * UNIT).now_or_never().unwrap();
        assert!(budget.try_reserve(5 * UNIT).is_none() && budget.reserve(5 * UNIT).now_or_never().is_none());
        first.shrink(UNIT + 1);
        first.merge(budget.try_reserve(8 * UNIT).unwrap());
        assert!(budget.try_reserve(1).is_none());
        drop(first);
        let mut all = Reservation::default();
        all.merge(budget.try_reserve(usize::MAX).unwrap());
        assert!(budget.try_reserve(1).is_none(), "what is larger than all of it is alone");
        drop(all);
        assert!(budget.try_reserve(10 * UNIT).is_some());
    }
}

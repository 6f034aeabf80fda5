//! Memory set aside before it is needed, so that what is held stays within a number of bytes, whatever comes.
//!
//! Something larger than all of it is handled when nothing else holds any. Whoever holds some must not wait for more: two who do so would wait
//! for each other.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A permit of the semaphore stands for so many bytes.
const UNIT: usize = 1_024;

/// Bytes that may be held at once.
#[derive(Debug)]
pub struct ByteBudget {
    units: Arc<Semaphore>,
    units_max: usize,
}

/// Bytes that are set aside until it is dropped.
#[derive(Debug, Default)]
pub struct Reservation(Option<OwnedSemaphorePermit>);

impl ByteBudget {
    /// A budget of so many bytes, of which none is set aside.
    pub fn new(bytes: usize) -> Self {
        let units_max = (bytes / UNIT).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Self { units: Arc::new(Semaphore::new(units_max)), units_max }
    }

    /// All of it, bytes.
    pub fn bytes_max(&self) -> usize {
        self.units_max * UNIT
    }

    /// Bytes that are set aside now.
    pub fn held(&self) -> usize {
        self.bytes_max() - self.units.available_permits() * UNIT
    }

    /// Sets so many bytes aside, or all there are; waits until they are free. Safe to cancel.
    pub async fn reserve(&self, bytes: usize) -> Reservation {
        // The semaphore is never closed.
        Reservation(Arc::clone(&self.units).acquire_many_owned(self.units_of(bytes)).await.ok())
    }

    /// Sets so many bytes aside if they are free now.
    pub fn try_reserve(&self, bytes: usize) -> Option<Reservation> {
        let permit = Arc::clone(&self.units).try_acquire_many_owned(self.units_of(bytes)).ok()?;
        Some(Reservation(Some(permit)))
    }

    fn units_of(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT).clamp(1, self.units_max)).unwrap_or(u32::MAX)
    }
}

impl Reservation {
    /// Gives back what is beyond so many bytes.
    pub fn shrink(&mut self, bytes: usize) {
        if let Some(permit) = &mut self.0 {
            let excess = permit.num_permits().saturating_sub(bytes.div_ceil(UNIT));
            drop(permit.split(excess));
        }
    }

    /// Adds what another one has set aside of the same budget.
    pub fn merge(&mut self, other: Self) {
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
        let budget = ByteBudget::new(10 * UNIT);
        let mut first = budget.reserve(6 * UNIT).now_or_never().unwrap();
        assert!(budget.try_reserve(5 * UNIT).is_none() && budget.reserve(5 * UNIT).now_or_never().is_none());
        assert_eq!(budget.held(), 6 * UNIT);
        first.shrink(UNIT + 1);
        first.merge(budget.try_reserve(8 * UNIT).unwrap());
        assert!(budget.try_reserve(1).is_none());
        drop(first);
        let mut all = Reservation::default();
        all.merge(budget.try_reserve(usize::MAX).unwrap());
        assert!(budget.try_reserve(1).is_none(), "what is larger than all of it is alone");
        drop(all);
        assert!(budget.try_reserve(10 * UNIT).is_some());
        assert_eq!(budget.held(), 0);
    }
}

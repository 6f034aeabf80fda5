//! Compaction lets batches go first. It computes for long on the same few processors, and a batch that waits for one is late.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// For each moment of work compaction waits at most so many for batches, so that it goes on however many there are.
const WAITS_PER_WORK: u32 = 2;

/// How often it is looked whether they are done.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Counts the batches that are being applied, of all spaces.
#[derive(Debug, Default)]
pub(crate) struct Batches(AtomicUsize);

/// A batch that is being applied, until it is dropped.
pub(crate) struct UnderWay<'b>(&'b Batches);

impl Batches {
    /// One more.
    pub(crate) fn begin(&self) -> UnderWay<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        UnderWay(self)
    }

    fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Work that gives way to batches.
pub(crate) struct CooperativeYield<'b> {
    batches: &'b Batches,
    working_since: Instant,
}

impl<'b> CooperativeYield<'b> {
    /// Work begins.
    pub(crate) fn new(batches: &'b Batches) -> Self {
        Self { batches, working_since: Instant::now() }
    }

    /// Between two portions of work.
    pub(crate) async fn yield_to_batches(&mut self) {
        let began = Instant::now();
        let patience = (began - self.working_since) * WAITS_PER_WORK;
        while self.batches.any() && began.elapsed() < patience {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        tokio::task::yield_now().await;
        self.working_since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_waits_for_batches_and_not_for_ever() {
        let batches = Batches::default();
        let mut cooperation = CooperativeYield::new(&batches);
        let batch = batches.begin();
        cooperation.working_since = Instant::now() - Duration::from_secs(3_600);
        // It is done soon.
        let (_, ()) = tokio::join!(cooperation.yield_to_batches(), async {
            tokio::time::sleep(LOOK_EVERY * 5).await;
            drop(batch);
        });
        assert!(!batches.any());
        // It is never done, and the work was short.
        let _batch = batches.begin();
        cooperation.working_since = Instant::now();
        cooperation.yield_to_batches().await;
        assert!(batches.any());
    }
}

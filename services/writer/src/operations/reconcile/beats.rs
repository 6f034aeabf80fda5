//! Tells beside its work how far a comparison is, and hears whether it is to end.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{End, Figures};
use crate::metastore::Metastore;
use crate::metastore::backfills::{BackfillProgress, Wish};
use crate::operations::backfill::insist;
use crate::operations::backfill::rate::Rate;

/// Time between two reports.
const EVERY: Duration = Duration::from_secs(1);
/// Stands for a total that is not known.
const UNKNOWN: i64 = -1;

/// The reports of one comparison.
pub(super) struct Beats<'b> {
    metastore: &'b dyn Metastore,
    id: &'b str,
    /// Documents of HQ that were compared.
    done: AtomicI64,
    total: AtomicI64,
    told: Mutex<(Instant, Rate)>,
}

impl<'b> Beats<'b> {
    pub(super) fn new(metastore: &'b dyn Metastore, id: &'b str) -> Self {
        let told = Mutex::new((Instant::now(), Rate::default()));
        Self { metastore, id, done: AtomicI64::new(0), total: AtomicI64::new(UNKNOWN), told }
    }

    pub(super) fn set_total(&self, documents: u64) {
        self.total.store(i64::try_from(documents).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    pub(super) fn add(&self, documents: u64) {
        self.done.fetch_add(i64::try_from(documents).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// Does some work. The error is why the comparison ends in the middle of it.
    pub(super) async fn beside<T>(&self, work: impl Future<Output = T>) -> Result<T, End> {
        let mut work = std::pin::pin!(work);
        loop {
            let next = self.last_told() + EVERY;
            tokio::select! {
                // However short each piece of work is, it is told in between.
                biased;
                () = tokio::time::sleep_until(next.into()) => self.tell().await?,
                outcome = &mut work => return Ok(outcome),
            }
        }
    }

    fn last_told(&self) -> Instant {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// Tells how far it is.
    pub(super) async fn tell(&self) -> Result<(), End> {
        let done = self.done.load(Ordering::Relaxed);
        let total = Some(self.total.load(Ordering::Relaxed)).filter(|total| *total != UNKNOWN);
        let per_second = {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            told.0 = now;
            told.1.at(now, done)
        };
        // An estimate that turns out too low has been reached at least.
        let progress = BackfillProgress { done, total: total.map(|total| total.max(done)), per_second };
        match insist(|| self.metastore.backfill_goes_on(self.id, &progress)).await {
            Some(Wish::End) => Err(End::Cancelled(Figures::new())),
            Some(Wish::GoOn | Wish::Rest) => Ok(()),
            None => Err(End::Left),
        }
    }
}

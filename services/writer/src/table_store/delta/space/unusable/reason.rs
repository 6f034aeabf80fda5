//! Tables that were altered or damaged beyond what the lake writes. One of them keeps only itself from work.
//!
//! Its files are taken out of what the engine knows, so that no decision depends on them; rows for it are refused before anything else
//! of their batch is applied; tombstones are remembered as ever. It is tried again from time to time, and by every clean-up. Once it can
//! be read, its files are like new ones: rows that are elsewhere too and rows that were deleted meanwhile leave.

use std::time::{Duration, Instant};

use crate::metric_names;

/// Least time between two tries for the sake of arriving rows.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Between two tries passes so many times the time that the last one took: its keys may all have to be read.
const TRY_SHARE: u32 = 20;

/// Why a table cannot be used. It counts in the metric as long as it is held.
#[derive(Debug)]
pub(crate) struct Unusable {
    reason: String,
    try_again: Instant,
}

impl Unusable {
    /// `took`: how long it took to find out.
    pub(crate) fn new(reason: String, now: Instant, took: Duration) -> Self {
        Self::until(reason, now + TRY_AGAIN_AFTER.max(took * TRY_SHARE))
    }

    /// One that is tried again from an instant on.
    pub(crate) fn until(reason: String, try_again: Instant) -> Self {
        metrics::gauge!(metric_names::UNUSABLE_TABLES).increment(1);
        Self { reason, try_again }
    }

    pub(crate) fn reason(&self) -> &str {
        &self.reason
    }

    /// Whether it is time for another try.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.try_again <= now
    }
}

impl Drop for Unusable {
    fn drop(&mut self) {
        metrics::gauge!(metric_names::UNUSABLE_TABLES).decrement(1);
    }
}

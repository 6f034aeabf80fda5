//! How much may be rewritten to keep small tables free of deletion vectors.
//!
//! A small table that changes rarely is cheap to rewrite. One that changes every second is not: it would be written anew every second. So
//! all tables of the writer share a budget of bytes that grows with time; a change that it does not cover gets deletion vectors,
//! which compaction purges later.
//!
//! What is rewritten delays the batch that it is part of, so not much is saved up: many tables that change together after a quiet time get
//! vectors. A table that is larger than the whole budget may overdraw a full one.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The budget holds at most what comes in during this time.
const SAVED_FOR: Duration = Duration::from_secs(2);

/// Bytes that may be rewritten.
#[derive(Debug)]
pub(crate) struct CopyBudget {
    bytes_per_second: u64,
    held: Mutex<Held>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    bytes: f64,
    at: Instant,
}

impl CopyBudget {
    /// A full one.
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        let bytes = bytes_per_second as f64 * SAVED_FOR.as_secs_f64();
        Self { bytes_per_second, held: Mutex::new(Held { bytes, at: Instant::now() }) }
    }

    /// Takes bytes out, if there are enough or as many as there can be.
    pub(crate) fn take(&self, bytes: u64) -> bool {
        self.take_at(bytes, Instant::now())
    }

    fn take_at(&self, bytes: u64, now: Instant) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = self.bytes_per_second as f64;
        let (grown, full) =
            (rate * now.saturating_duration_since(held.at).as_secs_f64(), rate * SAVED_FOR.as_secs_f64());
        held.bytes = (held.bytes + grown).min(full);
        held.at = now.max(held.at);
        let is_full = full > 0.0 && held.bytes >= full;
        let is_covered = bytes == 0 || bytes as f64 <= held.bytes || is_full;
        if is_covered {
            held.bytes -= bytes as f64;
        }
        is_covered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewriting_goes_on_as_fast_as_the_budget_grows() {
        let budget = CopyBudget::new(100);
        let began = Instant::now();
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        assert!(budget.take_at(150, at(0)) && !budget.take_at(100, at(0)) && budget.take_at(50, at(0)));
        assert!(!budget.take_at(101, at(1)) && budget.take_at(100, at(1)) && !budget.take_at(1, at(1)));
        // Nothing is saved for longer.
        assert!(budget.take_at(120, at(1_000)) && !budget.take_at(81, at(1_000)) && budget.take_at(80, at(1_000)));
        // A large table overdraws it, and then it takes time until there is something again.
        assert!(budget.take_at(1_000, at(2_000)) && !budget.take_at(1, at(2_008)) && budget.take_at(0, at(2_008)));
        assert!(!budget.take_at(201, at(2_009)) && budget.take_at(100, at(2_009)));
        assert!(CopyBudget::new(0).take_at(0, at(5)) && !CopyBudget::new(0).take_at(1, at(5)));
    }
}

//! How much may be rewritten to keep small tables free of deletion vectors.
//!
//! A small table that changes rarely is cheap to rewrite. One that changes every second is not: it would be written anew every second. So
//! all tables of the writer share a budget of bytes that grows with time; a change that it does not cover gets deletion vectors,
//! which compaction purges later.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The budget holds at most what comes in during this time: by default as much as the largest table that is rewritten.
const SAVED_FOR: Duration = Duration::from_secs(16);

/// Bytes that may be rewritten.
#[derive(Debug)]
pub(super) struct CopyBudget {
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
    pub(super) fn new(bytes_per_second: u64) -> Self {
        let bytes = bytes_per_second as f64 * SAVED_FOR.as_secs_f64();
        Self { bytes_per_second, held: Mutex::new(Held { bytes, at: Instant::now() }) }
    }

    /// Takes bytes out, if there are enough.
    pub(super) fn take(&self, bytes: u64) -> bool {
        self.take_at(bytes, Instant::now())
    }

    fn take_at(&self, bytes: u64, now: Instant) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = self.bytes_per_second as f64;
        let grown = held.bytes + rate * now.saturating_duration_since(held.at).as_secs_f64();
        held.bytes = grown.min(rate * SAVED_FOR.as_secs_f64());
        held.at = now.max(held.at);
        let is_covered = bytes as f64 <= held.bytes;
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
        assert!(budget.take_at(1_500, at(0)) && !budget.take_at(200, at(0)) && budget.take_at(100, at(0)));
        assert!(!budget.take_at(101, at(1)) && budget.take_at(100, at(1)) && !budget.take_at(1, at(1)));
        // Nothing is saved for longer.
        assert!(!budget.take_at(1_601, at(1_000)) && budget.take_at(1_600, at(1_000)));
        assert!(CopyBudget::new(0).take_at(0, at(5)) && !CopyBudget::new(0).take_at(1, at(5)));
    }
}

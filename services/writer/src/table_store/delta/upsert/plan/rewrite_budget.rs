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

use crate::table_store::delta::options::{DeletionVectors, TableOptions};
use crate::table_store::delta::upsert::plan::rewrite_or_deletion_vectors::{BudgetLeft, Replacement, replacement};

/// The budget holds at most what comes in during this time.
const SAVED_FOR: Duration = Duration::from_secs(2);

/// Bytes that may be rewritten.
#[derive(Debug)]
pub(crate) struct RewriteBudget {
    bytes_per_second: u64,
    balance: Mutex<Balance>,
}

/// Negative when it is overdrawn.
#[derive(Clone, Copy, Debug)]
struct Balance {
    bytes: f64,
    at: Instant,
}

impl RewriteBudget {
    /// A full one.
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        let bytes = bytes_per_second as f64 * SAVED_FOR.as_secs_f64();
        Self { bytes_per_second, balance: Mutex::new(Balance { bytes, at: Instant::now() }) }
    }

    /// Decides how rows leave a table ([`replacement`]), and takes what is rewritten by choice out of the budget.
    pub(crate) fn decide(&self, options: &TableOptions, table_bytes: i64, rewritten_bytes: u64) -> Replacement {
        self.decide_at(options, table_bytes, rewritten_bytes, Instant::now())
    }

    fn decide_at(&self, options: &TableOptions, table_bytes: i64, rewritten_bytes: u64, now: Instant) -> Replacement {
        let mut balance = self.balance.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = self.bytes_per_second as f64;
        let (grown, full) =
            (rate * now.saturating_duration_since(balance.at).as_secs_f64(), rate * SAVED_FOR.as_secs_f64());
        balance.bytes = (balance.bytes + grown).min(full);
        balance.at = now.max(balance.at);
        let is_full = full > 0.0 && balance.bytes >= full;
        let left = if is_full { BudgetLeft::Unlimited } else { BudgetLeft::Bytes(balance.bytes) };
        let decided = replacement(options, table_bytes, rewritten_bytes, left);
        if decided == Replacement::Rewrite && options.deletion_vectors == DeletionVectors::Auto {
            balance.bytes -= rewritten_bytes as f64;
        }
        decided
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewriting_goes_on_as_fast_as_the_budget_grows() {
        let options = TableOptions {
            deletion_vectors: DeletionVectors::Auto,
            partition_by: Vec::new(),
            copy_on_write_below_bytes: 10,
            compaction: true,
            retention_hours: 48,
        };
        let take_at =
            |budget: &RewriteBudget, bytes, now| budget.decide_at(&options, 1, bytes, now) == Replacement::Rewrite;
        let budget = RewriteBudget::new(100);
        let began = Instant::now();
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        assert!(take_at(&budget, 150, at(0)) && !take_at(&budget, 100, at(0)) && take_at(&budget, 50, at(0)));
        assert!(!take_at(&budget, 101, at(1)) && take_at(&budget, 100, at(1)) && !take_at(&budget, 1, at(1)));
        // Nothing is saved for longer.
        assert!(
            take_at(&budget, 120, at(1_000)) && !take_at(&budget, 81, at(1_000)) && take_at(&budget, 80, at(1_000))
        );
        // A large table overdraws it, and then it takes time until there is something again.
        assert!(
            take_at(&budget, 1_000, at(2_000)) && !take_at(&budget, 1, at(2_008)) && take_at(&budget, 0, at(2_008))
        );
        assert!(!take_at(&budget, 201, at(2_009)) && take_at(&budget, 100, at(2_009)));
        assert!(take_at(&RewriteBudget::new(0), 0, at(5)) && !take_at(&RewriteBudget::new(0), 1, at(5)));
    }
}

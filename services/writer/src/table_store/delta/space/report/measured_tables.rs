//! Which tables have metrics of their own. Each table is a label of several series, which monitoring keeps in memory for long, and a project can have
//! very many tables: beyond a bound further ones have none.

use std::collections::HashSet;
use std::hash::Hasher;
use std::sync::{Mutex, PoisonError};

use siphasher::sip::SipHasher24;

use crate::metric_names;

/// The tables whose metrics are told, by name.
#[derive(Debug)]
pub(crate) struct MeasuredTables {
    tables_max: usize,
    names: Mutex<Names>,
}

#[derive(Debug, Default)]
struct Names {
    told: HashSet<String>,
    /// Those beyond the bound: hashes of their names, as there may be very many.
    left_out: HashSet<u64>,
}

impl MeasuredTables {
    pub(crate) fn new(tables_max: usize) -> Self {
        Self { tables_max, names: Mutex::default() }
    }

    /// Whether the metrics of this table are told: the first tables that are asked about have their places for good.
    pub(crate) fn has(&self, name: &str) -> bool {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.told.contains(name) {
            return true;
        }
        if names.told.len() < self.tables_max {
            return names.told.insert(name.to_owned());
        }
        let mut hasher = SipHasher24::new_with_keys(0, 0);
        hasher.write(name.as_bytes());
        if names.left_out.insert(hasher.finish()) {
            if names.left_out.len() == 1 {
                tracing::warn!(
                    table = name,
                    tables_max = self.tables_max,
                    "metrics of further tables are not told; see tables.metrics_tables_max"
                );
            }
            metrics::gauge!(metric_names::UNMEASURED_TABLES).set(names.left_out.len() as f64);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_tables_have_metrics_and_keep_them() {
        let measured = MeasuredTables::new(2);
        assert!(measured.has("a") && measured.has("b") && measured.has("a"));
        for _ in 0..2 {
            assert!(!measured.has("c") && !measured.has("d") && measured.has("b"));
        }
        assert!(measured.names.lock().is_ok_and(|names| (names.told.len(), names.left_out.len()) == (2, 2)));
        assert!(!MeasuredTables::new(0).has("a"));
    }
}

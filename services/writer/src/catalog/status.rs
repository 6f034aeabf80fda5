//! How far a catalog is what the lake has, for operators. Pure.

use std::collections::BTreeMap;

use lake_shared::identity::TableKey;

use super::CatalogName;
use super::differences::Difference;

/// A table that is not in the catalog as it should be, or that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogEntry {
    /// Its name in the catalog.
    pub name: CatalogName,
    /// The table of the lake; `None`: the lake does not have it any more.
    pub key: Option<TableKey>,
    /// What is to be done; `None`: it is as it should be.
    pub difference: Option<Difference>,
    /// Since when that is known, microseconds since 1970; 0: it is as it should be.
    pub since_us: i64,
    /// What the catalog answered to the last try; empty: there was none.
    pub error: String,
    /// Where readers find it; empty where the lake does not have it any more.
    pub location: String,
}

/// How far the catalog is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CatalogStatus {
    /// The addresses of the catalog; none where there is no catalog.
    pub addresses: Vec<String>,
    /// Tables that are as they should be.
    pub registered: u64,
    /// What is pending or taken, by name.
    pub entries: Vec<CatalogEntry>,
    /// When there was last nothing left to do, microseconds; `None`: not since this writer holds the lease.
    pub last_success_us: Option<i64>,
    /// When all of the catalog was read last, microseconds.
    pub last_comparison_us: Option<i64>,
    /// Why the catalog cannot be used now, and since when; `None`: it can.
    pub trouble: Option<(String, i64)>,
}

impl CatalogStatus {
    /// What is pending: everything but names that are taken.
    pub fn pending(&self) -> impl Iterator<Item = &CatalogEntry> {
        self.entries.iter().filter(|entry| entry.difference.is_some_and(|difference| difference != Difference::Taken))
    }

    /// How long the oldest of what is pending waits at an instant, seconds.
    pub fn lag_seconds(&self, now_us: i64) -> f64 {
        let oldest = self.pending().map(|entry| entry.since_us).min();
        oldest.map_or(0.0, |since_us| (now_us - since_us).max(0) as f64 / 1e6)
    }
}

/// What is known of the differences: since when, and what came of the last try.
#[derive(Debug, Default)]
pub(super) struct Pending(BTreeMap<CatalogName, (Difference, i64, String)>);

impl Pending {
    /// What differs now. What differed in the same way before keeps its time and its error.
    pub(super) fn replace(&mut self, found: BTreeMap<CatalogName, Difference>, now_us: i64) {
        let before = std::mem::take(&mut self.0);
        self.0 = found
            .into_iter()
            .map(|(name, difference)| {
                let known = before.get(&name).filter(|(known, ..)| *known == difference);
                let (since_us, error) =
                    known.map_or((now_us, String::new()), |(_, since_us, error)| (*since_us, error.clone()));
                (name, (difference, since_us, error))
            })
            .collect();
    }

    /// A difference is gone.
    pub(super) fn done(&mut self, name: &CatalogName) {
        self.0.remove(name);
    }

    /// A try has failed. Answers whether that is new.
    pub(super) fn failed(&mut self, name: &CatalogName, error: String) -> bool {
        let Some((_, _, before)) = self.0.get_mut(name) else { return false };
        let is_new = *before != error;
        *before = error;
        is_new
    }

    /// What differs, with the difference, since when, and the last error.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&CatalogName, Difference, i64, &str)> {
        self.0.iter().map(|(name, (difference, since_us, error))| (name, *difference, *since_us, error.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(table: &str) -> CatalogName {
        CatalogName { database: "demo".into(), table: table.into() }
    }

    #[test]
    fn what_stays_pending_keeps_its_time_and_its_error() {
        let mut pending = Pending::default();
        let create = || BTreeMap::from([(name("a"), Difference::Create), (name("b"), Difference::Create)]);
        pending.replace(create(), 1);
        assert!(pending.failed(&name("a"), "refused".into()) && !pending.failed(&name("a"), "refused".into()));
        pending.replace(create(), 2);
        pending.done(&name("b"));
        assert_eq!(pending.iter().collect::<Vec<_>>(), [(&name("a"), Difference::Create, 1, "refused")]);
        pending.replace(BTreeMap::from([(name("a"), Difference::Alter)]), 3);
        assert_eq!(pending.iter().collect::<Vec<_>>(), [(&name("a"), Difference::Alter, 3, "")]);
    }

    #[test]
    fn the_lag_is_that_of_the_oldest_that_can_be_done() {
        let entry = |difference, since_us| CatalogEntry {
            name: name("a"),
            key: None,
            difference: Some(difference),
            since_us,
            error: String::new(),
            location: String::new(),
        };
        let status = CatalogStatus {
            entries: vec![
                entry(Difference::Taken, 0),
                entry(Difference::Create, 5_000_000),
                entry(Difference::Drop, 7_000_000),
            ],
            ..CatalogStatus::default()
        };
        assert_eq!((status.lag_seconds(8_000_000), status.pending().count()), (3.0, 2));
        assert_eq!(CatalogStatus::default().lag_seconds(8_000_000), 0.0);
    }
}

//! Decides which databases are asked for an id: the one of its shard, or all of them.
//!
//! Ranges that are wrong would make every row look deleted, so they are not believed without proof: a few rows of each database are checked
//! against them, at start and, for a database that had no rows then, whenever an id was found nowhere. Rows in a database that should
//! not have them (wrong ranges, a database whose shards were moved) make all ids be asked everywhere from then on, until the next start.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::metric_names;
use crate::sharding::ShardMap;

/// Routes ids to shard databases, which are numbered 0, 1, … in the order of the configuration.
pub(super) struct Routing {
    /// Names of the databases, for the operator.
    names: Vec<String>,
    /// `None` where all ids are asked everywhere, or there is one database only.
    map: Option<ShardMap>,
    /// Whether rows were found where the map would not look for them.
    disproved: AtomicBool,
    /// By shard, whether rows were there to check the map by.
    checked: Vec<AtomicBool>,
}

impl Routing {
    /// `map` was made from the databases in this order. Without a map, every id is asked on all of them.
    pub fn new(names: Vec<String>, map: Option<ShardMap>) -> Self {
        let all = map.is_none() && names.len() > 1;
        metrics::gauge!(metric_names::ALL_SHARDS_ASKED).set(f64::from(u8::from(all)));
        if all {
            tracing::info!(databases = names.len(), "every id is asked on all shards, as configured");
        }
        let checked = names.iter().map(|_| AtomicBool::new(false)).collect();
        Self { names, map, disproved: AtomicBool::new(false), checked }
    }

    /// Names of the databases, by their numbers.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether the map decides at this moment.
    pub fn is_by_hash(&self) -> bool {
        self.map.is_some() && !self.disproved.load(Ordering::Acquire)
    }

    /// Indexes of the databases whose rows have not been checked yet.
    pub fn unchecked(&self) -> Vec<usize> {
        let unchecked = |shard_index: &usize| !self.checked[*shard_index].load(Ordering::Acquire);
        (0..self.names.len()).filter(|_| self.is_by_hash()).filter(unchecked).collect()
    }

    /// Checks the map by ids that were found in a database, perhaps none. `false` when they disprove it.
    pub fn check(&self, shard_index: usize, ids: &[String]) -> bool {
        let Some(map) = self.map.as_ref().filter(|_| self.is_by_hash()) else { return true };
        let Some(stray) = ids.iter().find(|id| map.database_of(id) != shard_index) else {
            self.checked[shard_index].fetch_or(!ids.is_empty(), Ordering::AcqRel);
            tracing::info!(database = self.names[shard_index], rows_checked = ids.len(), "shard database is ready");
            return true;
        };
        // The operator is told once, by the first check that finds a stray row.
        if !self.disproved.swap(true, Ordering::AcqRel) {
            metrics::gauge!(metric_names::ALL_SHARDS_ASKED).set(1.0);
            tracing::warn!(
                database = self.names[shard_index],
                id = stray,
                shard = map.shard_of(stray),
                expected = self.names[map.database_of(stray)],
                "a row is not in the database of its shard: from now on every id is asked on all shards, which is correct but more work; \
                 take first, last and shard_count from hq's settings and start again"
            );
        }
        false
    }

    /// Whether the map routes these ids, found in a copy of a database, to that database. Always, where no map counts.
    pub fn fits(&self, shard_index: usize, ids: &[String]) -> bool {
        self.map
            .as_ref()
            .filter(|_| self.is_by_hash())
            .is_none_or(|map| ids.iter().all(|id| map.database_of(id) == shard_index))
    }

    /// The ids to ask at each shard, each id once however often it is given.
    pub fn route<'i>(&self, ids: impl Iterator<Item = &'i String>) -> Vec<Vec<String>> {
        let map = self.map.as_ref().filter(|_| self.is_by_hash());
        let mut seen = HashSet::new();
        let mut by_shard = vec![Vec::new(); self.names.len()];
        for id in ids.filter(|id| seen.insert(id.as_str())) {
            match map {
                Some(map) => by_shard[map.database_of(id)].push(id.clone()),
                None => by_shard.iter_mut().for_each(|ids| ids.push(id.clone())),
            }
        }
        by_shard
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Level, Metadata, Subscriber};

    use super::*;
    use crate::sharding::ShardRange;

    /// `abc` is in shard 734, `0` in shard 586, `""` in shard 215, all of 1024.
    fn routing() -> Routing {
        let range = |name: &str, first, last| ShardRange { name: name.into(), first, last };
        let map = ShardMap::new(1024, &[range("p1", 0, 511), range("p2", 512, 1023)]).unwrap();
        Routing::new(vec!["p1".into(), "p2".into()], Some(map))
    }

    fn ids(of: &[&str]) -> Vec<String> {
        of.iter().map(|id| (*id).to_owned()).collect()
    }

    #[test]
    fn rows_that_fit_are_proof_and_no_rows_are_none() {
        let routing = routing();
        assert_eq!(routing.unchecked(), [0, 1]);
        assert!(routing.check(0, &[]) && routing.check(1, &ids(&["abc", "0"])));
        assert_eq!(routing.unchecked(), [0]);
        assert!(routing.is_by_hash());
        assert_eq!(routing.route(ids(&["abc", "", "abc"]).iter()), [ids(&[""]), ids(&["abc"])]);
        assert!(routing.check(0, &ids(&[""])));
        assert!(routing.unchecked().is_empty());
    }

    #[test]
    fn one_stray_row_is_enough_to_ask_everywhere() {
        let routing = routing();
        assert!(!routing.check(0, &ids(&["", "abc"])));
        assert!(!routing.is_by_hash() && routing.unchecked().is_empty());
        assert_eq!(routing.route(ids(&["abc", ""]).iter()), [ids(&["abc", ""]), ids(&["abc", ""])]);
        assert!(routing.check(1, &ids(&[""])) && routing.fits(1, &ids(&[""])), "there is nothing left to check");
    }

    /// Counts what is logged as a warning.
    #[derive(Clone, Default)]
    struct Warnings(Arc<AtomicUsize>);

    impl Subscriber for Warnings {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() == Level::WARN
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, _: &Event<'_>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn the_operator_is_told_once() {
        let warnings = Warnings::default();
        tracing::subscriber::with_default(warnings.clone(), || {
            let routing = routing();
            assert!(routing.check(0, &ids(&[""])));
            assert_eq!(warnings.0.load(Ordering::SeqCst), 0);
            for shard_index in [1, 0, 1] {
                routing.check(shard_index, &ids(&["", "abc"]));
            }
        });
        assert_eq!(warnings.0.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn without_a_map_all_are_asked() {
        let several = Routing::new(vec!["p1".into(), "p2".into()], None);
        assert_eq!(several.route(ids(&["a", "a"]).iter()), [ids(&["a"]), ids(&["a"])]);
        assert!(!several.is_by_hash() && several.fits(0, &ids(&["abc"])));
        let single = Routing::new(vec!["main".into()], None);
        assert_eq!(single.route(ids(&["a"]).iter()), [ids(&["a"])]);
    }
}

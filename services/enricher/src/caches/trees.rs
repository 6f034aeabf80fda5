//! Location trees by domain, bounded in nodes over all domains; the least recently used go first.
//!
//! A tree is read as a whole once and then kept up to date: a broadcast names the locations that changed, and the next call reads those
//! and what is stamped as modified since. After `location_max_age_seconds` the same is asked without a broadcast, and the locations are
//! counted: so a missed message heals, also one of a deletion, which leaves no stamp. What goes past HQ's `save()` leaves no trace at all,
//! so after `location_whole_max_age_seconds` the whole is read again.
//!
//! Refreshing copies nothing but what has changed. Before a whole tree is read again the one before is let go, so that a domain is held twice
//! only as long as a message that had it is in work; and only [`WHOLE_READS_MAX`] whole trees are read at a time.
//!
//! A counter orders calls, loads and invalidations. A tree may be used by a call if its load began after the last invalidation, or after
//! the call itself (so that calls that wait for one load share it even when invalidations rain down). Ids of invalidations are kept until a
//! load that began after them has succeeded.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lake_hq::locations::{Refresh, TreeBuilder, WholeTreeNeeded};
use lake_hq::source::{HqDatabase, SourceError, TreeExtent, TreeRow};
use lake_shared::identity::Domain;
use lake_shared::names;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::metric_names;
use crate::options::CacheOptions;
use crate::place::DomainPlaces;

/// Whole trees that are read at the same time.
const WHOLE_READS_MAX: usize = 2;
/// Ids of changed locations that are kept for a domain; with more the whole tree is read.
const CHANGED_IDS_MAX: usize = 5_000;

/// See the module.
pub struct Trees {
    database: Arc<dyn HqDatabase>,
    max_age: Duration,
    whole_max_age: Duration,
    nodes_max: usize,
    whole_reads: Semaphore,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Counts everything that happens.
    clock: u64,
    /// When all trees were last said to have changed.
    all_changed: u64,
    /// By domain token.
    domains: HashMap<String, Slot>,
}

#[derive(Default)]
struct Slot {
    held: Option<Held>,
    changed: u64,
    /// Locations that changed, and when that was last said.
    changed_ids: HashMap<String, u64>,
    /// When a change was last told that no ids explain.
    whole_changed: u64,
    used: u64,
    /// Held by the one task that loads.
    loading: Arc<tokio::sync::Mutex<()>>,
}

struct Held {
    places: Arc<DomainPlaces>,
    load_began: u64,
    loaded: Instant,
    whole: WholeRead,
}

/// What a call may use.
#[derive(Clone, Copy)]
struct Wanted {
    came: u64,
    observed_us_min: i64,
}

/// What a load has to do.
enum Load {
    Whole,
    Changes { held: Arc<DomainPlaces>, whole: WholeRead, ids: Vec<String>, count: bool },
}

/// When a tree was last read as a whole.
#[derive(Clone, Copy)]
struct WholeRead {
    began: u64,
    done: Instant,
}

impl State {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn usable(&mut self, token: &str, wanted: Wanted, max_age: Duration) -> Option<Arc<DomainPlaces>> {
        let (now, all_changed) = (self.tick(), self.all_changed);
        let slot = self.domains.get_mut(token)?;
        let held = slot.held.as_ref()?;
        let current = held.load_began > slot.changed.max(all_changed) && held.loaded.elapsed() < max_age;
        let usable = (current || held.load_began > wanted.came) && held.places.observed_us() >= wanted.observed_us_min;
        usable.then(|| {
            slot.used = now;
            Arc::clone(&held.places)
        })
    }

    /// What has to be read of a domain now. Where it is all of it, the tree that is held is let go.
    fn load(&mut self, token: &str, max_age: Duration, whole_max_age: Duration) -> Load {
        let all_changed = self.all_changed;
        let Some(slot) = self.domains.get_mut(token) else { return Load::Whole };
        let keeps = |held: &Held| held.whole.began > slot.whole_changed && held.whole.done.elapsed() < whole_max_age;
        let Some(held) = slot.held.take().filter(keeps) else { return Load::Whole };
        let load = Load::Changes {
            held: Arc::clone(&held.places),
            whole: held.whole,
            ids: slot.changed_ids.keys().cloned().collect(),
            count: held.load_began <= all_changed || held.loaded.elapsed() >= max_age,
        };
        slot.held = Some(held);
        load
    }

    fn put(&mut self, token: String, places: Arc<DomainPlaces>, load_began: u64, whole: Option<WholeRead>) {
        let (used, loaded) = (self.tick(), Instant::now());
        let slot = self.domains.entry(token).or_default();
        slot.used = used;
        slot.changed_ids.retain(|_, changed| *changed > load_began);
        let whole = whole.unwrap_or(WholeRead { began: load_began, done: loaded });
        slot.held = Some(Held { places, load_began, loaded, whole });
    }

    /// Lets trees go, least recently used first, until the bound is kept; never the one just used.
    fn keep_bound(&mut self, nodes_max: usize) {
        // An empty tree counts too: there may be very many domains.
        let size = |slot: &Slot| slot.held.as_ref().map_or(0, |held| held.places.nodes() + 1);
        let mut nodes: usize = self.domains.values().map(size).sum();
        let mut by_use: Vec<(u64, String)> = self
            .domains
            .iter()
            .filter(|(_, slot)| slot.held.is_some())
            .map(|(token, slot)| (slot.used, token.clone()))
            .collect();
        by_use.sort_unstable();
        by_use.pop();
        for (_, token) in by_use {
            if nodes <= nodes_max {
                break;
            }
            if let Some(slot) = self.domains.get_mut(&token) {
                nodes -= size(slot);
                slot.held = None;
            }
        }
        self.domains.retain(|_, slot| slot.held.is_some() || Arc::strong_count(&slot.loading) > 1);
        #[allow(clippy::cast_precision_loss, reason = "a gauge")]
        metrics::gauge!(metric_names::CACHE_ENTRIES, "cache" => "locations").set(nodes as f64);
    }
}

impl Slot {
    fn forget(&mut self, now: u64, ids: &[String]) {
        self.changed = now;
        if ids.is_empty() || self.changed_ids.len() + ids.len() > CHANGED_IDS_MAX {
            self.whole_changed = now;
            self.changed_ids.clear();
        } else {
            self.changed_ids.extend(ids.iter().map(|id| (id.clone(), now)));
        }
    }
}

impl Trees {
    /// Nothing is loaded yet.
    pub fn new(database: Arc<dyn HqDatabase>, options: &CacheOptions) -> Self {
        Self {
            database,
            max_age: Duration::from_secs(options.location_max_age_seconds),
            whole_max_age: Duration::from_secs(options.location_whole_max_age_seconds),
            nodes_max: options.location_nodes_max,
            whole_reads: Semaphore::new(WHOLE_READS_MAX),
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tree of a domain, brought up to date unless it is held and current, and at least as new as `observed_us_min` on the database's
    /// clock. If even a tree read now is older than that, it is returned as it is: the caller decides how long to wait.
    pub async fn places(&self, domain: &Domain, observed_us_min: i64) -> Result<Arc<DomainPlaces>, SourceError> {
        let token = names::token(domain.as_str());
        let (wanted, loading) = {
            let mut state = self.lock();
            let wanted = Wanted { came: state.tick(), observed_us_min };
            if let Some(places) = state.usable(&token, wanted, self.max_age) {
                metrics::counter!(metric_names::CACHE_HITS_TOTAL, "cache" => "locations").increment(1);
                return Ok(places);
            }
            (wanted, Arc::clone(&state.domains.entry(token.clone()).or_default().loading))
        };
        let _only_one = loading.lock().await;
        let (load_began, load) = {
            let mut state = self.lock();
            if let Some(places) = state.usable(&token, wanted, self.max_age) {
                return Ok(places);
            }
            (state.tick(), state.load(&token, self.max_age, self.whole_max_age))
        };
        metrics::counter!(metric_names::CACHE_MISSES_TOTAL, "cache" => "locations").increment(1);
        let refreshed = match load {
            Load::Whole => None,
            Load::Changes { held, whole, ids, count } => {
                self.refresh(domain, held, ids, count).await?.map(|places| (places, whole))
            }
        };
        let (places, whole) = match refreshed {
            Some((places, whole)) => (places, Some(whole)),
            None => {
                self.let_go(&token);
                (self.read_whole(domain).await?, None)
            }
        };
        let mut state = self.lock();
        state.put(token, Arc::clone(&places), load_began, whole);
        state.keep_bound(self.nodes_max);
        Ok(places)
    }

    fn let_go(&self, token: &str) {
        if let Some(slot) = self.lock().domains.get_mut(token) {
            slot.held = None;
        }
    }

    /// The tree with what changed; `None` where the whole has to be read.
    async fn refresh(
        &self,
        domain: &Domain,
        held: Arc<DomainPlaces>,
        ids: Vec<String>,
        count: bool,
    ) -> Result<Option<Arc<DomainPlaces>>, SourceError> {
        let tree = held.tree();
        let extent = TreeExtent::Changed {
            since_us: tree.changed_since_us(),
            location_ids: &ids,
            rows_max: Refresh::rows_max(tree) + 1,
            count,
        };
        let mut refresh = Refresh::new(tree, ids.iter().cloned());
        let mut take = |row: TreeRow<'_>| refresh.take(&row);
        let observed_us = self.database.location_tree(domain.as_str(), extent, &mut take).await?;
        match refresh.finish(observed_us) {
            Ok(tree) => {
                tracing::debug!(%domain, named = ids.len(), count, "location tree brought up to date");
                Ok(Some(DomainPlaces::new(tree)))
            }
            Err(reason) => {
                if reason == WholeTreeNeeded::OtherCount {
                    tracing::info!(%domain, "a deleted location was missed; location tree is read again");
                }
                tracing::debug!(%domain, %reason, "location tree is read again");
                Ok(None)
            }
        }
    }

    async fn read_whole(&self, domain: &Domain) -> Result<Arc<DomainPlaces>, SourceError> {
        let trouble = |reason: String| SourceError::Unavailable {
            action: format!("make the location tree of domain {domain}"),
            reason,
        };
        let _turn = self.whole_reads.acquire().await.map_err(|error| trouble(error.to_string()))?;
        let mut builder = TreeBuilder::default();
        let mut take = |row: TreeRow<'_>| builder.take(&row);
        let observed_us = self.database.location_tree(domain.as_str(), TreeExtent::Whole, &mut take).await?;
        // Hundreds of thousands of locations take a while to index.
        let make = move || DomainPlaces::new(builder.finish(observed_us));
        let places = tokio::task::spawn_blocking(make).await.map_err(|error| trouble(error.to_string()))?;
        tracing::debug!(%domain, locations = places.nodes(), "location tree read");
        Ok(places)
    }

    /// These locations of the domain changed (unknown which where there are none), or something in any domain where the token is absent.
    pub fn forget(&self, domain_token: Option<&str>, ids: &[String]) {
        let mut state = self.lock();
        let now = state.tick();
        match domain_token {
            None => state.all_changed = now,
            Some(token) => {
                if let Some(slot) = state.domains.get_mut(token) {
                    slot.forget(now, ids);
                }
            }
        }
    }
}

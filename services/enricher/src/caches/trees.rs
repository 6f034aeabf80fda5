//! Location trees by domain: loaded by one task at a time, bounded in nodes over all domains, the least recently used go first.
//!
//! A counter orders calls, loads and invalidations. A tree may be used by a call if its load began after the last invalidation, or after
//! the call itself (so that calls that wait for one load share it even when invalidations rain down).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lake_hq::locations::LocationTree;
use lake_hq::source::{HqDatabase, SourceError};
use lake_shared::identity::Domain;
use lake_shared::names;
use tokio::time::Instant;

use crate::metric_names;
use crate::options::CacheOptions;
use crate::place::DomainPlaces;

/// See the module.
pub struct Trees {
    database: Arc<dyn HqDatabase>,
    max_age: Duration,
    nodes_max: usize,
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
    used: u64,
    /// Held by the one task that loads.
    loading: Arc<tokio::sync::Mutex<()>>,
}

struct Held {
    places: Arc<DomainPlaces>,
    load_began: u64,
    loaded: Instant,
}

/// What a call may use.
#[derive(Clone, Copy)]
struct Wanted {
    came: u64,
    observed_us_min: i64,
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

impl Trees {
    /// Nothing is loaded yet.
    pub fn new(database: Arc<dyn HqDatabase>, options: &CacheOptions) -> Self {
        Self {
            database,
            max_age: Duration::from_secs(options.location_max_age_seconds),
            nodes_max: options.location_nodes_max,
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tree of a domain, read now unless it is held and current, and at least as new as `observed_us_min` on the database's clock.
    /// If even a tree read now is older than that, it is returned as it is: the caller decides how long to wait.
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
        let load_began = {
            let mut state = self.lock();
            if let Some(places) = state.usable(&token, wanted, self.max_age) {
                return Ok(places);
            }
            state.tick()
        };
        metrics::counter!(metric_names::CACHE_MISSES_TOTAL, "cache" => "locations").increment(1);
        let rows = self.database.locations(domain.as_str()).await?;
        let count = rows.rows.len();
        // Hundreds of thousands of locations take a while to sort.
        let made = tokio::task::spawn_blocking(move || DomainPlaces::new(LocationTree::from_rows(rows))).await;
        let places = made.map_err(|error| SourceError::Unavailable {
            action: format!("make the location tree of {domain} of {count} rows"),
            reason: error.to_string(),
        })?;
        tracing::debug!(%domain, locations = count, "location tree read");
        let mut state = self.lock();
        let used = state.tick();
        let slot = state.domains.entry(token).or_default();
        slot.used = used;
        slot.held = Some(Held { places: Arc::clone(&places), load_began, loaded: Instant::now() });
        state.keep_bound(self.nodes_max);
        Ok(places)
    }

    /// Something in this domain changed, or in any where the token is absent.
    pub fn forget(&self, domain_token: Option<&str>) {
        let mut state = self.lock();
        let now = state.tick();
        match domain_token {
            None => {
                state.all_changed = now;
                state.domains.values_mut().for_each(|slot| slot.held = None);
            }
            Some(token) => {
                if let Some(slot) = state.domains.get_mut(token) {
                    slot.changed = now;
                    slot.held = None;
                }
            }
        }
    }
}

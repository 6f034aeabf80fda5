//! Location trees by domain, bounded in nodes over all domains; [`residents`] says which go.
//!
//! A tree is read as a whole once and then kept up to date: a broadcast names the locations that changed, and the next call reads those
//! and what is stamped later than all that is known. Every `location_max_age_seconds` all is asked for that was stamped lately, broadcast or not, and the
//! locations are counted: so a missed message heals, also one of a deletion, which leaves no stamp. After an upload that is very much, so it is not asked
//! for with each message. What goes past HQ's `save()` leaves no trace at all,
//! so after `location_whole_max_age_seconds` the whole is read again.
//!
//! Refreshing copies nothing but what has changed. Before a whole tree is read again the earlier one is dropped, so that a domain is in memory
//! twice only as long as a message in work still uses the earlier one; and only [`WHOLE_READS_MAX`] whole trees are read at a time.
//!
//! A counter orders calls, loads and invalidations. A tree may be used by a call if its load began after the last invalidation, or after
//! the call itself (so that calls that wait for one load share it even when invalidations come in quick succession). Ids of invalidations are kept until a
//! load that began after them has succeeded.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lake_hq::locations::{Refresh, TreeBuilder, WholeTreeNeeded};
use lake_hq::source::{HqDatabase, SourceError, TreeExtent, TreeRow};
use lake_shared::escaped_names;
use lake_shared::identity::Domain;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::residents::{self, Resident};
use crate::location_columns::DomainLocations;
use crate::metric_names;
use crate::options::CacheOptions;

/// Whole trees that are read at the same time.
const WHOLE_READS_MAX: usize = 2;
/// Ids of changed locations that are kept for a domain; with more the whole tree is read. More than come while a large tree is read during an upload.
const CHANGED_IDS_MAX: usize = 50_000;

/// How often the log says that the bound is too small.
const BOUND_TOLD_EVERY: Duration = Duration::from_secs(600);

/// Domains of which is remembered that the log has told of their many location types.
const TYPES_TOLD_MAX: usize = 10_000;

/// The cache of location trees.
pub struct Trees {
    database: Arc<dyn HqDatabase>,
    max_age: Duration,
    whole_max_age: Duration,
    nodes_max: usize,
    location_types_max: usize,
    whole_reads: Semaphore,
    bound_told: Mutex<Option<Instant>>,
    /// Domains that were told to have too many location types.
    types_told: Mutex<HashSet<String>>,
    state: Mutex<TreesState>,
}

#[derive(Default)]
struct TreesState {
    /// Counts calls, loads and invalidations; orders them.
    clock: u64,
    /// Clock of the last invalidation of all trees.
    all_changed: u64,
    /// Cached trees by domain, each as a token of its name.
    domains: HashMap<String, CachedDomain>,
}

#[derive(Default)]
struct CachedDomain {
    held: Option<CachedTree>,
    changed: u64,
    /// Locations that changed, each with the clock of its last invalidation.
    changed_ids: HashMap<String, u64>,
    /// Clock of the last invalidation that named no ids, or too many.
    whole_changed: u64,
    used: u64,
    used_at: Option<Instant>,
    /// Locked by the one task that loads the tree.
    loading: Arc<tokio::sync::Mutex<()>>,
}

struct CachedTree {
    locations: Arc<DomainLocations>,
    load_began: u64,
    /// When all was asked for that was stamped lately, and the locations were counted.
    counted: Instant,
    whole: WholeRead,
}

/// Which trees a call may use.
#[derive(Clone, Copy)]
struct TreeRequest {
    came: u64,
    observed_us_min: i64,
}

/// How much of a tree has to be read.
enum TreeRead {
    Whole,
    Changes { held: Arc<DomainLocations>, earlier: EarlierReads, ids: Vec<String>, count: bool },
}

/// When HQ was asked for what a tree is made of, before its last refresh.
#[derive(Clone, Copy)]
struct EarlierReads {
    whole: WholeRead,
    counted: Instant,
}

/// When a tree was last read as a whole.
#[derive(Clone, Copy)]
struct WholeRead {
    began: u64,
    done: Instant,
}

impl TreesState {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn usable(&mut self, token: &str, request: TreeRequest, max_age: Duration) -> Option<Arc<DomainLocations>> {
        let (now, all_changed) = (self.tick(), self.all_changed);
        let cached = self.domains.get_mut(token)?;
        let held = cached.held.as_ref()?;
        let current = held.load_began > cached.changed.max(all_changed) && held.counted.elapsed() < max_age;
        let usable =
            (current || held.load_began > request.came) && held.locations.observed_us() >= request.observed_us_min;
        usable.then(|| {
            (cached.used, cached.used_at) = (now, Some(Instant::now()));
            Arc::clone(&held.locations)
        })
    }

    /// How much has to be read of a domain now. Where it is the whole tree, the cached one is dropped.
    fn next_read(&mut self, token: &str, max_age: Duration, whole_max_age: Duration) -> TreeRead {
        let all_changed = self.all_changed;
        let Some(cached) = self.domains.get_mut(token) else { return TreeRead::Whole };
        let keeps =
            |held: &CachedTree| held.whole.began > cached.whole_changed && held.whole.done.elapsed() < whole_max_age;
        let Some(held) = cached.held.take().filter(keeps) else { return TreeRead::Whole };
        let read = TreeRead::Changes {
            held: Arc::clone(&held.locations),
            earlier: EarlierReads { whole: held.whole, counted: held.counted },
            ids: cached.changed_ids.keys().cloned().collect(),
            count: held.load_began <= all_changed || held.counted.elapsed() >= max_age,
        };
        cached.held = Some(held);
        read
    }

    /// `earlier` is of a tree that was brought up to date; without it the whole was read.
    fn put(&mut self, token: String, locations: Arc<DomainLocations>, load_began: u64, earlier: Option<EarlierReads>) {
        let (used, done) = (self.tick(), Instant::now());
        let cached = self.domains.entry(token).or_default();
        (cached.used, cached.used_at) = (used, Some(done));
        cached.changed_ids.retain(|_, changed| *changed > load_began);
        let all_now = EarlierReads { whole: WholeRead { began: load_began, done }, counted: done };
        let EarlierReads { whole, counted } = earlier.unwrap_or(all_now);
        cached.held = Some(CachedTree { locations, load_began, counted, whole });
    }

    /// Drops trees until the bound is kept; never the one just used. Answers which went, and how many nodes all had together before.
    fn keep_bound(&mut self, nodes_max: usize, in_use: Duration) -> (Vec<String>, usize) {
        let resident = |(token, cached): (&String, &CachedDomain)| {
            let held = cached.held.as_ref()?;
            let is_cold = cached.used_at.is_none_or(|used| used.elapsed() >= in_use);
            // An empty tree counts too: there may be very many domains.
            Some(Resident { token: token.clone(), nodes: held.locations.nodes() + 1, used: cached.used, is_cold })
        };
        let residents: Vec<Resident> = self.domains.iter().filter_map(resident).collect();
        let before: usize = residents.iter().map(|resident| resident.nodes).sum();
        let gone = residents::surplus(residents, nodes_max, self.clock);
        let mut nodes = before;
        for token in &gone {
            if let Some(held) = self.domains.get_mut(token).and_then(|cached| cached.held.take()) {
                nodes -= held.locations.nodes() + 1;
            }
        }
        self.domains.retain(|_, cached| cached.held.is_some() || Arc::strong_count(&cached.loading) > 1);
        #[allow(clippy::cast_precision_loss, reason = "a gauge")]
        metrics::gauge!(metric_names::CACHE_ENTRIES, "cache" => "locations").set(nodes as f64);
        let held = self.domains.values().filter_map(|cached| cached.held.as_ref());
        let types_left_out: usize = held.map(|held| held.locations.types_left_out()).sum();
        #[allow(clippy::cast_precision_loss, reason = "a gauge")]
        metrics::gauge!(metric_names::LOCATION_TYPES_LEFT_OUT).set(types_left_out as f64);
        (gone, before)
    }
}

impl CachedDomain {
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
    /// A cache without any tree, in front of HQ's database.
    /// At most `location_types_max` types of a domain get columns.
    pub fn new(database: Arc<dyn HqDatabase>, options: &CacheOptions, location_types_max: usize) -> Self {
        Self {
            database,
            max_age: Duration::from_secs(options.location_max_age_seconds),
            whole_max_age: Duration::from_secs(options.location_whole_max_age_seconds),
            nodes_max: options.location_nodes_max,
            location_types_max,
            whole_reads: Semaphore::new(WHOLE_READS_MAX),
            bound_told: Mutex::default(),
            types_told: Mutex::default(),
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, TreesState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The locations of a domain, if a current tree is cached that is at least as new as `observed_us_min`. HQ is not asked.
    pub fn at_hand(&self, domain: &Domain, observed_us_min: i64) -> Option<Arc<DomainLocations>> {
        let mut state = self.lock();
        let request = TreeRequest { came: state.tick(), observed_us_min };
        let locations = state.usable(&escaped_names::token(domain.as_str()), request, self.max_age)?;
        metrics::counter!(metric_names::CACHE_HITS_TOTAL, "cache" => "locations").increment(1);
        Some(locations)
    }

    /// The locations of a domain, read or refreshed unless a current tree is cached that is at least as new as `observed_us_min` on the
    /// database's clock. If even a tree read now is older than that, it is returned as it is: the caller decides how long to wait.
    ///
    /// # Errors
    /// What reading HQ's database fails with.
    pub async fn domain_locations(
        &self,
        domain: &Domain,
        observed_us_min: i64,
    ) -> Result<Arc<DomainLocations>, SourceError> {
        let token = escaped_names::token(domain.as_str());
        let (request, loading) = {
            let mut state = self.lock();
            let request = TreeRequest { came: state.tick(), observed_us_min };
            if let Some(locations) = state.usable(&token, request, self.max_age) {
                metrics::counter!(metric_names::CACHE_HITS_TOTAL, "cache" => "locations").increment(1);
                return Ok(locations);
            }
            (request, Arc::clone(&state.domains.entry(token.clone()).or_default().loading))
        };
        let _only_one = loading.lock().await;
        let (load_began, read) = {
            let mut state = self.lock();
            if let Some(locations) = state.usable(&token, request, self.max_age) {
                return Ok(locations);
            }
            (state.tick(), state.next_read(&token, self.max_age, self.whole_max_age))
        };
        metrics::counter!(metric_names::CACHE_MISSES_TOTAL, "cache" => "locations").increment(1);
        let refreshed = match read {
            TreeRead::Whole => None,
            TreeRead::Changes { held, earlier, ids, count } => {
                let earlier = if count { EarlierReads { counted: Instant::now(), ..earlier } } else { earlier };
                self.refresh(domain, held, ids, count).await?.map(|locations| (locations, earlier))
            }
        };
        let (locations, earlier) = match refreshed {
            Some((locations, earlier)) => (locations, Some(earlier)),
            None => {
                self.drop_tree(&token);
                (self.read_whole(domain).await?, None)
            }
        };
        self.tell_of_types(domain, &token, &locations);
        let mut state = self.lock();
        state.put(token, Arc::clone(&locations), load_began, earlier);
        let (gone, nodes) = state.keep_bound(self.nodes_max, self.max_age);
        drop(state);
        self.tell_of_bound(&gone, nodes);
        Ok(locations)
    }

    /// Says that the bound is too small for the domains in use, once in a while.
    fn tell_of_bound(&self, gone: &[String], nodes: usize) {
        metrics::counter!(metric_names::TREES_DROPPED_TOTAL).increment(gone.len() as u64);
        if nodes <= self.nodes_max {
            return;
        }
        let mut told = self.bound_told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= BOUND_TOLD_EVERY) {
            *told = Some(Instant::now());
            tracing::warn!(
                nodes,
                nodes_max = self.nodes_max,
                dropped = gone.len(),
                "location trees in use are larger than enricher.caches.location_nodes_max; dropped ones are read as a whole again"
            );
        }
    }

    /// Says that a domain has more location types than get columns, once for each domain.
    fn tell_of_types(&self, domain: &Domain, token: &str, locations: &DomainLocations) {
        let left_out = locations.types_left_out();
        if left_out == 0 {
            return;
        }
        let mut told = self.types_told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= TYPES_TOLD_MAX && !told.contains(token) {
            told.clear();
        }
        if told.insert(token.to_owned()) {
            tracing::warn!(
                %domain,
                types = left_out + locations.type_columns().len(),
                location_types_max = self.location_types_max,
                left_out,
                "domain has more location types than enricher.location_types_max; those made last have no columns in its rows: \
                 raise it, or delete types in HQ that nobody needs"
            );
        }
    }

    fn drop_tree(&self, token: &str) {
        if let Some(cached) = self.lock().domains.get_mut(token) {
            cached.held = None;
        }
    }

    /// The tree with its changes; `None` where the whole has to be read.
    async fn refresh(
        &self,
        domain: &Domain,
        held: Arc<DomainLocations>,
        ids: Vec<String>,
        count: bool,
    ) -> Result<Option<Arc<DomainLocations>>, SourceError> {
        let tree = held.tree();
        let extent = TreeExtent::Changed {
            since_us: if count { tree.changed_since_us() } else { tree.stamped_after_us() },
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
                Ok(Some(DomainLocations::new(tree, self.location_types_max)))
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

    async fn read_whole(&self, domain: &Domain) -> Result<Arc<DomainLocations>, SourceError> {
        let trouble = |reason: String| SourceError::Unavailable {
            action: format!("make the location tree of domain {domain}"),
            reason,
        };
        let _turn = self.whole_reads.acquire().await.map_err(|error| trouble(error.to_string()))?;
        let mut builder = TreeBuilder::default();
        let mut take = |row: TreeRow<'_>| builder.take(&row);
        let observed_us = self.database.location_tree(domain.as_str(), TreeExtent::Whole, &mut take).await?;
        // Hundreds of thousands of locations take a while to index.
        let types_max = self.location_types_max;
        let make = move || DomainLocations::new(builder.finish(observed_us), types_max);
        let locations = tokio::task::spawn_blocking(make).await.map_err(|error| trouble(error.to_string()))?;
        tracing::debug!(%domain, locations = locations.nodes(), "location tree read");
        Ok(locations)
    }

    /// Takes note that these locations of the domain changed (without ids: any of them), or, without a domain, any location of any domain.
    pub fn forget(&self, domain_token: Option<&str>, ids: &[String]) {
        let mut state = self.lock();
        let now = state.tick();
        match domain_token {
            None => state.all_changed = now,
            Some(token) => {
                if let Some(cached) = state.domains.get_mut(token) {
                    cached.forget(now, ids);
                }
            }
        }
    }
}

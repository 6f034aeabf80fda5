//! Makes a catalog what the lake has, beside the commits, in the writer that holds the lease.
//!
//! A full comparison reads all of the catalog; between two of them only what has changed in the lake is compared with what was read. A call that
//! fails leaves its table pending, and is tried again after a growing while; a catalog that does not answer is told once. A call that a writer
//! finishes after it has lost the lease is found by the next comparison.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::Utc;
use lake_shared::error_chain::Chain;
use lake_shared::identity::TableKey;
use lake_shared::retry::Backoff;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::differences::{self, Difference, differences};
use super::options::CatalogOptions;
use super::status::{CatalogEntry, CatalogStatus, Pending};
use super::wanted::{LakeTables, Roots};
use super::{Catalog, CatalogError, CatalogName, HeldTable, Registration};
use crate::consent::{Consent, StalePlan, plan_id};
use crate::metastore::fence::{Fence, LeaseLost};
use crate::metastore::{Metastore, MetastoreError, TableRecord};
use crate::metric_names;
use crate::table_store::table_changes::TableChanges;

/// Several tables often come at once; so long is waited for the others.
const CHANGES_WITHIN: Duration = Duration::from_millis(200);

/// Time between two tries: the first, and the longest.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(60);

/// Why the catalog was not made what the lake has.
#[derive(Debug, thiserror::Error)]
pub enum RegistrarError {
    /// The writer has no catalog.
    #[error("this writer has no catalog; configure one in section `catalog`")]
    NoCatalog,
    /// The catalog failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The lake's own metastore failed.
    #[error(transparent)]
    Metastore(#[from] MetastoreError),
    /// Another writer holds the lease.
    #[error(transparent)]
    LeaseLost(#[from] LeaseLost),
    /// What would be done is not what was planned. Nothing was done.
    #[error("{0}; look at a new plan")]
    StalePlan(StalePlan),
}

/// What was done to the catalog, or would be: tables by what was done to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// Id of the plan, made of all that is to be done.
    pub plan: String,
    /// Whether it was done, not only planned.
    pub done: bool,
    /// Tables created, altered and dropped.
    pub created: u64,
    /// Tables that were given another location or other columns.
    pub altered: u64,
    /// Tables that left.
    pub dropped: u64,
    /// Names that others have taken.
    pub taken: u64,
    /// Tables that the catalog refused; the status says why.
    pub failed: u64,
}

/// Makes a catalog what the lake has. See the module.
pub(crate) struct Registrar {
    catalog: Option<Arc<dyn Catalog>>,
    metastore: Arc<dyn Metastore>,
    options: CatalogOptions,
    changes: TableChanges,
    work: tokio::sync::Mutex<Work>,
    told: Mutex<Told>,
}

/// What one round at a time changes.
struct Work {
    lake: LakeTables,
    /// The tables that the catalog has, as far as they matter; `None`: they were not read yet.
    held: Option<BTreeMap<CatalogName, HeldTable>>,
    databases: BTreeSet<String>,
}

/// What is told without waiting for a round.
#[derive(Default)]
struct Told {
    pending: Pending,
    known: BTreeMap<CatalogName, (TableKey, String)>,
    last_success_us: Option<i64>,
    last_comparison_us: Option<i64>,
    trouble: Option<(String, i64)>,
}

/// What the lake has, what the catalog has, and what differs.
struct Comparison {
    wanted: BTreeMap<CatalogName, Registration>,
    differences: BTreeMap<CatalogName, Difference>,
}

impl Comparison {
    fn plan(&self) -> String {
        let is_done = |difference: &Difference| *difference != Difference::Taken;
        let differences = self.differences.iter().filter(|(_, difference)| is_done(difference));
        let objects = differences.map(|(name, difference)| {
            let wanted = self.wanted.get(name).map(|wanted| {
                let columns = wanted.columns.as_ref().map_or("", |columns| columns.digest.as_str());
                format!("{} {columns}", wanted.location)
            });
            format!("{} {name} {}", difference.word(), wanted.unwrap_or_default())
        });
        plan_id("catalog", objects.collect())
    }
}

impl Registrar {
    /// For the lake at this address; `None` for the catalog: it has none, and nothing is done.
    pub(crate) fn new(
        catalog: Option<Arc<dyn Catalog>>,
        metastore: Arc<dyn Metastore>,
        options: CatalogOptions,
        address: &str,
        changes: TableChanges,
    ) -> Self {
        let lake = LakeTables::new(options.clone(), Roots::new(&options, address));
        let work = Work { lake, held: None, databases: BTreeSet::new() };
        Self { catalog, metastore, options, changes, work: tokio::sync::Mutex::new(work), told: Mutex::default() }
    }

    /// Follows the lake until `shutdown`.
    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        if self.catalog.is_none() {
            shutdown.cancelled().await;
            return;
        }
        tokio::select! {
            () = self.follow() => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn follow(&self) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
        let mut compared: Option<Instant> = None;
        let mut refused = 0;
        loop {
            let is_due = compared.is_none_or(|at| at.elapsed() >= self.options.compare_every());
            let is_done = match self.round(is_due).await {
                Ok(synced) => {
                    if is_due {
                        compared = Some(Instant::now());
                    }
                    if synced.failed > refused {
                        // Perhaps because the catalog is not as it was read any more: others have taken the name, say.
                        compared = None;
                    }
                    refused = synced.failed;
                    refused == 0
                }
                Err(_) => {
                    // What was read may not be so any more.
                    compared = None;
                    false
                }
            };
            if is_done {
                backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
                let rest =
                    compared.map_or(Duration::ZERO, |at| self.options.compare_every().saturating_sub(at.elapsed()));
                tokio::select! {
                    () = self.changes.next() => tokio::time::sleep(CHANGES_WITHIN).await,
                    () = tokio::time::sleep(rest) => {}
                }
            } else {
                tokio::time::sleep(backoff.next_wait()).await;
            }
        }
    }

    /// Compares, with all of the catalog where that is asked for, and does what is to be done.
    async fn round(&self, in_full: bool) -> Result<Synced, RegistrarError> {
        let mut work = self.work.lock().await;
        let outcome = async {
            let compared = self.compare(&mut work, in_full).await?;
            self.apply(&mut work, &compared).await
        };
        let outcome = outcome.await;
        self.tell_outcome(outcome.as_ref().map(drop));
        outcome
    }

    /// What differs, by reading all of the catalog now, and the number of tables that do not differ.
    pub(crate) async fn diff(&self) -> Result<(Vec<CatalogEntry>, u64), RegistrarError> {
        let mut work = self.work.lock().await;
        let compared = self.compare(&mut work, true).await;
        self.tell_outcome(compared.as_ref().map(drop));
        compared?;
        drop(work);
        let status = self.status();
        Ok((status.entries, status.registered))
    }

    /// Makes the catalog what the lake has, as far as the consent goes, by reading all of it now.
    pub(crate) async fn sync(&self, consent: &Consent) -> Result<Synced, RegistrarError> {
        let mut work = self.work.lock().await;
        let compared = self.compare(&mut work, true).await;
        self.tell_outcome(compared.as_ref().map(drop));
        let compared = compared?;
        let plan = compared.plan();
        if !consent.allows(&plan).map_err(RegistrarError::StalePlan)? {
            return Ok(Synced { plan, ..counted(compared.differences.values()) });
        }
        let outcome = self.apply(&mut work, &compared).await;
        self.tell_outcome(outcome.as_ref().map(drop));
        Ok(Synced { plan, done: true, ..outcome? })
    }

    /// How far the catalog is.
    pub(crate) fn status(&self) -> CatalogStatus {
        let told = self.told();
        let entries: Vec<CatalogEntry> = told
            .pending
            .iter()
            .map(|(name, difference, since_us, error)| {
                let (key, location) = told.known.get(name).cloned().unzip();
                CatalogEntry {
                    name: name.clone(),
                    key,
                    difference: Some(difference),
                    since_us,
                    error: error.to_owned(),
                    location: location.unwrap_or_default(),
                }
            })
            .collect();
        let differing = entries.iter().filter(|entry| entry.key.is_some()).count();
        CatalogStatus {
            addresses: self.catalog.as_ref().map(|catalog| catalog.addresses()).unwrap_or_default(),
            registered: told.known.len().saturating_sub(differing) as u64,
            entries,
            last_success_us: told.last_success_us,
            last_comparison_us: told.last_comparison_us,
            trouble: told.trouble.clone(),
        }
    }

    /// A table of the lake, as the catalog has it; `None`: there is no catalog.
    pub(crate) fn entry(&self, table: &TableRecord) -> Option<CatalogEntry> {
        self.catalog.as_ref()?;
        let name = LakeTables::name_of(&self.options, table);
        let told = self.told();
        let pending = told.pending.iter().find(|(pending, ..)| **pending == name);
        let known = told.known.get(&name);
        let (difference, since_us, error) = match (pending, known) {
            (Some((_, difference, since_us, error)), _) => (Some(difference), since_us, error.to_owned()),
            (None, Some(_)) => (None, 0, String::new()),
            // The next round finds it.
            (None, None) => (Some(Difference::Create), table.created_us, String::new()),
        };
        let location = known.map(|(_, location)| location.clone()).unwrap_or_default();
        Some(CatalogEntry { name, key: Some(table.key.clone()), difference, since_us, error, location })
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the lake has, what the catalog has, and what differs. What was known is only forgotten when all of it was read anew.
    async fn compare(&self, work: &mut Work, in_full: bool) -> Result<Comparison, RegistrarError> {
        let catalog = self.catalog.as_ref().ok_or(RegistrarError::NoCatalog)?;
        let tables = work.lake.wanted(&*self.metastore).await?;
        let known = tables.iter().map(|(name, (key, table))| (name.clone(), (key.clone(), table.location.clone())));
        self.told().known = known.collect();
        let wanted: BTreeMap<CatalogName, Registration> =
            tables.into_iter().map(|(name, (_, registration))| (name, registration)).collect();
        if in_full || work.held.is_none() {
            // Told as pending although the catalog does not answer.
            if work.held.is_none() {
                let all = wanted.keys().map(|name| (name.clone(), Difference::Create)).collect();
                self.told().pending.replace(all, now_us());
            }
            let (databases, held) = self.read(&**catalog, &work.lake, &wanted).await?;
            (work.databases, work.held) = (databases, Some(held));
            self.told().last_comparison_us = Some(now_us());
        }
        let held = work.held.as_ref();
        let found = held.map(|held| differences(work.lake.mark(), &wanted, held)).unwrap_or_default();
        self.told().pending.replace(found.clone(), now_us());
        Ok(Comparison { wanted, differences: found })
    }

    /// All databases of the catalog, and the tables of those in which tables of the lake may be.
    async fn read(
        &self,
        catalog: &dyn Catalog,
        lake: &LakeTables,
        wanted: &BTreeMap<CatalogName, Registration>,
    ) -> Result<(BTreeSet<String>, BTreeMap<CatalogName, HeldTable>), RegistrarError> {
        let databases = catalog.databases().await?;
        let of_dropped = lake.databases_of_dropped(&*self.metastore).await?;
        let mut meant: BTreeSet<&str> = wanted.keys().map(|name| name.database.as_str()).collect();
        let one = lake.one_database();
        meant.extend(of_dropped.iter().map(String::as_str).chain([one.as_str(), "default"]));
        let mut held = BTreeMap::new();
        for database in &databases {
            if meant.contains(database.name.as_str()) || database.root.as_deref() == Some(lake.mark()) {
                let tables = catalog.tables(&database.name).await?;
                held.extend(tables.into_iter().map(|table| (table.name.clone(), table)));
            }
        }
        Ok((databases.into_iter().map(|database| database.name).collect(), held))
    }

    /// Does what differs: tables come before others leave, so that one that is renamed is always there. A refusal concerns its table alone.
    async fn apply(&self, work: &mut Work, compared: &Comparison) -> Result<Synced, RegistrarError> {
        let catalog = self.catalog.as_ref().ok_or(RegistrarError::NoCatalog)?;
        let mut refused = BTreeSet::new();
        let (leaving, coming): (Vec<_>, Vec<_>) =
            compared.differences.iter().partition(|(_, difference)| **difference == Difference::Drop);
        for (name, difference) in coming.into_iter().chain(leaving) {
            if *difference == Difference::Taken {
                self.failed(name, "a table that the lake has not made has this name");
                continue;
            }
            self.metastore.fence().map_or(Ok(()), Fence::check)?;
            match self.apply_one(&**catalog, work, name, *difference, compared.wanted.get(name)).await {
                Ok(()) => {
                    tracing::info!(table = %name, done = difference.word(), "the catalog follows the lake");
                    self.told().pending.done(name);
                }
                Err(error @ CatalogError::Refused { .. }) => {
                    self.failed(name, &Chain(&error).to_string());
                    refused.insert(name);
                }
                Err(error) => return Err(error.into()),
            }
        }
        let done = compared.differences.iter().filter(|(name, _)| !refused.contains(name)).map(|(_, done)| done);
        Ok(Synced { failed: refused.len() as u64, ..counted(done) })
    }

    async fn apply_one(
        &self,
        catalog: &dyn Catalog,
        work: &mut Work,
        name: &CatalogName,
        difference: Difference,
        wanted: Option<&Registration>,
    ) -> Result<(), CatalogError> {
        let mark = work.lake.mark().to_owned();
        let held = work.held.get_or_insert_default();
        match (difference, wanted) {
            (Difference::Create, Some(table)) => {
                if !work.databases.contains(&name.database) {
                    catalog.create_database(&name.database, &mark).await?;
                    work.databases.insert(name.database.clone());
                }
                catalog.create_table(table).await?;
                held.insert(name.clone(), differences::as_registered(table));
            }
            (Difference::Alter, Some(table)) => {
                catalog.alter_table(table).await?;
                held.insert(name.clone(), differences::as_registered(table));
            }
            (Difference::Drop, _) => {
                catalog.drop_table(name, &mark).await?;
                held.remove(name);
            }
            (Difference::Create | Difference::Alter | Difference::Taken, _) => {}
        }
        Ok(())
    }

    /// Keeps what the catalog says of a table; it is told when it is new.
    fn failed(&self, name: &CatalogName, error: &str) {
        if self.told().pending.failed(name, error.to_owned()) {
            tracing::warn!(table = %name, error, "a table is not registered in the catalog; lakectl catalog status shows what to do");
        }
    }

    /// Keeps what came of a round; trouble is told when it begins and when it ends.
    fn tell_outcome(&self, outcome: Result<(), &RegistrarError>) {
        let mut told = self.told();
        match outcome {
            Ok(()) => {
                if let Some((_, since_us)) = told.trouble.take() {
                    let seconds = (now_us() - since_us) / 1_000_000;
                    tracing::info!(seconds, "the catalog can be used again");
                }
                let is_clean = told.pending.iter().all(|(_, difference, ..)| difference == Difference::Taken);
                if is_clean {
                    told.last_success_us = Some(now_us());
                }
            }
            Err(error) => {
                metrics::counter!(metric_names::CATALOG_FAILURES_TOTAL).increment(1);
                let text = Chain(error).to_string();
                if told.trouble.is_none() {
                    tracing::warn!(
                        error = text,
                        "the catalog cannot be used now; tables are registered when it can, ingest goes on"
                    );
                }
                let since_us = told.trouble.as_ref().map_or_else(now_us, |(_, since_us)| *since_us);
                told.trouble = Some((text, since_us));
            }
        }
        drop(told);
        let status = self.status();
        metrics::gauge!(metric_names::CATALOG_PENDING_TABLES).set(status.pending().count() as f64);
        metrics::gauge!(metric_names::CATALOG_LAG_SECONDS).set(status.lag_seconds(now_us()));
    }
}

fn now_us() -> i64 {
    Utc::now().timestamp_micros()
}

fn counted<'a>(differences: impl Iterator<Item = &'a Difference>) -> Synced {
    let mut synced = Synced::default();
    for difference in differences {
        match difference {
            Difference::Create => synced.created += 1,
            Difference::Alter => synced.altered += 1,
            Difference::Drop => synced.dropped += 1,
            Difference::Taken => synced.taken += 1,
        }
    }
    synced
}

#[cfg(test)]
mod tests;

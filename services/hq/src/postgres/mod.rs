//! HQ's Postgres databases: main, and the shards of a partitioned HQ, each with an optional replica.
//!
//! Invariants: nothing is ever written; a batch costs at most four statements per copy of a database (primary or replica) that is asked for
//! one of its ids (and one for each further page of the transactions of a case that is read alone), and the databases are asked at the same time; all statements of a batch on a database see one snapshot, so what belongs to
//! a row matches it; ids are bound, never written into SQL; all databases together are asked no more than [`Turns`] allow.
//!
//! A statement that does not end in time, or meets a row that cannot be shown, may be the fault of what it asks for. So the same statement is then
//! asked about nothing: where that is answered quickly, the database is well, no less is asked of it at once, and the caller is told to
//! ask for fewer ids ([`SourceError::AskLess`]). Otherwise the database is the trouble.

mod compare;
mod config;
mod database;
mod failure;
mod key;
mod locations;
mod memory;
mod records;
mod routing;
mod scan;
mod shards;
mod tables;

use std::sync::Arc;

use async_trait::async_trait;
use futures::future::{try_join, try_join_all};
use lake_shared::identity::Kind;

pub use self::config::{HqPostgresConfig, HqShardConfig, Sharding};
use self::database::{Database, Role};
use self::locations::LocationReader;
use self::routing::Routing;
use self::shards::{Asked, Shard, Shards};
use crate::metric_names;
use crate::pace::{Pace, Turns};
use crate::scan::compared::{Compared, ComparedScope, ComparedStretch, DocumentState, HqComparison, NumberedSum};
use crate::scan::{ScanScope, ScannedKeys, ShardEstimate};
use crate::source::{
    CaseRows, FormRows, HqDatabase, LocationKeys, LocationRows, LocationStep, LocationTypeRow, Observation, ReadFrom,
    SourceError, TakeTreeRow, TreeExtent, Wanted,
};

/// Name of the main database, for operators.
const MAIN: &str = "main";

/// The port [`HqDatabase`] over Postgres.
pub struct PostgresHq {
    main: Arc<Database>,
    locations: LocationReader,
    shards: Shards,
    turns: Arc<Turns>,
}

impl PostgresHq {
    /// Connects to every database, looks at the tables, and checks a few rows against the shard ranges; should they not fit, every id is asked
    /// on all shards.
    ///
    /// # Errors
    /// [`SourceError::Unavailable`] where a server cannot be reached; [`SourceError::Refused`] where ranges, tables, columns or permissions are
    /// not as they must be.
    pub async fn connect(config: &HqPostgresConfig) -> Result<Self, SourceError> {
        // An alert on growth would not see the first step of a counter that appears with it.
        metrics::counter!(metric_names::CLOCK_STEPS_TOTAL).increment(0);
        let (limits, extent, turns) = (config.limits(), config.extent(), Turns::new(config.turns()));
        let database =
            |name: String, url: &str| Database::new(name, url, Role::Primary, limits, Arc::clone(&turns)).map(Arc::new);
        let main = database("main database".into(), config.url.expose())?;
        let map = config.shard_map().map_err(|error| SourceError::Refused {
            action: "use the shard ranges of HQ's databases".into(),
            reason: error.to_string(),
        })?;
        let shards = async {
            if config.shards.is_empty() {
                let replica = config.replica_url.as_ref();
                Ok(vec![Shard::connect(main.clone(), replica, limits, extent, &turns).await?])
            } else {
                try_join_all(config.shards.iter().map(async |shard| {
                    let primary = database(format!("shard database {}", shard.name), shard.url.expose())?;
                    Shard::connect(primary, shard.replica_url.as_ref(), limits, extent, &turns).await
                }))
                .await
            }
        };
        let (locations, shards) = try_join(LocationReader::connect(main.clone()), shards).await?;
        let names = match config.shards.is_empty() {
            true => vec![MAIN.to_owned()],
            false => config.shards.iter().map(|shard| shard.name.clone()).collect(),
        };
        let shards = Shards::new(Routing::new(names, map), shards, config.record_bytes_max.max(1)).await?;
        Ok(Self { main, locations, shards, turns })
    }

    /// The turns that limit the reads in flight to all databases together.
    pub fn turns(&self) -> &Arc<Turns> {
        &self.turns
    }

    /// The databases with documents of a kind: primaries, by name.
    fn scanned(&self, kind: Kind) -> Vec<(&str, &Database)> {
        match kind {
            Kind::Case | Kind::Form => self.shards.primaries().collect(),
            Kind::Location => vec![(MAIN, &*self.main)],
        }
    }

    /// The database of that name from which documents of a kind are compared: its replica where it has one.
    fn compared(&self, kind: Kind, shard: &str) -> Option<&Database> {
        match kind {
            Kind::Case | Kind::Form => self.shards.replica_of(shard).or_else(|| self.primary(kind, shard)),
            Kind::Location => self.primary(kind, shard),
        }
    }

    fn primary(&self, kind: Kind, shard: &str) -> Option<&Database> {
        self.scanned(kind).into_iter().find(|(name, _)| *name == shard).map(|(_, database)| database)
    }
}

#[async_trait]
impl HqComparison for PostgresHq {
    async fn sum_stretch(
        &self,
        scope: &ComparedScope,
        stretch: ComparedStretch<'_>,
    ) -> Result<Option<Compared<NumberedSum>>, SourceError> {
        match self.compared(scope.scan.kind, stretch.shard) {
            Some(database) => compare::sums(database, &storable_range(scope), stretch).await.map(Some),
            None => Ok(None),
        }
    }

    async fn stretch_states(
        &self,
        scope: &ComparedScope,
        stretch: ComparedStretch<'_>,
        buckets: &[u32],
    ) -> Result<Option<Compared<DocumentState>>, SourceError> {
        match self.compared(scope.scan.kind, stretch.shard) {
            Some(database) => compare::states(database, &storable_range(scope), stretch, buckets).await.map(Some),
            None => Ok(None),
        }
    }

    async fn read_states(&self, scope: &ScanScope, ids: &[String]) -> Result<Vec<DocumentState>, SourceError> {
        let scope = &storable_scope(scope);
        let ids: &Vec<String> = &ids.iter().filter(|id| !id.contains('\0')).cloned().collect();
        let reads = self.scanned(scope.kind).into_iter().map(|(_, database)| compare::read(database, scope, ids));
        Ok(try_join_all(reads).await?.into_iter().flatten().collect())
    }
}

#[async_trait]
impl HqDatabase for PostgresHq {
    fn record_bytes_max(&self) -> usize {
        self.shards.record_bytes_max()
    }

    fn pace(&self) -> Option<Pace> {
        Some(self.turns.pace())
    }

    async fn cases(&self, ids: &[String], from: ReadFrom) -> Result<Vec<Observation<CaseRows>>, SourceError> {
        self.shards.read(Asked::From(from, ids)).await
    }

    async fn forms(&self, ids: &[String], from: ReadFrom) -> Result<Vec<Observation<FormRows>>, SourceError> {
        self.shards.read(Asked::From(from, ids)).await
    }

    async fn latest_cases(&self, wanted: &[Wanted]) -> Result<Vec<Observation<CaseRows>>, SourceError> {
        self.shards.read(Asked::Latest(wanted)).await
    }

    async fn latest_forms(&self, wanted: &[Wanted]) -> Result<Vec<Observation<FormRows>>, SourceError> {
        self.shards.read(Asked::Latest(wanted)).await
    }

    async fn location_rows(&self, keys: LocationKeys<'_>) -> Result<LocationRows, SourceError> {
        self.locations.rows(keys).await
    }

    async fn location_ancestors(&self, ids: &[i64]) -> Result<Vec<LocationStep>, SourceError> {
        self.locations.ancestors(ids).await
    }

    async fn location_children(&self, parent_ids: &[i64]) -> Result<Vec<(i64, i64)>, SourceError> {
        self.locations.children(parent_ids).await
    }

    async fn location_tree(
        &self,
        domain: &str,
        extent: TreeExtent<'_>,
        take: &mut TakeTreeRow<'_>,
    ) -> Result<i64, SourceError> {
        self.locations.tree(domain, extent, take).await
    }

    async fn location_types(&self, since_us: i64) -> Result<Vec<LocationTypeRow>, SourceError> {
        self.locations.types(since_us).await
    }

    async fn locations_of_type(&self, type_id: i64, after: i64) -> Result<Vec<i64>, SourceError> {
        self.locations.of_type(type_id, after).await
    }

    async fn scan_estimates(&self, scope: &ScanScope) -> Result<Vec<ShardEstimate>, SourceError> {
        let scope = &storable_scope(scope);
        let estimates = self.scanned(scope.kind).into_iter().map(|(name, database)| async move {
            let documents = scan::estimate(database, scope).await?;
            Ok(ShardEstimate { shard: name.to_owned(), documents })
        });
        try_join_all(estimates).await
    }

    async fn scan_keys(
        &self,
        scope: &ScanScope,
        shard: &str,
        after: i64,
        keys_max: usize,
    ) -> Result<Option<ScannedKeys>, SourceError> {
        match self.primary(scope.kind, shard) {
            Some(database) => scan::keys(database, &storable_scope(scope), after, keys_max).await.map(Some),
            None => Ok(None),
        }
    }

    async fn check(&self) -> Result<(), SourceError> {
        // Where HQ is not partitioned, main is one of the shards.
        let shards = self.shards.databases().filter(|database| !std::ptr::eq(*database, &*self.main));
        try_join_all(std::iter::once(&*self.main).chain(shards).map(Database::check)).await?;
        Ok(())
    }
}

/// Postgres has no NUL in text: no domain and no type is called like that.
fn storable_scope(scope: &ScanScope) -> ScanScope {
    let domain = if scope.domain.as_str().contains('\0') { "".into() } else { scope.domain.clone() };
    let types = scope.types.as_ref().map(|types| types.iter().filter(|name| !name.contains('\0')).cloned().collect());
    ScanScope { domain, types, ..scope.clone() }
}

/// And no id is: what is behind it is between the same ids.
fn storable_range(scope: &ComparedScope) -> ComparedScope {
    let storable = |id: &str| id.split('\0').next().unwrap_or_default().to_owned();
    let (from_id, until_id) = (storable(&scope.from_id), storable(&scope.until_id));
    ComparedScope { scan: storable_scope(&scope.scan), from_id, until_id }
}

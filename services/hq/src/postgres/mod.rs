//! HQ's Postgres databases: main, and the shards of a partitioned HQ, each with an optional replica.
//!
//! Invariants: nothing is ever written; a batch costs at most four statements per database that holds one of its ids, and the databases are asked
//! at the same time; all statements of a batch see one snapshot, so what belongs to a row matches it; ids are bound, never written into SQL.

mod config;
mod database;
mod failure;
mod places;
mod records;
mod tables;

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::{try_join, try_join_all};
use lake_shared::secret::Secret;

use self::config::Limits;
pub use self::config::{HqPostgresConfig, HqShardConfig};
use self::database::Database;
use self::places::Places;
use self::records::Records;
use crate::sharding::ShardMap;
use crate::source::{CaseRows, FormRows, HqDatabase, LocationRows, ReadFrom, Sighting, SourceError};

/// The port [`HqDatabase`] over Postgres.
pub struct PostgresHq {
    main: Arc<Database>,
    places: Places,
    shards: Vec<Shard>,
    /// `None` where HQ is not partitioned and there is one "shard", the main database.
    map: Option<ShardMap>,
}

/// One database with cases and forms.
struct Shard {
    primary: Records,
    replica: Option<Records>,
}

impl PostgresHq {
    /// Connects to every database, looks at the tables, and checks a few rows against the shard ranges.
    ///
    /// A server that cannot be reached is [`SourceError::Unavailable`]; wrong ranges, missing tables or columns, no permission and rows in the
    /// wrong database are [`SourceError::Refused`].
    pub async fn connect(config: &HqPostgresConfig) -> Result<Self, SourceError> {
        let limits = config.limits();
        let main = Arc::new(Database::new("main database".into(), config.url.expose(), limits)?);
        let map = shard_map(config)?;
        let shards = async {
            if config.shards.is_empty() {
                let replica = config.replica_url.as_ref();
                Ok(vec![Shard::connect(main.clone(), replica, limits, config.transactions).await?])
            } else {
                try_join_all(config.shards.iter().map(async |shard| {
                    let database = Database::new(format!("shard database {}", shard.name), shard.url.expose(), limits)?;
                    Shard::connect(database.into(), shard.replica_url.as_ref(), limits, config.transactions).await
                }))
                .await
            }
        };
        let (places, shards) = try_join(Places::connect(main.clone()), shards).await?;
        let hq = Self { main, places, shards, map };
        hq.check_rows_are_where_they_belong(config).await?;
        Ok(hq)
    }

    async fn check_rows_are_where_they_belong(&self, config: &HqPostgresConfig) -> Result<(), SourceError> {
        let Some(map) = &self.map else { return Ok(()) };
        for (place, shard) in self.shards.iter().enumerate() {
            let ids = shard.primary.some_ids().await?;
            let database = shard.primary.database().name();
            if let Some(stray) = ids.iter().find(|id| map.database_of(id) != place) {
                let number = map.shard_of(stray);
                let expected = &config.shards[map.database_of(stray)].name;
                tracing::error!(
                    database,
                    id = stray,
                    shard = number,
                    expected,
                    "a row is not in the database of its shard"
                );
                return Err(SourceError::Refused {
                    action: format!("use the shard ranges of {database}"),
                    reason: format!(
                        "it holds id {stray}, whose shard {number} the configuration gives to {expected}; \
                         take first, last and shard_count from HQ's settings"
                    ),
                });
            }
            tracing::info!(database, rows_checked = ids.len(), "shard database is ready");
        }
        Ok(())
    }

    /// The different ids, by the place of the database that holds them.
    fn by_shard(&self, ids: &[String]) -> Vec<(usize, Vec<String>)> {
        let mut seen = HashSet::with_capacity(ids.len());
        let mut by_shard = vec![Vec::new(); self.shards.len()];
        for id in ids.iter().filter(|id| seen.insert(id.as_str())) {
            by_shard[self.map.as_ref().map_or(0, |map| map.database_of(id))].push(id.clone());
        }
        by_shard.into_iter().enumerate().filter(|(_, ids)| !ids.is_empty()).collect()
    }
}

impl Shard {
    async fn connect(
        primary: Arc<Database>,
        replica_url: Option<&Secret>,
        limits: Limits,
        transactions: bool,
    ) -> Result<Self, SourceError> {
        let replica = match replica_url {
            Some(url) => {
                let database = Database::new(format!("replica of {}", primary.name()), url.expose(), limits)?;
                Some(Records::connect(database.into(), transactions).await?)
            }
            None => None,
        };
        Ok(Self { primary: Records::connect(primary, transactions).await?, replica })
    }

    fn replica_for(&self, from: ReadFrom) -> Option<&Records> {
        self.replica.as_ref().filter(|_| from == ReadFrom::Replica)
    }

    async fn cases(&self, ids: &[String], from: ReadFrom) -> Result<Vec<Sighting<CaseRows>>, SourceError> {
        if let Some(replica) = self.replica_for(from)
            && let Some(sightings) = replica.cases(ids).await?
        {
            return Ok(sightings);
        }
        self.primary.cases(ids).await?.ok_or_else(|| self.no_clock())
    }

    async fn forms(&self, ids: &[String], from: ReadFrom) -> Result<Vec<Sighting<FormRows>>, SourceError> {
        if let Some(replica) = self.replica_for(from)
            && let Some(sightings) = replica.forms(ids).await?
        {
            return Ok(sightings);
        }
        self.primary.forms(ids).await?.ok_or_else(|| self.no_clock())
    }

    fn no_clock(&self) -> SourceError {
        SourceError::Unavailable {
            action: format!("read from {}", self.primary.database().name()),
            reason: "it is a standby that has not replayed any transaction yet".into(),
        }
    }
}

fn shard_map(config: &HqPostgresConfig) -> Result<Option<ShardMap>, SourceError> {
    if config.shards.is_empty() {
        return Ok(None);
    }
    ShardMap::new(config.shard_count, &config.shard_ranges()).map(Some).map_err(|error| SourceError::Refused {
        action: "use the shard ranges of HQ's databases".into(),
        reason: error.to_string(),
    })
}

#[async_trait]
impl HqDatabase for PostgresHq {
    async fn cases(&self, ids: &[String], from: ReadFrom) -> Result<Vec<Sighting<CaseRows>>, SourceError> {
        let reads = self
            .by_shard(ids)
            .into_iter()
            .map(|(place, ids)| async move { self.shards[place].cases(&ids, from).await });
        Ok(try_join_all(reads).await?.into_iter().flatten().collect())
    }

    async fn forms(&self, ids: &[String], from: ReadFrom) -> Result<Vec<Sighting<FormRows>>, SourceError> {
        let reads = self
            .by_shard(ids)
            .into_iter()
            .map(|(place, ids)| async move { self.shards[place].forms(&ids, from).await });
        Ok(try_join_all(reads).await?.into_iter().flatten().collect())
    }

    async fn location_domains(&self, ids: &[String]) -> Result<Vec<Sighting<String>>, SourceError> {
        let mut seen = HashSet::with_capacity(ids.len());
        let different: Vec<String> = ids.iter().filter(|id| seen.insert(id.as_str())).cloned().collect();
        if different.is_empty() {
            return Ok(Vec::new());
        }
        self.places.domains(&different).await
    }

    async fn locations(&self, domain: &str) -> Result<LocationRows, SourceError> {
        self.places.of_domain(domain).await
    }

    async fn check(&self) -> Result<(), SourceError> {
        // Where HQ is not partitioned, main is the one shard.
        let mut databases: Vec<&Database> = self.map.iter().map(|_| &*self.main).collect();
        for shard in &self.shards {
            databases
                .extend([Some(&shard.primary), shard.replica.as_ref()].into_iter().flatten().map(Records::database));
        }
        try_join_all(databases.into_iter().map(async |database| {
            database.snapshot("read").await?.finish().await;
            Ok(())
        }))
        .await?;
        Ok(())
    }
}

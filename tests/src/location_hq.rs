//! HQ's location tables on a real Postgres, with one regular tree in them: level after level, made by the server itself.

use std::sync::Arc;

use anyhow::Context;
use lake_hq::postgres::{HqPostgresConfig, PostgresHq};
use lake_hq::source::Hq;
use lake_simulated_hq::memory_hq::MemoryHq;
use lake_simulated_hq::schema;
use sqlx::{AssertSqlSafe, PgPool};

use crate::parts::Postgres;

/// The domain of the tree.
pub const DOMAIN: &str = "demo-space";

/// A server with a tree. Location number n has the primary key n and the location id md5(n); the root is number 1, each level's numbers
/// follow those of the level above, and the children of one location follow each other.
pub struct LocationHq {
    /// The Postgres server, which ends with this value.
    pub server: Postgres,
    /// Its database, to be changed.
    pub database: PgPool,
    /// The database's address.
    pub url: String,
    /// `(first number, locations)` of each level.
    pub levels: Vec<(i64, i64)>,
}

impl LocationHq {
    /// A tree in which each location of level n has `children[n]` children. Level n has the type `Level n`; the type `clinic` has no
    /// location.
    ///
    /// # Errors
    /// When the server does not come up or refuses.
    pub async fn start(children: &[i64]) -> anyhow::Result<Self> {
        let server = Postgres::start()?;
        let url = server.create_database("commcarehq")?;
        let database = PgPool::connect(&url).await.context("connect to the new database")?;
        schema::create(&database, &[schema::MAIN, schema::SHARD]).await?;
        let mut hq = Self { server, database, url, levels: Vec::new() };
        hq.add_type("clinic").await?;
        hq.add_level(1, 1, 1).await?;
        for below in children {
            let (first, count) = hq.levels[hq.levels.len() - 1];
            hq.add_level(first + count, count * below, *below).await?;
        }
        hq.run("analyze").await?;
        Ok(hq)
    }

    /// Adds a location type.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn add_type(&self, name: &str) -> anyhow::Result<()> {
        self.run(&format!(
            "insert into locations_locationtype (domain, name, code, administrative, shares_cases, view_descendants, expand_from_root,
               has_users, emergency_level, understock_threshold, overstock_threshold, last_modified)
             values ('{DOMAIN}', '{name}', lower(replace('{name}', ' ', '_')), false, false, false, false, true, 0, 0, 0, now())"
        ))
        .await
    }

    async fn add_level(&mut self, first: i64, count: i64, per_parent: i64) -> anyhow::Result<()> {
        let (level, above) = (self.levels.len(), self.levels.last().map_or(0, |(first, _)| *first));
        self.add_type(&format!("Level {level}")).await?;
        let parent = if level == 0 { "null".to_owned() } else { format!("{above} + n / {per_parent}") };
        self.run(&format!(
            "insert into locations_sqllocation (id, domain, name, location_id, location_type_id, site_code, metadata, created_at,
               last_modified, is_archived, latitude, longitude, parent_id, stocks_all_products, user_id)
             select {first} + n, '{DOMAIN}', 'Place no. ' || ({first} + n), md5(({first} + n)::text),
               (select id from locations_locationtype where domain = '{DOMAIN}' and name = 'Level {level}'), 'place_no_' || ({first} + n),
               '{{\"population\": \"' || n || '\"}}', '2025-01-01T00:00:00Z', '2025-01-01T00:00:00Z', false,
               case when n % 2 = 0 then 26.5 end, case when n % 2 = 0 then 80.25 end, {parent}, true, ''
             from generate_series(0, {count} - 1) n"
        ))
        .await?;
        self.levels.push((first, count));
        Ok(())
    }

    /// Runs SQL statements in HQ's database.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn run(&self, statements: &str) -> anyhow::Result<()> {
        sqlx::raw_sql(AssertSqlSafe(statements.to_owned()))
            .execute(&self.database)
            .await
            .context("change locations")?;
        Ok(())
    }

    /// The id of a location, by number.
    ///
    /// # Errors
    /// When there is none.
    pub async fn id_of(&self, number: i64) -> anyhow::Result<String> {
        let found = sqlx::query_scalar("select location_id from locations_sqllocation where id = $1").bind(number);
        found.fetch_one(&self.database).await.with_context(|| format!("find location {number}"))
    }

    /// The ports, as services use them. There are no users and no blobs.
    ///
    /// # Errors
    /// When the database cannot be used.
    pub async fn hq(&self) -> anyhow::Result<Hq> {
        let config = HqPostgresConfig::of_url(self.url.as_str());
        let empty = MemoryHq::new().hq();
        Ok(Hq { database: Arc::new(PostgresHq::connect(&config).await?), ..empty })
    }
}

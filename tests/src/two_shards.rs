//! An HQ that is partitioned over two shard databases of one real server, with HQ's own schema.

use std::collections::BTreeMap;

use anyhow::Context;
use lake_hq::postgres::{HqPostgresConfig, HqShardConfig};
use lake_hq::sharding::hash_of;
use lake_simulated_hq::schema;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::parts::Postgres;

/// Name, first and last shard of the databases.
pub const RANGES: [(&str, u32, u32); 2] = [("p1", 0, 511), ("p2", 512, 1023)];

/// The server and its databases: `main`, `p1`, `p2`, and those that a test adds. Every statement is in the server's log.
pub struct TwoShards {
    server: Postgres,
    /// How to connect: main, the two shards with their ranges, no replicas.
    pub config: HqPostgresConfig,
}

/// The place in [`RANGES`] of the database that an id belongs to.
pub fn place_of(id: &str) -> usize {
    usize::from(hash_of(id) & 1023 > RANGES[0].2)
}

/// Runs some SQL in a database.
///
/// # Errors
/// When it cannot be reached or refuses.
pub async fn run(url: &str, sql: &str) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

impl TwoShards {
    /// Starts the server and makes the tables, without rows.
    ///
    /// # Errors
    /// When Postgres is not installed or does not come up.
    pub async fn start() -> anyhow::Result<Self> {
        let server = Postgres::start()?;
        run(&server.url("postgres"), "alter system set log_line_prefix = '%m [%p] db=%d '").await?;
        run(&server.url("postgres"), "alter system set log_statement = 'all'").await?;
        run(&server.url("postgres"), "select pg_reload_conf()").await?;
        let main = server.create_database("main")?;
        run(&main, schema::MAIN).await?;
        let mut config = HqPostgresConfig::of_url(main);
        for (name, first, last) in RANGES {
            let url = server.create_database(name)?;
            run(&url, schema::SHARD).await?;
            config.shards.push(HqShardConfig { name: name.into(), first, last, url: url.into(), replica_url: None });
        }
        Ok(Self { server, config })
    }

    /// The address of a database.
    pub fn url(&self, database: &str) -> String {
        self.server.url(database)
    }

    /// Makes one more database with the tables of a shard, and gives its address: as the "replica" of one, whose rows are known. It says that it
    /// is a streaming one that has everything until now.
    ///
    /// # Errors
    /// When there is one of that name.
    pub async fn add_database(&self, name: &str) -> anyhow::Result<String> {
        let url = self.server.create_database(name)?;
        run(&url, schema::SHARD).await?;
        self.put_before(
            name,
            "create function clock.pg_is_in_recovery() returns boolean language sql stable as 'select true';
             create function clock.pg_last_xact_replay_timestamp() returns timestamptz language sql stable
               as 'select pg_catalog.transaction_timestamp()'",
        )
        .await?;
        Ok(url)
    }

    /// Lets the clock of a database say so much less, for example `40 s`. Connections that were made before the first call keep theirs.
    ///
    /// # Errors
    /// When the server cannot be reached, or `behind` is no interval.
    pub async fn set_clock_behind(&self, database: &str, behind: &str) -> anyhow::Result<()> {
        let clock = format!(
            "create or replace function clock.transaction_timestamp() returns timestamptz language sql stable
               as 'select pg_catalog.transaction_timestamp() - interval ''{behind}'''"
        );
        self.put_before(database, &clock).await
    }

    /// Makes functions of the schema `clock`, which connections find before those of Postgres.
    async fn put_before(&self, database: &str, functions: &str) -> anyhow::Result<()> {
        let path = format!("alter database {database} set search_path = clock, pg_catalog, public");
        run(&self.url(database), &format!("create schema if not exists clock; {functions}; {path}")).await
    }

    /// Puts cases of these ids, each with an index and a transaction, into a database.
    ///
    /// # Errors
    /// When an id is there already.
    pub async fn insert_cases(&self, database: &str, ids: &[String]) -> anyhow::Result<()> {
        let mut connection = PgConnection::connect(&self.url(database)).await?;
        for sql in [
            "insert into form_processor_commcarecasesql (case_id, case_json, domain, type, name, owner_id, opened_on, opened_by,
               modified_on, server_modified_on, modified_by, closed, deleted, external_id, location_id)
             select id, '{\"village\": \"Rampur\", \"dob\": \"1990-02-03\", \"visit_count\": \"4\", \"phone\": \"+919812345678\"}', 'demo',
               'person', 'Asha', 'loc9', '2026-01-02T10:00:00Z', 'u1', '2026-01-05T10:11:00.12Z', '2026-01-05T10:11:12.24Z', 'u1',
               false, false, '', 'loc1' from unnest($1::text[]) as id",
            "insert into form_processor_commcarecaseindexsql (case_id, domain, identifier, referenced_id, referenced_type, relationship_id)
             select id, 'demo', 'parent', 'h1', 'household', 1 from unnest($1::text[]) as id",
            "insert into form_processor_casetransaction (case_id, form_id, server_date, type, revoked, details)
             select id, 'f' || n, '2026-01-05T10:11:12Z', 1, false, '{}' from unnest($1::text[]) as id, generate_series(1, 4) n",
        ] {
            sqlx::query(sql).bind(ids).execute(&mut connection).await.context("insert cases")?;
        }
        Ok(())
    }

    /// Puts forms of these ids, with the metadata of their XML (its key is the id), into a database.
    ///
    /// # Errors
    /// When an id is there already.
    pub async fn insert_forms(&self, database: &str, ids: &[String]) -> anyhow::Result<()> {
        let mut connection = PgConnection::connect(&self.url(database)).await?;
        for sql in [
            "insert into form_processor_xforminstancesql (form_id, domain, xmlns, user_id, received_on, auth_context, openrosa_headers,
               partial_submission, initial_processing_complete, state)
             select id, 'demo', 'http://openrosa.org/formdesigner/A', 'u1', '2026-01-05T10:11:12Z', '{}', '{}', false, true, 1
               from unnest($1::text[]) as id",
            "insert into blobs_blobmeta (domain, parent_id, name, key, type_code, content_length, compressed_length, created_on)
             select 'demo', id, 'form.xml', id, 2, 100, 50, now() from unnest($1::text[]) as id",
        ] {
            sqlx::query(sql).bind(ids).execute(&mut connection).await.context("insert forms")?;
        }
        Ok(())
    }

    /// Where the server's log ends now.
    pub fn log_end(&mut self) -> usize {
        self.server.server().log().len()
    }

    /// The server's log from there on.
    pub fn log_since(&mut self, begin: usize) -> String {
        self.server.server().log().split_off(begin)
    }

    /// Statements on HQ's tables since then, by database. Databases without any are not there.
    pub fn statements_since(&mut self, begin: usize) -> BTreeMap<String, usize> {
        let mut by_database = BTreeMap::new();
        for line in self.log_since(begin).lines() {
            let ran = line.contains(" execute ") || line.contains(" statement: ");
            let on_tables = line.contains(" from form_processor_") || line.contains(" from blobs_");
            let database = line.split_once("db=").and_then(|(_, rest)| rest.split(' ').next());
            if let Some(database) = database.filter(|_| ran && on_tables) {
                *by_database.entry(database.to_owned()).or_default() += 1;
            }
        }
        by_database
    }
}

//! The metastore in Postgres, shared by the writers of a lake.

use std::collections::BTreeSet;
use std::time::Duration;

use lake_proto::queue::v1::Quarantined;
use lake_shared::escaped_names;
use lake_shared::identity::{Space, TableKey};
use lake_shared::secret::Secret;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgPool};

use super::migrations;
use super::quarantine::quarantine_statements;
use super::rows::{self, storable};
use super::sql::{failed, metastore_adapter};
use super::{
    Lease, MetastoreError, NewTable, QuarantineBounds, QuarantineFilter, QuarantineRecord, RecordedState,
    StoredTombstone, TableRecord,
};
use crate::key_index::IdHash;

/// How long a call waits for a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// The metastore in a Postgres database, reached through a pool of connections.
#[derive(Clone, Debug)]
pub struct PostgresMetastore {
    pool: PgPool,
    options: PgConnectOptions,
}

impl PostgresMetastore {
    /// Prepares a pool of connections to `postgres://user:password@host:port/database`; connects when first used.
    ///
    /// # Errors
    ///
    /// The address is not of that form.
    pub fn new(url: &Secret, connections_max: u32) -> Result<Self, MetastoreError> {
        let options: PgConnectOptions =
            url.expose().parse().map_err(failed(|| "understand its Postgres address".into()))?;
        let pool = PgPoolOptions::new()
            .max_connections(connections_max)
            .acquire_timeout(CONNECT_WITHIN)
            .connect_lazy_with(options.clone());
        Ok(Self { pool, options })
    }

    /// Applies the migrations that are missing, on a connection of their own: the pool would go on trying for a while and then not say why
    /// it failed, and a migration that fails leaves its lock to the connection, which must not live on in the pool.
    async fn apply_migrations(&self) -> Result<(), MetastoreError> {
        let connected = tokio::time::timeout(CONNECT_WITHIN, self.options.connect()).await;
        let (host, port) = (self.options.get_host(), self.options.get_port());
        let connected = connected.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        let mut connection = connected.map_err(failed(|| format!("connect to {host}:{port}")))?;
        let applied = migrations::migrator(migrations::POSTGRES).run_direct(None, &mut connection, false).await;
        let closed = connection.close().await;
        applied.map_err(migrations::failed)?;
        closed.map_err(failed(|| format!("close a connection to {host}:{port}")))
    }
}

quarantine_statements!(PostgresMetastore, sqlx::Postgres);
metastore_adapter!(PostgresMetastore, sqlx::Postgres, "(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::BIGINT");

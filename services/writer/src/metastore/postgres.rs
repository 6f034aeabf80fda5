//! The metastore in Postgres, shared by the writers of a lake.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lake_proto::queue::v1::Quarantined;
use lake_shared::escaped_names;
use lake_shared::identity::{Space, TableKey};
use lake_shared::secret::Secret;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, PgPool};

use super::backfills::{BackfillPart, BackfillProgress, Backfills, StretchRead, TakenEntry, Wish, backfills_adapter};
use super::comparisons::{Comparisons, Difference, DifferenceClass, comparisons_adapter};
use super::erasures::{ErasureRecord, Erasures, erasures_adapter};
use super::fence::{Fence, LeaseLost};
use super::lease_sql::{LeaseConnection, lease_statements};
use super::migrations;
use super::quarantine::quarantine_statements;
use super::rows::{self, Fields, storable};
use super::sql::{self, failed, metastore_adapter};
use super::steering::{
    self, AuditRecord, Behind, DroppedRecord, NewOperation, OperationEnd, OperationFilter, OperationRecord,
    OperationTarget, PauseRecord, PolicyRecord, Steering, TableFilter, dropped_statements, policy_statements,
    steering_adapter,
};
use super::tombstone_sql::tombstone_statements;
use super::{
    Lease, MetastoreError, NewTable, QuarantineBounds, QuarantineFilter, QuarantineGroup, QuarantineRecord,
    RecordedState, RememberedTombstone, ReplayMark, StoredTombstone, TableRecord,
};
use crate::consent::Consent;
use crate::key_index::IdHash;
use crate::metastore::steering::table_policy::{DeletionVectors, TablePolicy};
use crate::order_guard::TombstoneOrder;

/// How long a call waits for a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// A transaction whose process was suspended keeps others from taking the lease; after this time without a statement it is undone.
const IDLE_TRANSACTIONS_END: &str = "SET idle_in_transaction_session_timeout = '10s'";

/// The metastore in a Postgres database, reached through a pool of connections, and one more for the lease.
#[derive(Clone, Debug)]
pub struct PostgresMetastore {
    pool: PgPool,
    options: PgConnectOptions,
    connections_max: u32,
    lease_connection: LeaseConnection<PgConnection>,
    fence: Option<Fence>,
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
        let pool = pool(&options, connections_max);
        Ok(Self { pool, options, connections_max, lease_connection: Arc::default(), fence: None })
    }

    /// With connections of its own: those of an earlier holding of the lease may be cut off and not know it.
    fn with_fence(&self, fence: Fence) -> Self {
        Self { pool: pool(&self.options, self.connections_max), fence: Some(fence), ..self.clone() }
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

fn pool(options: &PgConnectOptions, connections_max: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(CONNECT_WITHIN)
        .after_connect(|connection, _| {
            Box::pin(async move { connection.execute(IDLE_TRANSACTIONS_END).await.map(drop) })
        })
        .connect_lazy_with(options.clone())
}

quarantine_statements!(PostgresMetastore, sqlx::Postgres);
metastore_adapter!(PostgresMetastore, sqlx::Postgres, "(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::BIGINT");
tombstone_statements!(PostgresMetastore, sqlx::Postgres, "(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::BIGINT");
// Renewing changes no key, so it passes a row that is locked with FOR KEY SHARE; FOR UPDATE does not.
lease_statements!(PostgresMetastore, sqlx::Postgres, "BEGIN", " FOR KEY SHARE", " FOR UPDATE");
dropped_statements!(PostgresMetastore, sqlx::Postgres);
policy_statements!(PostgresMetastore, sqlx::Postgres);
steering_adapter!(PostgresMetastore, sqlx::Postgres, " FOR UPDATE SKIP LOCKED");
backfills_adapter!(PostgresMetastore, sqlx::Postgres, " FOR UPDATE SKIP LOCKED");
comparisons_adapter!(PostgresMetastore, sqlx::Postgres);
erasures_adapter!(PostgresMetastore, sqlx::Postgres);

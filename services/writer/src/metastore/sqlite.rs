//! The metastore in one SQLite file, for the embedded lake. Processes on one machine may share it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lake_proto::queue::v1::Quarantined;
use lake_shared::escaped_names;
use lake_shared::identity::{Space, TableKey};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection, SqlitePool};

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

/// How long a write waits for another one.
const BUSY_WITHIN: Duration = Duration::from_secs(10);

/// The metastore in an SQLite database, reached through one connection, and one more for the lease.
#[derive(Clone, Debug)]
pub struct SqliteMetastore {
    pool: SqlitePool,
    options: SqliteConnectOptions,
    lease_connection: LeaseConnection<SqliteConnection>,
    fence: Option<Fence>,
}

impl SqliteMetastore {
    /// A file, created when first used. Its folder must exist.
    pub fn file(path: &Path) -> Self {
        // A remembered tombstone must outlive a power cut, hence the full synchronisation.
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            // What is deleted is overwritten: an erased record shall not be found in the file any more.
            .pragma("secure_delete", "on")
            .busy_timeout(BUSY_WITHIN);
        // One connection: SQLite has one writer anyway, and waiting here is fairer than its busy handler.
        Self::new(SqlitePoolOptions::new(), options)
    }

    fn new(pool: SqlitePoolOptions, options: SqliteConnectOptions) -> Self {
        let pool = pool.max_connections(1).connect_lazy_with(options.clone());
        Self { pool, options, lease_connection: Arc::default(), fence: None }
    }

    fn with_fence(&self, fence: Fence) -> Self {
        Self { fence: Some(fence), ..self.clone() }
    }

    /// Applies the migrations that are missing.
    async fn apply_migrations(&self) -> Result<(), MetastoreError> {
        migrations::migrator(migrations::SQLITE).run(&self.pool).await.map_err(migrations::failed)
    }

    /// A database in memory, for tests. It ends with its connections; a call that is dropped half-way closes one.
    pub fn memory() -> Self {
        // By a name of its own, so that its two connections meet in it.
        let name = format!("file:metastore-{}", uuid::Uuid::new_v4());
        let options = SqliteConnectOptions::new().filename(name).in_memory(true).shared_cache(true);
        Self::new(SqlitePoolOptions::new().idle_timeout(None).max_lifetime(None), options)
    }
}

quarantine_statements!(SqliteMetastore, sqlx::Sqlite);
metastore_adapter!(SqliteMetastore, sqlx::Sqlite, "CAST(unixepoch('subsec') * 1000000 AS INTEGER)");
tombstone_statements!(SqliteMetastore, sqlx::Sqlite, "CAST(unixepoch('subsec') * 1000000 AS INTEGER)");
// One transaction at a time writes, whatever it locks.
lease_statements!(SqliteMetastore, sqlx::Sqlite, "BEGIN IMMEDIATE", "", "");
dropped_statements!(SqliteMetastore, sqlx::Sqlite);
policy_statements!(SqliteMetastore, sqlx::Sqlite);
steering_adapter!(SqliteMetastore, sqlx::Sqlite, "");
backfills_adapter!(SqliteMetastore, sqlx::Sqlite, "");
comparisons_adapter!(SqliteMetastore, sqlx::Sqlite);
erasures_adapter!(SqliteMetastore, sqlx::Sqlite);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::metastore::{Metastore, connect, contract};

    #[tokio::test]
    async fn a_file_keeps_the_contract() {
        let folder = tempfile::tempdir().unwrap();
        let metastore = SqliteMetastore::file(&folder.path().join("metastore.sqlite"));
        metastore.migrate().await.unwrap();
        metastore.migrate().await.unwrap();
        contract::holds(&metastore).await;
    }

    #[tokio::test]
    async fn a_metastore_of_a_newer_version_is_refused_at_once() {
        let metastore = SqliteMetastore::memory();
        metastore.migrate().await.unwrap();
        let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                     VALUES (9999, 'newer', TRUE, X'00', 0)";
        sqlx::query(newer).execute(&metastore.pool).await.unwrap();
        let error = connect::migrate_when_there(&metastore).await.unwrap_err();
        let text = lake_shared::error_chain::Chain(&error).to_string();
        assert!(text.contains("newer version of CommCare Lake") && text.contains("9999"), "{text}");
    }

    #[tokio::test]
    async fn memory_keeps_the_contract() {
        let metastore = SqliteMetastore::memory();
        metastore.migrate().await.unwrap();
        contract::holds(&metastore).await;
    }
}

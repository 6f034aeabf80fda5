//! HQ's tables in real Postgres databases: every column, constraint and index that the reference knows.
//!
//! Creating is idempotent, so that a simulation may be started again on the databases it left behind.

use anyhow::{Context, Result};
use sqlx::PgPool;

/// Tables of the main database: locations.
pub const MAIN: &str = include_str!("schema/main.sql");

/// Tables of each shard database: cases, forms, blob metadata, ledgers.
pub const SHARD: &str = include_str!("schema/shard.sql");

/// Any number that no one else uses as an advisory lock: two simulations that start at once must not both create a table.
const CREATION_LOCK: i64 = 0x6c61_6b65_6871;

/// Creates what is missing of the given tables ([`MAIN`], [`SHARD`], or both where HQ is not partitioned).
///
/// # Errors
///
/// When the database is not reachable or refuses.
pub async fn create(database: &PgPool, tables: &[&'static str]) -> Result<()> {
    let mut transaction = database.begin().await.context("begin to create HQ's tables")?;
    sqlx::query("select pg_advisory_xact_lock($1)")
        .bind(CREATION_LOCK)
        .execute(&mut *transaction)
        .await
        .context("lock the creation of HQ's tables")?;
    for &statements in tables {
        sqlx::raw_sql(statements).execute(&mut *transaction).await.context("create HQ's tables")?;
    }
    transaction.commit().await.context("commit HQ's tables")
}

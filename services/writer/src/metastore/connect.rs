//! Which metastore: by its address.

use std::path::Path;
use std::sync::Arc;

use lake_shared::error_chain::Chain;
use lake_shared::retry::Backoff;
use lake_shared::secret::Secret;
use serde::Deserialize;

use super::Metastore;
use super::postgres::PostgresMetastore;
use super::sqlite::SqliteMetastore;

/// Section `[metastore]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetastoreConfig {
    /// `postgres://user:password@host:port/database`, or `sqlite:path/of/the/file`.
    pub url: Secret,
    /// Most connections to Postgres.
    #[serde(default = "default_connections")]
    pub connections_max: u32,
}

const fn default_connections() -> u32 {
    4
}

/// Opens the metastore that the address names; nothing is connected yet.
pub fn open(config: &MetastoreConfig) -> anyhow::Result<Arc<dyn Metastore>> {
    let url = config.url.expose();
    if let Some(path) = url.strip_prefix("sqlite:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        return Ok(Arc::new(SqliteMetastore::file(Path::new(path))));
    }
    anyhow::ensure!(
        url.starts_with("postgres://") || url.starts_with("postgresql://"),
        "key `metastore.url`: must begin with postgres:// or sqlite:"
    );
    Ok(Arc::new(PostgresMetastore::new(&config.url, config.connections_max)?))
}

/// Creates or updates the tables; waits, with back-off, for a database that does not answer yet.
pub async fn migrate_when_there(metastore: &dyn Metastore) {
    let mut backoff = Backoff::default();
    while let Err(error) = metastore.migrate().await {
        let wait = backoff.next_wait();
        tracing::warn!(error = %Chain(&error), wait_ms = wait.as_millis(), "metastore is not ready; check metastore.url");
        tokio::time::sleep(wait).await;
    }
}

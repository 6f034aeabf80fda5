//! Opens the metastore that the configured address names: Postgres or SQLite.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use lake_shared::error_chain::Chain;
use lake_shared::retry::{Backoff, milliseconds};
use lake_shared::secret::Secret;
use serde::Deserialize;
use sqlx::postgres::PgConnectOptions;

use super::postgres::PostgresMetastore;
use super::sqlite::SqliteMetastore;
use super::{Metastore, MetastoreError, migrations};

/// Section `[metastore]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetastoreConfig {
    /// `postgres://user:password@host:port/database`, or `sqlite:path/of/the/file`.
    pub url: Secret,
    /// Most connections to Postgres at the same time; SQLite has one.
    #[serde(default = "default_connections")]
    pub connections_max: u32,
}

const fn default_connections() -> u32 {
    4
}

impl MetastoreConfig {
    /// Rules that types cannot express.
    ///
    /// # Errors
    ///
    /// The key that breaks a rule and what to do; the address, which may hold a password, is not in it.
    pub fn validate(&self) -> Result<(), String> {
        let url = self.url.expose();
        let is_postgres = ["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme));
        let usable = match url.strip_prefix("sqlite:") {
            Some(path) => !path.trim_start_matches("//").is_empty(),
            None => is_postgres && PgConnectOptions::from_str(url).is_ok(),
        };
        if usable {
            return Ok(());
        }
        Err("key `metastore.url`: it is neither postgres://user:password@host:port/database nor sqlite:path/of/the/file".into())
    }
}

/// Opens the metastore that the address names; nothing is connected yet.
///
/// # Errors
///
/// The address cannot be understood.
pub fn open(config: &MetastoreConfig) -> anyhow::Result<Arc<dyn Metastore>> {
    let url = config.url.expose();
    if let Some(path) = url.strip_prefix("sqlite:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        return Ok(Arc::new(SqliteMetastore::file(Path::new(path))));
    }
    config.validate().map_err(anyhow::Error::msg)?;
    Ok(Arc::new(PostgresMetastore::new(&config.url, config.connections_max)?))
}

/// Creates or updates the metastore's own tables; waits, with back-off, for a database that does not answer yet.
///
/// # Errors
///
/// A newer version of the lake has changed the tables: waiting is of no use.
pub async fn migrate_when_there(metastore: &dyn Metastore) -> Result<(), MetastoreError> {
    let mut backoff = Backoff::default();
    loop {
        let error = match metastore.migrate().await {
            Ok(()) => return Ok(()),
            Err(error) if error.source.downcast_ref().is_some_and(migrations::is_final) => return Err(error),
            Err(error) => error,
        };
        let wait = backoff.next_wait();
        tracing::warn!(error = %Chain(&error), wait_ms = milliseconds(wait), "metastore is not ready; check metastore.url");
        tokio::time::sleep(wait).await;
    }
}

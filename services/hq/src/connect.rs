//! Connecting to HQ's databases, blob stores and users, as the section `[hq]` says.

use std::sync::Arc;

use futures::try_join;
use lake_shared::retry::{Backoff, milliseconds};
use serde::Deserialize;

use crate::blobs::{BlobsConfig, ObjectBlobs};
use crate::documents::case::CaseOptions;
use crate::postgres::{HqPostgresConfig, PostgresHq};
use crate::source::{Hq, SourceError, UserDirectory};
use crate::users::{CouchdbUsers, ElasticsearchUsers, NoUsers, UsersConfig};

/// Where a CommCare HQ keeps what the lake reads.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HqConfig {
    /// Databases with cases, forms and locations.
    pub database: HqPostgresConfig,
    /// Stores of form XML.
    pub blobs: BlobsConfig,
    /// Directory of users; without it no user has a location.
    #[serde(default)]
    pub users: UsersConfig,
}

impl HqConfig {
    /// Checks rules that types cannot express, as far as that is possible without a server.
    ///
    /// # Errors
    /// The key and what to do about it.
    pub fn validate(&self) -> Result<(), String> {
        self.database.validate()?;
        self.blobs.validate()?;
        self.users.validate()
    }

    /// What a case's document can hold of what is read.
    pub fn case_options(&self) -> CaseOptions {
        CaseOptions { transactions: self.database.transactions, ..CaseOptions::default() }
    }
}

/// Connects to databases, blob stores and users.
///
/// # Errors
/// [`SourceError::Unavailable`] where a server is not there (yet): wait and call again. [`SourceError::Refused`] where the configuration is
/// wrong: an operator has to act.
pub async fn connect(config: &HqConfig) -> Result<Hq, SourceError> {
    let database = PostgresHq::connect(&config.database);
    let blobs = ObjectBlobs::connect(&config.blobs);
    let users = connect_users(&config.users);
    let (database, blobs, users) = try_join!(database, blobs, users)?;
    Ok(Hq { database: Arc::new(database), blobs: Arc::new(blobs), users })
}

/// Connects to the user directory alone.
///
/// # Errors
/// As [`connect`].
pub async fn connect_users(config: &UsersConfig) -> Result<Arc<dyn UserDirectory>, SourceError> {
    Ok(match config {
        UsersConfig::Elasticsearch(config) => Arc::new(ElasticsearchUsers::connect(config).await?),
        UsersConfig::Couchdb(config) => Arc::new(CouchdbUsers::connect(config).await?),
        UsersConfig::None => Arc::new(NoUsers),
    })
}

/// Connects, waiting with back-off for servers that are not there yet.
///
/// # Errors
/// [`SourceError::Refused`] alone, which waiting does not mend.
pub async fn connect_when_there(config: &HqConfig) -> Result<Hq, SourceError> {
    let mut backoff = Backoff::default();
    loop {
        match connect(config).await {
            Err(error @ SourceError::Unavailable { .. }) => {
                let wait = backoff.next_wait();
                tracing::warn!(%error, wait_ms = milliseconds(wait), "HQ is not there yet; check the section [hq]");
                tokio::time::sleep(wait).await;
            }
            other => return other,
        }
    }
}

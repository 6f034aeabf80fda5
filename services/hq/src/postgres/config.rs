//! Where HQ's databases are and how hard they may be worked.

use std::time::Duration;

use lake_shared::secret::Secret;
use serde::Deserialize;

use super::database::Database;
use crate::sharding::{SHARD_COUNT_DEFAULT, ShardMap, ShardRange};
use crate::source::SourceError;

/// HQ's databases. Only `url` must be given for an HQ that keeps everything in one database.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HqPostgresConfig {
    /// Main database, `postgres://user:password@host:port/database`. A role that may only read is enough:
    /// SELECT on `form_processor_*`, `blobs_blobmeta` and `locations_*`.
    pub url: Secret,
    /// A streaming replica of the main database. Cases and forms are read from it when `shards` is empty; locations never are, because their
    /// messages come at once and a lagging replica would give an old tree.
    #[serde(default)]
    pub replica_url: Option<Secret>,
    /// Databases of a partitioned HQ. Empty: cases and forms are in the main database.
    #[serde(default)]
    pub shards: Vec<HqShardConfig>,
    /// Logical shards of a partitioned HQ, a power of two.
    #[serde(default = "defaults::shard_count")]
    pub shard_count: u32,
    /// Most connections to each database, 1 or more.
    #[serde(default = "defaults::connections_max")]
    pub connections_max: usize,
    /// How long one statement may take, milliseconds. The server ends it then.
    #[serde(default = "defaults::statement_timeout_ms")]
    pub statement_timeout_ms: u64,
    /// How long opening a connection may take, milliseconds.
    #[serde(default = "defaults::connect_timeout_ms")]
    pub connect_timeout_ms: u64,
    /// Whether statements are prepared once per connection. Leave it off behind pgbouncer.
    #[serde(default)]
    pub prepared_statements: bool,
    /// Whether a case's transactions are read, which become `actions` and `xform_ids`. They are the largest part of the work.
    #[serde(default = "defaults::transactions")]
    pub transactions: bool,
}

/// One database of a partitioned HQ.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HqShardConfig {
    /// Name for messages, for example HQ's alias `p1`.
    pub name: String,
    /// First logical shard in it.
    pub first: u32,
    /// Last logical shard in it.
    pub last: u32,
    /// The database itself; not the PL/Proxy one.
    pub url: Secret,
    /// A streaming replica of it.
    #[serde(default)]
    pub replica_url: Option<Secret>,
}

impl HqPostgresConfig {
    /// Everything in one database, and the defaults.
    pub fn of_url(url: impl Into<Secret>) -> Self {
        Self {
            url: url.into(),
            replica_url: None,
            shards: Vec::new(),
            shard_count: defaults::shard_count(),
            connections_max: defaults::connections_max(),
            statement_timeout_ms: defaults::statement_timeout_ms(),
            connect_timeout_ms: defaults::connect_timeout_ms(),
            prepared_statements: false,
            transactions: defaults::transactions(),
        }
    }

    /// Rules that types cannot express. The error names the key and what to do; addresses are not in it.
    pub fn validate(&self) -> Result<(), String> {
        let limits = self.limits();
        let check = |key: String, url: &Secret| match Database::new("database".into(), url.expose(), limits) {
            Err(SourceError::Refused { reason, .. }) => Err(format!("key `{key}`: {reason}")),
            _ => Ok(()),
        };
        check("hq.database.url".into(), &self.url)?;
        if let Some(url) = &self.replica_url {
            check("hq.database.replica_url".into(), url)?;
        }
        for (number, shard) in self.shards.iter().enumerate() {
            check(format!("hq.database.shards.{number}.url"), &shard.url)?;
            if let Some(url) = &shard.replica_url {
                check(format!("hq.database.shards.{number}.replica_url"), url)?;
            }
        }
        if self.shards.is_empty() {
            return Ok(());
        }
        ShardMap::new(self.shard_count, &self.shard_ranges())
            .map(drop)
            .map_err(|error| format!("key `hq.database.shards`: {error}"))
    }

    pub(super) fn limits(&self) -> Limits {
        Limits {
            connections_max: self.connections_max.max(1),
            // 0 would mean "no limit" to the server.
            statement_timeout: Duration::from_millis(self.statement_timeout_ms.max(1)),
            connect_timeout: Duration::from_millis(self.connect_timeout_ms.max(1)),
            prepared_statements: self.prepared_statements,
        }
    }

    pub(super) fn shard_ranges(&self) -> Vec<ShardRange> {
        self.shards
            .iter()
            .map(|shard| ShardRange { name: shard.name.clone(), first: shard.first, last: shard.last })
            .collect()
    }
}

/// What every database is held to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub connections_max: usize,
    pub statement_timeout: Duration,
    pub connect_timeout: Duration,
    pub prepared_statements: bool,
}

mod defaults {
    pub fn shard_count() -> u32 {
        super::SHARD_COUNT_DEFAULT
    }

    pub fn connections_max() -> usize {
        4
    }

    pub fn statement_timeout_ms() -> u64 {
        30_000
    }

    pub fn connect_timeout_ms() -> u64 {
        5_000
    }

    pub fn transactions() -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_the_url_must_be_given() {
        let config: HqPostgresConfig =
            serde_json::from_str(r#"{"url": "postgres://hq:secret@db/commcarehq"}"#).unwrap();
        assert_eq!((config.shard_count, config.connections_max, config.statement_timeout_ms), (1024, 4, 30_000));
        assert!(config.transactions && !config.prepared_statements && config.shards.is_empty());
        assert!(!format!("{config:?}").contains("secret"));
    }

    #[test]
    fn unknown_keys_are_errors() {
        assert!(serde_json::from_str::<HqPostgresConfig>(r#"{"url": "u", "pool": 4}"#).is_err());
        let shard = r#"{"url": "u", "shards": [{"name": "p1", "first": 0, "last": 1, "url": "u", "host": "h"}]}"#;
        assert!(serde_json::from_str::<HqPostgresConfig>(shard).is_err());
    }
}

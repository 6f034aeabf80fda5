//! Where HQ's databases are and how hard they may be worked.

use std::time::Duration;

use lake_shared::secret::Secret;
use serde::Deserialize;

use super::database::{Limits, connect_options};
use super::records::Extent;
use crate::pace::TurnOptions;
use crate::pace::limit::LimitOptions;
use crate::sharding::{SHARD_COUNT_DEFAULT, ShardMap, ShardMapError, ShardRange};
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
    /// How an id finds its database.
    #[serde(default)]
    pub sharding: Sharding,
    /// Most reads in flight at once to all of HQ's databases together, 1 or more. A read is one batch at one database; its statements run
    /// one after the other.
    #[serde(default = "defaults::in_flight_max")]
    pub in_flight_max: usize,
    /// Most reads that begin in a second, over all of HQ's databases. 0: any number.
    #[serde(default)]
    pub reads_per_second_max: u32,
    /// When statements take so many times as long as usual, fewer reads are in flight until they no longer do. Over 1, or 0: never.
    #[serde(default = "defaults::slow_down_factor")]
    pub slow_down_factor: f64,
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
    /// Whether a case's ledger values are read, which become `ledger_values`.
    #[serde(default)]
    pub ledger_values: bool,
    /// Whether all blobs of a form are named, which become `external_blobs`; without it, only its XML is looked for.
    #[serde(default)]
    pub form_attachments: bool,
    /// Most bytes of memory that the rows of one case or form may take, its transactions included; one with more goes to quarantine.
    #[serde(default = "defaults::record_bytes_max")]
    pub record_bytes_max: usize,
}

/// How an id finds its database among the shards.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Sharding {
    /// By the hash of the id and the ranges of the shards, as HQ does. Should a database hold rows that are not of its range, as `All`.
    #[default]
    Hash,
    /// Every id is asked on all shards, and ranges do not count. Always correct, and as many times the work as there are shards.
    All,
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
            sharding: Sharding::default(),
            in_flight_max: defaults::in_flight_max(),
            reads_per_second_max: 0,
            slow_down_factor: defaults::slow_down_factor(),
            connections_max: defaults::connections_max(),
            statement_timeout_ms: defaults::statement_timeout_ms(),
            connect_timeout_ms: defaults::connect_timeout_ms(),
            prepared_statements: false,
            transactions: defaults::transactions(),
            ledger_values: false,
            form_attachments: false,
            record_bytes_max: defaults::record_bytes_max(),
        }
    }

    /// Checks rules that types cannot express.
    ///
    /// # Errors
    /// The key and what to do about it; addresses are not in the text.
    pub fn validate(&self) -> Result<(), String> {
        if self.slow_down_factor != 0.0 && !(self.slow_down_factor > 1.0 && self.slow_down_factor.is_finite()) {
            return Err("key `hq.database.slow_down_factor`: must be over 1, or 0 for never".into());
        }
        let check = |key: String, url: &Secret| match connect_options("database", url.expose()) {
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
        self.shard_map().map(drop).map_err(|error| format!("key `hq.database.shards`: {error}"))
    }

    /// The checked ranges; `None` where they do not count.
    pub(super) fn shard_map(&self) -> Result<Option<ShardMap>, ShardMapError> {
        if self.shards.is_empty() || self.sharding == Sharding::All {
            return Ok(None);
        }
        ShardMap::new(self.shard_count, &self.shard_ranges()).map(Some)
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

    pub(super) fn turns(&self) -> TurnOptions {
        let limit = LimitOptions { in_flight_max: self.in_flight_max.max(1), slow_down_factor: self.slow_down_factor };
        TurnOptions { source: "database", limit, per_second_max: self.reads_per_second_max }
    }

    pub(super) fn extent(&self) -> Extent {
        Extent {
            transactions: self.transactions,
            ledger_values: self.ledger_values,
            form_attachments: self.form_attachments,
        }
    }

    fn shard_ranges(&self) -> Vec<ShardRange> {
        self.shards
            .iter()
            .map(|shard| ShardRange { name: shard.name.clone(), first: shard.first, last: shard.last })
            .collect()
    }
}

mod defaults {
    pub fn shard_count() -> u32 {
        super::SHARD_COUNT_DEFAULT
    }

    pub fn in_flight_max() -> usize {
        32
    }

    pub fn slow_down_factor() -> f64 {
        1.5
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

    pub fn record_bytes_max() -> usize {
        crate::source::RECORD_BYTES_MAX
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
        assert_eq!((config.sharding, config.in_flight_max, config.reads_per_second_max), (Sharding::Hash, 32, 0));
        assert!(config.transactions && !config.prepared_statements && config.shards.is_empty());
        assert!(!format!("{config:?}").contains("secret"));
    }

    #[test]
    fn ranges_count_only_where_ids_are_routed_by_them() {
        let mut config = HqPostgresConfig::of_url("postgres://hq@db/x");
        let url: Secret = "postgres://hq@db/p1".into();
        config.shards.push(HqShardConfig { name: "p1".into(), first: 0, last: 0, url, replica_url: None });
        assert!(config.validate().unwrap_err().contains("key `hq.database.shards`: shards 1 to 1023"));
        config.sharding = Sharding::All;
        config.validate().unwrap();
        assert!(config.shard_map().unwrap().is_none());
    }

    #[test]
    fn factors_that_would_always_or_never_slow_down_by_accident_are_errors() {
        let mut config = HqPostgresConfig::of_url("postgres://hq@db/x");
        for (factor, good) in
            [(0.0, true), (1.5, true), (1.0, false), (-2.0, false), (f64::NAN, false), (f64::INFINITY, false)]
        {
            config.slow_down_factor = factor;
            assert_eq!(config.validate().is_ok(), good, "{factor}");
        }
    }

    #[test]
    fn unknown_keys_are_errors() {
        assert!(serde_json::from_str::<HqPostgresConfig>(r#"{"url": "u", "pool": 4}"#).is_err());
        let shard = r#"{"url": "u", "shards": [{"name": "p1", "first": 0, "last": 1, "url": "u", "host": "h"}]}"#;
        assert!(serde_json::from_str::<HqPostgresConfig>(shard).is_err());
    }
}

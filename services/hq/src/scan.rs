//! Going over HQ's tables: which documents a project has, a stretch after the other by the primary key of each database.
//!
//! Primary keys only grow, and a row keeps its own, so a stretch that was read need not be read again: what is saved meanwhile has a message of
//! HQ's feed. HQ's own reindexing (`ReindexAccessor`) goes by them too. They are no identity: each database counts for itself.

use lake_shared::identity::{Domain, Kind};

pub mod compared;

/// Which documents are meant: live ones only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanScope {
    /// Their project space.
    pub domain: Domain,
    /// Their kind.
    pub kind: Kind,
    /// Case types, or xmlns of forms as HQ has them; `None`: all.
    pub types: Option<Vec<String>>,
    /// `server_modified_on` of cases, `received_on` of forms, `last_modified` of locations from this time on, microseconds.
    pub from_us: Option<i64>,
    /// And before this time.
    pub until_us: Option<i64>,
}

/// How many documents a database has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardEstimate {
    /// The database, as the configuration names it.
    pub shard: String,
    /// What its planner guesses: it costs nothing.
    pub documents: u64,
}

/// A stretch of a database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScannedKeys {
    /// Primary keys and ids of the documents, by primary key.
    pub keys: Vec<(i64, String)>,
    /// Where the next stretch begins.
    pub reached: i64,
    /// Whether there is no next one.
    pub finished: bool,
}

//! What the writer knows besides the tables: which tables exist, which ids were deleted, what could not be handled, who may commit.
//!
//! A port with two adapters, [`postgres`] for services and [`sqlite`] for the embedded lake. Both keep times as microseconds since
//! 1970 and take leases by the database's own clock, so that clocks of processes do not matter.

use std::collections::BTreeSet;

use async_trait::async_trait;
use lake_proto::queue::v1::{Lineage, Quarantined};
use lake_shared::identity::{Space, TableKey};
use uuid::Uuid;

use crate::key_index::IdHash;
use crate::table_store::order_guard::TombstoneOrder;

pub mod connect;
#[doc(hidden)]
pub mod contract;
mod migrations;
pub mod postgres;
mod rows;
mod sql;
pub mod sqlite;

/// Trouble with the database. Everything may be tried again.
#[derive(Debug, thiserror::Error)]
#[error("metastore: cannot {action}; is its database reachable and migrated?")]
pub struct MetastoreError {
    /// What was tried, for example `register table demo/case-sql/person`.
    pub action: String,
    /// What the database says.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// A registered table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRecord {
    /// Which table.
    pub key: TableKey,
    /// Its unique name for people and SQL engines.
    pub name: String,
    /// Its folder below the lake's root.
    pub path: String,
    /// Its address, as other engines open it.
    pub location: String,
    /// State after the last commit that was recorded; the log of the table is the truth.
    pub state: TableState,
    /// When it was registered, microseconds.
    pub created_us: i64,
}

/// State of a table after a commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableState {
    /// Delta version; `None` before the first commit.
    pub version: Option<i64>,
    /// Delta schema, JSON. Recording `None` keeps what is there.
    pub schema: Option<String>,
    /// Rows.
    pub rows: i64,
    /// Data files.
    pub files: i64,
    /// Bytes of the data files.
    pub bytes: i64,
    /// Publish time of the newest HQ change in the table, microseconds. Recording an older one keeps the newer.
    pub newest_published_us: Option<i64>,
    /// When the newest row was read from HQ, microseconds. Recording an older one keeps the newer.
    pub newest_fetched_us: Option<i64>,
    /// When the last commit was recorded, microseconds, by the database's clock; set by recording.
    pub last_commit_us: Option<i64>,
}

/// A table to be registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTable {
    /// Which table.
    pub key: TableKey,
    /// Its folder below the lake's root.
    pub path: String,
    /// Its address, as other engines open it.
    pub location: String,
    /// What is appended to both where another table has its name; empty where the store tells paths apart by case.
    pub suffix: String,
}

/// A remembered deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTombstone {
    /// Hash of the id.
    pub id_hash: IdHash,
    /// The id, for people.
    pub id: String,
    /// Its order against rows.
    pub order: TombstoneOrder,
}

/// An entry of the quarantine.
#[derive(Clone, Debug, PartialEq)]
pub struct QuarantineRecord {
    /// Made of the content; identifies the entry.
    pub fingerprint: String,
    /// Who put it aside: `fetcher`, `enricher`, `writer`.
    pub stage: String,
    /// The entry.
    pub entry: Quarantined,
    /// How often it came.
    pub attempts: i64,
}

/// Which entries of the quarantine are meant. Absent parts match everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuarantineFilter {
    /// Only of this stage.
    pub stage: Option<String>,
    /// Only of this reason.
    pub reason: Option<String>,
    /// Only of this domain.
    pub domain: Option<String>,
}

/// The right to commit, until it expires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// What it is for.
    pub name: String,
    /// Who holds it.
    pub owner: String,
    /// Grows by one at each change of owner: whoever holds a smaller one has lost it.
    pub epoch: i64,
    /// Until when, microseconds, by the database's clock.
    pub expires_us: i64,
}

/// Fingerprint of a quarantine entry: the same record put aside twice for the same reason is one entry.
pub fn quarantine_fingerprint(stage: &str, entry: &Quarantined) -> String {
    let Lineage { topic, partition, offset, .. } = entry.lineage.clone().unwrap_or_default();
    let mut text = Vec::new();
    for part in [stage, &entry.reason, &entry.domain, &entry.r#type, &entry.id, &topic] {
        text.extend_from_slice(part.as_bytes());
        text.push(0);
    }
    text.extend_from_slice(&entry.kind.to_be_bytes());
    text.extend_from_slice(&partition.to_be_bytes());
    text.extend_from_slice(&offset.to_be_bytes());
    text.extend_from_slice(&entry.payload);
    Uuid::new_v5(&Uuid::NAMESPACE_OID, &text).simple().to_string()
}

/// The port. Every call is atomic and may be repeated.
#[async_trait]
pub trait Metastore: Send + Sync {
    /// Creates or updates the database tables.
    async fn migrate(&self) -> Result<(), MetastoreError>;

    /// Whether the database answers; for `/ready`.
    async fn check(&self) -> Result<(), MetastoreError>;

    /// The tables of a space, or all, by name.
    async fn tables(&self, space: Option<&Space>) -> Result<Vec<TableRecord>, MetastoreError>;

    /// The spaces that have tables.
    async fn spaces(&self) -> Result<BTreeSet<Space>, MetastoreError>;

    /// Registers tables, each under a name that no other table has, and returns their records in the same order. The path of a new table is
    /// its folder, as [`lake_shared::names::table_path`] makes it, and the location its address, which ends in it; where another table
    /// has the name, both get the suffix: tables whose paths differ only by case have one name. A table that is registered already
    /// is returned as it is.
    async fn register_tables(&self, tables: &[NewTable]) -> Result<Vec<TableRecord>, MetastoreError>;

    /// Records the states of registered tables after their commits, each table at most once. All of them or, on an error, none. Answers whether
    /// all of them are registered; those that are not are left out.
    async fn record_commits(&self, states: &[(TableKey, TableState)]) -> Result<bool, MetastoreError>;

    /// A page of the remembered tombstones of a space: the first ones behind an id, in the order of the ids.
    async fn tombstones(
        &self,
        space: &Space,
        behind: Option<IdHash>,
        limit: u32,
    ) -> Result<Vec<StoredTombstone>, MetastoreError>;

    /// The remembered tombstones of these ids, in any order.
    async fn tombstones_of(&self, space: &Space, ids: &[IdHash]) -> Result<Vec<StoredTombstone>, MetastoreError>;

    /// Remembers tombstones; one per id, the given one replaces what was there.
    async fn remember_tombstones(&self, space: &Space, tombstones: &[StoredTombstone]) -> Result<(), MetastoreError>;

    /// Forgets the tombstones of these ids, as newer rows have taken their places.
    async fn forget_tombstones(&self, space: &Space, ids: &[IdHash]) -> Result<(), MetastoreError>;

    /// Forgets the tombstones that were remembered longer ago than this, by the database's clock. Answers how many.
    async fn forget_old_tombstones(&self, space: &Space, older_than_us: i64) -> Result<u64, MetastoreError>;

    /// Stores an entry. One that is there already (same fingerprint) only counts up its attempts.
    async fn quarantine(&self, stage: &str, entry: &Quarantined) -> Result<(), MetastoreError>;

    /// Entries, newest first.
    async fn quarantined(
        &self,
        filter: &QuarantineFilter,
        limit: u32,
        offset: u32,
    ) -> Result<Vec<QuarantineRecord>, MetastoreError>;

    /// Number of entries.
    async fn quarantined_count(&self, filter: &QuarantineFilter) -> Result<u64, MetastoreError>;

    /// Removes an entry, after it was replayed or given up. Whether it was there.
    async fn release(&self, fingerprint: &str) -> Result<bool, MetastoreError>;

    /// Takes a lease that is free, expired, or held by the same owner; `None` while somebody else holds it.
    async fn acquire_lease(&self, name: &str, owner: &str, for_us: i64) -> Result<Option<Lease>, MetastoreError>;

    /// Extends a lease; `None` when somebody else has taken it.
    async fn renew_lease(&self, lease: &Lease, for_us: i64) -> Result<Option<Lease>, MetastoreError>;

    /// Gives a lease back, so that the next owner need not wait. Nothing happens when somebody else has taken it.
    async fn release_lease(&self, lease: &Lease) -> Result<(), MetastoreError>;
}

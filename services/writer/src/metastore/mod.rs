//! What the writer keeps besides the tables: which tables are registered, which ids were deleted, which records are in quarantine, which
//! writer may commit (the lease), and what operators ask for ([`steering`]).
//!
//! A port with two adapters, [`postgres`] for services and [`sqlite`] for the embedded lake. Both keep times as microseconds since
//! 1970 and take leases by the database's own clock, so that clocks of processes do not matter.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use lake_proto::queue::v1::{Lineage, Quarantined};
use lake_shared::identity::{Space, TableKey};
use uuid::Uuid;

use crate::key_index::IdHash;
use crate::order_guard::TombstoneOrder;

pub mod backfills;
pub mod comparisons;
pub mod connect;
#[doc(hidden)]
pub mod contract;
pub mod erasures;
pub mod fence;
mod lease_sql;
mod migrations;
pub mod postgres;
mod quarantine;
mod quarantine_contract;
mod quarantine_filter;
mod rows;
mod sql;
pub mod sqlite;
pub mod steering;
mod tombstone_sql;

use self::backfills::Backfills;
use self::comparisons::Comparisons;
use self::erasures::Erasures;
use self::fence::{Fence, LeaseLost};
pub use self::quarantine_filter::QuarantineFilter;
use self::steering::{Behind, Steering};

/// The metastore's database failed or did not answer, and every call may be repeated; or the lease under which something was to be written
/// is lost.
#[derive(Debug, thiserror::Error)]
#[error("metastore: cannot {action}{}", advice(.source.as_ref()))]
pub struct MetastoreError {
    /// What was tried, for example `register table demo/case-sql/person`.
    pub action: String,
    /// The database's own error, or [`LeaseLost`].
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// What an operator may look at.
fn advice(source: &(dyn std::error::Error + Send + Sync + 'static)) -> &'static str {
    if source.is::<LeaseLost>() { "" } else { "; is its database reachable and migrated?" }
}

impl MetastoreError {
    /// Whether it was refused because the lease was taken by another writer.
    pub fn is_lease_lost(&self) -> bool {
        self.source.is::<LeaseLost>()
    }

    /// Whether the database refuses the values that it was given, and will refuse them again: a text that is too long for an index, a
    /// name that is taken. An outage is no refusal.
    pub fn is_refusal(&self) -> bool {
        let Some(sqlx::Error::Database(error)) = self.source.downcast_ref::<sqlx::Error>() else { return false };
        // Classes of Postgres: data exception, integrity constraint violation, program limit exceeded
        // (https://www.postgresql.org/docs/current/errcodes-appendix.html). SQLite's codes of a constraint end in 19 in base 256.
        let is_refusal_of_sqlite =
            |code: &str| code.parse::<u32>().is_ok_and(|code| [18, 19, 20].contains(&(code & 0xff)));
        error.code().is_some_and(|code| {
            if code.len() == 5 { ["22", "23", "54"].contains(&&code[..2]) } else { is_refusal_of_sqlite(&code) }
        })
    }
}

/// A registered table, as the metastore has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRecord {
    /// Domain, kind and document type: identifies the table in the lake.
    pub key: TableKey,
    /// Unique name of the table for people and SQL engines.
    pub name: String,
    /// Folder of the table below the lake's root.
    pub path: String,
    /// URL of that folder, as other engines open it.
    pub location: String,
    /// State after the last commit that was recorded. The transaction log of the table is the truth; this may be a commit behind it.
    pub state: RecordedState,
    /// When it was registered, microseconds.
    pub created_us: i64,
}

/// What the metastore records of a table after a commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordedState {
    /// Delta version; `None` before the first commit.
    pub version: Option<i64>,
    /// Delta schema as JSON; `None` in lists of tables, as a wide one has hundreds of kilobytes. Recording `None` keeps the schema that was recorded
    /// before.
    pub schema: Option<String>,
    /// Rows that readers see, deleted ones not counted.
    pub rows: i64,
    /// Data files of the version.
    pub files: i64,
    /// Bytes of those data files, as they are stored.
    pub bytes: i64,
    /// When HQ published the newest change that is in the table, microseconds. Recording an older instant keeps the newer one.
    pub newest_published_us: Option<i64>,
    /// When the newest row was read from HQ, microseconds. Recording an older instant keeps the newer one.
    pub newest_fetched_us: Option<i64>,
    /// How long rows took from HQ to readers. Recording `None` keeps what was recorded before.
    pub delays: Option<RecordedDelays>,
    /// When the last commit was recorded, microseconds, by the database's clock; set by recording.
    pub last_commit_us: Option<i64>,
}

/// How long changes took from their publication by HQ to rows that readers see, over the last minutes before the last commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordedDelays {
    /// Half of the rows took no longer, microseconds.
    pub p50_us: i64,
    /// 95 of 100 rows took no longer, microseconds.
    pub p95_us: i64,
    /// 99 of 100 rows took no longer, microseconds.
    pub p99_us: i64,
    /// Rows that this is of.
    pub rows: i64,
}

/// A table that is to be registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTable {
    /// Domain, kind and document type of the table.
    pub key: TableKey,
    /// Folder below the lake's root that the table gets.
    pub path: String,
    /// URL of that folder, as other engines open it.
    pub location: String,
    /// What is appended to both where another table has its name; empty where the store tells paths apart by case.
    pub suffix: String,
}

/// A deletion that is remembered, so that a late row does not bring the document back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTombstone {
    /// Hash of the document's id, which the writer compares.
    pub id_hash: IdHash,
    /// The document's id, for people.
    pub id: String,
    /// What decides whether a row or the deletion is newer.
    pub order: TombstoneOrder,
    /// Why the id left, for people: see `Tombstone.reason` of the queue's messages. Empty where that was not kept.
    pub reason: String,
}

/// A record in quarantine: it could not be handled and waits until its cause is mended or it is given up.
#[derive(Clone, Debug, PartialEq)]
pub struct QuarantineRecord {
    /// Identifies the entry; made of its content by [`quarantine_fingerprint`].
    pub fingerprint: String,
    /// The service that quarantined the record: `fetcher`, `enricher` or `writer`.
    pub stage: String,
    /// The record, with the reason and the document it is about.
    pub entry: Quarantined,
    /// How many times the same record came into quarantine for the same reason.
    pub attempts: i64,
    /// Bytes that are kept of what could not be handled; `entry` may have fewer of them.
    pub payload_bytes: i64,
    /// When it came first, microseconds. [`Quarantined::quarantined_us`] of `entry` is when it came last.
    pub first_us: i64,
    /// The last time that its record was to be read again; `None`: nobody has asked for that.
    pub replayed: Option<Replayed>,
}

/// What is known of the last time that somebody asked for the record of an entry to be read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// When, microseconds, by the database's clock.
    pub at_us: i64,
    /// How often the entry had come by then.
    pub attempts: i64,
    /// When the reading was made that the lake had of the record then, microseconds, by the clock of HQ's database; `None`: it had none.
    pub observed_us: Option<i64>,
    /// Why it cannot be read again; empty: it can.
    pub refused: String,
}

/// What is to be kept of an entry whose record is to be read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayMark {
    /// The entry.
    pub fingerprint: String,
    /// See [`Replayed::observed_us`].
    pub observed_us: Option<i64>,
    /// See [`Replayed::refused`].
    pub refused: String,
}

/// Entries of the quarantine with one reason, of one service and one domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuarantineGroup {
    /// Code of the reason.
    pub reason: String,
    /// The service that quarantined them.
    pub stage: String,
    /// The domain; empty where it is not known.
    pub domain: String,
    /// How many there are.
    pub entries: i64,
    /// Bytes of their payloads.
    pub payload_bytes: i64,
    /// When the one came that has not come for longest, microseconds.
    pub oldest_us: i64,
    /// When the one came that came last, microseconds.
    pub newest_us: i64,
    /// Those that are being read again.
    pub replayed: i64,
}

/// A remembered deletion, with what is told of it to people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RememberedTombstone {
    /// Where the id was deleted.
    pub space: Space,
    /// The deletion.
    pub tombstone: StoredTombstone,
    /// When it was remembered, microseconds, by the database's clock.
    pub remembered_us: i64,
}

/// How much the quarantine keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuarantineBounds {
    /// Age beyond which an entry goes, microseconds since it last came.
    pub age_max_us: i64,
    /// Most entries.
    pub entries_max: i64,
    /// Most bytes of payloads, over all entries.
    pub payload_bytes_max: i64,
}

/// A right that one owner at a time has until it expires, for example the right to commit to the lake's tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Name of the right; `writer` for committing to all tables of a lake.
    pub name: String,
    /// The process that holds the lease: a name that is unique to it.
    pub owner: String,
    /// Where others reach the owner, as configured; empty when that is not configured.
    pub address: String,
    /// Grows by one each time that the lease is taken: a holder of a smaller epoch has lost it.
    pub epoch: i64,
    /// When the owner took the lease, microseconds, by the database's clock. Renewing does not change it.
    pub acquired_us: i64,
    /// When the lease ends unless it is renewed, microseconds, by the database's clock.
    pub expires_us: i64,
    /// When another process asked for the lease last while it was held, microseconds, by the database's clock; 0: nobody has.
    pub wanted_us: i64,
}

/// Fingerprint of a quarantine entry. A document that is in quarantine again for the same reason is the same entry, whatever message led to it
/// and whatever it looks like now; without the document's id the content tells entries apart.
pub fn quarantine_fingerprint(stage: &str, entry: &Quarantined) -> String {
    let Lineage { topic, partition, offset, .. } = entry.lineage.clone().unwrap_or_default();
    let is_known = !entry.id.is_empty();
    let topic = if is_known { "" } else { topic.as_str() };
    let mut text = Vec::new();
    for part in [stage, &entry.reason, &entry.domain, &entry.r#type, &entry.id, topic] {
        text.extend_from_slice(part.as_bytes());
        text.push(0);
    }
    text.extend_from_slice(&entry.kind.to_be_bytes());
    if !is_known {
        text.extend_from_slice(&partition.to_be_bytes());
        text.extend_from_slice(&offset.to_be_bytes());
        text.extend_from_slice(&entry.payload);
    }
    Uuid::new_v5(&Uuid::NAMESPACE_OID, &text).simple().to_string()
}

/// The metastore, as the writer uses it. Every call is atomic and may be repeated.
///
/// # Errors
///
/// Each call answers with [`MetastoreError`] when the database cannot be reached or refuses the statement; nothing has changed then, or, after
/// a lost connection, everything that the call stands for.
#[async_trait]
pub trait Metastore: Steering + Backfills + Comparisons + Erasures + Send + Sync {
    /// The same metastore for what is written under a lease: calls that change tables or tombstones are refused with [`LeaseLost`], and
    /// change nothing, as soon as the lease was taken again. Who takes it afterwards sees all that was written before. The quarantine is not
    /// fenced: every process fills it, and the same entry twice is one.
    fn fenced(&self, fence: Fence) -> Arc<dyn Metastore>;

    /// The lease under which this metastore is written to; `None`: under none.
    fn fence(&self) -> Option<&Fence>;

    /// Creates or updates the database tables.
    async fn migrate(&self) -> Result<(), MetastoreError>;

    /// Whether the database answers; for `/ready`.
    async fn check(&self) -> Result<(), MetastoreError>;

    /// The registered tables of a space, or of all spaces (`None`), in the order of their names, without their schemas.
    async fn tables(&self, space: Option<&Space>) -> Result<Vec<TableRecord>, MetastoreError>;

    /// A registered table, with its schema; `None`: there is no such table.
    async fn table(&self, key: &TableKey) -> Result<Option<TableRecord>, MetastoreError>;

    /// The spaces that have registered tables.
    async fn spaces(&self) -> Result<BTreeSet<Space>, MetastoreError>;

    /// Registers tables, each under a name that no other table has, and returns their records in the same order. The path of a new table is
    /// its folder, as [`lake_shared::escaped_names::table_path`] makes it, and the location its address, which ends in it; where another table
    /// has the name, both get the suffix: tables whose paths differ only by case have one name. A table that is registered already
    /// is returned as it is.
    async fn register_tables(&self, tables: &[NewTable]) -> Result<Vec<TableRecord>, MetastoreError>;

    /// Records the states of registered tables after their commits, each table at most once. All of them or, on an error, none. Answers whether
    /// all of them are registered; those that are not are left out.
    async fn record_commits(&self, states: &[(TableKey, RecordedState)]) -> Result<bool, MetastoreError>;

    /// A page of the remembered tombstones of a space: the first ones behind an id, in the order of the ids.
    async fn tombstones(
        &self,
        space: &Space,
        behind: Option<IdHash>,
        limit: u32,
    ) -> Result<Vec<StoredTombstone>, MetastoreError>;

    /// The same of those that were remembered within so many microseconds, by the database's clock.
    async fn tombstones_since(
        &self,
        space: &Space,
        within_us: i64,
        behind: Option<IdHash>,
        limit: u32,
    ) -> Result<Vec<StoredTombstone>, MetastoreError>;

    /// The remembered tombstones of these ids, in any order.
    async fn tombstones_of(&self, space: &Space, ids: &[IdHash]) -> Result<Vec<StoredTombstone>, MetastoreError>;

    /// Remembers tombstones; one per id: the given one replaces an older one, and is dropped where a newer one is there.
    async fn remember_tombstones(&self, space: &Space, tombstones: &[StoredTombstone]) -> Result<(), MetastoreError>;

    /// Forgets these tombstones, as newer rows have taken their places. One that was replaced meanwhile stays.
    async fn forget_tombstones(
        &self,
        space: &Space,
        tombstones: &[(IdHash, TombstoneOrder)],
    ) -> Result<(), MetastoreError>;

    /// Forgets the tombstones that were remembered longer ago than this, by the database's clock. Answers how many.
    async fn forget_old_tombstones(&self, space: &Space, older_than_us: i64) -> Result<u64, MetastoreError>;

    /// Forgets the oldest tombstones of a space beyond this number. Answers how many.
    async fn limit_tombstones(&self, space: &Space, count_max: i64) -> Result<u64, MetastoreError>;

    /// Remembered tombstones of ids of several spaces, in any order, with what is told of them to people.
    async fn tombstones_in_spaces(&self, ids: &[(Space, IdHash)]) -> Result<Vec<RememberedTombstone>, MetastoreError>;

    /// Stores an entry of the quarantine. If it is there already (same fingerprint) and came before this, its attempts are counted up, and what
    /// is known of it is replaced. An entry about a record that is kept out ([`Erasures::keep_out`]) is not stored.
    async fn quarantine(&self, stage: &str, entry: &Quarantined) -> Result<(), MetastoreError>;

    /// Entries of the quarantine, newest first: at most `limit`, without the first `offset` ones.
    async fn quarantined(
        &self,
        filter: &QuarantineFilter,
        limit: u32,
        offset: u32,
    ) -> Result<Vec<QuarantineRecord>, MetastoreError>;

    /// A page of them without what could not be handled.
    async fn quarantine_page(
        &self,
        filter: &QuarantineFilter,
        behind: Option<&Behind>,
        limit: u32,
    ) -> Result<Vec<QuarantineRecord>, MetastoreError>;

    /// One entry, with at most so many bytes of what could not be handled; `None`: there is no such.
    async fn quarantine_entry(
        &self,
        fingerprint: &str,
        payload_bytes_max: u32,
    ) -> Result<Option<QuarantineRecord>, MetastoreError>;

    /// Entries that the filter matches, in groups, the largest first; at most `limit`.
    async fn quarantine_groups(
        &self,
        filter: &QuarantineFilter,
        limit: u32,
    ) -> Result<Vec<QuarantineGroup>, MetastoreError>;

    /// Keeps that the records of entries are to be read again.
    async fn mark_replayed(&self, marks: &[ReplayMark]) -> Result<(), MetastoreError>;

    /// Number of entries that the filter matches.
    async fn quarantined_count(&self, filter: &QuarantineFilter) -> Result<u64, MetastoreError>;

    /// Removes entries that are too old, and entries beyond the bounds: the older ones of the domains that have most. Answers how many.
    async fn limit_quarantine(&self, bounds: &QuarantineBounds) -> Result<u64, MetastoreError>;

    /// Removes entries, each given by its fingerprint and by when it came last, after their causes were mended or they were given up. One that
    /// has come again stays. Answers how many were there.
    async fn release(&self, entries: &[(String, i64)]) -> Result<u64, MetastoreError>;

    /// Takes a lease that is free, expired, or held by the same owner, for so many microseconds, with a new epoch; `None` while another owner
    /// holds it, who is told that it is wanted ([`Lease::wanted_us`]). Waits for what is being written under the lease just now. `address` is where others reach the owner, empty when that is not known.
    async fn acquire_lease(
        &self,
        name: &str,
        owner: &str,
        address: &str,
        for_us: i64,
    ) -> Result<Option<Lease>, MetastoreError>;

    /// The lease as it is held now; `None` when no owner holds it or it has expired.
    async fn lease(&self, name: &str) -> Result<Option<Lease>, MetastoreError>;

    /// Extends a lease to so many microseconds from now; `None` when it was taken again. Renewing, taking and giving back have a connection
    /// of their own and wait for no other call.
    async fn renew_lease(&self, lease: &Lease, for_us: i64) -> Result<Option<Lease>, MetastoreError>;

    /// Gives a lease back, so that the next owner need not wait. Nothing happens when another owner has taken it.
    async fn release_lease(&self, lease: &Lease) -> Result<(), MetastoreError>;
}

//! Where rows become tables: a port, and the engine [`delta`] behind it.
//!
//! The pure decisions are in [`crate::order_guard`] (which state is newer), [`column_name`], [`schema_plan`] and [`conversion`] (what the
//! table looks like); [`lake_store`] knows folders and buckets; [`crate::key_index`] knows where each id lives.

use std::collections::HashSet;
use std::error::Error;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use lake_proto::queue::v1::Tombstone;
use lake_shared::comparison::BucketSums;
use lake_shared::identity::{DocumentType, Space, TableKey};

use self::compared_rows::{ComparedScope, RowState, WantedRows};
use self::erasure::{Erased, Erasure};
use crate::consent::{Consent, Destroyed, StalePlan};
use crate::metastore::TableRecord;
use crate::metastore::steering::OperationTarget;
use crate::metastore::steering::restore_point::RestorePoint;

pub mod by_id_hash;
pub mod column_name;
pub mod compared_rows;
pub mod conversion;
pub mod delta;
mod durable_files;
pub mod erasure;
#[cfg(test)]
pub(crate) mod fake;
pub mod foreign_type;
pub mod index_home;
pub mod lake_store;
pub mod schema_plan;
pub mod table_changes;

/// Rows of one table. Field names are source paths; `/_id`, `+_lake_version` (int64, microseconds) and `+_lake_observed_at`
/// (timestamp, microseconds, UTC) must be among them. The batches may differ in their fields.
#[derive(Clone, Debug)]
pub struct TableRows {
    /// The type of the rows.
    pub document_type: DocumentType,
    /// The rows.
    pub rows: Vec<RecordBatch>,
}

/// What is to be applied to one space at once. Several entries of one id are allowed; the newest counts.
#[derive(Clone, Debug)]
pub struct SpaceBatch {
    /// The space.
    pub space: Space,
    /// Rows that enter or replace.
    pub upserts: Vec<TableRows>,
    /// Ids that leave.
    pub tombstones: Vec<Tombstone>,
}

impl SpaceBatch {
    /// Rows and tombstones together.
    pub fn len(&self) -> usize {
        let rows: usize = self.upserts.iter().flat_map(|table| &table.rows).map(RecordBatch::num_rows).sum();
        rows + self.tombstones.len()
    }

    /// Whether there is nothing to apply.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What [`TableStore::apply`] did: one entry for each table that got a commit.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// The tables that changed, in the order of their last commits.
    pub tables: Vec<AppliedTable>,
}

/// One table after its commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedTable {
    /// Which table.
    pub table: TableKey,
    /// Delta version after the last commit.
    pub version: u64,
    /// Rows that entered or replaced an older one, by this call.
    pub rows_upserted: u64,
    /// Rows that left, by this call; replaced ones are not counted.
    pub rows_deleted: u64,
    /// Rows in the table now.
    pub rows_total: u64,
    /// Data files now.
    pub files: u64,
    /// Bytes of the data files now.
    pub bytes: u64,
    /// Newest `+_lake_published_at` among the rows of this call, microseconds.
    pub newest_published_us: Option<i64>,
    /// Newest `+_lake_fetched_at` among the rows of this call, microseconds.
    pub newest_fetched_us: Option<i64>,
}

/// What [`TableStore::maintain`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Maintained {
    /// Tables looked at.
    pub tables: u64,
    /// Data files deleted that no readable version needs any more.
    pub files_deleted: u64,
    /// Expired files of the transaction logs deleted.
    pub log_files_deleted: u64,
    /// Tombstones forgotten.
    pub tombstones_forgotten: u64,
    /// Data files that compaction replaced.
    pub files_compacted: u64,
    /// Longest time for which a batch may have waited for compaction.
    pub held_up_max: Duration,
}

/// What [`TableStore::compact`] or [`TableStore::compact_table`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Commits made.
    pub commits: u64,
    /// Data files that were replaced.
    pub files_before: u64,
    /// Data files that replaced them.
    pub files_after: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// There is more to do: the call ended at its own limit.
    pub more: bool,
    /// Longest time for which a batch may have waited for it.
    pub held_up_max: Duration,
}

/// What [`TableStore::compact_table`] would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlannedCompaction {
    /// Id of the plan, made of all files that are rewritten; empty where there is no such table or nothing to do.
    pub plan: String,
    /// Pieces of work; several of them may end in one commit.
    pub jobs: u64,
    /// Data files that are replaced.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What [`TableStore::restore_table`] has done, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Id of the plan, made of all files that come and leave.
    pub plan: String,
    /// Whether it was done, not only planned.
    pub done: bool,
    /// The version whose rows the table has then.
    pub version: u64,
    /// Rows that readers saw before.
    pub rows_before: u64,
    /// Rows that readers see then, before those leave that were deleted since.
    pub rows_after: u64,
    /// Data files that come back.
    pub files_added: u64,
    /// Data files that leave.
    pub files_removed: u64,
    /// Whether the columns change.
    pub changes_columns: bool,
}

impl Restored {
    /// Whether the table is that version already.
    pub const fn is_nothing(&self) -> bool {
        self.files_added == 0 && self.files_removed == 0 && !self.changes_columns
    }
}

/// Folder below the root, and name, of the table that tells of all tables. No project has a folder of this name: in theirs, two hex digits, `-` or
/// another `.` stand behind each `.` ([`lake_shared::escaped_names`]).
pub const STATUS_TABLE: &str = "lake.tables";

/// A row of the table of tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableStatus {
    /// The table.
    pub record: TableRecord,
    /// Whether rows for it wait, as an operator has asked for it.
    pub paused: bool,
}

/// A table as the engine has it in memory: the version that batches are applied to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InMemoryTable {
    /// Delta version; `None` before the first commit, and while the table is unusable.
    pub version: Option<u64>,
    /// Rows that readers see.
    pub rows: u64,
    /// Rows of the data files that deletion vectors hide from readers, until compaction takes them out.
    pub rows_hidden: u64,
    /// Data files.
    pub files: u64,
    /// Data files that have a deletion vector.
    pub files_with_deletion_vectors: u64,
    /// Bytes of the data files, as they are stored.
    pub bytes: u64,
    /// Why the table cannot be used, in words for the operator; its rows go to quarantine. `None`: it can be used.
    pub unusable: Option<String>,
    /// Why rounds of compaction leave the table out; rows go on entering it. `None`: they do not.
    pub not_compacted: Option<String>,
}

impl InMemoryTable {
    /// The part of the rows in the data files that deletion vectors hide, from 0 to 1.
    pub fn hidden_share(&self) -> f64 {
        let all = self.rows + self.rows_hidden;
        if all == 0 { 0.0 } else { self.rows_hidden as f64 / all as f64 }
    }
}

/// Where the row of an id is, and which change made it what it is. Times are microseconds since 1970; what a row does not say is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocatedRow {
    /// Its table.
    pub table: TableKey,
    /// Name of the table.
    pub table_name: String,
    /// Version of the table in which it was found.
    pub version: Option<u64>,
    /// Data file within the table.
    pub file: String,
    /// Row of the file, from 0.
    pub row: u32,
    /// Clock of HQ's database when the record was read.
    pub observed_us: i64,
    /// When HQ saved the record.
    pub version_us: Option<i64>,
    /// Topic of the message of HQ's change feed; empty where the lake itself asked for the record.
    pub topic: Option<String>,
    /// Its partition.
    pub partition: Option<i64>,
    /// Its offset.
    pub offset: Option<i64>,
    /// When HQ published it.
    pub published_us: Option<i64>,
    /// When the record had been read.
    pub fetched_us: Option<i64>,
    /// When the row was committed.
    pub committed_us: Option<i64>,
    /// Why a part of the record is missing; `None`: it is whole.
    pub incomplete: Option<String>,
}

/// Why a batch was not applied. Parts of it may have been; applying it again is safe.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The batch will never be accepted as it is. Bisect it and quarantine the bad row.
    #[error("rows of {space} cannot be stored: {reason}")]
    BadRows {
        /// The space.
        space: Space,
        /// What is wrong with which column or row.
        reason: String,
    },
    /// A table was altered or damaged beyond what the lake writes. Quarantine its rows and apply the rest: nothing of the batch was
    /// applied that would not be applied again without harm.
    #[error(
        "table {table} cannot be used: {reason}; repair or restore it, or delete its folder for a backfill to build it anew"
    )]
    UnusableTable {
        /// The table.
        table: TableKey,
        /// What is wrong with it.
        reason: String,
    },
    /// The space has as many types as it may have. Quarantine the rows of the types that are named and apply the rest. Nothing was applied.
    #[error("{space} has {types_max} types, which is all that tables.types_max allows; {} more are refused", .refused.len())]
    TooManyTypes {
        /// The space.
        space: Space,
        /// How many types it may have.
        types_max: usize,
        /// Types of the batch for which there is no place.
        refused: Vec<DocumentType>,
    },
    /// Perhaps a fault that some of the rows bring about: a panic, values that a library or the metastore refuse. A few tries are worth while;
    /// where it comes again and again, bisect the batch.
    #[error("rows of {space} cannot be stored for an unknown cause")]
    Unexplained {
        /// The space.
        space: Space,
        /// What failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is no such version any more. Nothing was done.
    #[error("{space}: {reason}")]
    NotRestorable {
        /// The space.
        space: Space,
        /// What is missing, and what to do.
        reason: String,
    },
    /// What would be destroyed is not what was planned. Nothing was done.
    #[error("{space}: {stale}; look at a new plan")]
    StalePlan {
        /// The space.
        space: Space,
        /// The plan and what would be done instead.
        stale: StalePlan,
    },
    /// Passing trouble with the object store or the metastore, or too many conflicts: wait and try again.
    #[error("{action} failed for {space}; it will be tried again")]
    Unavailable {
        /// The space.
        space: Space,
        /// What was tried.
        action: &'static str,
        /// What went wrong.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

/// The tables of the lake, as the writer changes them.
#[async_trait]
pub trait TableStore: Send + Sync {
    /// Applies one batch of a space. On `Ok` everything is durable and visible to readers. Doing it twice changes nothing, and
    /// a batch that brings nothing new makes no commit. Calls for one space must not overlap (they would wait for each other);
    /// calls for different spaces may.
    async fn apply(&self, batch: SpaceBatch) -> Result<Applied, StoreError>;

    /// Rewrites small files, files with many deleted rows and badly clustered ones, as far as the policy asks for it now. Batches go on
    /// being applied meanwhile; they wait only for the commits.
    async fn compact(&self, space: &Space) -> Result<Compacted, StoreError>;

    /// The same for one table alone, of a space that may not have been used yet. A table that is not registered has nothing to compact.
    async fn compact_table(&self, table: &TableKey) -> Result<Compacted, StoreError>;

    /// What [`TableStore::compact_table`] would do to a table.
    async fn plan_compaction(&self, table: &TableKey) -> Result<PlannedCompaction, StoreError>;

    /// A table as it is in memory; `None` when its space is not loaded or has no such table. Waits for a batch that is being applied to the
    /// space.
    async fn describe(&self, table: &TableKey) -> Option<InMemoryTable>;

    /// Those of the ids that have a row in the space. Waits for a batch that is being applied to it.
    async fn present(&self, space: &Space, ids: &[String]) -> Result<HashSet<String>, StoreError>;

    /// When the rows of these ids were observed, microseconds by the clock of HQ's database, in the order of the ids; `None`: there is no row.
    async fn observed(&self, space: &Space, ids: &[String]) -> Result<Vec<Option<i64>>, StoreError>;

    /// Where the row of an id is; `None`: the space has no row of it. Loads a space that is not in memory, and reads the one row.
    async fn locate(&self, space: &Space, id: &str) -> Result<Option<LocatedRow>, StoreError>;

    /// Brings a space in step with what other programs did to its tables, before its rows are compared with HQ's documents.
    async fn follow_tables(&self, space: &Space) -> Result<(), StoreError>;

    /// What the rows of a scope come to that readers see, in so many buckets. Beside batches, with memory for the buckets and a few thousand rows.
    async fn bucket_sums(&self, scope: &ComparedScope, bucket_count: u32) -> Result<BucketSums, StoreError>;

    /// Those rows of a scope that are wanted, as [`TableStore::bucket_sums`] reads them.
    async fn row_states(&self, scope: &ComparedScope, wanted: WantedRows<'_>) -> Result<Vec<RowState>, StoreError>;

    /// The spaces that were used since the start.
    fn spaces_in_use(&self) -> Vec<Space>;

    /// Compacts, then deletes what no reader within the retention needs any more: superseded data files, files of crashed writes, expired log
    /// files, and tombstones older than their retention. Safe while batches are applied.
    async fn maintain(&self, space: &Space) -> Result<Maintained, StoreError>;

    /// Deletes the files of one table that no version within the retention needs.
    async fn vacuum_table(&self, table: &TableKey, consent: &Consent) -> Result<Destroyed, StoreError>;

    /// Writes a checkpoint of the log of one table, so that readers find its files sooner. The answer is its version; `None`: the table has no
    /// commit.
    async fn checkpoint_table(&self, table: &TableKey) -> Result<Option<u64>, StoreError>;

    /// Takes a table, or all tables of a space, out of the lake: first out of the metastore, with a mark that it is not to be made anew, then its
    /// files, the log last. To be repeated when it was interrupted. Rows that come for it later only take older rows of their ids away.
    async fn drop_tables(
        &self,
        target: &OperationTarget,
        asked_by: &str,
        consent: &Consent,
    ) -> Result<Destroyed, StoreError>;

    /// Brings a table back to an earlier version by a new commit. Rows whose ids were deleted since then leave again; what was changed in HQ since
    /// then has to be read from HQ again.
    async fn restore_table(
        &self,
        table: &TableKey,
        to: RestorePoint,
        consent: &Consent,
    ) -> Result<Restored, StoreError>;

    /// Lets a dropped table, or a dropped space with its tables, be made anew by the next rows for it. Answers how many of them there were.
    async fn allow_tables(&self, target: &OperationTarget) -> Result<u64, StoreError>;

    /// Takes records out of all tables of a space, with every file of every version that holds them and what the logs and the metastore keep of
    /// them, and keeps them out: what comes of them later counts as applied. To be repeated when it was interrupted.
    async fn erase(&self, asked: &Erasure, consent: &Consent) -> Result<Erased, StoreError>;

    /// Lets erased records in again, each given by the hash of its id. Answers how many of them were kept out.
    async fn allow_records(&self, space: &Space, hashes: &[String], allowed_by: &str) -> Result<u64, StoreError>;

    /// Puts these rows in place of all that are in the table of tables ([`STATUS_TABLE`]).
    async fn tell_status(&self, tables: &[TableStatus]) -> Result<(), StoreError>;

    /// Deletes what no reader of the table of tables within the retention needs any more.
    async fn clean_up_status(&self) -> Result<Maintained, StoreError>;

    /// Saves what makes the next start quick. To be called when nothing else is.
    async fn close(&self);
}

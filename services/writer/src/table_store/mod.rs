//! Where rows become tables: a port, and the engine [`delta`] behind it.
//!
//! The pure decisions are in [`crate::order_guard`] (which state is newer), [`column_name`], [`schema_plan`] and [`conversion`] (what the
//! table looks like); [`lake_store`] knows folders and buckets; [`crate::key_index`] knows where each id lives.

use std::error::Error;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use lake_proto::queue::v1::Tombstone;
use lake_shared::identity::{DocumentType, Space, TableKey};

use crate::consent::{Consent, Destroyed, StalePlan};
use crate::metastore::steering::OperationTarget;

pub mod by_id_hash;
pub mod column_name;
pub mod conversion;
pub mod delta;
mod durable_files;
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

    /// A table as it is in memory; `None` when its space is not loaded or has no such table. Waits for a batch that is being applied to the
    /// space.
    async fn describe(&self, table: &TableKey) -> Option<InMemoryTable>;

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

    /// Lets a dropped table, or a dropped space with its tables, be made anew by the next rows for it. Answers how many of them there were.
    async fn allow_tables(&self, target: &OperationTarget) -> Result<u64, StoreError>;

    /// Saves what makes the next start quick. To be called when nothing else is.
    async fn close(&self);
}

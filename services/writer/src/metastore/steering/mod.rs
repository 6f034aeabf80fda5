//! What operators ask for, as the metastore keeps it: operations, pauses, and the record of who asked. Any process of the lake may ask; the
//! writer that holds the lease does it, so nothing has to be forwarded, and what was asked for outlives the writer that heard of it.

use async_trait::async_trait;
use lake_shared::identity::{DocumentType, Kind, Space, TableKey};

use super::erasures::record_ids::RecordIds;
use super::{MetastoreError, QuarantineFilter, TableRecord};
use crate::consent::Consent;
use crate::metastore::steering::table_policy::TablePolicy;

pub(super) mod contract;
mod dropped_sql;
mod policy_sql;
pub mod restore_point;
pub(super) mod rows;
mod sql;
pub mod table_policy;

pub(super) use self::dropped_sql::dropped_statements;
pub(super) use self::policy_sql::policy_statements;
pub(super) use self::sql::steering_adapter;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationKind {
    /// Compacts one table.
    CompactTable,
    /// Compacts and cleans up all tables of a space.
    CleanUpSpace,
    /// Deletes the files of one table that no version within the retention needs.
    VacuumTable,
    /// Writes a checkpoint of the log of one table.
    CheckpointTable,
    /// Takes a table, or all tables of a space, out of the lake and deletes their files.
    DropTables,
    /// Lets tables be made anew that were dropped.
    AllowTables,
    /// Brings a table back to an earlier version.
    RestoreTable,
    /// Fills a space with what HQ has.
    Backfill,
    /// Compares a space with HQ, and heals what differs.
    Reconcile,
    /// Takes records out of the lake wholly.
    EraseRecords,
    /// Lets erased records in again.
    AllowRecords,
    /// Has the records of quarantine entries read again.
    ReplayQuarantine,
    /// Removes entries of the quarantine.
    DiscardQuarantine,
    /// Makes the catalog what the lake has.
    SyncCatalog,
}

impl OperationKind {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::CompactTable,
        Self::CleanUpSpace,
        Self::VacuumTable,
        Self::CheckpointTable,
        Self::DropTables,
        Self::AllowTables,
        Self::RestoreTable,
        Self::Backfill,
        Self::Reconcile,
        Self::EraseRecords,
        Self::AllowRecords,
        Self::ReplayQuarantine,
        Self::DiscardQuarantine,
        Self::SyncCatalog,
    ];

    /// Whether its details are ids of records that are not kept when it has ended.
    pub const fn is_about_records(self) -> bool {
        matches!(self, Self::EraseRecords | Self::AllowRecords)
    }

    /// The code by which it is stored.
    pub const fn code(self) -> &'static str {
        match self {
            Self::CompactTable => "compact_table",
            Self::CleanUpSpace => "clean_up_space",
            Self::VacuumTable => "vacuum_table",
            Self::CheckpointTable => "checkpoint_table",
            Self::DropTables => "drop_tables",
            Self::AllowTables => "allow_tables",
            Self::RestoreTable => "restore_table",
            Self::Backfill => "backfill",
            Self::Reconcile => "reconcile",
            Self::EraseRecords => "erase_records",
            Self::AllowRecords => "allow_records",
            Self::ReplayQuarantine => "replay_quarantine",
            Self::DiscardQuarantine => "discard_quarantine",
            Self::SyncCatalog => "sync_catalog",
        }
    }
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationState {
    /// It waits for its turn.
    Pending,
    /// A writer works on it.
    Running,
    /// It has done what was asked for.
    Succeeded,
    /// It has ended with an error.
    Failed,
    /// It has ended early, as it was asked to.
    Cancelled,
    /// It rests until it is resumed.
    Paused,
}

impl OperationState {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Pending, Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled, Self::Paused];

    /// The code by which it is stored.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Paused => "paused",
        }
    }

    /// Whether it will not change any more.
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// What an operation is about: a space, one table of it, or the whole lake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationTarget {
    /// The space; with an empty domain, which no project has, the whole lake.
    pub space: Space,
    /// The type of the one table; `None`: all of the space.
    pub document_type: Option<DocumentType>,
}

impl OperationTarget {
    /// One table.
    pub fn table(key: &TableKey) -> Self {
        Self { space: key.space.clone(), document_type: Some(key.document_type.clone()) }
    }

    /// What the entries of the quarantine are about that a filter selects. Which those are only the filter says: where it names no project or no
    /// kind, the domain is empty here, and the kind is any.
    pub fn quarantine(filter: &QuarantineFilter) -> Self {
        let domain = filter.domain.as_deref().unwrap_or_default().into();
        Self::space(Space { domain, kind: filter.kind.unwrap_or(Kind::Case) })
    }

    /// All tables of a space.
    pub const fn space(space: Space) -> Self {
        Self { space, document_type: None }
    }

    /// All that there is.
    pub fn whole_lake() -> Self {
        Self::space(Space { domain: "".into(), kind: Kind::Case })
    }

    /// Whether it is all that there is.
    pub fn is_whole_lake(&self) -> bool {
        self.space.domain.as_str().is_empty()
    }
}

impl std::fmt::Display for OperationTarget {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.document_type {
            _ if self.is_whole_lake() => formatter.write_str("the lake"),
            Some(document_type) => write!(formatter, "{}/{document_type}", self.space),
            None => self.space.fmt(formatter),
        }
    }
}

/// An operation that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewOperation {
    /// Given by who asks: the same request twice is one operation.
    pub request_id: String,
    /// What it does.
    pub kind: OperationKind,
    /// With what.
    pub target: OperationTarget,
    /// Who asks.
    pub asked_by: String,
    /// What has to be so that something is destroyed.
    pub consent: Consent,
    /// What exactly is asked for, as JSON; empty where the target says it all, and of operations about records that have ended. Lists of operations do not show it.
    pub details: String,
}

impl NewOperation {
    /// Which entries of the quarantine it is about; `None` for other work.
    pub fn selection(&self) -> Option<QuarantineFilter> {
        let is_about_entries = matches!(self.kind, OperationKind::ReplayQuarantine | OperationKind::DiscardQuarantine);
        is_about_entries.then(|| QuarantineFilter::from_json(&self.details)).flatten()
    }

    /// Which records it erases or allows; `None` for other work, and when it has ended: their ids are kept no longer.
    pub fn records(&self) -> Option<RecordIds> {
        self.kind.is_about_records().then(|| RecordIds::of_details(&self.details)).flatten()
    }

    /// What it is about, for people.
    pub fn subject(&self) -> String {
        if let Some(records) = self.records() {
            // Who may read this need not know the ids, and they are not to stay in the audit.
            return format!("{}, {} records", self.target, records.len());
        }
        self.selection().map_or_else(|| self.target.to_string(), |selection| selection.to_string())
    }
}

/// An operation as the metastore has it. Times are microseconds since 1970, by the database's clock.
#[derive(Clone, Debug, PartialEq)]
pub struct OperationRecord {
    /// Identifies it; a random UUID.
    pub id: String,
    /// What was asked for.
    pub asked: NewOperation,
    /// How far it is.
    pub state: OperationState,
    /// When it came into this state.
    pub since_us: i64,
    /// Why it is in this state; empty where that says nothing new.
    pub reason: String,
    /// How often a writer began it.
    pub attempts: i64,
    /// Units of work that are done.
    pub done: i64,
    /// Units in all, where that is known.
    pub total: Option<i64>,
    /// When it was asked for.
    pub created_us: i64,
    /// When a writer began it first.
    pub started_us: Option<i64>,
    /// When a writer that works on it last said so.
    pub heartbeat_us: Option<i64>,
    /// When it ended.
    pub finished_us: Option<i64>,
    /// Units a second lately; `None` where that is not known.
    pub per_second: Option<f64>,
    /// Whether it was asked to end early.
    pub cancel_requested: bool,
    /// Whether it was asked to rest.
    pub paused: bool,
    /// Figures of what it did, as a JSON object of whole numbers.
    pub result: String,
    /// The plan that it has made or kept to; empty where it has none.
    pub plan: String,
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationEnd {
    /// The state that it ends in.
    pub state: OperationState,
    /// Why; empty where that says nothing new.
    pub reason: String,
    /// Figures of what it did, as a JSON object of whole numbers.
    pub result: String,
    /// The plan that it has made or kept to; empty where it has none.
    pub plan: String,
}

/// A table, or a whole space, that was dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DroppedRecord {
    /// What was dropped.
    pub target: OperationTarget,
    /// Name of the table; empty for a space.
    pub name: String,
    /// Folder of the table below the lake's root; empty for a space.
    pub path: String,
    /// When, microseconds, by the database's clock.
    pub since_us: i64,
    /// Who asked for it.
    pub asked_by: String,
    /// Whether the files are deleted.
    pub files_gone: bool,
}

/// Which operations are listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperationFilter {
    /// In these states; empty: in all.
    pub states: Vec<OperationState>,
    /// On these domains; `None`: on all.
    pub domains: Option<Vec<String>>,
}

/// Which tables are listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableFilter {
    /// Of these domains; `None`: of all.
    pub domains: Option<Vec<String>>,
    /// Of this kind.
    pub kind: Option<Kind>,
    /// With this text in the name, which is in small letters.
    pub name_contains: String,
}

/// A place in a list that goes from the newest entry to older ones: after the entry with this time and id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behind {
    /// Time of the last entry of the page before, microseconds.
    pub at_us: i64,
    /// Its id.
    pub id: String,
}

/// A pause of ingest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PauseRecord {
    /// What is paused; `None`: everything.
    pub space: Option<Space>,
    /// Since when, microseconds.
    pub since_us: i64,
    /// Who asked for it.
    pub asked_by: String,
    /// Why, in the words of who asked.
    pub reason: String,
    /// When a holder of the lease said that no commit of it runs any more; `None`: it has not said so yet.
    pub in_force_us: Option<i64>,
}

/// What an operator has said about one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRecord {
    /// Name of the table.
    pub table: String,
    /// What was said.
    pub policy: TablePolicy,
    /// Since when, microseconds, by the database's clock.
    pub since_us: i64,
    /// Who asked for it.
    pub asked_by: String,
}

/// Something that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRecord {
    /// Identifies it.
    pub id: String,
    /// When, microseconds, by the database's clock.
    pub at_us: i64,
    /// By whom.
    pub asked_by: String,
    /// By which call.
    pub call: String,
    /// About what.
    pub target: String,
    /// The request's id, where it has one.
    pub request_id: String,
}

/// The part of the metastore that operators write to and read. Every call is atomic and may be repeated.
///
/// # Errors
///
/// As for [`super::Metastore`].
#[async_trait]
pub trait Steering {
    /// Keeps an operation to be done. Where its request id is there already, the operation of that one is answered, whatever else is asked.
    async fn ask_operation(&self, new: &NewOperation) -> Result<OperationRecord, MetastoreError>;

    /// An operation; `None`: there is no such.
    async fn operation(&self, id: &str) -> Result<Option<OperationRecord>, MetastoreError>;

    /// The operation that a request has asked for; `None`: it has not been made.
    async fn requested_operation(&self, request_id: &str) -> Result<Option<OperationRecord>, MetastoreError>;

    /// Operations, newest first.
    async fn operations(
        &self,
        filter: &OperationFilter,
        behind: Option<&Behind>,
        limit: u32,
    ) -> Result<Vec<OperationRecord>, MetastoreError>;

    /// Number of operations that have not ended; on these domains, or on all.
    async fn open_operations(&self, domains: Option<&[String]>) -> Result<u64, MetastoreError>;

    /// Begins the oldest operation but for backfills and comparisons, which are begun apart, that waits, or that a writer began which does not hold the lease any more. Fenced. `None`: there is nothing to do.
    async fn begin_operation(&self) -> Result<Option<OperationRecord>, MetastoreError>;

    /// Says how far an operation is that this writer works on. Fenced. Answers whether it was asked to end early.
    async fn operation_goes_on(&self, id: &str, done: i64, total: Option<i64>) -> Result<bool, MetastoreError>;

    /// Ends an operation that this writer works on. Fenced.
    async fn end_operation(&self, id: &str, end: &OperationEnd) -> Result<(), MetastoreError>;

    /// Asks an operation to end early; one that has not begun ends at once, of one that has ended nothing changes. Answers the operation then;
    /// `None`: there is no such.
    async fn cancel_operation(&self, id: &str) -> Result<Option<OperationRecord>, MetastoreError>;

    /// Removes operations that ended, and audit records that were written, longer ago than this. Backfills that succeeded are kept: they say what
    /// need not be filled again. Fenced. Answers how many.
    async fn forget_old_operations(&self, older_than_us: i64) -> Result<u64, MetastoreError>;

    /// Takes a table, or all tables of a space, out of the metastore, and keeps that they were dropped. Fenced.
    async fn drop_tables(&self, target: &OperationTarget, asked_by: &str) -> Result<(), MetastoreError>;

    /// Keeps that the files of these dropped tables are deleted. Fenced.
    async fn dropped_files_gone(&self, target: &OperationTarget) -> Result<(), MetastoreError>;

    /// What was dropped: of a space, or of all.
    async fn dropped(&self, space: Option<&Space>) -> Result<Vec<DroppedRecord>, MetastoreError>;

    /// Forgets that a table, or a space with all its tables, was dropped, as far as the files are deleted. Fenced. Answers how many tables and
    /// spaces that were.
    async fn allow_tables(&self, target: &OperationTarget) -> Result<u64, MetastoreError>;

    /// Keeps a pause; who asked first and why stays where it is there already.
    async fn pause(&self, space: Option<&Space>, asked_by: &str, reason: &str) -> Result<(), MetastoreError>;

    /// Ends a pause; `None`: all of them.
    async fn resume(&self, space: Option<&Space>) -> Result<(), MetastoreError>;

    /// What is paused, everything first.
    async fn pauses(&self) -> Result<Vec<PauseRecord>, MetastoreError>;

    /// Says that a pause is in force. Fenced. Nothing happens where it has ended meanwhile.
    async fn pause_in_force(&self, space: Option<&Space>) -> Result<(), MetastoreError>;

    /// Keeps what is said about the table of this name, in place of what was said before; a policy that says nothing is forgotten.
    async fn set_policy(&self, table: &str, policy: &TablePolicy, asked_by: &str) -> Result<(), MetastoreError>;

    /// What was said about tables, by their names.
    async fn policies(&self) -> Result<Vec<PolicyRecord>, MetastoreError>;

    /// Writes down that something is asked for.
    async fn audit(&self, asked_by: &str, call: &str, target: &str, request_id: &str) -> Result<(), MetastoreError>;

    /// What was asked for, newest first.
    async fn audited(&self, behind: Option<&Behind>, limit: u32) -> Result<Vec<AuditRecord>, MetastoreError>;

    /// A page of the registered tables, by name, without their schemas: the first ones behind a name.
    async fn table_page(
        &self,
        filter: &TableFilter,
        behind: &str,
        limit: u32,
    ) -> Result<Vec<TableRecord>, MetastoreError>;

    /// A registered table by its name, with its schema.
    async fn table_named(&self, name: &str) -> Result<Option<TableRecord>, MetastoreError>;

    /// Number of registered tables; of these domains, or of all.
    async fn table_count(&self, domains: Option<&[String]>) -> Result<u64, MetastoreError>;

    /// Number of entries in quarantine, by code of the reason; of these domains, or of all.
    async fn quarantined_by_reason(&self, domains: Option<&[String]>) -> Result<Vec<(String, u64)>, MetastoreError>;
}

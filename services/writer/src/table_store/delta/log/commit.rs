//! One commit to one table, and certainty about its outcome.
//!
//! Commits are labelled as a merge that read the whole table, and are never rebased: a commit of another program since our snapshot makes
//! ours fail, as the plan was made without it. Every commit carries an id of its own, so that an unknown outcome (time-out, lost
//! answer) is looked up in the log. Entries are put into the log directly, as delta-rs would check them for features that it does
//! not know (the module `protocol` does that before anything is written) and encode paths anew (the module `entry`).

use deltalake::kernel::Action;
use deltalake::kernel::transaction::TransactionError;
use deltalake::logstore::{CommitOrBytes, LogStore};
use deltalake::protocol::DeltaOperation;
use deltalake::table::state::DeltaTableState;
use deltalake::{DeltaTable, DeltaTableError};
use lake_shared::error_chain::Chain;
use uuid::Uuid;

use crate::metric_names;
use crate::table_store::delta::clock::now_us;
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::new_files::NewFiles;
use crate::table_store::delta::log::base_version::{BaseVersion, OwnEntry};
use crate::table_store::delta::log::entry::{self, LogEntry, LoggedPaths};
use crate::table_store::delta::permanent_error;

/// How a commit ended.
pub(crate) enum Outcome {
    /// It is in the log. The handle may be kept only if it is given back.
    Committed { entry: OwnEntry, table: Option<Box<DeltaTable>> },
    /// It is not in the log and never will be, another program's is: plan anew.
    Conflict,
    /// It may be in the log, which cannot be read now: plan anew, and leave alone what it names.
    Unknown,
}

/// What a commit is called in the history of its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Label {
    /// Rows entered, were replaced or left.
    Upsert,
    /// The same rows in other files.
    Compaction,
    /// The rows of an earlier version.
    Restore,
    /// Nothing: the entry before it is to leave, and a log cannot do without its newest one.
    Erasure,
}

impl Label {
    fn operation(self) -> DeltaOperation {
        match self {
            Self::Upsert => DeltaOperation::Merge {
                predicate: None,
                merge_predicate: None,
                matched_predicates: Vec::new(),
                not_matched_predicates: Vec::new(),
                not_matched_by_source_predicates: Vec::new(),
            },
            Self::Compaction => DeltaOperation::Optimize { predicate: None, target_size: 0 },
            Self::Restore => DeltaOperation::Restore { version: None, datetime: None },
            Self::Erasure => DeltaOperation::Delete { predicate: None },
        }
    }
}

/// What is to be committed to one table.
pub(crate) struct Commit<'a> {
    /// Open at the version that the actions were made for; nothing loaded where the commit creates the table.
    pub(crate) table: DeltaTable,
    /// What the actions would be made upon.
    pub(crate) base: BaseVersion,
    pub(crate) label: Label,
    pub(crate) actions: Vec<Action>,
    /// Paths that are written as the log has them.
    pub(crate) logged: LoggedPaths<'a>,
    /// What the actions add.
    pub(crate) new_files: NewFiles,
}

/// Puts a commit into the log, or finds out what became of it.
pub(crate) async fn commit(commit: Commit<'_>) -> Result<Outcome, EngineError> {
    let Commit { mut table, base, label, actions, logged, .. } = commit;
    if base == BaseVersion::Stale {
        return Ok(Outcome::Conflict);
    }
    let id = Uuid::new_v4();
    let before = table.version();
    let log_store = table.log_store();
    let in_commit_ms = in_commit_ms(&table).await?;
    let entry = LogEntry { id, operation: label.operation(), actions, logged, in_commit_ms }.into_bytes()?;
    let version = before.map_or(0, |version| version + 1);
    let own = OwnEntry { version, id, bytes: entry.len() as u64 };
    let entry = CommitOrBytes::LogBytes(entry);
    let Err(error) = log_store.write_commit_entry(version, entry.clone(), id).await else {
        let table = match advance(&mut table, version).await {
            // A handle cannot go on from an entry that was cleaned up.
            Ok(()) if base == BaseVersion::CurrentByCheckpoint => None,
            Ok(()) => Some(Box::new(table)),
            Err(error) => {
                tracing::info!(version, %error, "committed, but the log could not be read on; it is read anew");
                None
            }
        };
        return Ok(Outcome::Committed { entry: own, table });
    };
    if !matches!(error, TransactionError::VersionAlreadyExists(_)) {
        // A store with temporary entries may leave one behind; no reader looks at it.
        let _ = log_store.abort_commit_entry(version, entry, id).await;
    }
    // A version that exists may be our own: the store may have tried twice.
    match look_up(DeltaTable::new(log_store), before, own, error.into()).await {
        // The table is read anew, which finds out what is wrong with it.
        Err(error) if permanent_error::is_permanent(&error) => {
            tracing::warn!(error = %Chain(&error), "outcome of a commit is not known; reading the table anew");
            Ok(Outcome::Unknown)
        }
        outcome => outcome,
    }
}

/// The time that the next entry has to say, in tables whose entries do: never before that of the entry before it.
async fn in_commit_ms(table: &DeltaTable) -> Result<Option<i64>, EngineError> {
    let Ok(snapshot) = table.snapshot() else { return Ok(None) };
    if snapshot.table_config().enable_in_commit_timestamps != Some(true) {
        return Ok(None);
    }
    let before = table.log_store().read_commit_entry(snapshot.version()).await.map_err(EngineError::delta)?;
    // An entry that was cleaned up is days old.
    let before = before.and_then(|entry| entry::in_commit_ms(&entry));
    Ok(Some(before.map_or(i64::MIN, |before| before + 1).max(now_us() / 1_000)))
}

/// Brings a handle to the version that was just committed with it.
async fn advance(table: &mut DeltaTable, version: u64) -> Result<(), DeltaTableError> {
    let log_store = table.log_store();
    match &mut table.state {
        Some(state) => state.update(log_store.as_ref(), Some(version)).await,
        none => {
            *none = Some(DeltaTableState::try_new(log_store.as_ref(), Some(version)).await?);
            Ok(())
        }
    }
}

/// Finds out whether a commit whose answer was an error is in the log.
async fn look_up(
    mut table: DeltaTable,
    before: Option<u64>,
    own: OwnEntry,
    error: DeltaTableError,
) -> Result<Outcome, EngineError> {
    if !load(&mut table).await? {
        return Err(EngineError::delta(error));
    }
    let latest = table.version().unwrap_or_default();
    let first = before.map_or(0, |version| version + 1);
    if latest < first {
        return Err(EngineError::delta(error));
    }
    for version in first..=latest {
        // An entry that was cleaned up already says nothing any more.
        let Some(entry) = table.log_store().read_commit_entry(version).await.map_err(EngineError::delta)? else {
            return Ok(Outcome::Unknown);
        };
        if entry::carries(&entry, own.id) {
            tracing::info!(version, %error, "commit succeeded although its answer was an error");
            metrics::counter!(metric_names::COMMIT_CONFLICTS_TOTAL, "outcome" => "committed").increment(1);
            return Ok(Outcome::Committed { entry: OwnEntry { version, ..own }, table: None });
        }
    }
    tracing::warn!(version = latest, %error, "commit met another one; planning anew");
    metrics::counter!(metric_names::COMMIT_CONFLICTS_TOTAL, "outcome" => "conflict").increment(1);
    Ok(Outcome::Conflict)
}

/// Loads the latest version. Whether there is a table.
pub(crate) async fn load(table: &mut DeltaTable) -> Result<bool, EngineError> {
    // A folder that is not there is an error to delta-rs, not an absent table.
    if table.version().is_none() && !table.verify_deltatable_existence().await.map_err(EngineError::delta)? {
        return Ok(false);
    }
    let was_there = table.version().is_some();
    match table.load().await {
        Ok(()) => Ok(true),
        Err(DeltaTableError::NotATable(_)) if was_there => Ok(false),
        Err(error) => Err(EngineError::delta(error)),
    }
}

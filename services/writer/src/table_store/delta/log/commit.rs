//! One commit to one table, and certainty about its outcome.
//!
//! Commits are labelled as a merge that read the whole table, and are never rebased: a commit of anybody else since our snapshot
//! makes ours fail, as the plan was made without it. Every commit carries an id of its own, so that an unknown outcome (time-out, lost
//! answer) is looked up in the log. Entries are put into the log directly, as delta-rs would check them for features that it does
//! not know ([`crate::table_store::delta::log::protocol`] does that before anything is written) and encode paths anew ([`crate::table_store::delta::log::entry`]).

use std::collections::HashMap;

use deltalake::kernel::transaction::TransactionError;
use deltalake::kernel::{Action, Add, LogicalFileView, Metadata, Protocol, Remove};
use deltalake::logstore::{CommitOrBytes, LogStore};
use deltalake::protocol::DeltaOperation;
use deltalake::table::state::DeltaTableState;
use deltalake::{DeltaTable, DeltaTableError};
use lake_shared::error_chain::Chain;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::table_store::delta::EngineError;
use crate::table_store::delta::files::data_file::DataFile;
use crate::table_store::delta::files::deletion_vectors::DeletionVector;
use crate::table_store::delta::log::base_version::Footing;
use crate::table_store::delta::log::entry::{self, LogEntry};
use crate::table_store::delta::log::protocol;
use crate::table_store::delta::options::DeltaOptions;
use crate::table_store::delta::permanent_error;
use crate::table_store::delta::space::state::Slot;
use crate::table_store::delta::upsert::write_change::Written;
use crate::table_store::schema_plan::TableSchema;

/// Key of the table property that says how long removed files are remembered.
const RETENTION_KEY: &str = "delta.deletedFileRetentionDuration";
/// Key of the table property that says from which retention the lake made the two others.
const OWN_RETENTION_KEY: &str = "lake.retentionHours";
/// Hours for which the log speaks of a removed file beyond the retention: the clean-up is to find it there, and comes every few hours.
const REMOVED_HOURS_MARGIN: u64 = 24;
/// Key of the table property that says how long the log is kept.
const LOG_RETENTION_KEY: &str = "delta.logRetentionDuration";
/// Least hours of that.
const LOG_HOURS_MIN: u64 = 7 * 24;
/// Key of the table property that allows deletion vectors to be written.
const DELETION_VECTORS_KEY: &str = "delta.enableDeletionVectors";

/// How a commit ended.
pub(crate) enum Outcome {
    /// It is in the log, with this version. The handle may be kept only if it is given back.
    Committed { version: u64, table: Option<Box<DeltaTable>> },
    /// It is not in the log and never will be, somebody else's is: plan anew.
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
        }
    }
}

/// Commits actions to an open table, or creates the table with them when it has no version yet. `slot`: what the actions are about; `footing`:
/// what they would be made upon.
pub(crate) async fn commit(
    mut table: DeltaTable,
    actions: Vec<Action>,
    label: Label,
    footing: Footing,
    slot: &Slot,
) -> Result<Outcome, EngineError> {
    if footing == Footing::Gone {
        return Ok(Outcome::Conflict);
    }
    let id = Uuid::new_v4();
    let before = table.version();
    let log_store = table.log_store();
    let logged = slot.files.values().filter_map(|file| Some((file.path.as_str(), file.logged.as_deref()?))).collect();
    let in_commit_ms = in_commit_ms(&table).await?;
    let entry = LogEntry { id, operation: label.operation(), actions, logged, in_commit_ms }.into_bytes()?;
    let entry = CommitOrBytes::LogBytes(entry);
    let version = before.map_or(0, |version| version + 1);
    let Err(error) = log_store.write_commit_entry(version, entry.clone(), id).await else {
        let table = match advance(&mut table, version).await {
            // A handle cannot go on from an entry that was cleaned up.
            Ok(()) if footing == Footing::Checkpoint => None,
            Ok(()) => Some(Box::new(table)),
            Err(error) => {
                tracing::info!(version, %error, "committed, but the log could not be read on; it is read anew");
                None
            }
        };
        return Ok(Outcome::Committed { version, table });
    };
    if !matches!(error, TransactionError::VersionAlreadyExists(_)) {
        // What is left behind by a store with temporary entries harms nobody.
        let _ = log_store.abort_commit_entry(version, entry, id).await;
    }
    // A version that exists may be our own: the store may have tried twice.
    match look_up(DeltaTable::new(log_store), before, id, error.into()).await {
        // Whoever reads the table anew finds out what is wrong with it.
        Err(error) if permanent_error::is_lasting(&error) => {
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
    Ok(Some(before.map_or(i64::MIN, |before| before + 1).max(crate::table_store::delta::now_us() / 1_000)))
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
    id: Uuid,
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
        if entry::carries(&entry, id) {
            tracing::info!(version, %error, "commit succeeded although its answer was an error");
            metrics::counter!(crate::metric_names::COMMIT_CONFLICTS_TOTAL, "outcome" => "committed").increment(1);
            return Ok(Outcome::Committed { version, table: None });
        }
    }
    tracing::warn!(version = latest, %error, "commit met another one; planning anew");
    metrics::counter!(crate::metric_names::COMMIT_CONFLICTS_TOTAL, "outcome" => "conflict").increment(1);
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

/// The schema in the metadata of a table.
pub(crate) fn schema_of(metadata: &Metadata) -> Result<TableSchema, EngineError> {
    let metadata = serde_json::to_value(metadata).map_err(EngineError::json)?;
    let schema = metadata["schemaString"].as_str().unwrap_or_default();
    let schema: Value = serde_json::from_str(schema).map_err(EngineError::json)?;
    TableSchema::of_delta(&schema).map_err(EngineError::corrupt)
}

/// The schema as text. What others noted of the columns that stay is kept.
fn schema_text(schema: &TableSchema, before: &Value) -> String {
    let before: Value = serde_json::from_str(before.as_str().unwrap_or_default()).unwrap_or_default();
    let noted: HashMap<&str, &serde_json::Map<String, Value>> = before["fields"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|field| Some((field["name"].as_str()?, field["metadata"].as_object()?)))
        .collect();
    let mut schema = schema.to_delta();
    for field in schema["fields"].as_array_mut().into_iter().flatten() {
        let Some(noted) = field["name"].as_str().and_then(|name| noted.get(name)) else { continue };
        let Some(metadata) = field["metadata"].as_object_mut() else { continue };
        for (key, value) in *noted {
            metadata.entry(key).or_insert_with(|| value.clone());
        }
    }
    schema.to_string()
}

/// The properties that follow from the retention. Checkpoints keep removed files for so long, and those are what the clean-up goes by; a
/// version whose files are there is of use only with its log.
fn retention(hours: u64) -> [(&'static str, String); 2] {
    let removed = hours.saturating_add(REMOVED_HOURS_MARGIN);
    [(RETENTION_KEY, removed), (LOG_RETENTION_KEY, removed.max(LOG_HOURS_MIN))]
        .map(|(key, hours)| (key, format!("interval {hours} hours")))
}

/// What the protocol of a table is to allow; `None` leaves it as it is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Features {
    /// Whether deletion vectors may be written.
    pub(crate) deletion_vectors: Option<bool>,
    /// How long superseded files stay; changed in tables that the lake made with another time.
    pub(crate) retention_hours: Option<u64>,
}

/// The actions that give a table another schema or other features, none where it has them already.
pub(crate) fn changes(
    snapshot: &DeltaTableState,
    schema: Option<&TableSchema>,
    features: Features,
) -> Result<Vec<Action>, EngineError> {
    let mut actions = Vec::new();
    let mut metadata = serde_json::to_value(snapshot.metadata()).map_err(EngineError::json)?;
    let before = metadata.clone();
    if let Some(schema) = schema {
        metadata["schemaString"] = Value::String(schema_text(schema, &metadata["schemaString"]));
    }
    let enabled = metadata["configuration"][DELETION_VECTORS_KEY].as_str() == Some("true");
    if let Some(wanted) = features.deletion_vectors.filter(|wanted| *wanted != enabled) {
        metadata["configuration"][DELETION_VECTORS_KEY] = Value::String(wanted.to_string());
        if wanted {
            actions.extend(protocol::with_deletion_vectors(snapshot.protocol())?);
        }
    }
    if let Some(hours) = features.retention_hours {
        let configuration = metadata["configuration"].clone();
        for (key, wanted) in retention(hours).into_iter().filter(|(key, _)| is_own(&configuration, key)) {
            metadata["configuration"][key] = Value::String(wanted);
            metadata["configuration"][OWN_RETENTION_KEY] = Value::String(hours.to_string());
        }
    }
    if metadata != before {
        let metadata: Metadata = serde_json::from_value(metadata).map_err(EngineError::json)?;
        actions.push(Action::Metadata(metadata));
    }
    Ok(actions)
}

/// Whether the lake has set a property of the retention. What somebody else has set stays.
fn is_own(configuration: &Value, key: &str) -> bool {
    let Some(interval) = configuration[key].as_str() else { return false };
    match configuration[OWN_RETENTION_KEY].as_str().and_then(|hours| hours.parse().ok()) {
        Some(hours) => retention(hours).contains(&(key, interval.to_owned())),
        // A table of a lake that did not say so yet.
        None => interval.starts_with("interval ") && interval.ends_with(" hours"),
    }
}

/// Whether somebody else has said how long the removed files of a table stay.
pub(crate) fn has_foreign_retention(metadata: &Metadata) -> bool {
    let configuration = serde_json::to_value(metadata.configuration()).unwrap_or_default();
    configuration[RETENTION_KEY].is_string() && !is_own(&configuration, RETENTION_KEY)
}

/// The file actions of a written change. A `Remove` names the deletion vector that its file had: other readers tell two versions of one
/// file apart by it.
pub(crate) fn file_actions(
    slot: &Slot,
    table: &DeltaTable,
    written: &Written,
    now_ms: i64,
) -> Result<Vec<Action>, EngineError> {
    let removed = written.removed.iter().chain(written.marked.iter().map(|(number, _)| number));
    let removed = removed.filter_map(|number| slot.files.get(number));
    let mut actions: Vec<Action> =
        removed.map(|file| Action::Remove(removal(file, &slot.partition_columns, true, now_ms))).collect();
    let marked: HashMap<&str, (&DataFile, &DeletionVector)> = written
        .marked
        .iter()
        .filter_map(|(number, vector)| slot.files.get(number).map(|file| (file.path.as_str(), (file, vector))))
        .collect();
    if !marked.is_empty() {
        let snapshot = table.snapshot().map_err(EngineError::delta)?;
        let log = snapshot.log_data();
        let adds = log.iter().filter_map(|view| {
            let (file, vector) = marked.get(view.path().as_ref())?;
            Some(Action::Add(with_vector(&view, file, vector)))
        });
        let adds: Vec<Action> = adds.collect();
        if adds.len() != marked.len() {
            return Err(EngineError::corrupt("a file of the key index is not in the log"));
        }
        actions.extend(adds);
    }
    actions.extend(written.added.iter().map(|file| Action::Add(file.add.clone())));
    Ok(actions)
}

/// A file leaves its table, or its version with this deletion vector does.
pub(crate) fn removal(file: &DataFile, partition_columns: &[String], data_change: bool, now_ms: i64) -> Remove {
    Remove {
        path: file.path.clone(),
        data_change,
        deletion_timestamp: Some(now_ms),
        extended_file_metadata: Some(true),
        partition_values: Some(file.partition.values(partition_columns)),
        size: Some(file.size),
        deletion_vector: file.deleted.as_ref().map(|deleted| deleted.descriptor.clone()),
        ..Remove::default()
    }
}

/// The action of a file with another deletion vector. Its statistics are bounds from now on, and they say how many rows it has: without
/// that no file may have a vector.
fn with_vector(view: &LogicalFileView, file: &DataFile, vector: &DeletionVector) -> Add {
    #[allow(deprecated, reason = "the only way to the action with its statistics")]
    let add = view.add_action();
    let stats = Some(loosened(&counted(add.stats.as_deref().unwrap_or("{}"), file.rows)));
    Add { deletion_vector: Some(vector.descriptor.clone()), data_change: true, stats, ..add }
}

/// Statistics with the number of rows.
fn counted(stats: &str, rows: i64) -> String {
    let Ok(Value::Object(mut stats)) = serde_json::from_str(stats) else {
        return json!({ "numRecords": rows }).to_string();
    };
    if !stats.get("numRecords").is_some_and(Value::is_number) {
        stats.insert("numRecords".to_owned(), json!(rows));
    }
    Value::Object(stats).to_string()
}

/// Statistics that say of themselves that they are bounds.
pub(crate) fn loosened(stats: &str) -> String {
    match serde_json::from_str::<Value>(stats) {
        Ok(Value::Object(mut stats)) => {
            stats.insert("tightBounds".to_owned(), Value::Bool(false));
            Value::Object(stats).to_string()
        }
        _ => stats.to_owned(),
    }
}

/// The actions that make a new table. Protocol (1, 2) is what every reader opens.
pub(crate) fn creation(
    name: &str,
    schema: &TableSchema,
    partition_columns: &[String],
    options: &DeltaOptions,
    now_ms: i64,
) -> Result<Vec<Action>, EngineError> {
    let statistics: Vec<String> =
        schema.filtered().into_iter().filter(|name| !partition_columns.contains(name)).collect();
    let protocol: Protocol =
        serde_json::from_value(json!({ "minReaderVersion": 1, "minWriterVersion": 2 })).map_err(EngineError::json)?;
    let mut metadata = json!({
        "id": Uuid::new_v4().to_string(),
        "name": name,
        "description": null,
        "format": { "provider": "parquet", "options": {} },
        "schemaString": schema.to_delta().to_string(),
        "partitionColumns": partition_columns,
        "configuration": {
            "delta.checkpointInterval": options.checkpoint_every_commits.to_string(),
            "delta.dataSkippingStatsColumns": statistics.join(","),
            "delta.enableExpiredLogCleanup": "true",
        },
        "createdTime": now_ms,
    });
    for (key, value) in retention(options.retention_hours) {
        metadata["configuration"][key] = Value::String(value);
    }
    metadata["configuration"][OWN_RETENTION_KEY] = Value::String(options.retention_hours.to_string());
    let metadata: Metadata = serde_json::from_value(metadata).map_err(EngineError::json)?;
    Ok(vec![Action::Protocol(protocol), Action::Metadata(metadata)])
}

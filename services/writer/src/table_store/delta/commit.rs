//! One commit to one table, and certainty about its outcome.
//!
//! Commits are labelled as a merge that read the whole table, and are never rebased (`max_retries` 0): a commit of anybody else
//! since our snapshot makes ours fail, as the plan was made without it. Every commit carries an id of its own, so that an unknown
//! outcome (time-out, lost answer) is looked up in the log.

use std::collections::HashMap;

use deltalake::kernel::transaction::{CommitBuilder, CommitProperties, TableReference};
use deltalake::kernel::{Action, Add, LogicalFileView, Metadata, Protocol, Remove};
use deltalake::protocol::DeltaOperation;
use deltalake::table::state::DeltaTableState;
use deltalake::{DeltaTable, DeltaTableError};
use serde_json::{Value, json};
use uuid::Uuid;

use super::EngineError;
use super::change::Written;
use super::deletion_vectors::DeletionVector;
use super::files::DataFile;
use super::options::DeltaOptions;
use super::space::Slot;
use crate::table_store::schema_plan::TableSchema;

/// Key of the table property that says how long removed files are remembered.
const RETENTION_KEY: &str = "delta.deletedFileRetentionDuration";
/// Hours for which the log speaks of a removed file beyond the retention: the clean-up is to find it there, and comes every few hours.
const REMOVED_HOURS_MARGIN: u64 = 24;
/// Key of the table property that says how long the log is kept.
const LOG_RETENTION_KEY: &str = "delta.logRetentionDuration";
/// Least hours of that.
const LOG_HOURS_MIN: u64 = 7 * 24;
/// Key of the table property that allows deletion vectors to be written.
const DELETION_VECTORS_KEY: &str = "delta.enableDeletionVectors";
/// Name of the feature in the protocol.
const DELETION_VECTORS_FEATURE: &str = "deletionVectors";

/// Key in the commit information that holds the id of a commit.
const COMMIT_KEY: &str = "lakeCommit";

/// How a commit ended.
pub(super) enum Outcome {
    /// It is in the log, with this version. The handle may be kept only if it is given back.
    Committed { version: u64, table: Option<Box<DeltaTable>> },
    /// It is not in the log, somebody else's is: plan anew.
    Conflict,
}

/// What a commit is called in the history of its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Label {
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

/// Commits actions to an open table, or creates the table with them when it has no version yet.
pub(super) async fn commit(mut table: DeltaTable, actions: Vec<Action>, label: Label) -> Result<Outcome, EngineError> {
    let id = Uuid::new_v4();
    let before = table.version();
    let log_store = table.log_store();
    let properties = CommitProperties::default()
        .with_metadata([(COMMIT_KEY.to_owned(), Value::String(id.to_string()))])
        .with_max_retries(0)
        .with_create_checkpoint(false)
        .with_cleanup_expired_logs(Some(false));
    let snapshot = table.state.as_ref().map(|state| state as &dyn TableReference);
    let committed = CommitBuilder::from(properties)
        .with_actions(actions)
        .with_operation_id(id)
        .build(snapshot, log_store.clone(), label.operation())
        .await;
    match committed {
        Ok(finalized) => {
            let version = finalized.version();
            table.state = Some(finalized.snapshot());
            Ok(Outcome::Committed { version, table: Some(Box::new(table)) })
        }
        Err(error) => look_up(DeltaTable::new(log_store), before, id, error).await,
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
        let entry = table.log_store().read_commit_entry(version).await.map_err(EngineError::delta)?;
        if entry.is_some_and(|bytes| carries(&bytes, id)) {
            tracing::info!(version, %error, "commit succeeded although its answer was an error");
            metrics::counter!(crate::telemetry::COMMIT_CONFLICTS_TOTAL, "outcome" => "committed").increment(1);
            return Ok(Outcome::Committed { version, table: None });
        }
    }
    tracing::warn!(version = latest, %error, "commit met another one; planning anew");
    metrics::counter!(crate::telemetry::COMMIT_CONFLICTS_TOTAL, "outcome" => "conflict").increment(1);
    Ok(Outcome::Conflict)
}

fn carries(entry: &[u8], id: Uuid) -> bool {
    let lines = entry.split(|byte| *byte == b'\n');
    let information = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    let mut information = information.filter_map(|action| action.get("commitInfo").cloned());
    information.any(|commit| commit[COMMIT_KEY].as_str() == Some(id.to_string().as_str()))
}

/// Loads the latest version. Whether there is a table.
pub(super) async fn load(table: &mut DeltaTable) -> Result<bool, EngineError> {
    // A folder that is not there is an error to delta-rs, not an absent table.
    if table.version().is_none() && !table.verify_deltatable_existence().await.map_err(EngineError::delta)? {
        return Ok(false);
    }
    match table.load().await {
        Ok(()) => Ok(true),
        Err(DeltaTableError::NotATable(_)) => Ok(false),
        Err(error) => Err(EngineError::delta(error)),
    }
}

/// The schema in the metadata of a table.
pub(super) fn schema_of(metadata: &Metadata) -> Result<TableSchema, EngineError> {
    let metadata = serde_json::to_value(metadata).map_err(EngineError::json)?;
    let schema = metadata["schemaString"].as_str().unwrap_or_default();
    let schema: Value = serde_json::from_str(schema).map_err(EngineError::json)?;
    TableSchema::of_delta(&schema).map_err(EngineError::corrupt)
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
pub(super) struct Features {
    /// Whether deletion vectors may be written.
    pub(super) deletion_vectors: Option<bool>,
    /// How long superseded files stay; changed in tables that the lake made with another time.
    pub(super) retention_hours: Option<u64>,
}

/// The actions that give a table another schema or other features, none where it has them already.
pub(super) fn changes(
    snapshot: &DeltaTableState,
    schema: Option<&TableSchema>,
    features: Features,
) -> Result<Vec<Action>, EngineError> {
    let mut actions = Vec::new();
    let mut metadata = serde_json::to_value(snapshot.metadata()).map_err(EngineError::json)?;
    let before = metadata.clone();
    if let Some(schema) = schema {
        metadata["schemaString"] = Value::String(schema.to_delta().to_string());
    }
    let enabled = metadata["configuration"][DELETION_VECTORS_KEY].as_str() == Some("true");
    if let Some(wanted) = features.deletion_vectors.filter(|wanted| *wanted != enabled) {
        metadata["configuration"][DELETION_VECTORS_KEY] = Value::String(wanted.to_string());
        if wanted {
            actions.extend(with_deletion_vectors(snapshot.protocol())?);
        }
    }
    for (key, wanted) in features.retention_hours.into_iter().flat_map(retention) {
        if metadata["configuration"][key].as_str().is_some_and(is_in_hours) {
            metadata["configuration"][key] = Value::String(wanted);
        }
    }
    if metadata != before {
        let metadata: Metadata = serde_json::from_value(metadata).map_err(EngineError::json)?;
        actions.push(Action::Metadata(metadata));
    }
    Ok(actions)
}

/// Whether an interval has the form in which the lake writes it; what somebody else has set stays.
fn is_in_hours(interval: &str) -> bool {
    let number = interval.strip_prefix("interval ").and_then(|rest| rest.strip_suffix(" hours"));
    number.is_some_and(|number| number.parse::<u64>().is_ok())
}

/// The protocol with deletion vectors, unless it has them already. Features that the table has stay.
fn with_deletion_vectors(protocol: &Protocol) -> Result<Option<Action>, EngineError> {
    let mut protocol = serde_json::to_value(protocol).map_err(EngineError::json)?;
    let before = protocol.clone();
    protocol["minReaderVersion"] = json!(3);
    protocol["minWriterVersion"] = json!(7);
    for features in ["readerFeatures", "writerFeatures"] {
        let mut held = protocol[features].as_array().cloned().unwrap_or_default();
        if !held.iter().any(|feature| feature == DELETION_VECTORS_FEATURE) {
            held.push(json!(DELETION_VECTORS_FEATURE));
        }
        protocol[features] = Value::Array(held);
    }
    if protocol == before {
        return Ok(None);
    }
    let protocol: Protocol = serde_json::from_value(protocol).map_err(EngineError::json)?;
    Ok(Some(Action::Protocol(protocol)))
}

/// The file actions of a written change. A `Remove` names the deletion vector that its file had: other readers tell two versions of one
/// file apart by it.
pub(super) fn file_actions(
    slot: &Slot,
    table: &DeltaTable,
    written: &Written,
    now_ms: i64,
) -> Result<Vec<Action>, EngineError> {
    let removed = written.removed.iter().chain(written.marked.iter().map(|(number, _)| number));
    let removed = removed.filter_map(|number| slot.files.get(number));
    let mut actions: Vec<Action> =
        removed.map(|file| Action::Remove(removal(file, &slot.partition_columns, true, now_ms))).collect();
    let marked: HashMap<&str, &DeletionVector> = written
        .marked
        .iter()
        .filter_map(|(number, vector)| Some((slot.files.get(number)?.path.as_str(), vector)))
        .collect();
    if !marked.is_empty() {
        let snapshot = table.snapshot().map_err(EngineError::delta)?;
        let log = snapshot.log_data();
        let adds = log.iter().filter_map(|view| {
            let vector = marked.get(view.path().as_ref())?;
            Some(Action::Add(with_vector(&view, vector)))
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
pub(super) fn removal(file: &DataFile, partition_columns: &[String], data_change: bool, now_ms: i64) -> Remove {
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

/// The action of a file with another deletion vector. Its statistics are bounds from now on.
fn with_vector(view: &LogicalFileView, vector: &DeletionVector) -> Add {
    #[allow(deprecated, reason = "the only way to the action with its statistics")]
    let add = view.add_action();
    let stats = add.stats.as_deref().map(loosened);
    Add { deletion_vector: Some(vector.descriptor.clone()), data_change: true, stats, ..add }
}

/// Statistics that say of themselves that they are bounds.
pub(super) fn loosened(stats: &str) -> String {
    match serde_json::from_str::<Value>(stats) {
        Ok(Value::Object(mut stats)) => {
            stats.insert("tightBounds".to_owned(), Value::Bool(false));
            Value::Object(stats).to_string()
        }
        _ => stats.to_owned(),
    }
}

/// The actions that make a new table. Protocol (1, 2) is what every reader opens.
pub(super) fn creation(
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
    let metadata: Metadata = serde_json::from_value(metadata).map_err(EngineError::json)?;
    Ok(vec![Action::Protocol(protocol), Action::Metadata(metadata)])
}

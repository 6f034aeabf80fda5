//! One commit to one table, and certainty about its outcome.
//!
//! Commits are labelled as a merge that read the whole table, and are never rebased (`max_retries` 0): a commit of anybody else
//! since our snapshot makes ours fail, as the plan was made without it. Every commit carries an id of its own, so that an unknown
//! outcome (time-out, lost answer) is looked up in the log.

use deltalake::checkpoints;
use deltalake::kernel::transaction::{CommitBuilder, CommitProperties, TableReference};
use deltalake::kernel::{Action, Metadata, Protocol};
use deltalake::protocol::DeltaOperation;
use deltalake::{DeltaTable, DeltaTableError};
use serde_json::{Value, json};
use uuid::Uuid;

use super::EngineError;
use crate::table_store::schema_plan::TableSchema;

/// Key in the commit information that holds the id of a commit.
const COMMIT_KEY: &str = "lakeCommit";

/// Commits between checkpoints. The handle is opened anew after each, as a checkpoint does not fold what a handle has gathered.
const CHECKPOINT_INTERVAL: u64 = 64;

/// How a commit ended.
pub(super) enum Outcome {
    /// It is in the log, with this version. The handle may be kept only if it is given back.
    Committed { version: u64, table: Option<Box<DeltaTable>> },
    /// It is not in the log, somebody else's is: plan anew.
    Conflict,
}

/// Commits actions to an open table, or creates the table with them when it has no version yet.
pub(super) async fn commit(mut table: DeltaTable, actions: Vec<Action>) -> Result<Outcome, EngineError> {
    let id = Uuid::new_v4();
    let before = table.version();
    let log_store = table.log_store();
    let properties = CommitProperties::default()
        .with_metadata([(COMMIT_KEY.to_owned(), Value::String(id.to_string()))])
        .with_max_retries(0)
        .with_create_checkpoint(false)
        .with_cleanup_expired_logs(Some(false));
    let operation = DeltaOperation::Merge {
        predicate: None,
        merge_predicate: None,
        matched_predicates: Vec::new(),
        not_matched_predicates: Vec::new(),
        not_matched_by_source_predicates: Vec::new(),
    };
    let snapshot = table.state.as_ref().map(|state| state as &dyn TableReference);
    let committed = CommitBuilder::from(properties)
        .with_actions(actions)
        .with_operation_id(id)
        .build(snapshot, log_store.clone(), operation)
        .await;
    match committed {
        Ok(finalized) => {
            let version = finalized.version();
            table.state = Some(finalized.snapshot());
            Ok(Outcome::Committed { version, table: after_commit(table, version).await })
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

/// The handle, unless it is time for a checkpoint. A checkpoint that fails is made by a later commit.
async fn after_commit(table: DeltaTable, version: u64) -> Option<Box<DeltaTable>> {
    if !(version + 1).is_multiple_of(CHECKPOINT_INTERVAL) {
        return Some(Box::new(table));
    }
    if let Err(error) = checkpoints::create_checkpoint(&table, None).await {
        tracing::warn!(table = %table.table_url(), version, %error, "checkpoint failed");
    }
    None
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

/// The action that gives a table another schema.
pub(super) fn changed_schema(metadata: &Metadata, schema: &TableSchema) -> Result<Action, EngineError> {
    let mut metadata = serde_json::to_value(metadata).map_err(EngineError::json)?;
    metadata["schemaString"] = Value::String(schema.to_delta().to_string());
    let metadata: Metadata = serde_json::from_value(metadata).map_err(EngineError::json)?;
    Ok(Action::Metadata(metadata))
}

/// The actions that make a new table. Protocol (1, 2) is what every reader opens.
pub(super) fn creation(name: &str, schema: &TableSchema, now_ms: i64) -> Result<Vec<Action>, EngineError> {
    let protocol: Protocol =
        serde_json::from_value(json!({ "minReaderVersion": 1, "minWriterVersion": 2 })).map_err(EngineError::json)?;
    let metadata: Metadata = serde_json::from_value(json!({
        "id": Uuid::new_v4().to_string(),
        "name": name,
        "description": null,
        "format": { "provider": "parquet", "options": {} },
        "schemaString": schema.to_delta().to_string(),
        "partitionColumns": [],
        "configuration": {
            "delta.checkpointInterval": CHECKPOINT_INTERVAL.to_string(),
            "delta.dataSkippingStatsColumns": schema.filtered().join(","),
            "delta.enableExpiredLogCleanup": "true",
            "delta.logRetentionDuration": "interval 30 days",
            "delta.deletedFileRetentionDuration": "interval 7 days",
        },
        "createdTime": now_ms,
    }))
    .map_err(EngineError::json)?;
    Ok(vec![Action::Protocol(protocol), Action::Metadata(metadata)])
}

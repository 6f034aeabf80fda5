//! The metadata and protocol of a table: making it, its schema, its properties.

use std::collections::HashMap;

use deltalake::kernel::{Action, Metadata, Protocol};
use deltalake::table::state::DeltaTableState;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::log::protocol;
use crate::table_store::delta::options::DeltaOptions;
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

/// The action that gives a table the columns of an earlier version; none where it has them.
pub(crate) fn restored(now: &DeltaTableState, then: &DeltaTableState) -> Result<Option<Action>, EngineError> {
    let mut metadata = serde_json::to_value(now.metadata()).map_err(EngineError::json)?;
    let (before, earlier) = (metadata.clone(), serde_json::to_value(then.metadata()).map_err(EngineError::json)?);
    for key in ["schemaString", "partitionColumns"] {
        metadata[key] = earlier[key].clone();
    }
    if metadata == before {
        return Ok(None);
    }
    let metadata: Metadata = serde_json::from_value(metadata).map_err(EngineError::json)?;
    Ok(Some(Action::Metadata(metadata)))
}

/// Whether the lake has set a property of the retention. What another program has set stays.
fn is_own(configuration: &Value, key: &str) -> bool {
    let Some(interval) = configuration[key].as_str() else { return false };
    match configuration[OWN_RETENTION_KEY].as_str().and_then(|hours| hours.parse().ok()) {
        Some(hours) => retention(hours).contains(&(key, interval.to_owned())),
        // A table of a lake that did not say so yet.
        None => interval.starts_with("interval ") && interval.ends_with(" hours"),
    }
}

/// Whether the properties say how long the removed files of a table stay, and the lake has not set them.
pub(crate) fn has_foreign_retention(metadata: &Metadata) -> bool {
    let configuration = serde_json::to_value(metadata.configuration()).unwrap_or_default();
    configuration[RETENTION_KEY].is_string() && !is_own(&configuration, RETENTION_KEY)
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
    let retention_hours = options.of_table(name).retention_hours;
    for (key, value) in retention(retention_hours) {
        metadata["configuration"][key] = Value::String(value);
    }
    metadata["configuration"][OWN_RETENTION_KEY] = Value::String(retention_hours.to_string());
    let metadata: Metadata = serde_json::from_value(metadata).map_err(EngineError::json)?;
    Ok(vec![Action::Protocol(protocol), Action::Metadata(metadata)])
}

//! The actions by which files enter and leave a table. <https://github.com/delta-io/delta/blob/master/PROTOCOL.md#add-file-and-remove-file>

use deltalake::kernel::{Add, LogicalFileView, Remove};
use serde_json::{Value, json};

use crate::table_store::delta::files::data_file::DataFile;
use crate::table_store::delta::files::deletion_vectors::DeletionVector;

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
pub(crate) fn with_vector(view: &LogicalFileView, file: &DataFile, vector: &DeletionVector) -> Add {
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

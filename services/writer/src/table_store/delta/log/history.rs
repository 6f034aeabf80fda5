//! What an entry of the log says a commit did. Pure.

use serde_json::Value;

use crate::table_store::delta::log::entry;

/// A version of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableVersion {
    /// Its number.
    pub version: u64,
    /// When it was made, as its entry says, milliseconds since 1970.
    pub at_ms: Option<i64>,
    /// What the commit is called.
    pub operation: String,
    /// The program that made it.
    pub engine: String,
    /// Whether the lake made it.
    pub by_lake: bool,
    /// Data files that were new.
    pub files_added: u64,
    /// Data files that left.
    pub files_removed: u64,
    /// Data files that stayed with another deletion vector.
    pub files_with_new_vectors: u64,
    /// Rows of the new data files, as far as the log says it.
    pub rows_written: u64,
    /// Bytes of the new data files.
    pub bytes_written: u64,
}

/// What an entry says. Lines that cannot be understood are passed over: readers are the judges of a log, not this.
pub(crate) fn version_of(version: u64, entry: &[u8]) -> TableVersion {
    let mut told = TableVersion { version, by_lake: entry::is_of_lake(entry), ..TableVersion::default() };
    let actions: Vec<Value> =
        entry.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let path = |action: &Value| action["path"].as_str().map(str::to_owned);
    let removed: std::collections::HashSet<String> =
        actions.iter().filter_map(|action| path(action.get("remove")?)).collect();
    let mut stayed = 0;
    for action in &actions {
        if let Some(information) = action.get("commitInfo") {
            let text = |key: &str| information[key].as_str().unwrap_or_default().to_owned();
            told.at_ms = entry::in_commit_ms(entry).or_else(|| information["timestamp"].as_i64());
            told.operation = text("operation");
            told.engine = text("engineInfo");
        }
        let Some(add) = action.get("add") else { continue };
        if path(add).is_some_and(|path| removed.contains(&path)) {
            stayed += 1;
            continue;
        }
        told.files_added += 1;
        told.bytes_written += add["size"].as_u64().unwrap_or_default();
        let statistics = add["stats"].as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
        told.rows_written += statistics.and_then(|statistics| statistics["numRecords"].as_u64()).unwrap_or_default();
    }
    told.files_with_new_vectors = stayed;
    told.files_removed = (removed.len() as u64).saturating_sub(stayed);
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_another_deletion_vector_neither_comes_nor_leaves() {
        let entry = br#"{"commitInfo":{"timestamp":5,"operation":"MERGE","engineInfo":"delta-rs:1","lakeCommit":"0"}}
{"remove":{"path":"old.parquet"}}
{"remove":{"path":"stays.parquet"}}
{"add":{"path":"stays.parquet","size":9,"stats":"{\"numRecords\":7}","deletionVector":{}}}
{"add":{"path":"new.parquet","size":10,"stats":"{\"numRecords\":3}"}}
{"add":{"path":"unmeasured.parquet","size":4}}
no json"#;
        let told = TableVersion {
            version: 8,
            at_ms: Some(5),
            operation: "MERGE".into(),
            engine: "delta-rs:1".into(),
            by_lake: true,
            files_added: 2,
            files_removed: 1,
            files_with_new_vectors: 1,
            rows_written: 3,
            bytes_written: 14,
        };
        assert_eq!(version_of(8, entry), told);
        let foreign = br#"{"commitInfo":{"timestamp":5,"inCommitTimestamp":6,"operation":"WRITE"}}"#;
        let told = version_of(0, foreign);
        assert_eq!((told.at_ms, told.by_lake, told.files_added), (Some(6), false, 0));
    }
}

//! The bytes of one entry of the log, and the paths in it.
//!
//! delta-rs hands out decoded paths and encodes them in its own way when it writes them. To every reader the text in the log is the file,
//! and others encode otherwise (Spark writes `ü` as it is): a removal under another text removes nothing. So a path that another
//! program wrote is written back exactly as it stands in the log.

use std::borrow::Cow;
use std::collections::HashMap;

use arrow::array::AsArray;
use bytes::Bytes;
use deltalake::kernel::transaction::CommitData;
use deltalake::kernel::{Action, LogicalFileView, Remove};
use deltalake::protocol::DeltaOperation;
use deltalake::table::state::DeltaTableState;
use serde_json::Value;
use uuid::Uuid;

use crate::table_store::conversion::{ColumnType, converted};
use crate::table_store::delta::error::EngineError;

/// Key in the commit information that holds the id of a commit.
const COMMIT_KEY: &str = "lakeCommit";

/// Paths of files as the log has them, by their decoded form.
pub(crate) type LoggedPaths<'a> = HashMap<&'a str, &'a str>;

/// What an entry consists of.
pub(crate) struct LogEntry<'a> {
    /// Its id.
    pub(crate) id: Uuid,
    /// What it is called in the history.
    pub(crate) operation: DeltaOperation,
    /// What it does.
    pub(crate) actions: Vec<Action>,
    /// The paths that are not to be encoded anew.
    pub(crate) logged: LoggedPaths<'a>,
    /// Its time, in tables whose entries say it, milliseconds since 1970.
    pub(crate) in_commit_ms: Option<i64>,
}

impl LogEntry<'_> {
    /// Its bytes: one action a line, commit information first, then protocol and metadata, then files.
    pub(crate) fn into_bytes(self) -> Result<Bytes, EngineError> {
        let information = HashMap::from([(COMMIT_KEY.to_owned(), Value::String(self.id.to_string()))]);
        let mut actions = CommitData::new(self.actions, self.operation, information, Vec::new()).actions;
        actions.sort_by_key(|action| match action {
            Action::CommitInfo(_) => 0,
            Action::Protocol(_) => 1,
            Action::Metadata(_) => 2,
            _ => 3,
        });
        if let Some(Action::CommitInfo(information)) = actions.first_mut() {
            information.in_commit_timestamp = self.in_commit_ms;
        }
        let lines = actions.iter().map(|action| line(action, &self.logged));
        Ok(lines.collect::<Result<Vec<_>, _>>()?.join("\n").into())
    }
}

fn line(action: &Action, logged: &LoggedPaths<'_>) -> Result<String, EngineError> {
    let path = match action {
        Action::Add(add) => logged.get(add.path.as_str()),
        Action::Remove(remove) => logged.get(remove.path.as_str()),
        _ => None,
    };
    let Some(path) = path else { return serde_json::to_string(action).map_err(EngineError::json) };
    let mut value = serde_json::to_value(action).map_err(EngineError::json)?;
    for body in value.as_object_mut().into_iter().flat_map(|action| action.values_mut()) {
        body["path"] = Value::String((*path).to_owned());
    }
    Ok(value.to_string())
}

/// Whether an entry is the one of this id.
pub(crate) fn carries(entry: &[u8], id: Uuid) -> bool {
    informations(entry).any(|commit| commit[COMMIT_KEY].as_str() == Some(id.to_string().as_str()))
}

/// Whether the lake made an entry.
pub(crate) fn is_of_lake(entry: &[u8]) -> bool {
    informations(entry).any(|commit| commit[COMMIT_KEY].is_string())
}

/// The time that an entry says it was made, milliseconds since 1970.
pub(crate) fn in_commit_ms(entry: &[u8]) -> Option<i64> {
    informations(entry).find_map(|commit| commit["inCommitTimestamp"].as_i64())
}

fn informations(entry: &[u8]) -> impl Iterator<Item = Value> {
    let lines = entry.split(|byte| *byte == b'\n');
    let actions = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    actions.filter_map(|mut action| action.get_mut("commitInfo").map(Value::take))
}

/// The paths of the files of a snapshot as the log has them.
pub(crate) struct RawPaths<'a> {
    snapshot: &'a DeltaTableState,
    read: Option<Vec<String>>,
}

impl<'a> RawPaths<'a> {
    /// Nothing is looked up yet.
    pub(crate) fn of(snapshot: &'a DeltaTableState) -> Self {
        Self { snapshot, read: None }
    }

    /// The path of the file that comes so many files after the first in the log data, where it is not what delta-rs would make of it.
    pub(crate) fn odd(&mut self, position: usize, view: &LogicalFileView) -> Result<Option<String>, EngineError> {
        let decoded = view.path();
        if let Cow::Borrowed(path) = &decoded
            && path.bytes().all(is_plain)
        {
            return Ok(None);
        }
        let raw = match &decoded {
            // Nothing was decoded.
            Cow::Borrowed(path) => (*path).to_owned(),
            Cow::Owned(_) => self.read(position)?,
        };
        Ok(Some(raw).filter(|raw| Some(raw) != encoded(&decoded).as_ref()))
    }

    fn read(&mut self, position: usize) -> Result<String, EngineError> {
        let paths = match &mut self.read {
            Some(paths) => paths,
            none => none.insert(raw_paths(self.snapshot)?),
        };
        paths.get(position).cloned().ok_or_else(|| EngineError::corrupt("the log lists other files than its snapshot"))
    }
}

/// A byte that no writer encodes.
const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'_' | b'-' | b'=')
}

/// All paths as the log has them, in the order of the log data. The only public way to them.
fn raw_paths(snapshot: &DeltaTableState) -> Result<Vec<String>, EngineError> {
    let mut paths = Vec::new();
    for batch in snapshot.add_actions_batches(false).map_err(EngineError::delta)? {
        let column = batch.column_by_name("path").and_then(|column| converted(column, ColumnType::String));
        let column = column.ok_or_else(|| EngineError::corrupt("the log has files without paths"))?;
        paths.extend(column.as_string::<i32>().iter().map(|path| path.unwrap_or_default().to_owned()));
    }
    if paths.len() != snapshot.log_data().num_files() {
        return Err(EngineError::corrupt("the log lists other files than its snapshot"));
    }
    Ok(paths)
}

/// What delta-rs makes of a decoded path.
fn encoded(path: &str) -> Option<String> {
    let action = serde_json::to_value(Remove { path: path.to_owned(), ..Remove::default() }).ok()?;
    action["path"].as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use deltalake::kernel::{Add, Metadata, Protocol};
    use serde_json::json;

    use super::*;

    fn entry(actions: Vec<Action>, logged: LoggedPaths<'_>, in_commit_ms: Option<i64>) -> Vec<Value> {
        let operation = DeltaOperation::Optimize { predicate: None, target_size: 0 };
        let entry = LogEntry { id: Uuid::nil(), operation, actions, logged, in_commit_ms };
        let bytes = entry.into_bytes().unwrap();
        assert!(carries(&bytes, Uuid::nil()) && !carries(&bytes, Uuid::max()));
        assert_eq!(super::in_commit_ms(&bytes), in_commit_ms);
        bytes.split(|byte| *byte == b'\n').map(|line| serde_json::from_slice(line).unwrap()).collect()
    }

    #[test]
    fn an_entry_begins_with_what_the_rest_depends_on() {
        let protocol: Protocol =
            serde_json::from_value(json!({ "minReaderVersion": 1, "minWriterVersion": 2 })).unwrap();
        let metadata: Metadata = serde_json::from_value(json!({
            "id": "x", "format": { "provider": "parquet", "options": {} }, "schemaString": "{}", "partitionColumns": [],
            "configuration": {},
        }))
        .unwrap();
        let actions = vec![
            Action::Remove(Remove { path: "a".into(), ..Remove::default() }),
            Action::Add(Add { path: "b".into(), ..Add::default() }),
            Action::Metadata(metadata),
            Action::Protocol(protocol),
        ];
        let lines = entry(actions, LoggedPaths::new(), Some(7));
        let kinds: Vec<&String> = lines.iter().flat_map(|line| line.as_object().unwrap().keys()).collect();
        assert_eq!(kinds, ["commitInfo", "protocol", "metaData", "remove", "add"]);
        let information = &lines[0]["commitInfo"];
        assert_eq!(information["operation"], "OPTIMIZE");
        assert!(
            information["timestamp"].is_i64() && information["engineInfo"].as_str().unwrap().starts_with("delta-rs:")
        );
        assert_eq!(information["inCommitTimestamp"], 7);
    }

    #[test]
    fn a_path_is_written_as_the_log_has_it() {
        let remove = |path: &str| Action::Remove(Remove { path: path.into(), ..Remove::default() });
        let add = |path: &str| Action::Add(Add { path: path.into(), ..Add::default() });
        let logged = LoggedPaths::from([("s=ü a/x", "s=ü%20a/x")]);
        let lines = entry(vec![remove("s=ü a/x"), add("s=ü a/x"), add("s=ü a/y")], logged, None);
        assert_eq!(lines[1]["remove"]["path"], "s=ü%20a/x");
        assert_eq!(lines[2]["add"]["path"], "s=ü%20a/x");
        assert_eq!(lines[3]["add"]["path"], "s=%C3%BC%20a/y");
        assert_eq!(lines[0]["commitInfo"].get("inCommitTimestamp"), None);
    }
}

//! `XFormInstance.to_json()`: columns, the form's data, its history; `external_blobs` where the blobs were asked for.

use lake_shared::identity::Kind;
use serde_json::{Map, Value, json};

use super::{DocumentError, ReadDocument, cell, json_object, or_nothing};
use crate::document_rules::{TombstoneReason, form_is_gone};
use crate::source::{Columns, FormRows};

/// Makes the document of one form from its rows and its converted XML (`{}` where HQ cannot convert it).
///
/// # Errors
/// Where a JSON column is not an object; the error names the form and the column.
pub fn to_json(rows: &FormRows, data: Map<String, Value>) -> Result<Map<String, Value>, DocumentError> {
    read(rows, data).whole()
}

/// The same without what JSON columns say that cannot be read, and without the member `form`: its text can be written at once, and large ones are
/// better not held as values.
pub fn read_without_answers(rows: &FormRows) -> ReadDocument {
    let mut read = read(rows, Map::new());
    read.members.remove("form");
    read
}

/// The same without what JSON columns say that cannot be read.
pub fn read(rows: &FormRows, data: Map<String, Value>) -> ReadDocument {
    let form = &rows.form;
    let mut unreadable = None;
    let id = form.get("form_id").and_then(Value::as_str).unwrap_or_default();
    let gone = form_is_gone(form);
    let deleted = gone == Some(TombstoneReason::Deleted);
    let mut document = Map::with_capacity(form.len() + 5);
    document.insert("_id".into(), cell(form, "form_id"));
    document.insert("doc_type".into(), doc_type(gone).into());
    document.insert("form".into(), Value::Object(data));
    for column in ["auth_context", "openrosa_headers"] {
        let object = or_nothing(json_object(form.get(column), Kind::Form, id, column), &mut unreadable);
        document.insert(column.into(), Value::Object(object));
    }
    for (column, value) in form {
        match column.as_str() {
            // Kept in the database for queries only; `to_json()` leaves them out.
            "id" | "form_id" | "time_start" | "time_end" | "commcare_version" | "app_version" => {}
            "auth_context" | "openrosa_headers" => {}
            "deleted_on" | "deletion_id" if !deleted => {}
            _ => {
                document.insert(column.clone(), value.clone());
            }
        }
    }
    if let Some(blobs) = &rows.blobs {
        document.insert("external_blobs".into(), Value::Object(external_blobs(blobs)));
    }
    document.insert("history".into(), rows.operations.iter().map(operation_json).collect());
    document.insert("backend_id".into(), "sql".into());
    ReadDocument { members: document, unreadable }
}

fn doc_type(gone: Option<TombstoneReason>) -> &'static str {
    match gone {
        Some(TombstoneReason::Deleted) => "XFormInstance-Deleted",
        Some(TombstoneReason::Archived) => "XFormArchived",
        Some(TombstoneReason::Deprecated) => "XFormDeprecated",
        Some(TombstoneReason::Duplicate) => "XFormDuplicate",
        Some(TombstoneReason::Error) => "XFormError",
        Some(TombstoneReason::SubmissionError) => "SubmissionErrorLog",
        Some(TombstoneReason::Missing | TombstoneReason::UnknownState) | None => "XFormInstance",
    }
}

fn operation_json(operation: &Columns) -> Value {
    json!({
        "operation": cell(operation, "operation"),
        "date": cell(operation, "date"),
        "user": cell(operation, "user_id"),
    })
}

/// By name. Were there ever two of one name, the first one counts, as it does for the XML.
fn external_blobs(blobs: &[Columns]) -> Map<String, Value> {
    let mut by_name = Map::with_capacity(blobs.len());
    for blob in blobs {
        let name = blob.get("name").and_then(Value::as_str).unwrap_or_default();
        by_name.entry(name).or_insert_with(|| {
            json!({
                "id": cell(blob, "key"),
                "content_type": cell(blob, "content_type"),
                "content_length": cell(blob, "content_length"),
            })
        });
    }
    by_name
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn columns(of: Value) -> Columns {
        of.as_object().unwrap().clone()
    }

    fn visit() -> FormRows {
        FormRows {
            form: columns(json!({
                "id": 3, "form_id": "f2", "domain": "demo-space", "app_id": "app1", "xmlns": "http://openrosa.org/formdesigner/AAAA1111",
                "user_id": "u1", "orig_id": null, "deprecated_form_id": null,
                "server_modified_on": "2026-01-05T10:11:12.260000Z", "received_on": "2026-01-05T10:11:12.240000Z",
                "edited_on": null, "deleted_on": null, "deletion_id": null,
                "auth_context": "{\"doc_type\": \"AuthContext\", \"user_id\": \"u1\", \"authenticated\": true, \"domain\": \"demo-space\"}",
                "openrosa_headers": "", "partial_submission": false, "submit_ip": "10.0.0.1", "last_sync_token": "s1",
                "problem": null, "date_header": null, "build_id": "b1", "state": 1, "initial_processing_complete": true,
                "time_end": "2026-01-05T10:11:00.120000Z", "time_start": "2026-01-05T10:05:00.000000Z",
                "commcare_version": "2.53", "app_version": 17
            })),
            operations: Vec::new(),
            xml: None,
            blobs: None,
        }
    }

    #[test]
    fn the_document_is_the_one_hq_makes() {
        let data = json!({"@xmlns": "http://openrosa.org/formdesigner/AAAA1111", "weight": "3.1", "#type": "data"});
        let expected = json!({
            "_id": "f2", "doc_type": "XFormInstance", "form": data,
            "auth_context": {"doc_type": "AuthContext", "user_id": "u1", "authenticated": true, "domain": "demo-space"},
            "openrosa_headers": {}, "domain": "demo-space", "app_id": "app1",
            "xmlns": "http://openrosa.org/formdesigner/AAAA1111", "user_id": "u1", "orig_id": null,
            "deprecated_form_id": null, "server_modified_on": "2026-01-05T10:11:12.260000Z",
            "received_on": "2026-01-05T10:11:12.240000Z", "edited_on": null, "partial_submission": false,
            "submit_ip": "10.0.0.1", "last_sync_token": "s1", "problem": null, "date_header": null, "build_id": "b1",
            "state": 1, "initial_processing_complete": true, "history": [], "backend_id": "sql"
        });
        assert_eq!(Value::Object(to_json(&visit(), columns(data)).unwrap()), expected);
    }

    #[test]
    fn columns_of_newer_versions_pass_through() {
        let mut rows = visit();
        rows.form.insert("build_profile_id".into(), Value::Null);
        rows.form.insert("form_load_time".into(), "2026-01-05T10:05:00.000000Z".into());
        let document = to_json(&rows, Map::new()).unwrap();
        assert_eq!(document["build_profile_id"], Value::Null);
        assert_eq!(document["form_load_time"], "2026-01-05T10:05:00.000000Z");
        assert_eq!(document["form"], json!({}));
    }

    #[test]
    fn the_doc_type_follows_the_state_and_deletion_comes_first() {
        for (state, deleted_on, doc_type) in [
            (1, Value::Null, "XFormInstance"),
            (2, Value::Null, "XFormArchived"),
            (4, Value::Null, "XFormDeprecated"),
            (8, Value::Null, "XFormDuplicate"),
            (16, Value::Null, "XFormError"),
            (32, Value::Null, "SubmissionErrorLog"),
            (65, Value::Null, "XFormInstance-Deleted"),
            (2, json!("2026-02-01T00:00:00.000000Z"), "XFormInstance-Deleted"),
        ] {
            let mut rows = visit();
            rows.form.insert("state".into(), state.into());
            rows.form.insert("deleted_on".into(), deleted_on);
            let document = to_json(&rows, Map::new()).unwrap();
            assert_eq!(document["doc_type"], doc_type);
            assert_eq!(document.contains_key("deleted_on"), doc_type.ends_with("-Deleted"));
            assert_eq!(document.contains_key("deletion_id"), doc_type.ends_with("-Deleted"));
        }
    }

    #[test]
    fn history_names_what_who_and_when() {
        let mut rows = visit();
        rows.operations.push(columns(
            json!({"id": 1, "form_id": "f2", "operation": "edit", "date": "2026-01-06T00:00:00.000000Z", "user_id": null}),
        ));
        let document = to_json(&rows, Map::new()).unwrap();
        assert_eq!(
            document["history"],
            json!([{"operation": "edit", "date": "2026-01-06T00:00:00.000000Z", "user": null}])
        );
    }

    #[test]
    fn blobs_are_listed_by_name_where_they_were_asked_for() {
        let mut rows = visit();
        assert!(!to_json(&rows, Map::new()).unwrap().contains_key("external_blobs"));
        rows.blobs = Some(Vec::new());
        assert_eq!(to_json(&rows, Map::new()).unwrap()["external_blobs"], json!({}));
        let blob = |name: &str, key: &str, content_type: Value, content_length: i64| {
            columns(
                json!({"id": 1, "parent_id": "f2", "name": name, "key": key, "type_code": 2, "content_type": content_type,
                "content_length": content_length, "compressed_length": 5}),
            )
        };
        rows.blobs = Some(vec![
            blob("form.xml", "k1", json!("text/xml"), 100),
            blob("photo.jpg", "form/0123/k2", json!("image/jpeg"), 9),
            blob("form.xml", "k3", Value::Null, 1),
            blob("", "k4", Value::Null, 0),
        ]);
        let document = to_json(&rows, Map::new()).unwrap();
        let expected = json!({
            "form.xml": {"id": "k1", "content_type": "text/xml", "content_length": 100},
            "photo.jpg": {"id": "form/0123/k2", "content_type": "image/jpeg", "content_length": 9},
            "": {"id": "k4", "content_type": null, "content_length": 0},
        });
        assert_eq!(document["external_blobs"], expected);
    }

    /// Everything that the table of the form's keys says, key by key.
    #[test]
    fn every_key_is_there_and_no_other() {
        let mut rows = visit();
        rows.blobs = Some(Vec::new());
        let keys = |rows: &FormRows| {
            let mut keys: Vec<String> = to_json(rows, Map::new()).unwrap().keys().cloned().collect();
            keys.sort();
            keys
        };
        let mut expected = vec![
            "_id",
            "app_id",
            "auth_context",
            "backend_id",
            "build_id",
            "date_header",
            "deprecated_form_id",
            "doc_type",
            "domain",
            "edited_on",
            "external_blobs",
            "form",
            "history",
            "initial_processing_complete",
            "last_sync_token",
            "openrosa_headers",
            "orig_id",
            "partial_submission",
            "problem",
            "received_on",
            "server_modified_on",
            "state",
            "submit_ip",
            "user_id",
            "xmlns",
        ];
        assert_eq!(keys(&rows), expected);
        rows.form.insert("deleted_on".into(), "2026-02-01T00:00:00.000000Z".into());
        expected.extend(["deleted_on", "deletion_id"]);
        expected.sort_unstable();
        assert_eq!(keys(&rows), expected);
        let document = to_json(&rows, Map::new()).unwrap();
        assert_eq!((&document["state"], &document["partial_submission"]), (&json!(1), &json!(false)));
        assert_eq!((&document["edited_on"], &document["problem"]), (&Value::Null, &Value::Null));
    }

    #[test]
    fn broken_json_names_form_and_column() {
        let mut rows = visit();
        rows.form.insert("openrosa_headers".into(), "{'a': 1}".into());
        let error = to_json(&rows, Map::new()).unwrap_err();
        assert_eq!((error.kind, error.id.as_str(), error.column), (Kind::Form, "f2", "openrosa_headers"));
    }
}

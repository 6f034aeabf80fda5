//! `CommCareCase.to_json()`: dynamic properties, overlaid by columns, overlaid by related rows. A fixed key always wins; the property
//! that it hides stays visible in the nested `case_json`.

use lake_shared::identity::Kind;
use serde_json::{Map, Value, json};

use super::{DocumentError, cell, json_object};
use crate::document_rules::case_is_deleted;
use crate::source::{CaseRows, Columns};

/// Bit of a transaction's `type`: made by a form.
const TRANSACTION_OF_FORM: i64 = 1;
/// `relationship_id` of an extension; everything else is a child.
const RELATIONSHIP_EXTENSION: i64 = 2;

/// What to leave out. The default leaves nothing out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaseOptions {
    /// Whether `actions` and `xform_ids` are there. Set it as [`crate::postgres::HqPostgresConfig::transactions`] is set: without transactions
    /// in the rows the keys would wrongly be empty lists.
    pub transactions: bool,
    /// Whether `case_attachments` is there.
    pub attachments: bool,
}

impl Default for CaseOptions {
    fn default() -> Self {
        Self { transactions: true, attachments: true }
    }
}

/// Makes the document of one case. An error names the case.
pub fn to_json(rows: &CaseRows, options: CaseOptions) -> Result<Map<String, Value>, DocumentError> {
    let case = &rows.case;
    let id = case.get("case_id").and_then(Value::as_str).unwrap_or_default();
    let properties = json_object(case.get("case_json"), Kind::Case, id, "case_json")?;
    let mut document = properties.clone();
    overlay_columns(&mut document, case, properties);
    let domain = case.get("domain");
    // An index row of another domain than its case's is not shown by HQ.
    let indices = rows.indices.iter().filter(|index| index.get("domain").is_none_or(|of| Some(of) == domain));
    document.insert("indices".into(), indices.map(index_json).collect());
    if options.transactions {
        document.insert("actions".into(), rows.transactions.iter().map(action_json).collect());
        document.insert("xform_ids".into(), rows.transactions.iter().filter_map(form_of).collect());
    }
    if options.attachments {
        document
            .insert("case_attachments".into(), Value::Object(rows.attachments.iter().map(attachment_json).collect()));
    }
    document.insert("backend_id".into(), "sql".into());
    Ok(document)
}

fn overlay_columns(document: &mut Map<String, Value>, case: &Columns, properties: Map<String, Value>) {
    let deleted = case_is_deleted(case);
    document.insert("_id".into(), cell(case, "case_id"));
    document.insert("doc_type".into(), if deleted { "CommCareCase-Deleted" } else { "CommCareCase" }.into());
    document.insert("user_id".into(), cell(case, "modified_by"));
    document.insert("case_json".into(), Value::Object(properties));
    for (column, value) in case {
        match column.as_str() {
            "id" | "case_json" => {}
            // A live case does not have them, so a property of that name shows.
            "deleted_on" | "deletion_id" if !deleted => {}
            _ => {
                document.insert(column.clone(), value.clone());
            }
        }
    }
}

fn index_json(index: &Columns) -> Value {
    let extension = index.get("relationship_id").and_then(Value::as_i64) == Some(RELATIONSHIP_EXTENSION);
    json!({
        "case_id": cell(index, "case_id"),
        "identifier": cell(index, "identifier"),
        "referenced_id": cell(index, "referenced_id"),
        "referenced_type": cell(index, "referenced_type"),
        "relationship": if extension { "extension" } else { "child" },
    })
}

fn action_json(transaction: &Columns) -> Value {
    let server_date = cell(transaction, "server_date");
    let client_date = transaction.get("client_date").filter(|date| !date.is_null());
    json!({
        "xform_id": cell(transaction, "form_id"),
        "server_date": server_date,
        "date": client_date.unwrap_or(&server_date),
        "sync_log_id": cell(transaction, "sync_log_id"),
    })
}

fn form_of(transaction: &Columns) -> Option<Value> {
    let bits = transaction.get("type").and_then(Value::as_i64).unwrap_or(0);
    let form_id = transaction.get("form_id").filter(|id| !id.is_null())?;
    (bits & TRANSACTION_OF_FORM != 0).then(|| form_id.clone())
}

fn attachment_json(attachment: &Columns) -> (String, Value) {
    let name = attachment.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let shown = json!({
        "content_type": cell(attachment, "content_type"),
        "content_length": cell(attachment, "content_length"),
        "name": name,
    });
    (name, shown)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use lake_shared::error_chain::Chain;

    use super::*;

    fn columns(of: Value) -> Columns {
        of.as_object().unwrap().clone()
    }

    fn person() -> CaseRows {
        CaseRows {
            case: columns(json!({
                "id": 12, "case_id": "c1", "domain": "demo-space", "type": "person", "name": "Asha", "owner_id": "loc9",
                "opened_on": "2026-01-02T04:30:00.000000Z", "opened_by": "u1",
                "modified_on": "2026-01-05T10:11:00.120000Z", "server_modified_on": "2026-01-05T10:11:12.240000Z",
                "modified_by": "u1", "closed": false, "closed_on": null, "closed_by": null, "deleted": false,
                "deleted_on": null, "deletion_id": null, "external_id": "", "location_id": null,
                "case_json": "{\"village\": \"Rampur\", \"dob\": \"1990-02-03\", \"visit_count\": \"4\"}"
            })),
            indices: vec![columns(json!({"id": 1, "case_id": "c1", "domain": "demo-space", "identifier": "parent",
                "referenced_id": "h1", "referenced_type": "household", "relationship_id": 1}))],
            transactions: vec![
                columns(json!({"case_id": "c1", "form_id": "f1", "sync_log_id": "s1", "type": 129, "revoked": false,
                    "server_date": "2026-01-02T04:31:07.500000Z", "client_date": "2026-01-02T04:30:00.000000Z"})),
                columns(json!({"case_id": "c1", "form_id": "f2", "sync_log_id": "s1", "type": 1, "revoked": false,
                    "server_date": "2026-01-05T10:11:12.240000Z", "client_date": "2026-01-05T10:11:00.120000Z"})),
            ],
            attachments: Vec::new(),
        }
    }

    #[test]
    fn the_document_is_the_one_hq_makes() {
        let expected = json!({
            "village": "Rampur", "dob": "1990-02-03", "visit_count": "4",
            "_id": "c1", "doc_type": "CommCareCase", "user_id": "u1",
            "case_json": {"village": "Rampur", "dob": "1990-02-03", "visit_count": "4"},
            "case_id": "c1", "domain": "demo-space", "type": "person", "name": "Asha", "owner_id": "loc9",
            "opened_on": "2026-01-02T04:30:00.000000Z", "opened_by": "u1",
            "modified_on": "2026-01-05T10:11:00.120000Z", "server_modified_on": "2026-01-05T10:11:12.240000Z",
            "modified_by": "u1", "closed": false, "closed_on": null, "closed_by": null, "deleted": false,
            "external_id": "", "location_id": null,
            "indices": [{"case_id": "c1", "identifier": "parent", "referenced_id": "h1",
                         "referenced_type": "household", "relationship": "child"}],
            "actions": [
              {"xform_id": "f1", "server_date": "2026-01-02T04:31:07.500000Z",
               "date": "2026-01-02T04:30:00.000000Z", "sync_log_id": "s1"},
              {"xform_id": "f2", "server_date": "2026-01-05T10:11:12.240000Z",
               "date": "2026-01-05T10:11:00.120000Z", "sync_log_id": "s1"}],
            "xform_ids": ["f1", "f2"], "case_attachments": {}, "backend_id": "sql"
        });
        assert_eq!(Value::Object(to_json(&person(), CaseOptions::default()).unwrap()), expected);
    }

    #[test]
    fn fixed_keys_win_and_hidden_properties_stay_nested() {
        let mut rows = person();
        let properties = json!({"closed": "yes", "type": "x", "indices": "a", "note": "n", "deleted_on": "2020-01-01",
            "_id": "p", "backend_id": "p", "case_json": "p", "user_id": "p", "actions": "p"});
        rows.case.insert("case_json".into(), properties.to_string().into());
        let document = to_json(&rows, CaseOptions::default()).unwrap();
        assert_eq!(document["closed"], json!(false));
        assert_eq!(document["type"], "person");
        assert!(document["indices"].is_array() && document["actions"].is_array());
        assert_eq!(document["note"], "n");
        assert_eq!(document["deleted_on"], "2020-01-01");
        assert_eq!(
            (&document["_id"], &document["user_id"], &document["backend_id"]),
            (&json!("c1"), &json!("u1"), &json!("sql"))
        );
        assert_eq!(document["case_json"], properties);
    }

    #[test]
    fn a_deleted_case_shows_when() {
        let mut rows = person();
        rows.case.insert("deleted".into(), true.into());
        rows.case.insert("deleted_on".into(), "2026-02-01T00:00:00.000000Z".into());
        let document = to_json(&rows, CaseOptions::default()).unwrap();
        assert_eq!(document["doc_type"], "CommCareCase-Deleted");
        assert_eq!(document["deleted_on"], "2026-02-01T00:00:00.000000Z");
        assert_eq!(document["deletion_id"], Value::Null);
    }

    #[test]
    fn columns_of_other_versions_pass_through() {
        let mut rows = person();
        rows.case.insert("new_column".into(), 5.into());
        rows.case.shift_remove("location_id");
        let document = to_json(&rows, CaseOptions::default()).unwrap();
        assert_eq!(document["new_column"], 5);
        assert!(!document.contains_key("location_id") && !document.contains_key("id"));
    }

    #[test]
    fn related_rows_have_their_oddities() {
        let mut rows = person();
        rows.indices
            .push(columns(json!({"case_id": "c1", "domain": "demo-space", "identifier": "host", "referenced_id": "",
            "referenced_type": "household", "relationship_id": 2})));
        rows.indices
            .push(columns(json!({"case_id": "c1", "domain": "elsewhere", "identifier": "x", "relationship_id": 1})));
        // A rebuild has no form; a ledger transaction of a form without bit 1 is not among the forms.
        rows.transactions.push(columns(json!({"form_id": null, "sync_log_id": null, "type": 2, "server_date": "S"})));
        rows.transactions.push(columns(json!({"form_id": "f3", "sync_log_id": null, "type": 64, "server_date": "S"})));
        rows.attachments.push(columns(
            json!({"id": 1, "name": "photo", "content_type": "image/jpeg", "content_length": 3, "md5": "m"}),
        ));
        let document = to_json(&rows, CaseOptions::default()).unwrap();
        assert_eq!(document["indices"].as_array().unwrap().len(), 2);
        assert_eq!(document["indices"][1]["relationship"], "extension");
        assert_eq!(document["indices"][1]["referenced_id"], "");
        assert_eq!(
            document["actions"][2],
            json!({"xform_id": null, "server_date": "S", "date": "S", "sync_log_id": null})
        );
        assert_eq!(document["actions"].as_array().unwrap().len(), 4);
        assert_eq!(document["xform_ids"], json!(["f1", "f2"]));
        let photo = json!({"photo": {"content_type": "image/jpeg", "content_length": 3, "name": "photo"}});
        assert_eq!(document["case_attachments"], photo);
    }

    #[test]
    fn what_is_left_out_has_no_key() {
        let document = to_json(&person(), CaseOptions { transactions: false, attachments: false }).unwrap();
        assert!(["actions", "xform_ids", "case_attachments"].iter().all(|key| !document.contains_key(*key)));
        assert!(document.contains_key("indices"));
    }

    #[test]
    fn odd_case_json_is_empty_kept_or_an_error_that_names_the_case() {
        for empty in [json!(""), json!("  "), json!("null"), json!("{}"), Value::Null] {
            let mut rows = person();
            rows.case.insert("case_json".into(), empty.clone());
            assert_eq!(to_json(&rows, CaseOptions::default()).unwrap()["case_json"], json!({}), "{empty}");
        }
        let mut rows = person();
        rows.case.insert("case_json".into(), r#"{"a": "x\u0000y"}"#.into());
        assert_eq!(to_json(&rows, CaseOptions::default()).unwrap()["a"], "x\0y");
        for broken in ["{", "[]", "3", "{\"a\": NaN}"] {
            rows.case.insert("case_json".into(), broken.into());
            let error = to_json(&rows, CaseOptions::default()).unwrap_err();
            assert!(
                Chain(&error).to_string().starts_with("case c1: column case_json does not hold a JSON object"),
                "{broken}"
            );
            assert_eq!(error.code(), "document_broken_json");
        }
    }
}

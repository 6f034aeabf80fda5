//! `CommCareCase.to_json()`: dynamic properties, overlaid by columns, overlaid by related rows. A fixed key always wins; the property
//! that it hides stays visible in the nested `case_json`.
//!
//! One key is ours: where ledger values are read, `ledger_values` lists them as `LedgerValue.to_json()` shows each, by section and
//! entry. HQ keeps them apart from the case, and has no key for them. Like every fixed key it hides a property of its name.

use lake_shared::identity::Kind;
use serde_json::{Map, Value, json};

use super::{DocumentError, ReadDocument, cell, json_object, or_nothing};
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

/// Makes the document of one case.
///
/// # Errors
/// Where `case_json` is not a JSON object; the error names the case.
pub fn to_json(rows: &CaseRows, options: CaseOptions) -> Result<Map<String, Value>, DocumentError> {
    read(rows, options).whole()
}

/// The same without the properties where they cannot be read.
pub fn read(rows: &CaseRows, options: CaseOptions) -> ReadDocument {
    let case = &rows.case;
    let id = case.get("case_id").and_then(Value::as_str).unwrap_or_default();
    let mut unreadable = None;
    let properties = or_nothing(json_object(case.get("case_json"), Kind::Case, id, "case_json"), &mut unreadable);
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
    if let Some(values) = &rows.ledger_values {
        let location_id = cell(case, "location_id");
        document.insert("ledger_values".into(), values.iter().map(|value| ledger_json(value, &location_id)).collect());
    }
    document.insert("backend_id".into(), "sql".into());
    ReadDocument { members: document, unreadable }
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

/// `location_id` is that of the supply point, which is the case itself.
fn ledger_json(value: &Columns, location_id: &Value) -> Value {
    let part = |column| value.get(column).and_then(Value::as_str).unwrap_or_default();
    json!({
        "_id": format!("{}/{}/{}", part("case_id"), part("section_id"), part("entry_id")),
        "location_id": location_id,
        "case_id": cell(value, "case_id"),
        "domain": cell(value, "domain"),
        "entry_id": cell(value, "entry_id"),
        "section_id": cell(value, "section_id"),
        "balance": cell(value, "balance"),
        "last_modified": cell(value, "last_modified"),
        "last_modified_form_id": cell(value, "last_modified_form_id"),
        "daily_consumption": cell(value, "daily_consumption"),
    })
}

#[cfg(test)]
mod tests;

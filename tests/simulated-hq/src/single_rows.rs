//! Single rows of HQ's tables, made by hand: for tests that need an HQ with just these cases, forms, locations and users in it.
//!
//! Rows have the columns that the lake needs to read them, and no others. What [`crate::life`] makes has all of them.

use serde_json::{Value, json};

use crate::turn::{Mutation, Table};

/// When all cases and forms were last modified.
const MODIFIED_ON: &str = "2026-01-05T10:11:12.240000Z";

fn put(table: Table, row: Value) -> Mutation {
    Mutation::put(table, row)
}

/// A case of type `person`.
pub fn case(id: &str, domain: &str, deleted: bool) -> Mutation {
    let row = json!({"case_id": id, "domain": domain, "type": "person", "deleted": deleted,
        "server_modified_on": MODIFIED_ON, "case_json": "{}"});
    put(Table::Case, row)
}

/// A form; state 1 is live, 2 archived.
pub fn form(id: &str, domain: &str, state: i64) -> Mutation {
    let row = json!({"form_id": id, "domain": domain, "xmlns": "x", "state": state, "received_on": MODIFIED_ON});
    put(Table::Form, row)
}

/// Says under which key of the blob store the XML of a form is. A form has one.
pub fn form_xml(form_id: &str, key: &str) -> [Mutation; 2] {
    let row = json!({"parent_id": form_id, "name": "form.xml", "type_code": 2, "key": key, "content_length": 1});
    [remove_form_xml(form_id), put(Table::BlobMeta, row)]
}

/// HQ does not say any more where the XML of a form is.
pub fn remove_form_xml(form_id: &str) -> Mutation {
    Mutation::remove(Table::BlobMeta, json!({ "parent_id": form_id }))
}

/// A location type.
pub fn location_type(domain: &str, id: i64, name: &str) -> Mutation {
    put(Table::LocationType, json!({"id": id, "domain": domain, "name": name}))
}

/// A location of a type that is there already.
pub fn location(
    domain: &str,
    type_id: i64,
    id: i64,
    location_id: &str,
    name: &str,
    parent_id: Option<i64>,
) -> Mutation {
    let row = json!({"id": id, "domain": domain, "location_id": location_id, "location_type_id": type_id, "name": name,
        "site_code": "", "metadata": "{}", "last_modified": MODIFIED_ON, "parent_id": parent_id});
    put(Table::Location, row)
}

/// A mobile worker, at a location or nowhere.
pub fn user(id: &str, domain: &str, location_id: Option<&str>) -> Mutation {
    let membership = json!({"domain": domain, "location_id": location_id});
    Mutation::PutUser { document: json!({"_id": id, "base_doc": "CouchUser", "domain_membership": membership}) }
}

//! The fields of HQ's own tables that a document always has: what is left of one that is too large to be shown.

use std::fmt::{self, Formatter};

use lake_shared::identity::Kind;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

const CASE: &[&str] = &[
    "_id",
    "domain",
    "doc_type",
    "opened_on",
    "modified_on",
    "server_modified_on",
    "closed_on",
    "closed",
    "deleted",
    "user_id",
    "case_id",
    "name",
    "owner_id",
    "opened_by",
    "modified_by",
    "closed_by",
    "external_id",
    "location_id",
    "backend_id",
    "type",
];

const FORM: &[&str] = &[
    "_id",
    "domain",
    "doc_type",
    "server_modified_on",
    "received_on",
    "edited_on",
    "date_header",
    "partial_submission",
    "initial_processing_complete",
    "state",
    "app_id",
    "xmlns",
    "user_id",
    "orig_id",
    "deprecated_form_id",
    "submit_ip",
    "last_sync_token",
    "problem",
    "build_id",
    "backend_id",
];

const LOCATION: &[&str] = &[
    "_id",
    "domain",
    "doc_type",
    "last_modified",
    "archived_on",
    "is_archived",
    "latitude",
    "longitude",
    "name",
    "site_code",
    "location_id",
    "external_id",
    "location_type",
    "location_type_code",
    "parent_location_id",
];

/// Names of the fields; their values are texts, numbers and truth values, of a few hundred bytes at most but for a form's `problem`.
pub const fn names(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Case => CASE,
        Kind::Form => FORM,
        Kind::Location => LOCATION,
    }
}

/// These fields of a document alone, read from its JSON without holding the rest. No property, answer, history or list of related records
/// is among them. Of what is no JSON, those that come before that shows.
pub fn of(kind: Kind, document: &[u8]) -> Map<String, Value> {
    let mut own = Map::new();
    // Where the document breaks off, what was read before is as true as it was.
    let _ = serde_json::Deserializer::from_slice(document).deserialize_map(Own { kind, own: &mut own });
    own
}

struct Own<'o> {
    kind: Kind,
    own: &'o mut Map<String, Value>,
}

impl<'de> Visitor<'de> for Own<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str("a document")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while let Some(name) = members.next_key::<String>()? {
            if !names(self.kind).contains(&name.as_str()) {
                members.next_value::<IgnoredAny>()?;
                continue;
            }
            let value: Value = members.next_value()?;
            if !value.is_object() && !value.is_array() {
                self.own.insert(name, value);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn properties_answers_and_lists_are_left_out() {
        let case = json!({"photo": "x".repeat(100), "_id": "c", "name": null, "closed": true, "owner_id": {"odd": 1},
            "actions": [{"xform_id": "f"}], "case_json": {"photo": "x"}});
        let own = |kind, document: &str| Value::Object(of(kind, document.as_bytes()));
        assert_eq!(own(Kind::Case, &case.to_string()), json!({"_id": "c", "name": null, "closed": true}));
        let form = json!({"_id": "f", "form": {"a": "b"}, "state": 1, "history": [], "auth_context": {}});
        assert_eq!(own(Kind::Form, &form.to_string()), json!({"_id": "f", "state": 1}));
        assert_eq!(own(Kind::Form, r#"{"_id": "f", "a": "#), json!({"_id": "f"}));
    }
}

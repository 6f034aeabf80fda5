//! `SQLLocation.to_json()`, with the ids of all ancestors.

use lake_shared::identity::Kind;
use serde_json::{Map, Value, json};

use super::{DocumentError, ReadDocument, json_value};
use crate::source::LocationRow;
use crate::timestamp;

/// Makes the document of one location. `lineage`: ids of its ancestors, from the parent up to the root; [`crate::locations::AncestorPaths::above`]
/// says what belongs to it.
///
/// Custom fields that are no object (HQ's API takes any) are shown as they are.
///
/// # Errors
/// Where the custom fields are not JSON; the error names the location.
pub fn to_json(row: &LocationRow, lineage: &[&str]) -> Result<Map<String, Value>, DocumentError> {
    read(row, lineage).whole()
}

/// The same without the custom fields where they cannot be read.
pub fn read(row: &LocationRow, lineage: &[&str]) -> ReadDocument {
    let stored = Value::from(&*row.metadata);
    let (metadata, unreadable) = match json_value(Some(&stored), Kind::Location, &row.location_id, "metadata") {
        Ok(metadata) => (metadata, None),
        Err(error) => (Value::Object(Map::new()), Some(error)),
    };
    let members = [
        ("name", json!(row.name)),
        ("site_code", json!(row.site_code)),
        ("_id", json!(row.location_id)),
        ("location_id", json!(row.location_id)),
        ("doc_type", json!("Location")),
        ("domain", json!(row.domain)),
        ("external_id", json!(row.external_id)),
        ("is_archived", json!(row.is_archived)),
        ("archived_on", json!(row.archived_on_us.and_then(timestamp::format_naive_us))),
        ("last_modified", json!(timestamp::format_naive_us(row.last_modified_us))),
        ("latitude", json!(degrees(row.latitude))),
        ("longitude", json!(degrees(row.longitude))),
        ("metadata", metadata),
        ("location_type", json!(row.type_name)),
        ("location_type_code", json!(row.type_code)),
        ("parent_location_id", json!(lineage.first())),
        ("lineage", json!(lineage)),
    ];
    let members = members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    ReadDocument { members, unreadable }
}

/// HQ's `to_json()` makes null of 0.
fn degrees(value: Option<f64>) -> Option<f64> {
    value.filter(|degrees| *degrees != 0.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn row() -> LocationRow {
        LocationRow {
            id: 3,
            location_id: "v".into(),
            domain: "demo".into(),
            name: Some("Name of v".into()),
            type_name: "village".into(),
            type_code: Some("village".into()),
            site_code: "site_v".into(),
            parent_id: Some(2),
            last_modified_us: 1_767_607_872_000_000,
            ..LocationRow::default()
        }
    }

    #[test]
    fn the_document_is_the_one_hq_makes() {
        let village = LocationRow {
            external_id: Some("x".into()),
            metadata: r#"{"population": "12"}"#.into(),
            latitude: Some(12.5),
            longitude: Some(0.0),
            is_archived: true,
            archived_on_us: Some(1_767_607_872_000_001),
            ..row()
        };
        let expected = json!({
            "name": "Name of v", "site_code": "site_v", "_id": "v", "location_id": "v", "doc_type": "Location", "domain": "demo",
            "external_id": "x", "is_archived": true, "archived_on": "2026-01-05T10:11:12.000001",
            "last_modified": "2026-01-05T10:11:12", "latitude": 12.5, "longitude": null, "metadata": {"population": "12"},
            "location_type": "village", "location_type_code": "village", "parent_location_id": "d", "lineage": ["d", "s"]
        });
        assert_eq!(Value::Object(to_json(&village, &["d", "s"]).unwrap()), expected);
    }

    #[test]
    fn the_root_has_no_parent() {
        let document = to_json(&row(), &[]).unwrap();
        assert_eq!((&document["parent_location_id"], &document["lineage"]), (&Value::Null, &json!([])));
        assert_eq!((&document["archived_on"], &document["metadata"]), (&Value::Null, &json!({})));
    }

    /// What a script may have put there through HQ's API.
    #[test]
    fn metadata_is_read_as_python_reads_it() {
        for (stored, shown) in [
            (r#"{"catchment": NaN, "code": "7"}"#, json!({"catchment": "NaN", "code": "7"})),
            (r#"{"catchment": Infinity, "low": -Infinity}"#, json!({"catchment": "Infinity", "low": "-Infinity"})),
            (r#"{"registry_no": 123456789012345678901}"#, json!({"registry_no": "123456789012345678901"})),
            (
                r#"{"contact": {"tags": ["a"]}, "beds": 12, "": "e"}"#,
                json!({"contact": {"tags": ["a"]}, "beds": 12, "": "e"}),
            ),
            (r#"{"note": "a\u0000b"}"#, json!({"note": "a\0b"})),
            ("[]", json!({})),
            ("", json!({})),
            ("null", json!({})),
            (r#"["a", NaN]"#, json!(["a", "NaN"])),
            (r#""text""#, json!("text")),
        ] {
            let location = LocationRow { metadata: stored.into(), ..row() };
            assert_eq!(to_json(&location, &[]).unwrap()["metadata"], shown, "{stored}");
        }
    }

    #[test]
    fn broken_metadata_names_the_location() {
        let broken = LocationRow { metadata: "{1}".into(), ..row() };
        assert!(to_json(&broken, &[]).unwrap_err().to_string().starts_with("location v: column metadata"));
        let read = read(&broken, &["d"]);
        assert_eq!((&read.members["name"], &read.members["metadata"]), (&json!("Name of v"), &json!({})));
        assert_eq!(read.unreadable.unwrap().column, "metadata");
    }
}

//! `SQLLocation.to_json()`, with the ids of all ancestors.

use lake_shared::identity::Kind;
use serde_json::{Map, Value, json};

use super::{DocumentError, json_object};
use crate::source::LocationRow;
use crate::timestamp;

/// Makes the document of one location. `lineage`: ids of its ancestors, from the parent up to the root; [`crate::locations::AncestorPaths::above`]
/// says what belongs to it.
///
/// # Errors
/// Where the custom fields are not a JSON object; the error names the location.
pub fn to_json(row: &LocationRow, lineage: &[&str]) -> Result<Map<String, Value>, DocumentError> {
    let stored = Value::from(&*row.metadata);
    let metadata = json_object(Some(&stored), Kind::Location, &row.location_id, "metadata")?;
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
        ("metadata", Value::Object(metadata)),
        ("location_type", json!(row.type_name)),
        ("location_type_code", json!(row.type_code)),
        ("parent_location_id", json!(lineage.first())),
        ("lineage", json!(lineage)),
    ];
    Ok(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
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

    #[test]
    fn broken_metadata_names_the_location() {
        let broken = LocationRow { metadata: "[1]".into(), ..row() };
        assert!(to_json(&broken, &[]).unwrap_err().to_string().starts_with("location v: column metadata"));
    }
}

//! `SQLLocation.to_json()`, with the way up to the root.

use lake_shared::identity::Kind;
use serde_json::{Map, Value, json};

use super::{DocumentError, json_object};
use crate::locations::LocationTree;
use crate::timestamp;

/// Makes the document of one location of a tree; `None` where the tree has no such location. An error names the location.
pub fn to_json(tree: &LocationTree, location_id: &str) -> Result<Option<Map<String, Value>>, DocumentError> {
    let Some(path) = tree.ancestors_or_self(location_id) else { return Ok(None) };
    let Some((location, ancestors)) = path.split_last() else { return Ok(None) };
    let stored = Value::from(&*location.metadata);
    let metadata = json_object(Some(&stored), Kind::Location, location_id, "metadata")?;
    let lineage: Vec<&str> = ancestors.iter().rev().map(|ancestor| &*ancestor.location_id).collect();
    let document = json!({
        "name": location.name.as_deref(),
        "site_code": &*location.site_code,
        "_id": location_id,
        "location_id": location_id,
        "doc_type": "Location",
        "domain": tree.domain(),
        "external_id": location.external_id.as_deref(),
        "is_archived": location.is_archived,
        "archived_on": location.archived_on_us.and_then(timestamp::format_naive_us),
        "last_modified": timestamp::format_naive_us(location.last_modified_us),
        "latitude": degrees(location.latitude),
        "longitude": degrees(location.longitude),
        "metadata": metadata,
        "location_type": &*location.type_name,
        "location_type_code": location.type_code.as_deref(),
        "parent_location_id": lineage.first(),
        "lineage": lineage,
    });
    Ok(match document {
        Value::Object(document) => Some(document),
        _ => None,
    })
}

/// HQ's `to_json()` makes null of 0.
fn degrees(value: Option<f64>) -> Option<f64> {
    value.filter(|degrees| *degrees != 0.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::source::{LocationRow, LocationRows};

    fn row(id: i64, location_id: &str, type_name: &str, parent_id: Option<i64>) -> LocationRow {
        LocationRow {
            id,
            location_id: location_id.into(),
            domain: "demo".into(),
            name: Some(format!("Name of {location_id}")),
            type_name: type_name.into(),
            type_code: Some(type_name.to_lowercase()),
            site_code: format!("site_{location_id}"),
            parent_id,
            last_modified_us: 1_767_607_872_000_000,
            ..LocationRow::default()
        }
    }

    fn tree() -> LocationTree {
        let village = LocationRow {
            external_id: Some("x".into()),
            metadata: r#"{"population": "12"}"#.into(),
            latitude: Some(12.5),
            longitude: Some(0.0),
            is_archived: true,
            archived_on_us: Some(1_767_607_872_000_001),
            ..row(3, "v", "village", Some(2))
        };
        LocationTree::from_rows(LocationRows {
            observed_us: 1,
            rows: vec![village, row(1, "s", "State", None), row(2, "d", "District", Some(1))],
        })
    }

    #[test]
    fn the_document_is_the_one_hq_makes() {
        let expected = json!({
            "name": "Name of v", "site_code": "site_v", "_id": "v", "location_id": "v", "doc_type": "Location", "domain": "demo",
            "external_id": "x", "is_archived": true, "archived_on": "2026-01-05T10:11:12.000001",
            "last_modified": "2026-01-05T10:11:12", "latitude": 12.5, "longitude": null, "metadata": {"population": "12"},
            "location_type": "village", "location_type_code": "village", "parent_location_id": "d", "lineage": ["d", "s"]
        });
        assert_eq!(Value::Object(to_json(&tree(), "v").unwrap().unwrap()), expected);
    }

    #[test]
    fn the_root_has_no_parent_and_an_unknown_one_no_document() {
        let document = to_json(&tree(), "s").unwrap().unwrap();
        assert_eq!((&document["parent_location_id"], &document["lineage"]), (&Value::Null, &json!([])));
        assert_eq!((&document["archived_on"], &document["metadata"]), (&Value::Null, &json!({})));
        assert!(to_json(&tree(), "nowhere").unwrap().is_none());
    }

    #[test]
    fn broken_metadata_names_the_location() {
        let mut broken = row(1, "s", "State", None);
        broken.metadata = "[1]".into();
        let tree = LocationTree::from_rows(LocationRows { observed_us: 1, rows: vec![broken] });
        assert!(to_json(&tree, "s").unwrap_err().to_string().starts_with("location s: column metadata"));
    }
}

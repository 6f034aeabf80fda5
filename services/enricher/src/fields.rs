//! HQ's own fields, which are typed, and which names are taken. Everything that is not listed here is text.

use std::collections::HashSet;

use lake_shared::identity::Kind;

/// How a fixed field is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldType {
    /// Text as it is; an object becomes further columns.
    Text,
    /// JSON text of whatever it is; normally an array.
    JsonText,
    /// A date-time in UTC, in microseconds since 1970.
    Timestamp,
    /// A truth value.
    Boolean,
    /// A whole number of 64 bits, signed.
    Integer,
    /// A floating-point number of 64 bits.
    Double,
}

/// A field that HQ gives every document of a kind, as member of the document itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedField {
    /// Key in the document.
    pub name: &'static str,
    /// Its source path: `/` and the key.
    pub path: &'static str,
    /// How its values are kept.
    pub field_type: FieldType,
}

macro_rules! fields {
    ($($field_type:ident: $($name:literal)+;)+) => {
        &[$($(FixedField { name: $name, path: concat!("/", $name), field_type: FieldType::$field_type },)+)+]
    };
}

const CASE: &[FixedField] = fields! {
    Text: "_id" "domain" "doc_type";
    Timestamp: "opened_on" "modified_on" "server_modified_on" "closed_on";
    Boolean: "closed" "deleted";
    Text: "user_id" "case_id" "name" "owner_id" "opened_by" "modified_by" "closed_by" "external_id" "location_id" "backend_id";
    JsonText: "indices" "actions" "xform_ids";
};

const FORM: &[FixedField] = fields! {
    Text: "_id" "domain" "doc_type";
    Timestamp: "server_modified_on" "received_on" "edited_on" "date_header";
    Boolean: "partial_submission" "initial_processing_complete";
    Integer: "state";
    Text: "app_id" "xmlns" "user_id" "orig_id" "deprecated_form_id" "submit_ip" "last_sync_token" "problem" "build_id" "backend_id";
    JsonText: "history";
};

const LOCATION: &[FixedField] = fields! {
    Text: "_id" "domain" "doc_type";
    Timestamp: "last_modified" "archived_on";
    Boolean: "is_archived";
    Double: "latitude" "longitude";
    Text: "name" "site_code" "location_id" "external_id" "location_type" "location_type_code" "parent_location_id";
    JsonText: "lineage";
};

/// The fixed fields of a kind. The first three are `_id`, `domain`, `doc_type`.
pub const fn fixed(kind: Kind) -> &'static [FixedField] {
    match kind {
        Kind::Case => CASE,
        Kind::Form => FORM,
        Kind::Location => LOCATION,
    }
}

/// The fixed field with this key.
pub fn fixed_field(kind: Kind, key: &str) -> Option<&'static FixedField> {
    fixed(kind).iter().find(|field| field.name == key)
}

/// Keys that HQ itself puts into every live case, over a case property of the same name.
/// (`deleted_on` and `deletion_id` are not among them: HQ leaves them out of a live case.)
pub fn hides_case_property(key: &str) -> bool {
    matches!(key, "type" | "case_json" | "case_attachments") || fixed_field(Kind::Case, key).is_some()
}

/// Whether the lake can have a column of this name in any domain: what [`LakeColumnNames::contains`] says yes to, and more.
pub fn lake_may_take(name: &str) -> bool {
    matches!(name, "type" | "month") || name.ends_with("_id") || name.starts_with(LAKE_PREFIX)
}

/// Prefix of the lake's own lineage columns.
pub const LAKE_PREFIX: &str = "_lake_";

/// Names of columns that the lake adds to cases of one domain. A case property with such a name has no column at the top level.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LakeColumnNames {
    of_location_types: HashSet<Box<str>>,
}

impl LakeColumnNames {
    /// For a domain with location types that are known by these keys.
    pub fn of_location_types<'a>(keys: impl IntoIterator<Item = &'a str>) -> Self {
        Self { of_location_types: keys.into_iter().map(|key| format!("{key}_id").into()).collect() }
    }

    /// Whether the lake adds a column of this name.
    pub fn contains(&self, name: &str) -> bool {
        matches!(name, "type" | "month" | "supervisor_id")
            || name.starts_with(LAKE_PREFIX)
            || self.of_location_types.contains(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_lake_are_taken() {
        let names = LakeColumnNames::of_location_types(["district", "Health Post"]);
        for taken in ["month", "supervisor_id", "type", "district_id", "Health Post_id", "_lake_version", "_lake_"] {
            assert!(names.contains(taken) && lake_may_take(taken), "{taken}");
        }
        for free in ["district", "District_id", "state_id", "lake_version", "months", ""] {
            assert!(!names.contains(free), "{free}");
        }
    }

    #[test]
    fn every_kind_begins_with_the_identity() {
        for kind in Kind::ALL {
            let first: Vec<_> = fixed(kind).iter().take(3).map(|field| field.path).collect();
            assert_eq!(first, ["/_id", "/domain", "/doc_type"]);
        }
        assert!(hides_case_property("closed") && hides_case_property("case_json"));
        assert!(!hides_case_property("deleted_on") && !hides_case_property("village"));
    }
}

//! Documents into cells. Pure: what the columns of a document are and what stands in them, in no need of anything but the document,
//! its kind and the names that the lake takes for itself.
//!
//! String is the truth: apart from HQ's fixed fields every cell is text, so a value that changes its type never breaks a column.
//! Objects become more cells, arrays JSON text, `null` and `{}` no cell, `""` stays `""`. Each path occurs at most once.

use std::borrow::Cow;

use lake_shared::identity::Kind;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::fields::{self, FieldType, LakeColumnNames};
use crate::timestamp;

/// What to show of `case_json`, the second copy of a case's properties.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum CaseJson {
    /// Only properties that are not visible at the top level, because HQ or the lake has a column of that name.
    #[default]
    Hidden,
    /// All properties, those that are visible at the top level too.
    All,
    /// None: properties with a taken name are lost.
    None,
}

/// A value in a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell<'a> {
    /// Text; also an array, as its JSON.
    Text(Cow<'a, str>),
    /// UTC microseconds since 1970.
    Timestamp(i64),
    /// A truth value.
    Boolean(bool),
    /// A whole number of 64 bits.
    Integer(i64),
    /// A finite floating-point number of 64 bits.
    Double(f64),
}

/// How a document is flattened.
#[derive(Clone, Copy, Debug)]
pub struct Flattening<'a> {
    /// What the document is.
    pub kind: Kind,
    /// Names that are taken by the lake, in a case.
    pub lake_columns: &'a LakeColumnNames,
    /// What to show of `case_json`.
    pub case_json: CaseJson,
}

impl Flattening<'_> {
    /// Hands every cell of the document to `sink`, with its source path (an RFC 6901 pointer).
    pub fn cells<'d>(&self, document: &'d Map<String, Value>, mut sink: impl FnMut(&str, Cell<'d>)) {
        let mut path = String::with_capacity(128);
        for (key, value) in document {
            if self.is_left_out(key) {
                continue;
            }
            if let Some(field) = fields::fixed_field(self.kind, key) {
                match typed(field.field_type, value) {
                    Typed::Cell(cell) => sink(field.path, cell),
                    Typed::Null => {}
                    // A fixed text that is an object: more columns, as anywhere else.
                    Typed::Nested => below(&mut path, key, value, &mut sink),
                }
            } else if key == "case_json" && self.has_properties_twice() {
                self.case_json_cells(&mut path, value, &mut sink);
            } else {
                below(&mut path, key, value, &mut sink);
            }
        }
    }

    /// Members of the document that have no cell of their own name.
    fn is_left_out(&self, key: &str) -> bool {
        // Only a case has free names at its top level. HQ's own fields stay, whatever a location type is called
        // (`user` would take `user_id`); only HQ's `type` is the lake's `+type`.
        match self.kind {
            Kind::Case => self.lake_columns.contains(key) && (key == "type" || !fields::hides_case_property(key)),
            Kind::Form | Kind::Location => false,
        }
    }

    /// Whether the document's free members stand in `case_json` a second time.
    fn has_properties_twice(&self) -> bool {
        match self.kind {
            Kind::Case => true,
            Kind::Form | Kind::Location => false,
        }
    }

    fn case_json_cells<'d>(&self, path: &mut String, properties: &'d Value, sink: &mut impl FnMut(&str, Cell<'d>)) {
        let Value::Object(properties) = properties else { return };
        if self.case_json == CaseJson::None {
            return;
        }
        path.push_str("/case_json");
        for (name, value) in properties {
            let hidden = || fields::hides_case_property(name) || self.lake_columns.contains(name);
            if self.case_json == CaseJson::All || hidden() {
                below(path, name, value, sink);
            }
        }
        path.clear();
    }
}

/// How many cells the document may have at most, cheaply.
pub fn cells_max(document: &Map<String, Value>) -> usize {
    fn count(value: &Value) -> usize {
        match value {
            Value::Null => 0,
            Value::Object(members) => members.values().map(count).sum(),
            _ => 1,
        }
    }
    document.values().map(count).sum()
}

/// The cells of a member. Recursion is bounded by [`crate::document::DEPTH_MAX`].
fn below<'d>(path: &mut String, key: &str, value: &'d Value, sink: &mut impl FnMut(&str, Cell<'d>)) {
    if value.is_null() {
        return;
    }
    let parent_length = path.len();
    push_token(path, key);
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                below(path, key, value, sink);
            }
        }
        scalar_or_array => {
            if let Some(text) = text(scalar_or_array) {
                sink(path, Cell::Text(text));
            }
        }
    }
    path.truncate(parent_length);
}

/// Appends `/` and the key, escaped as RFC 6901 wants it.
fn push_token(path: &mut String, key: &str) {
    path.push('/');
    if !key.contains(['~', '/']) {
        return path.push_str(key);
    }
    for character in key.chars() {
        match character {
            '~' => path.push_str("~0"),
            '/' => path.push_str("~1"),
            other => path.push(other),
        }
    }
}

/// The text of a value: a string as it is, `true`, a number or an array as JSON, `None` for null.
pub(crate) fn text(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Bool(true) => Some(Cow::Borrowed("true")),
        Value::Bool(false) => Some(Cow::Borrowed("false")),
        other => Some(Cow::Owned(other.to_string())),
    }
}

enum Typed<'d> {
    Cell(Cell<'d>),
    Null,
    Nested,
}

fn typed(field_type: FieldType, value: &Value) -> Typed<'_> {
    let as_text = value.as_str();
    let cell = match field_type {
        FieldType::Text if value.is_object() => return Typed::Nested,
        FieldType::Text => text(value).map(Cell::Text),
        FieldType::JsonText if value.is_null() => None,
        FieldType::JsonText => Some(Cell::Text(Cow::Owned(value.to_string()))),
        FieldType::Timestamp => as_text.and_then(timestamp::micros).map(Cell::Timestamp),
        FieldType::Boolean => value.as_bool().or_else(|| as_text?.parse().ok()).map(Cell::Boolean),
        FieldType::Integer => value.as_i64().or_else(|| as_text?.parse().ok()).map(Cell::Integer),
        FieldType::Double => {
            let number = value.as_f64().or_else(|| as_text?.parse().ok());
            number.filter(|number| number.is_finite()).map(Cell::Double)
        }
    };
    cell.map_or(Typed::Null, Typed::Cell)
}

#[cfg(test)]
mod tests;

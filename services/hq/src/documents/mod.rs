//! The documents that HQ's own `to_json()` makes of rows. Pure: rows in, JSON out, the same for every adapter.
//!
//! Where a row cannot be shown as HQ shows it, this is what is done:
//!
//! * Half of a surrogate pair in a JSON column (`\ud800`; Python takes it, UTF-8 cannot hold it) becomes U+FFFD, and the record stays.
//! * U+0000 (`\u0000`, possible through HQ's API) stays: JSON, Arrow and Parquet hold it.
//! * Numbers that Python reads and 64 bits do not hold (`NaN`, `Infinity`, `1e400`, thirty digits) become text, and so do levels beyond the ninetieth.
//! * A JSON column that Python cannot read, or that is no object where HQ needs one, makes the record incomplete: it goes to quarantine, and
//!   its row shows HQ's other columns.

pub mod case;
pub mod form;
mod json_column;
pub mod location;
pub mod own_fields;

use lake_shared::identity::Kind;
use serde_json::{Map, Value};

use self::json_column::parse;

/// A row whose JSON column cannot be read. It stays unreadable until an operator repairs the row: quarantine it.
#[derive(Debug, thiserror::Error)]
#[error(
    "{kind} {id}: column {column} does not hold a JSON object; repair the row in HQ, then `lakectl quarantine replay --id {id}`"
)]
pub struct DocumentError {
    /// What the document is.
    pub kind: Kind,
    /// Id of the document.
    pub id: String,
    /// The column, for example `case_json`.
    pub column: &'static str,
    /// What the parser says; `None` where it is JSON but not an object.
    #[source]
    pub source: Option<serde_json::Error>,
}

/// What can be read of a document.
#[derive(Debug)]
pub struct ReadDocument {
    /// The document; where something is unreadable, without what the column says.
    pub members: Map<String, Value>,
    /// The first column that cannot be read.
    pub unreadable: Option<DocumentError>,
}

impl ReadDocument {
    fn whole(self) -> Result<Map<String, Value>, DocumentError> {
        self.unreadable.map_or(Ok(self.members), Err)
    }
}

/// What was read of a column; where that failed, nothing, and the error is noted unless another one was before.
fn or_nothing(
    read: Result<Map<String, Value>, DocumentError>,
    unreadable: &mut Option<DocumentError>,
) -> Map<String, Value> {
    read.unwrap_or_else(|error| {
        unreadable.get_or_insert(error);
        Map::new()
    })
}

/// Reads a JSON column. HQ keeps them as text; nothing, an empty text, `null` and an empty list count as `{}`.
fn json_value(stored: Option<&Value>, kind: Kind, id: &str, column: &'static str) -> Result<Value, DocumentError> {
    let parsed = match stored {
        None | Some(Value::Null) => Value::Null,
        Some(Value::String(text)) if text.trim().is_empty() => Value::Null,
        Some(Value::String(text)) => {
            parse(text).map_err(|source| DocumentError { kind, id: id.to_owned(), column, source: Some(source) })?
        }
        Some(other) => other.clone(),
    };
    let is_nothing = parsed.is_null() || parsed.as_array().is_some_and(Vec::is_empty);
    Ok(if is_nothing { Value::Object(Map::new()) } else { parsed })
}

/// The same for a column that has to be an object.
fn json_object(
    stored: Option<&Value>,
    kind: Kind,
    id: &str,
    column: &'static str,
) -> Result<Map<String, Value>, DocumentError> {
    match json_value(stored, kind, id, column)? {
        Value::Object(object) => Ok(object),
        _ => Err(DocumentError { kind, id: id.to_owned(), column, source: None }),
    }
}

/// The value of a column; null where there is no such column.
fn cell(row: &Map<String, Value>, column: &str) -> Value {
    row.get(column).cloned().unwrap_or(Value::Null)
}

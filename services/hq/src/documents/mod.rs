//! The documents that HQ's own `to_json()` makes of rows. Pure: rows in, JSON out, the same for every adapter.
//!
//! Where a row cannot be shown as HQ shows it, this is what is done:
//!
//! * Half of a surrogate pair in a JSON column (`\ud800`; Python takes it, UTF-8 cannot hold it) becomes U+FFFD, and the record stays.
//! * U+0000 (`\u0000`, possible through HQ's API) stays: JSON, Arrow and Parquet hold it.
//! * A record with a JSON column that is no JSON object for HQ either goes to quarantine.

pub mod case;
pub mod form;
mod json_column;
pub mod location;

use lake_shared::identity::Kind;
use serde_json::{Map, Value};

use self::json_column::parse;

/// A row whose JSON column cannot be read. It stays unreadable until an operator repairs the row: quarantine it.
#[derive(Debug, thiserror::Error)]
#[error("{kind} {id}: column {column} does not hold a JSON object; repair the row in HQ and replay the id")]
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

/// Reads a JSON column. HQ keeps them as text; nothing, an empty text and `null` count as `{}`.
fn json_object(
    stored: Option<&Value>,
    kind: Kind,
    id: &str,
    column: &'static str,
) -> Result<Map<String, Value>, DocumentError> {
    let error = |source| DocumentError { kind, id: id.to_owned(), column, source };
    let parsed = match stored {
        None | Some(Value::Null) => Value::Null,
        Some(Value::String(text)) if text.trim().is_empty() => Value::Null,
        Some(Value::String(text)) => parse(text).map_err(|source| error(Some(source)))?,
        Some(other) => other.clone(),
    };
    match parsed {
        Value::Null => Ok(Map::new()),
        Value::Object(object) => Ok(object),
        _ => Err(error(None)),
    }
}

/// The value of a column; null where there is no such column.
fn cell(row: &Map<String, Value>, column: &str) -> Value {
    row.get(column).cloned().unwrap_or(Value::Null)
}

//! Rows for the engine: what a test says about them, and the record batches that the enricher would make of that.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::Date32Type;
use arrow::record_batch::RecordBatch;
use chrono::{DateTime, NaiveDate};
use lake_proto::queue::v1::Tombstone;
use lake_shared::identity::{Kind, Space, TableKey};

/// A value of a field.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Text.
    Text(String),
    /// A whole number.
    Number(i64),
    /// A day.
    Date(NaiveDate),
    /// A moment, microseconds since 1970.
    Moment(i64),
    /// A number with a fraction.
    Real(f64),
    /// True or false.
    Truth(bool),
}

impl Cell {
    /// The value as readers show it, whether its column has its type or is text.
    pub fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => number.to_string(),
            Self::Date(date) => date.to_string(),
            Self::Moment(micros) => {
                let moment = DateTime::from_timestamp_micros(*micros).unwrap_or_default();
                moment.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
            }
            Self::Real(real) => format!("{real:?}"),
            Self::Truth(truth) => truth.to_string(),
        }
    }
}

/// A row to be stored.
#[derive(Clone, Debug)]
pub struct NewRow {
    /// Id of the record, the column `_id`.
    pub id: String,
    /// Version: HQ's time of modification, microseconds since 1970.
    pub version_us: i64,
    /// HQ's clock when the record was read, microseconds since 1970.
    pub observed_us: i64,
    /// Source path to value.
    pub cells: BTreeMap<String, Cell>,
}

/// A row of texts, observed at the moment of its version.
pub fn new_row(id: &str, version_us: i64, cells: &[(&str, &str)]) -> NewRow {
    let cells = cells.iter().map(|(source, text)| ((*source).to_owned(), Cell::Text((*text).to_owned()))).collect();
    NewRow { id: id.into(), version_us, observed_us: version_us, cells }
}

/// Rows of numbered ids, spread over twelve months and seven supervisors.
pub fn numbered(ids: impl IntoIterator<Item = usize>, version_us: i64) -> Vec<NewRow> {
    let row = |n: usize| {
        let (month, supervisor) = (format!("2024-{:02}-01", n % 12 + 1), format!("s{}", n % 7));
        let text = format!("{n} at {version_us}");
        let cells = [("+month", month.as_str()), ("+supervisor_id", &supervisor), ("/text", &text)];
        new_row(&numbered_id(n), version_us, &cells)
    };
    ids.into_iter().map(row).collect()
}

/// The id of a numbered row.
pub fn numbered_id(n: usize) -> String {
    format!("id-{n:05}")
}

/// One record batch of rows, under their source paths. A field whose values are all of one kind gets that type, any
/// other is text.
///
/// # Panics
/// Never: all columns have one value a row.
pub fn record_batch(rows: &[NewRow]) -> RecordBatch {
    let ids: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    let versions = Int64Array::from_iter_values(rows.iter().map(|row| row.version_us));
    let instants = |of: fn(&NewRow) -> i64| -> ArrayRef {
        let instants: Vec<i64> = rows.iter().map(of).collect();
        Arc::new(TimestampMicrosecondArray::from(instants).with_timezone("UTC"))
    };
    let mut columns: Vec<(&str, ArrayRef)> = vec![
        ("+_lake_observed_at", instants(|row| row.observed_us)),
        // A test that wants to tell it from the observation sets a greater version.
        ("+_lake_published_at", instants(|row| row.observed_us.max(row.version_us))),
        ("+_lake_version", Arc::new(versions)),
        ("/_id", Arc::new(StringArray::from(ids))),
    ];
    let mut sources: Vec<&str> = rows.iter().flat_map(|row| row.cells.keys()).map(String::as_str).collect();
    sources.sort_unstable();
    sources.dedup();
    for source in sources {
        columns.push((source, array(rows.iter().map(|row| row.cells.get(source)).collect())));
    }
    let columns = columns.into_iter().map(|(name, array)| (name, array, true));
    RecordBatch::try_from_iter_with_nullable(columns).expect("columns of one length")
}

fn array(cells: Vec<Option<&Cell>>) -> ArrayRef {
    let all = |is: fn(&Cell) -> bool| cells.iter().flatten().all(|cell| is(cell));
    if all(|cell| matches!(cell, Cell::Number(_))) {
        let number = |cell: &Cell| if let Cell::Number(number) = cell { Some(*number) } else { None };
        return Arc::new(cells.iter().map(|cell| cell.and_then(number)).collect::<Int64Array>());
    }
    if all(|cell| matches!(cell, Cell::Date(_))) {
        let day =
            |cell: &Cell| if let Cell::Date(date) = cell { Some(Date32Type::from_naive_date(*date)) } else { None };
        return Arc::new(cells.iter().map(|cell| cell.and_then(day)).collect::<Date32Array>());
    }
    if all(|cell| matches!(cell, Cell::Moment(_))) {
        let micros = |cell: &Cell| if let Cell::Moment(micros) = cell { Some(*micros) } else { None };
        let moments: TimestampMicrosecondArray = cells.iter().map(|cell| cell.and_then(micros)).collect();
        return Arc::new(moments.with_timezone("UTC"));
    }
    if all(|cell| matches!(cell, Cell::Real(_))) {
        let real = |cell: &Cell| if let Cell::Real(real) = cell { Some(*real) } else { None };
        return Arc::new(cells.iter().map(|cell| cell.and_then(real)).collect::<Float64Array>());
    }
    if all(|cell| matches!(cell, Cell::Truth(_))) {
        let truth = |cell: &Cell| if let Cell::Truth(truth) = cell { Some(*truth) } else { None };
        return Arc::new(cells.iter().map(|cell| cell.and_then(truth)).collect::<BooleanArray>());
    }
    Arc::new(cells.into_iter().map(|cell| cell.map(Cell::text)).collect::<StringArray>())
}

/// Texts that must be escaped in paths, and some that only look like it.
pub const ODD_TEXTS: [&str; 22] = [
    "a/b",
    "a b",
    "100%",
    "%2F",
    "a=b",
    "ü",
    "घर",
    "\u{1f600}",
    "..",
    ".",
    "a\\b",
    "a\nb",
    "'",
    "\"",
    "*",
    "plain",
    "Plain",
    "PLAIN",
    " ",
    "~",
    "x?y#z",
    "a:b",
];

/// A tombstone: the id has left.
pub fn tombstone(id: &str, version_us: Option<i64>, observed_us: i64) -> Tombstone {
    Tombstone { id: id.into(), version_us, observed_us, reason: "test".into(), lineage: None }
}

/// The space that all rows are for. Its domain must be escaped in paths.
pub fn space() -> Space {
    Space { domain: "demo.space/..".into(), kind: Kind::Case }
}

/// The key of a table of that space.
pub fn table(document_type: &str) -> TableKey {
    TableKey { space: space(), document_type: document_type.into() }
}

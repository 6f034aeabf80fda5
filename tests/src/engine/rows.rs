//! Rows for the engine, and the same rows for whoever else is to store them.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::Date32Type;
use arrow::record_batch::RecordBatch;
use chrono::{DateTime, NaiveDate};
use lake_proto::queue::v1::Tombstone;
use lake_writer::table_store::{SpaceBatch, TableRows};
use parquet::arrow::ArrowWriter;

use super::space;

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
    /// Its id.
    pub id: String,
    /// Version, microseconds.
    pub version_us: i64,
    /// When it was observed, microseconds.
    pub observed_us: i64,
    /// Source path to value.
    pub cells: BTreeMap<String, Cell>,
}

/// One record batch of rows, under their source paths. A field whose values are all of one kind gets that type, any
/// other is text.
///
/// # Errors
/// When the arrays do not make a batch, which would be an error in this function.
pub fn record_batch(rows: &[NewRow]) -> anyhow::Result<RecordBatch> {
    let ids: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    let versions = Int64Array::from_iter_values(rows.iter().map(|row| row.version_us));
    let observed: Vec<i64> = rows.iter().map(|row| row.observed_us).collect();
    let observed: ArrayRef = Arc::new(TimestampMicrosecondArray::from(observed).with_timezone("UTC"));
    let mut columns: Vec<(&str, ArrayRef)> = vec![
        ("+_lake_observed_at", Arc::clone(&observed)),
        ("+_lake_published_at", observed),
        ("+_lake_version", Arc::new(versions)),
        ("/_id", Arc::new(StringArray::from(ids))),
    ];
    let mut sources: Vec<&str> = rows.iter().flat_map(|row| row.cells.keys()).map(String::as_str).collect();
    sources.sort_unstable();
    sources.dedup();
    for source in sources {
        columns.push((source, array(rows.iter().map(|row| row.cells.get(source)).collect())));
    }
    Ok(RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true)))?)
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

/// Rows by type, one record batch each, and tombstones.
///
/// # Errors
/// As [`record_batch`].
pub fn batch(rows: &[(&str, Vec<NewRow>)], tombstones: Vec<Tombstone>) -> anyhow::Result<SpaceBatch> {
    let mut upserts = Vec::with_capacity(rows.len());
    for (document_type, rows) in rows {
        upserts.push(TableRows { document_type: (*document_type).into(), rows: vec![record_batch(rows)?] });
    }
    Ok(SpaceBatch { space: space(), upserts, tombstones })
}

/// Word that an id has left.
pub fn tombstone(id: &str, version_us: Option<i64>, observed_us: i64) -> Tombstone {
    Tombstone { id: id.into(), version_us, observed_us, reason: "test".into(), lineage: None }
}

/// Writes rows to a parquet file, under the names that the lake gives to their columns, for a stranger to store. With `leaving`, a column
/// `__deleted` tells the ids that leave from the rows that enter.
///
/// # Errors
/// When the file cannot be written.
pub fn write_parquet(
    file: &Path,
    rows: &[NewRow],
    leaving: Option<&[String]>,
    name_of: impl Fn(&str) -> String,
) -> anyhow::Result<()> {
    let mut all = rows.to_vec();
    let gone = |id: &String| NewRow { id: id.clone(), version_us: 0, observed_us: 0, cells: BTreeMap::new() };
    all.extend(leaving.iter().flat_map(|ids| ids.iter()).map(gone));
    let named = record_batch(&all)?;
    let fields = named.schema_ref().fields().iter().map(|field| name_of(field.name()));
    let mut columns: Vec<(String, ArrayRef)> = fields.zip(named.columns().iter().cloned()).collect();
    if leaving.is_some() {
        let deleted: BooleanArray = (0..all.len()).map(|row| Some(row >= rows.len())).collect();
        columns.push(("__deleted".to_owned(), Arc::new(deleted)));
    }
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true)))?;
    let mut writer = ArrowWriter::try_new(File::create(file)?, batch.schema(), None)?;
    writer.write(&batch)?;
    writer.close()?;
    Ok(())
}

//! Batches of rows for the engine, and the same rows in a file for another program that stores them.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray};
use arrow::record_batch::RecordBatch;
use lake_proto::queue::v1::Tombstone;
use lake_test_kit::rows::{NewRow, record_batch, space};
use lake_writer::table_store::{SpaceBatch, TableRows};
use parquet::arrow::ArrowWriter;

/// Rows by type, one record batch each, and tombstones.
pub fn batch(rows: &[(&str, Vec<NewRow>)], tombstones: Vec<Tombstone>) -> SpaceBatch {
    let upserts = rows.iter().map(|(document_type, rows)| TableRows {
        document_type: (*document_type).into(),
        rows: vec![record_batch(rows)],
    });
    SpaceBatch { space: space(), upserts: upserts.collect(), tombstones }
}

/// Writes rows to a parquet file, under the names that the lake gives to their columns, for another program to store. With `leaving`, a column
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
    let named = record_batch(&all);
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

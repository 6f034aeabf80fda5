//! The rows that enter a table, brought into its schema.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringBuilder, TimestampMicrosecondArray, UInt32Array};
use arrow::compute::{max, take_record_batch};
use arrow::datatypes::{DataType, SchemaRef, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use serde_json::{Map, Value};

use super::EngineError;
use super::batch::Entering;
use super::files::aligned;
use crate::key_index::IdHash;
use crate::table_store::TableRows;
use crate::table_store::conversion::{ColumnType, column_type, converted};
use crate::table_store::order_guard::RowOrder;
use crate::table_store::schema_plan::{
    ArrivingField, COMMITTED_SOURCE, Column, OVERFLOW_SOURCE, SchemaPlan, TableSchema,
};

const PUBLISHED_SOURCE: &str = "+_lake_published_at";
const FETCHED_SOURCE: &str = "+_lake_fetched_at";

/// The chosen rows of one table, still under their source paths.
#[derive(Debug, Default)]
pub(super) struct Arriving {
    batches: Vec<RecordBatch>,
    /// Ids and orders, in the order of the rows.
    pub(super) keys: Vec<(IdHash, RowOrder)>,
    freshness: (Option<i64>, Option<i64>),
}

impl Arriving {
    /// Takes the entering rows out of their batches.
    pub(super) fn of(rows: &TableRows, entering: &[Entering]) -> Result<Self, EngineError> {
        let mut by_batch: Vec<Vec<&Entering>> = vec![Vec::new(); rows.rows.len()];
        for row in entering {
            by_batch[row.at.batch].push(row);
        }
        let mut arriving = Self::default();
        for (batch, chosen) in rows.rows.iter().zip(by_batch) {
            if chosen.is_empty() {
                continue;
            }
            let positions = UInt32Array::from_iter_values(chosen.iter().map(|row| row.at.row as u32));
            arriving.batches.push(take_record_batch(batch, &positions).map_err(EngineError::arrow)?);
            arriving.keys.extend(chosen.iter().map(|row| (row.id, row.at.order)));
        }
        arriving.freshness = arriving.newest();
        Ok(arriving)
    }

    /// Number of rows.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The fields over all batches, in order of arrival, and whether each fits its column.
    pub(super) fn fields(&self, table: &TableSchema) -> Result<Vec<ArrivingField>, EngineError> {
        let mut order: Vec<&str> = Vec::new();
        let mut arrays: HashMap<&str, Vec<&ArrayRef>> = HashMap::new();
        for batch in &self.batches {
            for (field, array) in batch.schema_ref().fields().iter().zip(batch.columns()) {
                // An array without a type says nothing about its column.
                if field.data_type() == &DataType::Null {
                    continue;
                }
                let held = arrays.entry(source_in(batch, field.name())).or_default();
                if held.is_empty() {
                    order.push(source_in(batch, field.name()));
                }
                held.push(array);
            }
        }
        let mut fields = Vec::with_capacity(order.len() + 1);
        for source in order {
            let arrays = &arrays[source];
            let arrived = column_type(arrays[0].data_type()).ok_or_else(|| {
                EngineError::BadRows(format!(
                    "field {source} has type {}, which no column takes",
                    arrays[0].data_type()
                ))
            })?;
            let existing = table.column(source).map(|column| column.column_type);
            let target = existing.unwrap_or(arrived);
            let fits = arrays.iter().all(|array| converted(array, target).is_some());
            let column_type = if fits || existing.is_some() { arrived } else { ColumnType::String };
            fields.push(ArrivingField { source: source.to_owned(), column_type, fits });
        }
        fields.push(ArrivingField {
            source: COMMITTED_SOURCE.to_owned(),
            column_type: ColumnType::Timestamp,
            fits: true,
        });
        Ok(fields)
    }

    /// The batches under the names and in the types of the columns.
    pub(super) fn aligned(
        &self,
        schema: &SchemaRef,
        columns: &[&Column],
        plan: &SchemaPlan,
        committed_us: i64,
    ) -> Result<Vec<RecordBatch>, EngineError> {
        let align = |batch: &RecordBatch| {
            let rows = batch.num_rows();
            let overflow = overflow(batch, plan);
            aligned(schema, columns, rows, |column| match column.source.as_str() {
                COMMITTED_SOURCE => {
                    Some(Arc::new(TimestampMicrosecondArray::from_value(committed_us, rows).with_timezone("UTC"))
                        as ArrayRef)
                }
                OVERFLOW_SOURCE => overflow.clone(),
                source => batch.column_by_name(source).cloned(),
            })
        };
        self.batches.iter().map(align).collect()
    }

    /// Gives the memory of the rows back, once they are stored. Keys and freshness stay.
    pub(super) fn release(&mut self) {
        self.batches = Vec::new();
    }

    /// Newest publish and fetch times among the rows, microseconds.
    pub(super) fn freshness(&self) -> (Option<i64>, Option<i64>) {
        self.freshness
    }

    fn newest(&self) -> (Option<i64>, Option<i64>) {
        let newest = |source: &str| {
            let arrays = self.batches.iter().filter_map(|batch| batch.column_by_name(source));
            let arrays = arrays.filter_map(|array| converted(array, ColumnType::Timestamp));
            arrays.filter_map(|array| max(array.as_primitive::<TimestampMicrosecondType>())).max()
        };
        (newest(PUBLISHED_SOURCE), newest(FETCHED_SOURCE))
    }
}

/// The field's name as borrowed from the batch, whose schema outlives the loop variable.
fn source_in<'batch>(batch: &'batch RecordBatch, name: &str) -> &'batch str {
    batch.schema_ref().fields().find(name).map_or("", |(_, field)| field.name())
}

/// One JSON object per row of what has no column of its own; NULL for a row with nothing of it.
fn overflow(batch: &RecordBatch, plan: &SchemaPlan) -> Option<ArrayRef> {
    let fields = batch.schema_ref().fields().iter().zip(batch.columns());
    let texts: Vec<(&str, ArrayRef)> = fields
        .filter(|(field, _)| plan.overflow.contains(field.name()))
        .filter_map(|(field, array)| Some((field.name().as_str(), converted(array, ColumnType::String)?)))
        .collect();
    if texts.is_empty() {
        return None;
    }
    let mut objects = StringBuilder::new();
    for row in 0..batch.num_rows() {
        let values = texts.iter().filter(|(_, array)| array.is_valid(row));
        let object: Map<String, Value> = values
            .map(|(source, array)| {
                ((*source).to_owned(), Value::String(array.as_string::<i32>().value(row).to_owned()))
            })
            .collect();
        objects.append_option((!object.is_empty()).then(|| Value::Object(object).to_string()));
    }
    Some(Arc::new(objects.finish()))
}

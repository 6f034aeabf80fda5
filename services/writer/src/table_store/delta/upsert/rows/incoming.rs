//! The rows that enter a table: which they are, what fields they have, and their values under the columns of the table.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, StringBuilder};
use arrow::compute::nullif;
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use serde_json::{Map, Value};

use crate::key_index::IdHash;
use crate::order_guard::RowOrder;
use crate::table_store::TableRows;
use crate::table_store::conversion::{ColumnType, column_type, converted};
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::space::table::Freshness;
use crate::table_store::delta::upsert::plan::decide::Upsert;
use crate::table_store::delta::upsert::rows::column_values::{RowPlace, Sources};
use crate::table_store::schema_plan::{
    COMMITTED_SOURCE, Column, IncomingField, OVERFLOW_SOURCE, SchemaPlan, TableSchema,
};

const PUBLISHED_SOURCE: &str = "+_lake_published_at";
const FETCHED_SOURCE: &str = "+_lake_fetched_at";

/// The chosen rows of one table, still in the batches that they came in and under their source paths.
#[derive(Debug, Default)]
pub(crate) struct IncomingRows {
    /// Those with chosen rows. Whatever else is in them is not looked at.
    batches: Vec<RecordBatch>,
    /// Where the chosen rows stand, batch after batch.
    pub(crate) places: Vec<RowPlace>,
    /// Ids and orders, in the order of the rows.
    pub(crate) keys: Vec<(IdHash, RowOrder)>,
    freshness: Freshness,
    /// When HQ published the changes that the rows are of, microseconds since 1970, of those that say it.
    published_us: Vec<i64>,
}

impl IncomingRows {
    /// The rows that enter, in their batches.
    pub(crate) fn of(rows: &TableRows, upserts: &[Upsert]) -> Self {
        let mut by_batch: Vec<Vec<&Upsert>> = vec![Vec::new(); rows.rows.len()];
        for row in upserts {
            by_batch[row.at.batch].push(row);
        }
        let mut incoming = Self::default();
        for (batch, chosen) in rows.rows.iter().zip(by_batch).filter(|(_, chosen)| !chosen.is_empty()) {
            let number = incoming.batches.len();
            incoming.batches.push(batch.clone());
            incoming.places.extend(chosen.iter().map(|row| (number, row.at.row)));
            incoming.keys.extend(chosen.iter().map(|row| (row.id, row.at.order)));
        }
        incoming.published_us = incoming.instants(PUBLISHED_SOURCE);
        incoming.freshness = Freshness {
            newest_published_us: incoming.published_us.iter().copied().max(),
            newest_fetched_us: incoming.instants(FETCHED_SOURCE).into_iter().max(),
        };
        incoming
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The share of the chosen rows in a figure about all rows of the batches.
    pub(crate) fn share_of(&self, total: usize) -> usize {
        let rows: usize = self.batches.iter().map(RecordBatch::num_rows).sum();
        (total as u128 * self.len() as u128 / rows.max(1) as u128) as usize
    }

    /// The fields over all batches, in order of arrival, and whether each fits its column.
    pub(crate) fn fields(&self, table: &TableSchema) -> Result<Vec<IncomingField>, EngineError> {
        let existing: HashMap<&str, ColumnType> =
            table.columns.iter().map(|column| (column.source.as_str(), column.column_type)).collect();
        let mut order: Vec<&str> = Vec::new();
        let mut arrays: HashMap<&str, Vec<(usize, &ArrayRef)>> = HashMap::new();
        for (number, batch) in self.batches.iter().enumerate() {
            for (source, array) in typed_fields(batch) {
                let held = arrays.entry(source).or_default();
                if held.is_empty() {
                    order.push(source);
                }
                held.push((number, array));
            }
        }
        let mut fields = Vec::with_capacity(order.len() + 1);
        for source in order {
            let arrays = &arrays[source];
            let first = arrays[0].1.data_type();
            let arrived = column_type(first).ok_or_else(|| {
                EngineError::BadRows(format!("field {source} has type {first}, which no column takes"))
            })?;
            let existing = existing.get(source).copied();
            let target = existing.unwrap_or(arrived);
            let fits = arrays.iter().all(|(number, array)| self.fitted(*number, array, target).is_some());
            let column_type = if fits || existing.is_some() { arrived } else { ColumnType::String };
            fields.push(IncomingField { source: source.to_owned(), column_type, fits });
        }
        fields.push(IncomingField {
            source: COMMITTED_SOURCE.to_owned(),
            column_type: ColumnType::Timestamp,
            fits: true,
        });
        Ok(fields)
    }

    /// The values for these columns, in their types.
    pub(crate) fn sources(
        &self,
        columns: &[&Column],
        plan: &SchemaPlan,
        committed_us: i64,
    ) -> Result<Sources, EngineError> {
        let types: HashMap<&str, ColumnType> =
            columns.iter().map(|column| (column.source.as_str(), column.column_type)).collect();
        let rows_max = self.batches.iter().map(RecordBatch::num_rows).max().unwrap_or_default();
        let mut sources = Sources::new(rows_max, committed_us);
        for (number, batch) in self.batches.iter().enumerate() {
            let arrays =
                typed_fields(batch).filter(|(source, _)| ![COMMITTED_SOURCE, OVERFLOW_SOURCE].contains(source));
            for (source, array) in arrays {
                let Some(column_type) = types.get(source) else { continue };
                let fitted = self.fitted(number, array, *column_type).ok_or_else(|| {
                    let from = array.data_type();
                    EngineError::BadRows(format!("field {source} holds {from}, which is no {column_type:?}"))
                })?;
                sources.add(source, number, fitted);
            }
            if let Some(overflow) = self.overflow(number, plan) {
                sources.add(OVERFLOW_SOURCE, number, overflow);
            }
        }
        Ok(sources)
    }

    /// A field of a batch in the type of a column, with every value kept that a chosen row has; `None` where that cannot be.
    fn fitted(&self, number: usize, array: &ArrayRef, to: ColumnType) -> Option<ArrayRef> {
        converted(array, to).or_else(|| {
            // What does not fit may be in rows that do not enter.
            let chosen = self.chosen(number);
            let others: BooleanArray = chosen.iter().map(|chosen| Some(!chosen)).collect();
            if chosen.iter().all(|chosen| *chosen) { None } else { converted(&nullif(array, &others).ok()?, to) }
        })
    }

    /// For each row of a batch, whether it is one of the chosen.
    fn chosen(&self, number: usize) -> Vec<bool> {
        let mut chosen = vec![false; self.batches[number].num_rows()];
        for row in self.rows_of(number) {
            chosen[row] = true;
        }
        chosen
    }

    /// The chosen rows of a batch.
    fn rows_of(&self, number: usize) -> impl Iterator<Item = usize> {
        let from = self.places.partition_point(|(batch, _)| *batch < number);
        self.places[from..].iter().take_while(move |(batch, _)| *batch == number).map(|(_, row)| *row)
    }

    /// One JSON object per chosen row of what has no column of its own; NULL for a row with nothing of it.
    fn overflow(&self, number: usize, plan: &SchemaPlan) -> Option<ArrayRef> {
        let fields = typed_fields(&self.batches[number]).filter(|(source, _)| plan.overflow.contains(*source));
        let texts: Vec<(&str, ArrayRef)> =
            fields.filter_map(|(source, array)| Some((source, converted(array, ColumnType::String)?))).collect();
        if texts.is_empty() {
            return None;
        }
        let mut objects = StringBuilder::new();
        for (row, chosen) in self.chosen(number).into_iter().enumerate() {
            let values = texts.iter().filter(|(_, array)| chosen && array.is_valid(row));
            let object: Map<String, Value> = values
                .map(|(source, array)| {
                    ((*source).to_owned(), Value::String(array.as_string::<i32>().value(row).to_owned()))
                })
                .collect();
            objects.append_option((!object.is_empty()).then(|| Value::Object(object).to_string()));
        }
        Some(Arc::new(objects.finish()))
    }

    /// Gives the memory of the rows back, once they are stored. Keys and freshness stay.
    pub(crate) fn release(&mut self) {
        self.batches = Vec::new();
    }

    /// Newest publish and fetch times among the rows.
    pub(crate) const fn freshness(&self) -> Freshness {
        self.freshness
    }

    /// When HQ published the changes of the rows, microseconds since 1970, of those that say it.
    pub(crate) fn published_us(&self) -> &[i64] {
        &self.published_us
    }

    /// The instants in a field of the rows, of those that have one.
    fn instants(&self, source: &str) -> Vec<i64> {
        let mut found = Vec::with_capacity(self.len());
        for (number, batch) in self.batches.iter().enumerate() {
            let array = batch.column_by_name(source);
            let Some(array) = array.and_then(|array| self.fitted(number, array, ColumnType::Timestamp)) else {
                continue;
            };
            let instants = array.as_primitive::<TimestampMicrosecondType>();
            let rows = self.rows_of(number).filter(|row| instants.is_valid(*row));
            found.extend(rows.map(|row| instants.value(row)));
        }
        found
    }
}

/// The fields of a batch. An array without a type says nothing about its column, and holds nothing.
fn typed_fields(batch: &RecordBatch) -> impl Iterator<Item = (&str, &ArrayRef)> {
    let fields = batch.schema_ref().fields().iter().zip(batch.columns());
    let typed = fields.filter(|(field, _)| field.data_type() != &DataType::Null);
    typed.map(|(field, array)| (field.name().as_str(), array))
}

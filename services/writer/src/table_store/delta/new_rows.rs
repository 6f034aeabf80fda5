//! The new rows of a change, put in order. Pure.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::compute::{SortColumn, SortOptions, concat_batches, lexsort_to_indices, take_record_batch};
use arrow::record_batch::RecordBatch;

use super::EngineError;
use super::partition::Partition;
use crate::key_index::IdHash;
use crate::table_store::order_guard::RowOrder;
use crate::table_store::schema_plan::{Column, clustering};

/// The new rows in the order in which they are written, by partition.
pub(super) struct NewRows {
    pub(super) batch: RecordBatch,
    /// Ids and orders of its rows.
    pub(super) keys: Vec<(IdHash, RowOrder)>,
    /// The partitions with their rows.
    pub(super) partitions: Vec<(Partition, Range<usize>)>,
}

impl NewRows {
    /// Sorts the rows by partition and clustering columns. The batches have all columns of `columns`.
    pub(super) fn of(
        batches: Vec<RecordBatch>,
        keys: &[(IdHash, RowOrder)],
        columns: &[&Column],
        partition_columns: &[String],
    ) -> Result<Option<Self>, EngineError> {
        let Some(first) = batches.first() else { return Ok(None) };
        let batch = concat_batches(&first.schema(), &batches).map_err(EngineError::arrow)?;
        // A wide batch is large: it is held twice at most.
        drop(batches);
        let clustering = clustering().filter_map(|source| columns.iter().find(|column| column.source == source));
        let names = partition_columns.iter().map(String::as_str).chain(clustering.map(|column| column.name.as_str()));
        let sort: Vec<SortColumn> = names
            .filter_map(|name| batch.column_by_name(name))
            .map(|values| SortColumn { values: Arc::clone(values), options: Some(SortOptions::default()) })
            .collect();
        let order = lexsort_to_indices(&sort, None).map_err(EngineError::arrow)?;
        drop(sort);
        let sorted = take_record_batch(&batch, &order).map_err(EngineError::arrow)?;
        drop(batch);
        let batch = sorted;
        let keys = order.values().iter().map(|row| keys[*row as usize]).collect();
        let arrays: Vec<ArrayRef> =
            partition_columns.iter().filter_map(|name| batch.column_by_name(name).cloned()).collect();
        let mut partitions: Vec<(Partition, Range<usize>)> = Vec::new();
        if arrays.is_empty() {
            partitions.push((Partition::default(), 0..batch.num_rows()));
        } else {
            for row in 0..batch.num_rows() {
                let partition = Partition::of_row(&arrays, row);
                match partitions.last_mut().filter(|(last, _)| *last == partition) {
                    Some((_, rows)) => rows.end = row + 1,
                    None => partitions.push((partition, row..row + 1)),
                }
            }
        }
        Ok(Some(Self { batch, keys, partitions }))
    }
}

//! The new rows of a change, put in order. Pure.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, StringArray};
use arrow::compute::{SortColumn, SortOptions, lexsort_to_indices};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;

use crate::key_index::IdHash;
use crate::order_guard::RowOrder;
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::partition::Partition;
use crate::table_store::delta::upsert::rows::column_values::{RowPlace, Sources};
use crate::table_store::delta::upsert::rows::incoming::IncomingRows;
use crate::table_store::schema_plan::{Column, SchemaPlan, clustering};

/// The new rows in the order in which they are written, by partition.
pub(crate) struct SortedRows {
    sources: Sources,
    places: Vec<RowPlace>,
    /// About how many bytes all of them take in memory.
    bytes: usize,
    /// Ids and orders of the rows.
    pub(crate) keys: Vec<(IdHash, RowOrder)>,
    /// The partitions with their rows.
    pub(crate) partitions: Vec<(Partition, Range<usize>)>,
}

impl SortedRows {
    /// Sorts the rows by partition and clustering columns. `columns` are those that any of the rows has, partition columns included.
    pub(crate) fn of(
        incoming: &IncomingRows,
        columns: &[&Column],
        plan: &SchemaPlan,
        partition_columns: &[String],
        committed_us: i64,
    ) -> Result<Option<Self>, EngineError> {
        if incoming.len() == 0 {
            return Ok(None);
        }
        let sources = incoming.sources(columns, plan, committed_us)?;
        let partitioning =
            partition_columns.iter().filter_map(|name| columns.iter().find(|column| column.name == *name));
        let partitioning: Vec<ArrayRef> = partitioning
            .map(|column| Ok(without_empty(sources.column(&incoming.places, column)?)))
            .collect::<Result<_, EngineError>>()?;
        let clustering = clustering()
            .filter_map(|source| columns.iter().find(|column| column.source == source))
            .filter(|column| !partition_columns.contains(&column.name))
            .map(|column| sources.column(&incoming.places, column));
        let sort: Vec<SortColumn> = partitioning
            .iter()
            .cloned()
            .map(Ok)
            .chain(clustering)
            .map(|values| Ok(SortColumn { values: values?, options: Some(SortOptions::default()) }))
            .collect::<Result<_, EngineError>>()?;
        let order = lexsort_to_indices(&sort, None).map_err(EngineError::arrow)?;
        drop(sort);
        let order = || order.values().iter().map(|row| *row as usize);
        let mut partitions: Vec<(Partition, Range<usize>)> = Vec::new();
        if partitioning.is_empty() {
            partitions.push((Partition::default(), 0..incoming.len()));
        } else {
            for (row, at) in order().enumerate() {
                let partition = Partition::of_row(&partitioning, at);
                match partitions.last_mut().filter(|(last, _)| *last == partition) {
                    Some((_, rows)) => rows.end = row + 1,
                    None => partitions.push((partition, row..row + 1)),
                }
            }
        }
        Ok(Some(Self {
            bytes: incoming.share_of(sources.bytes()),
            sources,
            places: order().map(|row| incoming.places[row]).collect(),
            keys: order().map(|row| incoming.keys[row]).collect(),
            partitions,
        }))
    }

    /// About how many bytes some of them take in memory.
    pub(crate) fn bytes_of(&self, rows: &Range<usize>) -> usize {
        self.bytes.saturating_mul(rows.len()) / self.keys.len().max(1)
    }

    /// Some of the rows, with these columns; `schema` is theirs. What no row has is NULL.
    pub(crate) fn slice(
        &self,
        rows: Range<usize>,
        schema: &SchemaRef,
        columns: &[&Column],
    ) -> Result<RecordBatch, EngineError> {
        self.sources.gather(&self.places[rows], schema, columns)
    }
}

/// Empty text as NULL, which it is as a partition value: so the rows of a partition are beside each other.
fn without_empty(array: ArrayRef) -> ArrayRef {
    match array.as_string_opt::<i32>() {
        Some(texts) if texts.iter().any(|text| text == Some("")) => {
            Arc::new(texts.iter().map(|text| text.filter(|text| !text.is_empty())).collect::<StringArray>())
        }
        _ => array,
    }
}

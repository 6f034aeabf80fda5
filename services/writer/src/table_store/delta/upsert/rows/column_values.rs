//! The values of the rows that enter, column by column, in the batches that they came in.
//!
//! Most cells of a wide table are NULL, as a message brings some of its columns. Padded to all columns rows exist for a slice at a
//! time only, when they are gathered to be written.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, TimestampMicrosecondArray, new_null_array};
use arrow::compute::interleave;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};

use crate::table_store::conversion::ColumnType;
use crate::table_store::delta::error::EngineError;
use crate::table_store::schema_plan::{COMMITTED_SOURCE, Column};

/// Where a row stands: the number of its batch, and its row there.
pub(crate) type RowPlace = (usize, usize);

/// Arrays in the types of the columns, by source path.
pub(crate) struct Sources {
    /// With the numbers of their batches, which rise. A batch without one holds NULL.
    arrays: HashMap<String, Vec<(usize, ArrayRef)>>,
    /// Stand in for an array that a batch lacks; as long as the longest batch.
    nulls: HashMap<ColumnType, ArrayRef>,
    committed_us: i64,
}

/// Rows with the batches that they stand in.
struct Places {
    batches: Vec<usize>,
    /// Positions in `batches`, with rows.
    rows: Vec<RowPlace>,
}

impl Sources {
    /// None yet. `rows_max` is the length of the longest batch.
    pub(crate) fn new(rows_max: usize, committed_us: i64) -> Self {
        let nulls = ColumnType::ALL.map(|column_type| (column_type, new_null_array(&column_type.arrow(), rows_max)));
        Self { arrays: HashMap::new(), nulls: nulls.into(), committed_us }
    }

    /// Adds the array of a batch. The batches come in their order; of two arrays of one batch the first counts.
    pub(crate) fn add(&mut self, source: &str, batch: usize, array: ArrayRef) {
        let arrays = match self.arrays.get_mut(source) {
            Some(arrays) => arrays,
            None => self.arrays.entry(source.to_owned()).or_default(),
        };
        if arrays.last().is_none_or(|(last, _)| *last < batch) {
            arrays.push((batch, array));
        }
    }

    /// About how many bytes the values take, NULLs aside.
    pub(crate) fn bytes(&self) -> usize {
        self.arrays.values().flatten().map(|(_, array)| bytes_of(array)).sum()
    }

    /// Rows with these columns. `schema` is theirs.
    pub(crate) fn gather(
        &self,
        rows: &[RowPlace],
        schema: &SchemaRef,
        columns: &[&Column],
    ) -> Result<RecordBatch, EngineError> {
        let places = Places::of(rows);
        let arrays = columns.iter().map(|column| self.array(&places, column)).collect::<Result<Vec<_>, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options).map_err(EngineError::arrow)
    }

    /// One column of some rows.
    pub(crate) fn column(&self, rows: &[RowPlace], column: &Column) -> Result<ArrayRef, EngineError> {
        self.array(&Places::of(rows), column)
    }

    fn array(&self, places: &Places, column: &Column) -> Result<ArrayRef, EngineError> {
        let count = places.rows.len();
        if column.source == COMMITTED_SOURCE {
            let instants = TimestampMicrosecondArray::from_value(self.committed_us, count);
            return Ok(Arc::new(instants.with_timezone("UTC")));
        }
        let arrays = self.arrays.get(&column.source).map_or(&[][..], Vec::as_slice);
        let found: Vec<Option<&dyn Array>> = places
            .batches
            .iter()
            .map(|batch| {
                let at = arrays.binary_search_by_key(batch, |(number, _)| *number).ok()?;
                Some(arrays[at].1.as_ref())
            })
            .collect();
        if found.iter().all(Option::is_none) {
            return Ok(new_null_array(&column.arrow(), count));
        }
        let nulls = self.nulls[&column.column_type].as_ref();
        let arrays: Vec<&dyn Array> = found.into_iter().map(|array| array.unwrap_or(nulls)).collect();
        interleave(&arrays, &places.rows).map_err(EngineError::arrow)
    }
}

impl Places {
    fn of(rows: &[RowPlace]) -> Self {
        let mut batches: Vec<usize> = rows.iter().map(|(batch, _)| *batch).collect();
        batches.sort_unstable();
        batches.dedup();
        let among: HashMap<usize, usize> = batches.iter().enumerate().map(|(at, batch)| (*batch, at)).collect();
        let rows = rows.iter().map(|(batch, row)| (among[batch], *row)).collect();
        Self { batches, rows }
    }
}

/// Bytes of the values of an array in a column's type. The columns of a decoded message share one buffer, so this counts what the array
/// itself refers to.
fn bytes_of(array: &ArrayRef) -> usize {
    match array.data_type() {
        DataType::Utf8 => {
            let offsets = array.as_string::<i32>().value_offsets();
            let first = offsets.first().copied().unwrap_or_default();
            let text = offsets.last().copied().unwrap_or_default() - first;
            text.unsigned_abs() as usize + 4 * (array.len() - array.null_count())
        }
        other => other.primitive_width().unwrap_or(1) * (array.len() - array.null_count()),
    }
}

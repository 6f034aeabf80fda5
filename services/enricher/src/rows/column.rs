//! A column under construction. Rows that have no cell cost nothing until a later one has: gaps are filled in one go.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, BooleanBufferBuilder, Date32Array, Float64Array, Int32Array, Int64Array, StringArray,
    TimestampMicrosecondArray,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, TimeUnit};
use arrow::error::ArrowError;

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ColumnType {
    Text,
    Timestamp,
    Date,
    Boolean,
    Long,
    Int,
    Double,
}

impl ColumnType {
    pub(super) fn data_type(self) -> DataType {
        match self {
            Self::Text => DataType::Utf8,
            Self::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Self::Date => DataType::Date32,
            Self::Boolean => DataType::Boolean,
            Self::Long => DataType::Int64,
            Self::Int => DataType::Int32,
            Self::Double => DataType::Float64,
        }
    }
}

enum Values {
    /// Offsets are one more than rows.
    Text {
        bytes: Vec<u8>,
        offsets: Vec<i32>,
    },
    /// Values of timestamps and longs.
    Long(Vec<i64>),
    /// Values of dates and ints.
    Int(Vec<i32>),
    Boolean(BooleanBufferBuilder),
    Double(Vec<f64>),
}

/// A column to which cells are added row by row.
pub(super) struct Column {
    column_type: ColumnType,
    values: Values,
    valid: BooleanBufferBuilder,
}

impl Column {
    pub(super) fn new(column_type: ColumnType) -> Self {
        let values = match column_type {
            ColumnType::Text => Values::Text { bytes: Vec::new(), offsets: vec![0] },
            ColumnType::Timestamp | ColumnType::Long => Values::Long(Vec::new()),
            ColumnType::Date | ColumnType::Int => Values::Int(Vec::new()),
            ColumnType::Boolean => Values::Boolean(BooleanBufferBuilder::new(0)),
            ColumnType::Double => Values::Double(Vec::new()),
        };
        Self { column_type, values, valid: BooleanBufferBuilder::new(0) }
    }

    /// Whether no row has had a cell.
    pub(super) fn is_without_cells(&self) -> bool {
        self.valid.is_empty()
    }

    pub(super) fn column_type(&self) -> ColumnType {
        self.column_type
    }

    /// Makes all rows before `row` NULL that have no cell yet. Whether `row` itself is still free.
    fn reach(&mut self, row: usize) -> bool {
        let Some(missing) = row.checked_sub(self.valid.len()) else { return false };
        if missing > 0 {
            self.valid.append_n(missing, false);
            match &mut self.values {
                Values::Text { offsets, .. } => {
                    let end = offsets[offsets.len() - 1];
                    offsets.resize(row + 1, end);
                }
                Values::Long(values) => values.resize(row, 0),
                Values::Int(values) => values.resize(row, 0),
                Values::Boolean(values) => values.append_n(missing, false),
                Values::Double(values) => values.resize(row, 0.0),
            }
        }
        true
    }

    /// Puts a cell at a row. Rows come in ascending order; a second cell at one row, or one of another type, is not taken.
    pub(super) fn put(&mut self, row: usize, cell: Put<'_>) {
        if !cell.fits(&self.values) || !self.reach(row) {
            return;
        }
        match (&mut self.values, cell) {
            (Values::Text { bytes, offsets }, Put::Text(text)) => {
                bytes.extend_from_slice(text.as_bytes());
                // Batches end long before 2 GiB; past that, building the array would fail on the offsets.
                offsets.push(i32::try_from(bytes.len()).unwrap_or(i32::MAX));
            }
            (Values::Long(values), Put::Long(number)) => values.push(number),
            (Values::Int(values), Put::Int(number)) => values.push(number),
            (Values::Boolean(values), Put::Boolean(truth)) => values.append(truth),
            (Values::Double(values), Put::Double(number)) => values.push(number),
            _ => return,
        }
        self.valid.append(true);
    }

    /// The finished column of `rows` rows.
    pub(super) fn finish(mut self, rows: usize) -> Result<ArrayRef, ArrowError> {
        self.reach(rows);
        let nulls = Some(NullBuffer::new(self.valid.finish())).filter(|nulls| nulls.null_count() > 0);
        Ok(match self.values {
            Values::Text { bytes, offsets } => {
                let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
                Arc::new(StringArray::try_new(offsets, Buffer::from_vec(bytes), nulls)?)
            }
            Values::Long(values) if self.column_type == ColumnType::Timestamp => {
                Arc::new(TimestampMicrosecondArray::try_new(values.into(), nulls)?.with_timezone("UTC"))
            }
            Values::Long(values) => Arc::new(Int64Array::try_new(values.into(), nulls)?),
            Values::Int(values) if self.column_type == ColumnType::Date => {
                Arc::new(Date32Array::try_new(values.into(), nulls)?)
            }
            Values::Int(values) => Arc::new(Int32Array::try_new(values.into(), nulls)?),
            Values::Boolean(mut values) => Arc::new(BooleanArray::new(values.finish(), nulls)),
            Values::Double(values) => Arc::new(Float64Array::try_new(values.into(), nulls)?),
        })
    }
}

/// A cell that is put into a column.
#[derive(Clone, Copy)]
pub(super) enum Put<'a> {
    Text(&'a str),
    Long(i64),
    Int(i32),
    Boolean(bool),
    Double(f64),
}

impl Put<'_> {
    fn fits(&self, values: &Values) -> bool {
        matches!(
            (self, values),
            (Self::Text(_), Values::Text { .. })
                | (Self::Long(_), Values::Long(_))
                | (Self::Int(_), Values::Int(_))
                | (Self::Boolean(_), Values::Boolean(_))
                | (Self::Double(_), Values::Double(_))
        )
    }
}

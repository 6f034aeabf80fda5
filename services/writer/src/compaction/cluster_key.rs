//! Clustering values as bytes that compare like the values.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, StringArray, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use arrow::row::{RowConverter, SortField};

use super::job::ClusterRange;

/// What the statistics of a file say of one clustering column. Values are texts as in the log: dates `YYYY-MM-DD`.
#[derive(Clone, Copy, Debug, Default)]
pub struct ColumnBounds<'a> {
    /// Lowest value, NULLs left out.
    pub min: Option<&'a str>,
    /// Highest value, NULLs left out.
    pub max: Option<&'a str>,
    /// Whether a row has NULL. A column that the file lacks is NULL in every row.
    pub nulls: bool,
}

/// Makes keys of the clustering columns of one table. NULL comes first, then the values in their own order.
///
/// A key is a prefix of what the merge compares if these columns are its first sort columns.
#[derive(Debug)]
pub struct ClusterKeys {
    types: Vec<DataType>,
    converter: RowConverter,
}

impl ClusterKeys {
    /// Keys of columns with these types. Fails for a type that has no order.
    pub fn new(types: &[DataType]) -> Result<Self, ArrowError> {
        let fields = types.iter().cloned().map(SortField::new).collect();
        Ok(Self { types: types.to_vec(), converter: RowConverter::new(fields)? })
    }

    /// The key of values given as text, `None` for NULL. No key if a text is no value of its column's type, or
    /// their number is not that of the columns.
    pub fn of_texts(&self, values: &[Option<&str>]) -> Option<Vec<u8>> {
        if values.len() != self.types.len() {
            return None;
        }
        let arrays = values.iter().zip(&self.types).map(|(value, wanted)| {
            let Some(text) = value else { return Some(new_null_array(wanted, 1)) };
            let text: ArrayRef = Arc::new(StringArray::from(vec![*text]));
            cast(&text, wanted).ok().filter(|array| array.is_valid(0))
        });
        let arrays: Vec<ArrayRef> = arrays.collect::<Option<_>>()?;
        self.of_row(&arrays, 0).ok()
    }

    /// The key of one row of the clustering columns. Fails if the types differ, or there is no such row.
    pub fn of_row(&self, columns: &[ArrayRef], row: usize) -> Result<Vec<u8>, ArrowError> {
        if columns.iter().any(|column| column.len() <= row) {
            return Err(ArrowError::InvalidArgumentError(format!("the clustering columns have no row {row}")));
        }
        let columns: Vec<ArrayRef> = columns.iter().map(|column| column.slice(row, 1)).collect();
        let rows = self.converter.convert_columns(&columns)?;
        Ok(rows.row(0).data().to_vec())
    }

    /// The range that a file with these statistics spans for certain. `None` if a bound is missing, unreadable, or above the
    /// other. Bounds that were cut short, as is done with long texts, count as values.
    ///
    /// Statistics bound each column by itself. Where the leading column has several values, the first row can have any
    /// value of the other columns, so only what lies behind all of them is certain.
    pub fn range(&self, bounds: &[ColumnBounds<'_>]) -> Option<ClusterRange> {
        let (low, high) = ends(bounds)?;
        let shared = low.iter().zip(&high).take_while(|(low, high)| low == high).count();
        let decided = (shared + 1).min(low.len());
        let first = [&low[..decided], &high[decided..]].concat();
        let last = [&high[..decided], &low[decided..]].concat();
        let range = ClusterRange { min: self.of_texts(&first)?, max: self.of_texts(&last)? };
        (range.min <= range.max).then_some(range)
    }

    /// A key that is not above any row of a file with these statistics, for [`super::Input::starts_at`]. `None` as in
    /// [`ClusterKeys::range`].
    pub fn lowest(&self, bounds: &[ColumnBounds<'_>]) -> Option<Vec<u8>> {
        self.of_texts(&ends(bounds)?.0)
    }
}

/// The lowest and the highest value of each column, `None` for NULL.
type Ends<'a> = (Vec<Option<&'a str>>, Vec<Option<&'a str>>);

fn ends<'a>(bounds: &[ColumnBounds<'a>]) -> Option<Ends<'a>> {
    let known = |bounds: &ColumnBounds<'_>| match (bounds.min, bounds.max) {
        (Some(_), Some(_)) => true,
        (None, None) => bounds.nulls,
        _ => false,
    };
    let low = |bounds: &ColumnBounds<'a>| bounds.min.filter(|_| !bounds.nulls);
    let all = bounds.iter().all(known);
    all.then(|| (bounds.iter().map(low).collect(), bounds.iter().map(|bounds| bounds.max).collect()))
}

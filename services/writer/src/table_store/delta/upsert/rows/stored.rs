//! Rows of data files as they came: under the source paths of their columns.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringArray};
use arrow::compute::cast;
use arrow::record_batch::RecordBatch;
use serde_json::{Map, Value};

use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::data_file::DataFile;
use crate::table_store::schema_plan::{OVERFLOW_SOURCE, TableSchema};

/// Source paths with their values.
pub(crate) type Fields = Vec<(String, ArrayRef)>;

/// The columns that files are of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoredColumns<'a> {
    pub(crate) schema: &'a TableSchema,
    pub(crate) partition_columns: &'a [String],
}

/// Rows of a file under those source paths that are asked for, with the values that stand in its partition and in the overflow column.
pub(crate) fn by_source(
    columns: StoredColumns<'_>,
    file: &DataFile,
    rows: &RecordBatch,
    is_wanted: impl Fn(&str) -> bool,
) -> Result<Fields, EngineError> {
    let partition = file.partition.values(columns.partition_columns);
    let mut fields = Fields::new();
    for column in &columns.schema.columns {
        let array = match partition.get(&column.name) {
            Some(value) => {
                let value: ArrayRef = Arc::new(StringArray::from(vec![value.as_deref(); rows.num_rows()]));
                Some(cast(&value, &column.arrow()).map_err(EngineError::arrow)?)
            }
            None => rows.column_by_name(&column.name).cloned(),
        };
        // A file from before the column holds nothing for it.
        let Some(array) = array else { continue };
        let array = column
            .fitted(&array)
            .ok_or_else(|| EngineError::corrupt(format!("column {} is not of its type", column.name)))?;
        if column.source == OVERFLOW_SOURCE {
            fields.extend(overflowed(&array));
        } else if is_wanted(&column.source) {
            fields.push((column.source.clone(), array));
        }
    }
    Ok(fields)
}

/// The fields that the overflow column holds, which is text.
fn overflowed(objects: &ArrayRef) -> Fields {
    let mut values: BTreeMap<String, Vec<Option<String>>> = BTreeMap::new();
    for (row, object) in objects.as_string::<i32>().iter().enumerate() {
        // What another program wrote there is nothing that the lake could keep.
        let object: Map<String, Value> = object.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        for (source, value) in object {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            values.entry(source).or_insert_with(|| vec![None; objects.len()])[row] = Some(value);
        }
    }
    values.into_iter().map(|(source, values)| (source, Arc::new(StringArray::from(values)) as ArrayRef)).collect()
}

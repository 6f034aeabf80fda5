//! Rows of a commit that another program has overwritten: read from the files that it had added, as they came.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, StringArray, StringBuilder, new_null_array};
use arrow::compute::filter_record_batch;
use arrow::record_batch::RecordBatch;
use futures::TryStreamExt;
use serde_json::Value;

use crate::table_store::TableRows;
use crate::table_store::conversion::converted;
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::data_file;
use crate::table_store::delta::log::table_access::TableAccess;
use crate::table_store::delta::space::table::{AddedRows, LostRows, TableState};
use crate::table_store::schema_plan::{COMMITTED_SOURCE, OVERFLOW_SOURCE};

/// The rows as a part of a batch, under their source paths.
///
/// # Errors
/// When the files cannot be read.
pub(crate) async fn rows_of(
    access: &TableAccess,
    table: &TableState,
    lost: &LostRows,
) -> Result<TableRows, EngineError> {
    let store = access.unloaded(table.path())?.object_store();
    let mut rows = Vec::new();
    for added in &lost.added {
        let mut batches = data_file::open(&store, &added.file, None).await?;
        let mut first = 0;
        while let Some(batch) = batches.try_next().await.map_err(EngineError::read_file)? {
            let count = batch.num_rows() as u32;
            let came =
                (first..first + count).map(|row| Some(added.rows.as_ref().is_none_or(|rows| rows.contains(row))));
            let came = filter_record_batch(&batch, &came.collect::<BooleanArray>()).map_err(EngineError::arrow)?;
            if came.num_rows() > 0 {
                rows.push(as_they_came(&came, added, lost)?);
            }
            first += count;
        }
    }
    Ok(TableRows { document_type: table.key().document_type.clone(), rows })
}

/// Columns under the paths where their values come from; those that have no column of their own, and those that are in the names of folders,
/// included.
fn as_they_came(batch: &RecordBatch, added: &AddedRows, lost: &LostRows) -> Result<RecordBatch, EngineError> {
    let columns = &lost.schema.columns;
    let mut fields: BTreeMap<String, ArrayRef> = BTreeMap::new();
    for column in columns.iter().filter(|column| column.foreign.is_none() && column.source != COMMITTED_SOURCE) {
        let Some(array) = batch.column_by_name(&column.name) else { continue };
        if column.source == OVERFLOW_SOURCE {
            fields.extend(without_column(array));
        } else {
            fields.insert(column.source.clone(), Arc::clone(array));
        }
    }
    for (name, value) in added.file.partition.values(&lost.partition_columns) {
        let Some(column) = columns.iter().find(|column| column.name == name) else { continue };
        let texts: ArrayRef = match value {
            Some(value) => Arc::new(StringArray::from(vec![value; batch.num_rows()])),
            None => new_null_array(&column.arrow(), batch.num_rows()),
        };
        fields.extend(converted(&texts, column.column_type).map(|array| (column.source.clone(), array)));
    }
    let fields = fields.into_iter().map(|(source, array)| (source, array, true));
    RecordBatch::try_from_iter_with_nullable(fields).map_err(EngineError::arrow)
}

/// The values of rows that found no column, which stand in one as JSON.
fn without_column(json: &ArrayRef) -> BTreeMap<String, ArrayRef> {
    let Some(json) = json.as_string_opt::<i32>() else { return BTreeMap::new() };
    let objects: Vec<Option<Value>> =
        json.iter().map(|text| text.and_then(|text| serde_json::from_str(text).ok())).collect();
    let sources: std::collections::BTreeSet<&String> =
        objects.iter().flatten().filter_map(Value::as_object).flat_map(serde_json::Map::keys).collect();
    let column = |source: &String| -> ArrayRef {
        let mut texts = StringBuilder::new();
        for object in &objects {
            texts.append_option(object.as_ref().and_then(|object| object.get(source)?.as_str()));
        }
        Arc::new(texts.finish())
    };
    sources.into_iter().map(|source| (source.clone(), column(source))).collect()
}

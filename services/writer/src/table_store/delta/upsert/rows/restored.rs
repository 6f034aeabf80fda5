//! Rows of a commit that another program has overwritten: read from the files that it had added, as they came.

use arrow::array::BooleanArray;
use arrow::compute::filter_record_batch;
use arrow::record_batch::RecordBatch;
use futures::TryStreamExt;

use crate::table_store::TableRows;
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::data_file;
use crate::table_store::delta::log::table_access::TableAccess;
use crate::table_store::delta::space::table::{LostRows, TableState};
use crate::table_store::delta::upsert::rows::stored::{self, StoredColumns};
use crate::table_store::schema_plan::{COMMITTED_SOURCE, is_foreign};

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
    let columns = StoredColumns { schema: &lost.schema, partition_columns: &lost.partition_columns };
    // What the batch brings anew, and what rows of the lake do not have.
    let is_wanted = |source: &str| source != COMMITTED_SOURCE && !is_foreign(source);
    let mut rows = Vec::new();
    for added in &lost.added {
        let mut batches = data_file::open(&store, &added.file, None).await?;
        let mut first = 0;
        while let Some(batch) = batches.try_next().await.map_err(EngineError::read_file)? {
            let count = batch.num_rows() as u32;
            let came =
                (first..first + count).map(|row| Some(added.rows.as_ref().is_none_or(|rows| rows.contains(row))));
            let came = filter_record_batch(&batch, &came.collect::<BooleanArray>()).map_err(EngineError::arrow)?;
            first += count;
            if came.num_rows() > 0 {
                let fields = stored::by_source(columns, &added.file, &came, is_wanted)?;
                let fields = fields.into_iter().map(|(source, array)| (source, array, true));
                rows.push(RecordBatch::try_from_iter_with_nullable(fields).map_err(EngineError::arrow)?);
            }
        }
    }
    Ok(TableRows { document_type: table.key().document_type.clone(), rows })
}

//! Data files of a table: reading what survives, writing what enters.

use std::num::NonZeroU64;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, new_null_array};
use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use deltalake::datafile::writer::{DeltaWriter, WriterConfig};
use deltalake::kernel::Add;
use deltalake::logstore::parquet_reader::ParquetObjectReader;
use deltalake::table::config::TablePropertiesExt;
use deltalake::table::state::DeltaTableState;
use object_store::ObjectStore;
use object_store::path::Path;
use parquet::arrow::ProjectionMask;
use parquet::arrow::async_reader::{ParquetRecordBatchStream, ParquetRecordBatchStreamBuilder};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;

use crate::table_store::conversion::converted;
use crate::table_store::schema_plan::{Column, TableSchema};

use super::EngineError;

/// Rows decoded and encoded at once.
const ROWS_AT_ONCE: usize = 8_192;

/// Rows of a row group: small enough that one in the making costs little memory.
const ROW_GROUP_ROWS: usize = 131_072;

/// A data file of a table, as this process numbers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DataFile {
    /// Never used twice within a space.
    pub(super) number: u32,
    /// Path within the table, decoded.
    pub(super) path: String,
    /// Bytes.
    pub(super) size: i64,
    /// Rows.
    pub(super) rows: i64,
}

/// Opens a file; with `columns`, only those of these names are read.
pub(super) async fn open(
    store: &Arc<dyn ObjectStore>,
    file: &DataFile,
    columns: Option<&[&str]>,
) -> Result<ParquetRecordBatchStream<ParquetObjectReader>, EngineError> {
    let path = Path::parse(&file.path).map_err(|error| EngineError::corrupt(format!("path {}: {error}", file.path)))?;
    let size = u64::try_from(file.size).unwrap_or_default();
    let reader = ParquetObjectReader::new(Arc::clone(store), path).with_file_size(size);
    let builder = ParquetRecordBatchStreamBuilder::new(reader).await.map_err(EngineError::read_file)?;
    let mask = match columns {
        None => ProjectionMask::all(),
        Some(names) => {
            let fields = builder.parquet_schema().root_schema().get_fields().to_vec();
            let roots = fields.iter().enumerate().filter(|(_, field)| names.contains(&field.name()));
            ProjectionMask::roots(builder.parquet_schema(), roots.map(|(root, _)| root))
        }
    };
    builder.with_projection(mask).with_batch_size(ROWS_AT_ONCE).build().map_err(EngineError::read_file)
}

/// The arrow schema of a data file with these columns.
pub(super) fn file_schema(columns: &[&Column]) -> SchemaRef {
    let fields: Vec<Field> =
        columns.iter().map(|column| Field::new(&column.name, column.column_type.arrow(), true)).collect();
    Arc::new(Schema::new(fields))
}

/// A batch with exactly these columns: `array_of` gives each, `None` is NULL.
pub(super) fn aligned(
    schema: &SchemaRef,
    columns: &[&Column],
    rows: usize,
    array_of: impl Fn(&Column) -> Option<ArrayRef>,
) -> Result<RecordBatch, EngineError> {
    let arrays = columns.iter().map(|column| match array_of(column) {
        None => Ok(new_null_array(&column.column_type.arrow(), rows)),
        Some(array) => converted(&array, column.column_type).ok_or_else(|| {
            let (from, to) = (array.data_type(), column.column_type);
            EngineError::corrupt(format!("column {} holds {from}, which is no {to:?}", column.name))
        }),
    });
    let arrays = arrays.collect::<Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options).map_err(EngineError::arrow)
}

/// A writer of new data files of a table.
pub(super) fn writer(
    store: Arc<dyn ObjectStore>,
    schema: SchemaRef,
    table: &TableSchema,
    target_size: NonZeroU64,
) -> DeltaWriter {
    let id = table.column(crate::table_store::schema_plan::ID_SOURCE).map_or("_id", |column| &column.name);
    let level = ZstdLevel::try_new(3).unwrap_or_default();
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        // Ids do not repeat, so a dictionary of them is wasted work.
        .set_column_dictionary_enabled(ColumnPath::from(id), false)
        .build();
    // Which columns get statistics is said by name, so this number is never looked at.
    let indexed = default_of(DeltaTableState::table_config).num_indexed_cols();
    let statistics = Some(table.filtered());
    let config = WriterConfig::new(
        schema,
        Vec::new(),
        Some(properties),
        Some(target_size),
        Some(ROWS_AT_ONCE),
        indexed,
        statistics,
    );
    DeltaWriter::new(store, config)
}

/// A default value of what a function returns; delta-rs does not export the name of this type.
fn default_of<T: Default>(_: for<'a> fn(&'a DeltaTableState) -> &'a T) -> T {
    T::default()
}

/// The written files in the order of their rows, with their row counts. One writer numbers its files in their names.
pub(super) fn in_row_order(mut adds: Vec<Add>, rows_written: usize) -> Result<Vec<(Add, usize)>, EngineError> {
    adds.sort_by(|one, other| one.path.cmp(&other.path));
    let mut counted = Vec::with_capacity(adds.len());
    for add in adds {
        let rows = add.get_stats().ok().flatten().and_then(|stats| usize::try_from(stats.num_records).ok());
        let rows = rows.ok_or_else(|| EngineError::corrupt(format!("file {} came without a row count", add.path)))?;
        counted.push((add, rows));
    }
    let total: usize = counted.iter().map(|(_, rows)| rows).sum();
    if total != rows_written {
        return Err(EngineError::corrupt(format!("{rows_written} rows were given, {total} were written")));
    }
    Ok(counted)
}

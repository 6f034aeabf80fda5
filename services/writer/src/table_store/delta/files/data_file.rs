//! Data files of a table: what is known of each, and reading them.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, new_null_array};
use arrow::compute::concat_batches;
use arrow::datatypes::{Field, Int64Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use deltalake::logstore::parquet_reader::ParquetObjectReader;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, RowSelection, RowSelector};
use parquet::arrow::async_reader::{ParquetRecordBatchStream, ParquetRecordBatchStreamBuilder};
use parquet::basic::{ConvertedType, LogicalType, Type as PhysicalType};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, PageIndexPolicy};
use parquet::file::statistics::Statistics;
use parquet::schema::types::ColumnDescriptor;
use roaring::RoaringBitmap;

use crate::key_index::FileNumber;
use crate::table_store::conversion::{ColumnType, converted};
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::deletion_vectors::DeletionVector;
use crate::table_store::delta::files::partition::Partition;
use crate::table_store::delta::permanent_error;
use crate::table_store::schema_plan::Column;

/// Rows decoded and encoded at once.
pub(crate) const ROWS_AT_ONCE: usize = 8_192;

/// Bytes read from the end of a file at first.
const FOOTER_BYTES: u64 = 64 << 10;
/// Cells decoded and encoded at once: fewer rows of a wide table.
const CELLS_AT_ONCE: usize = 4 << 20;

/// Bytes of a file decoded at once, as they are in memory: fewer rows where they hold long texts.
const BYTES_AT_ONCE: u64 = 4 << 20;

/// Rows of so many columns that are decoded and encoded at once.
pub(crate) fn rows_at_once(columns: usize) -> usize {
    (CELLS_AT_ONCE / columns.max(1)).clamp(1, ROWS_AT_ONCE)
}

/// Bytes of new rows that are put together at once, about: fewer rows where they hold long texts.
const GATHERED_BYTES_AT_ONCE: usize = 16 << 20;

/// The same for new rows, which take so many bytes in all.
pub(crate) fn new_rows_at_once(columns: usize, rows: usize, bytes: usize) -> usize {
    let in_bytes = GATHERED_BYTES_AT_ONCE as u128 * rows as u128 / bytes.max(1) as u128;
    rows_at_once(columns).min(usize::try_from(in_bytes).unwrap_or(usize::MAX)).max(1)
}

/// A data file of a table, as this process numbers it.
#[derive(Clone, Debug)]
pub(crate) struct DataFile {
    /// Never used twice within a space.
    pub(crate) number: FileNumber,
    /// Path within the table, decoded.
    pub(crate) path: String,
    /// The same as the log has it, where delta-rs would encode it otherwise.
    pub(crate) logged: Option<String>,
    /// Bytes.
    pub(crate) size: i64,
    /// Rows, deleted ones included.
    pub(crate) rows: i64,
    /// What is deleted in it.
    pub(crate) deleted: Option<DeletionVector>,
    /// Where it belongs.
    pub(crate) partition: Partition,
    /// Least and greatest `+_lake_version` in it; `None` until a decision needs it.
    pub(crate) versions_us: Option<(i64, i64)>,
}

impl DataFile {
    /// Rows that readers see.
    pub(crate) fn live_rows(&self) -> i64 {
        self.rows - self.deleted.as_ref().map_or(0, |deleted| deleted.descriptor.cardinality)
    }

    /// The deleted rows.
    pub(crate) fn deleted_rows(&self) -> Option<&Arc<RoaringBitmap>> {
        self.deleted.as_ref().map(|deleted| &deleted.rows)
    }
}

type Builder = ParquetRecordBatchStreamBuilder<ParquetObjectReader>;
/// The batches of a file.
pub(crate) type FileStream = ParquetRecordBatchStream<ParquetObjectReader>;

async fn builder(store: &Arc<dyn ObjectStore>, file: &DataFile) -> Result<Builder, EngineError> {
    builder_with(store, file, ArrowReaderOptions::new()).await
}

async fn builder_with(
    store: &Arc<dyn ObjectStore>,
    file: &DataFile,
    options: ArrowReaderOptions,
) -> Result<Builder, EngineError> {
    let path = Path::parse(&file.path).map_err(|error| EngineError::corrupt(format!("path {}: {error}", file.path)))?;
    let size = u64::try_from(file.size).unwrap_or_default();
    let mut reader = ParquetObjectReader::new(Arc::clone(store), path)
        .with_file_size(size)
        // Most footers come with the first request.
        .with_footer_size_hint(usize::try_from(size.min(FOOTER_BYTES)).unwrap_or_default());
    let metadata = ArrowReaderMetadata::load_async(&mut reader, options).await;
    match metadata.and_then(in_microseconds) {
        Ok(metadata) => Ok(ParquetRecordBatchStreamBuilder::new_with_metadata(reader, metadata)),
        Err(error) => Err(explained(store, file, EngineError::read_file(error)).await),
    }
}

/// Why a file could not be read, when the store itself could not say: it is not as long as the log says.
async fn explained(store: &Arc<dyn ObjectStore>, file: &DataFile, error: EngineError) -> EngineError {
    if permanent_error::is_permanent(&error) {
        return error;
    }
    match check_presence(store, file).await {
        Err(reason) if permanent_error::is_permanent(&reason) => reason,
        _ => error,
    }
}

/// Whether a file is there, as long as the log says.
pub(crate) async fn check_presence(store: &Arc<dyn ObjectStore>, file: &DataFile) -> Result<(), EngineError> {
    let path = Path::parse(&file.path).map_err(|error| EngineError::corrupt(format!("path {}: {error}", file.path)))?;
    let found = store.head(&path).await.map_err(EngineError::Store)?;
    if u64::try_from(file.size) != Ok(found.size) {
        let (path, size) = (&file.path, found.size);
        return Err(EngineError::corrupt(format!(
            "file {path} has {size} bytes and not {}, as the log says",
            file.size
        )));
    }
    Ok(())
}

/// Spark writes instants as INT96 by default. Read as nanoseconds, those before 1677 and after 2262 would become others.
fn in_microseconds(metadata: ArrowReaderMetadata) -> Result<ArrowReaderMetadata, ParquetError> {
    let roots = metadata.parquet_schema().root_schema().get_fields();
    let is_int96 = |root: &usize| {
        roots.get(*root).is_some_and(|root| root.is_primitive() && root.get_physical_type() == PhysicalType::INT96)
    };
    if !(0..roots.len()).any(|root| is_int96(&root)) {
        return Ok(metadata);
    }
    let fields = metadata.schema().fields().iter().enumerate().map(|(root, field)| match is_int96(&root) {
        true => Arc::new(field.as_ref().clone().with_data_type(ColumnType::Timestamp.arrow())),
        false => Arc::clone(field),
    });
    let schema = Schema::new(fields.collect::<Vec<_>>());
    ArrowReaderMetadata::try_new(
        Arc::clone(metadata.metadata()),
        ArrowReaderOptions::new().with_schema(Arc::new(schema)),
    )
}

fn projection(builder: &Builder, columns: Option<&[&str]>) -> ProjectionMask {
    let Some(names) = columns else { return ProjectionMask::all() };
    let fields = builder.parquet_schema().root_schema().get_fields().to_vec();
    let roots = fields.iter().enumerate().filter(|(_, field)| names.contains(&field.name()));
    ProjectionMask::roots(builder.parquet_schema(), roots.map(|(root, _)| root))
}

/// Opens a file; with `columns`, only those of these names are read. All rows come, in the order of the file, deleted ones too.
pub(crate) async fn open(
    store: &Arc<dyn ObjectStore>,
    file: &DataFile,
    columns: Option<&[&str]>,
) -> Result<FileStream, EngineError> {
    Ok(open_with(store, file, columns, ROWS_AT_ONCE).await?.stream)
}

/// A file whose batches are to be read.
pub(crate) struct OpenedFile {
    pub(crate) stream: FileStream,
    /// So many of its rows are not too much memory at once.
    pub(crate) rows_in_memory: usize,
}

/// The same with batches of so many rows, or fewer where they are large.
pub(crate) async fn open_with(
    store: &Arc<dyn ObjectStore>,
    file: &DataFile,
    columns: Option<&[&str]>,
    rows_at_once: usize,
) -> Result<OpenedFile, EngineError> {
    let builder = builder(store, file).await?;
    let mask = projection(&builder, columns);
    let rows_in_memory = rows_in_memory(&builder, &mask);
    let builder = builder.with_projection(mask).with_batch_size(rows_at_once.min(rows_in_memory));
    Ok(OpenedFile { stream: builder.build().map_err(EngineError::read_file)?, rows_in_memory })
}

/// How many rows of the row group with the largest ones are [`BYTES_AT_ONCE`]; at least one.
fn rows_in_memory(builder: &Builder, mask: &ProjectionMask) -> usize {
    let row_bytes = builder.metadata().row_groups().iter().map(|group| {
        let chunks = group.columns().iter().enumerate().filter(|(leaf, _)| mask.leaf_included(*leaf));
        let bytes = chunks.map(|(_, chunk)| decoded_bytes(chunk));
        bytes.fold(0, u64::saturating_add) / u64::try_from(group.num_rows()).unwrap_or_default().max(1)
    });
    let rows = BYTES_AT_ONCE / row_bytes.max().unwrap_or_default().max(1);
    usize::try_from(rows).unwrap_or(usize::MAX).max(1)
}

/// About how many bytes a column of a row group takes in memory. A text that is there again and again is in the file once (dictionary), and
/// in each row of a batch. Writers that do not tell the length of the texts (Spark before 4) are believed that they differ.
fn decoded_bytes(chunk: &ColumnChunkMetaData) -> u64 {
    let texts = chunk.unencoded_byte_array_data_bytes().unwrap_or_default();
    u64::try_from(chunk.uncompressed_size().max(texts)).unwrap_or_default()
}

/// Least and greatest whole number of a column of a file, out of the statistics in the file itself, which are exact; `None` where a row
/// group has none.
pub(crate) async fn number_bounds(
    store: &Arc<dyn ObjectStore>,
    file: &DataFile,
    column: &str,
) -> Result<Option<(i64, i64)>, EngineError> {
    let builder = builder(store, file).await?;
    let mut bounds: Option<(i64, i64)> = None;
    for group in builder.metadata().row_groups() {
        let chunk = group.columns().iter().find(|chunk| chunk.column_path().string() == column);
        // Other writers may mean something else by the same bytes.
        let chunk = chunk.filter(|chunk| is_whole_number(chunk.column_descr()));
        let Some(Statistics::Int64(statistics)) = chunk.and_then(|chunk| chunk.statistics()) else { return Ok(None) };
        let (Some(min), Some(max)) = (statistics.min_opt(), statistics.max_opt()) else { return Ok(None) };
        if statistics.null_count_opt().unwrap_or_default() > 0 {
            return Ok(None);
        }
        bounds = Some(bounds.map_or((*min, *max), |(least, most)| (least.min(*min), most.max(*max))));
    }
    Ok(bounds)
}

fn is_whole_number(column: &ColumnDescriptor) -> bool {
    match column.logical_type_ref() {
        Some(LogicalType::Integer(integer)) => integer.is_signed,
        Some(_) => false,
        None => matches!(column.converted_type(), ConvertedType::NONE | ConvertedType::INT_64),
    }
}

/// The whole numbers of a column at some rows, in the order of the rows. NULL is less than anything.
pub(crate) async fn numbers(
    store: &Arc<dyn ObjectStore>,
    file: &DataFile,
    column: &str,
    rows: &RoaringBitmap,
) -> Result<Vec<i64>, EngineError> {
    let builder = builder(store, file).await?;
    let mask = projection(&builder, Some(&[column]));
    let batches = builder.with_projection(mask).with_row_selection(selection(rows)).with_batch_size(ROWS_AT_ONCE);
    let mut batches = batches.build().map_err(EngineError::read_file)?;
    let mut numbers = Vec::with_capacity(rows.len() as usize);
    while let Some(batch) = batches.try_next().await.map_err(EngineError::read_file)? {
        let array = batch.column_by_name(column).and_then(|array| converted(array, ColumnType::Long));
        let array = array.ok_or_else(|| EngineError::corrupt(format!("file {} has no column {column}", file.path)))?;
        let array = array.as_primitive::<Int64Type>();
        numbers.extend(array.iter().map(|number| number.unwrap_or(i64::MIN)));
    }
    if numbers.len() as u64 != rows.len() {
        return Err(EngineError::corrupt(format!("file {} has fewer rows than the log says", file.path)));
    }
    Ok(numbers)
}

/// One row of a file, with the columns of these names that it has. Of a large file only the pages that hold them are read.
pub(crate) async fn row(
    store: &Arc<dyn ObjectStore>,
    file: &DataFile,
    columns: &[&str],
    row: u32,
) -> Result<RecordBatch, EngineError> {
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
    let builder = builder_with(store, file, options).await?;
    let mask = projection(&builder, Some(columns));
    let reading = builder.with_projection(mask).with_row_selection(selection(&RoaringBitmap::from_iter([row])));
    let mut reading = reading.build().map_err(EngineError::read_file)?;
    let found = reading.try_next().await.map_err(EngineError::read_file)?;
    let found = found.filter(|batch| batch.num_rows() == 1);
    found.ok_or_else(|| EngineError::corrupt(format!("file {} has no row {row}", file.path)))
}

/// Whole rows of a file, in its order and under the names of its columns. Of a large file only the pages that hold them are read. `None` for
/// several rows that take more than `bytes_max` of memory.
pub(crate) async fn whole_rows(
    store: &Arc<dyn ObjectStore>,
    file: &DataFile,
    rows: &RoaringBitmap,
    bytes_max: usize,
) -> Result<Option<RecordBatch>, EngineError> {
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
    let builder = builder_with(store, file, options).await?;
    let rows_at_once = ROWS_AT_ONCE.min(rows_in_memory(&builder, &ProjectionMask::all()));
    let reading = builder.with_row_selection(selection(rows)).with_batch_size(rows_at_once);
    let mut reading = reading.build().map_err(EngineError::read_file)?;
    let schema = Arc::clone(reading.schema());
    let (mut batches, mut bytes): (Vec<RecordBatch>, usize) = (Vec::new(), 0);
    while let Some(batch) = reading.try_next().await.map_err(EngineError::read_file)? {
        bytes = bytes.saturating_add(batch.get_array_memory_size());
        if bytes > bytes_max && rows.len() > 1 {
            return Ok(None);
        }
        batches.push(batch);
    }
    let whole = concat_batches(&schema, &batches).map_err(EngineError::arrow)?;
    if whole.num_rows() as u64 != rows.len() {
        return Err(EngineError::corrupt(format!("file {} has fewer rows than the log says", file.path)));
    }
    Ok(Some(whole))
}

fn selection(rows: &RoaringBitmap) -> RowSelection {
    let mut selectors = Vec::with_capacity(2 * rows.len() as usize);
    let mut next = 0;
    for row in rows {
        if row > next {
            selectors.push(RowSelector::skip((row - next) as usize));
        }
        selectors.push(RowSelector::select(1));
        next = row + 1;
    }
    RowSelection::from(selectors)
}

/// The arrow schema of a data file with these columns.
pub(crate) fn file_schema(columns: &[&Column]) -> SchemaRef {
    let fields: Vec<Field> = columns.iter().map(|column| Field::new(&column.name, column.arrow(), true)).collect();
    Arc::new(Schema::new(fields))
}

/// A batch of a file with its columns in the types of the table: other writers encode them in other ways (views, instants in
/// nanoseconds). Columns that are not in the schema are left out.
pub(crate) fn in_table_types(
    batch: &RecordBatch,
    schema: &SchemaRef,
    columns: &[&Column],
) -> Result<RecordBatch, ArrowError> {
    let present: Vec<&Column> =
        columns.iter().filter(|column| batch.column_by_name(&column.name).is_some()).copied().collect();
    if present.iter().all(|column| {
        let held = batch.column_by_name(&column.name).map(|array| array.data_type());
        held == Some(&column.arrow())
    }) {
        return Ok(batch.clone());
    }
    let positions: Vec<usize> = present.iter().filter_map(|column| schema.index_of(&column.name).ok()).collect();
    let schema = Arc::new(schema.project(&positions)?);
    aligned(&schema, &present, batch.num_rows(), |column| batch.column_by_name(&column.name).cloned())
        .map_err(|error| ArrowError::ExternalError(Box::new(error)))
}

/// A batch with exactly these columns: `array_of` gives each, `None` is NULL.
pub(crate) fn aligned(
    schema: &SchemaRef,
    columns: &[&Column],
    rows: usize,
    array_of: impl Fn(&Column) -> Option<ArrayRef>,
) -> Result<RecordBatch, EngineError> {
    let arrays = columns.iter().map(|column| match array_of(column) {
        None => Ok(new_null_array(&column.arrow(), rows)),
        Some(array) => column.fitted(&array).ok_or_else(|| {
            let (from, to) = (array.data_type(), column.arrow());
            EngineError::corrupt(format!("column {} holds {from}, which is no {to}", column.name))
        }),
    });
    let arrays = arrays.collect::<Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options).map_err(EngineError::arrow)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use arrow::array::{Int64Array, StringArray};
    use object_store::memory::InMemory;
    use parquet::arrow::ArrowWriter;

    use super::*;

    #[test]
    fn new_rows_with_long_texts_are_put_together_a_few_at_a_time() {
        assert_eq!(new_rows_at_once(20, 50_000, 50_000 * 2_000), ROWS_AT_ONCE, "as many as of any table");
        assert_eq!(new_rows_at_once(20, 20_000, 20_000 * 50_000), 335);
        assert_eq!(new_rows_at_once(20, 3, 3 << 30), 1);
        assert_eq!(new_rows_at_once(2_000, 50_000, 0), rows_at_once(2_000));
    }

    /// The rows of the batches that a file of so many rows comes in, each with a text of its own of so many characters.
    async fn batches(rows: usize, characters: usize, columns: Option<&[&str]>) -> Vec<usize> {
        batches_of((0..rows).map(|row| format!("{row}{}", "x".repeat(characters))).collect(), columns).await
    }

    /// The rows of the batches that a file with these texts comes in.
    async fn batches_of(texts: Vec<String>, columns: Option<&[&str]>) -> Vec<usize> {
        let rows = texts.len();
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows as i64));
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values(texts));
        let batch = RecordBatch::try_from_iter([("number", numbers), ("text", texts)]).unwrap();
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        let bytes = writer.into_inner().unwrap();
        let (path, size, rows) = ("f.parquet".to_owned(), bytes.len() as i64, rows as i64);
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        store.put(&Path::from(path.as_str()), bytes.into()).await.unwrap();
        let (logged, deleted, versions_us, partition) = Default::default();
        let file = DataFile { number: FileNumber::new(1), path, logged, size, rows, deleted, partition, versions_us };
        let batches: Vec<RecordBatch> = open(&store, &file, columns).await.unwrap().try_collect().await.unwrap();
        batches.iter().map(RecordBatch::num_rows).collect()
    }

    #[tokio::test]
    async fn long_texts_come_in_small_batches() {
        assert_eq!(batches(10_000, 10, None).await, [8_192, 1_808]);
        let long = batches(1_000, 100_000, None).await;
        assert_eq!(long.iter().sum::<usize>(), 1_000);
        assert!(long.iter().all(|rows| *rows <= 42) && long[0] > 35, "{long:?}");
        assert_eq!(batches(1_000, 100_000, Some(&["number"])).await, [1_000], "they are not read");
        assert_eq!(batches(2, 20 << 20, None).await, [1, 1]);
    }

    /// In the file such a text is once.
    #[tokio::test]
    async fn a_long_text_that_all_rows_have_comes_in_small_batches_as_well() {
        let same = batches_of(vec!["x".repeat(50_000); 2_000], None).await;
        assert_eq!(same.iter().sum::<usize>(), 2_000);
        assert!(same.iter().all(|rows| *rows <= 84), "{same:?}");
    }
}

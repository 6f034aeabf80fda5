//! Writing data files, with certainty about where each row comes to stand.
//!
//! One parquet writer at a time, closed after a number of rows that we choose: row `n` of a file is the `n`-th row that was written
//! since it was begun. Sizes follow from an estimate of the bytes of a row.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use deltalake::datafile::writer::{PartitionWriter, PartitionWriterConfig};
use deltalake::table::config::TablePropertiesExt;
use deltalake::table::state::DeltaTableState;
use object_store::ObjectStore;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;

use crate::key_index::{FileNumber, Position, RowNumber};
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::data_file::ROWS_AT_ONCE;
use crate::table_store::delta::files::new_files::{NewFile, NewFiles};
use crate::table_store::delta::files::partition::Partition;
use crate::table_store::schema_plan::{ID_SOURCE, TableSchema};

/// Rows of a row group: small enough that one in the making costs little memory.
const ROW_GROUP_ROWS: usize = 131_072;

/// Spark 3 refuses a file with dates before 1582 or instants before 1900 unless the file says that they are of the calendar that everybody uses now
/// (<https://issues.apache.org/jira/browse/SPARK-31405>). It knows one way to say so: the key under which Spark names the version that wrote it, which
/// is of that calendar from 3.0 on. HQ has such instants, for example the first day of Excel in `opened_on`.
const CALENDAR_KEY: &str = "org.apache.spark.version";
const CALENDAR_VALUE: &str = "3.5.0";

/// Bytes of a row group: a reader holds one of each file that it reads.
const ROW_GROUP_BYTES: usize = 16 << 20;

/// Bytes of a page, before compression: a reader holds a dictionary and a page of each column of each file that it reads, and compaction
/// reads many at once.
const PAGE_BYTES: usize = 256 << 10;

/// A file with more columns than these is wide. Every column of a row group in the making has buffers of its own, so that a wide one is
/// made with as little as possible for each.
const WIDE_ABOVE_COLUMNS: usize = 200;

/// Bytes of a row group of a wide file, before compression.
const WIDE_ROW_GROUP_BYTES: usize = 32 << 20;

/// Most rows of a file; the key index has 24 bits for them.
const FILE_ROWS_MAX: usize = (1 << 24) - 1;

/// Fewest rows after which a file is closed for its size, as the estimate may be far off.
const FILE_ROWS_MIN: usize = 64;

/// Numbers for data files of a space.
#[derive(Clone, Debug, Default)]
pub(crate) struct FileNumbers(Arc<AtomicU32>);

impl FileNumbers {
    /// Goes on after a number.
    pub(crate) fn after(last: FileNumber) -> Self {
        Self(Arc::new(AtomicU32::new(last.get())))
    }

    /// A number that no file had.
    pub(crate) fn next(&self) -> FileNumber {
        FileNumber::new(self.0.fetch_add(1, Ordering::Relaxed)).next()
    }

    /// The last number that was given.
    pub(crate) fn last(&self) -> FileNumber {
        FileNumber::new(self.0.load(Ordering::Relaxed))
    }
}

/// What all files of a change have in common.
pub(crate) struct FileFormat {
    /// The folder of the table.
    pub(crate) store: Arc<dyn ObjectStore>,
    /// Columns of the files, partition columns not among them.
    pub(crate) schema: SchemaRef,
    /// The columns of the partition values.
    pub(crate) partition_columns: Vec<String>,
    /// Numbers for the files.
    pub(crate) numbers: FileNumbers,
    properties: WriterProperties,
    statistics: Vec<String>,
}

impl FileFormat {
    /// The format of files with these columns of a table.
    pub(crate) fn new(
        store: Arc<dyn ObjectStore>,
        schema: SchemaRef,
        table: &TableSchema,
        partition_columns: Vec<String>,
        numbers: FileNumbers,
    ) -> Self {
        let id = table.column(ID_SOURCE).map_or("_id", |column| &column.name);
        let level = ZstdLevel::try_new(3).unwrap_or_default();
        let mut properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(level))
            .set_key_value_metadata(Some(vec![KeyValue::new(CALENDAR_KEY.to_owned(), CALENDAR_VALUE.to_owned())]))
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
            .set_max_row_group_bytes(Some(ROW_GROUP_BYTES))
            .set_dictionary_page_size_limit(PAGE_BYTES)
            .set_data_page_size_limit(PAGE_BYTES)
            // Ids do not repeat, so a dictionary of them is wasted work.
            .set_column_dictionary_enabled(ColumnPath::from(id), false);
        if schema.fields().len() > WIDE_ABOVE_COLUMNS {
            properties = properties
                .set_max_row_group_bytes(Some(WIDE_ROW_GROUP_BYTES))
                // A dictionary in the making takes 70 kB with a single value, and 8 bytes for each value of a page.
                .set_dictionary_enabled(false)
                // The first page of a column keeps a compressor until the row group is closed: most columns shall have one page only.
                .set_data_page_row_count_limit(ROW_GROUP_ROWS);
        }
        let properties = properties.build();
        let statistics = table.filtered().into_iter().filter(|name| schema.field_with_name(name).is_ok()).collect();
        Self { store, schema, partition_columns, numbers, properties, statistics }
    }
}

struct OpenFile {
    number: FileNumber,
    writer: PartitionWriter,
    rows: usize,
}

/// Writes the files of one partition.
pub(crate) struct FileWriter<'a> {
    format: &'a FileFormat,
    partition: Partition,
    rows_max: usize,
    open: Option<OpenFile>,
    written: Vec<NewFile>,
}

impl<'a> FileWriter<'a> {
    /// A writer; nothing is opened before the first row.
    pub(crate) fn new(format: &'a FileFormat, partition: Partition, rows_max: usize) -> Self {
        Self { format, partition, rows_max: rows_max.clamp(1, FILE_ROWS_MAX), open: None, written: Vec::new() }
    }

    /// Writes a batch of the schema of the format. Answers where its rows came to stand: first positions with numbers of rows.
    pub(crate) async fn write(&mut self, batch: &RecordBatch) -> Result<Vec<(Position, usize)>, EngineError> {
        let mut places = Vec::with_capacity(1);
        let mut from = 0;
        while from < batch.num_rows() {
            let open = match &mut self.open {
                Some(open) => open,
                none => none.insert(begin(self.format, &self.partition)?),
            };
            let count = (self.rows_max - open.rows).min(batch.num_rows() - from);
            open.writer.write(&batch.slice(from, count)).await.map_err(EngineError::unwritten)?;
            places.push((Position { file: open.number, row: RowNumber::new(open.rows as u32) }, count));
            open.rows += count;
            from += count;
            if open.rows == self.rows_max {
                self.close().await?;
            }
        }
        Ok(places)
    }

    /// Closes the last file. What was written is durable then, and part of no table yet.
    pub(crate) async fn close(&mut self) -> Result<(), EngineError> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let mut adds = open.writer.close().await.map_err(EngineError::unwritten)?;
        let (Some(mut add), true) = (adds.pop(), adds.is_empty()) else {
            return Err(EngineError::corrupt("one writer did not make one file"));
        };
        let counted = add.get_stats().ok().flatten().and_then(|stats| usize::try_from(stats.num_records).ok());
        if counted != Some(open.rows) {
            return Err(EngineError::corrupt(format!("{} rows were given, {counted:?} were written", open.rows)));
        }
        add.partition_values = self.partition.values(&self.format.partition_columns);
        let partition = self.partition.clone();
        self.written.push(NewFile { number: open.number, add, rows: open.rows, partition });
        Ok(())
    }

    /// The files that were written whole.
    pub(crate) fn into_files(self) -> Vec<NewFile> {
        self.written
    }

    /// Gives up what is being written, so that no parts of uploads stay behind in the store, and deletes what was written.
    pub(crate) async fn discard(mut self) {
        if let Some(open) = self.open.take()
            && let Err(error) = open.writer.abort().await
        {
            tracing::debug!(%error, "upload could not be aborted");
        }
        NewFiles::new(&self.written, []).discard(&self.format.store).await;
    }
}

/// Every position of some places.
pub(crate) fn positions(places: Vec<(Position, usize)>) -> impl Iterator<Item = Position> {
    places.into_iter().flat_map(|(first, count)| (0..count as u32).map(move |rows| first.offset(rows)))
}

fn begin(format: &FileFormat, partition: &Partition) -> Result<OpenFile, EngineError> {
    let config = PartitionWriterConfig::try_new(
        Arc::clone(&format.schema),
        Default::default(),
        Some(format.properties.clone()),
        None,
        Some(ROWS_AT_ONCE),
        None,
        Some(partition.folder(&format.partition_columns)),
    )
    .map_err(EngineError::delta)?;
    // Which columns get statistics is said by name, so this number is never looked at.
    let indexed = default_of(DeltaTableState::table_config).num_indexed_cols();
    let statistics = Some(format.statistics.clone());
    let writer = PartitionWriter::try_with_config(Arc::clone(&format.store), config, indexed, statistics)
        .map_err(EngineError::delta)?;
    Ok(OpenFile { number: format.numbers.next(), writer, rows: 0 })
}

/// A default value of what a function returns; delta-rs does not export the name of this type.
fn default_of<T: Default>(_: for<'a> fn(&'a DeltaTableState) -> &'a T) -> T {
    T::default()
}

/// How many rows make a file of the target size, when so many rows have so many bytes.
pub(crate) fn rows_of_size(target: NonZeroU64, rows: u64, bytes: u64) -> usize {
    let rows = u128::from(target.get()) * u128::from(rows.max(1)) / u128::from(bytes.max(1));
    usize::try_from(rows).unwrap_or(FILE_ROWS_MAX).clamp(FILE_ROWS_MIN, FILE_ROWS_MAX)
}

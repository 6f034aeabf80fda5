//! Writing the files of one change: the new rows and the surviving rows of rewritten files, several partitions at once.
//!
//! A partition is mostly waiting for the store; thousands of them one after the other would take minutes on a far one. Rows are encoded in
//! turns by the one task that applies the batch.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::BooleanArray;
use arrow::compute::filter_record_batch;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use futures::future::try_join_all;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use object_store::ObjectStore;

use crate::key_index::{FileNumber, IdHash, IndexEntry, Position, RowNumber, RunBuilder};
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::data_file::{self, DataFile, FileStream};
use crate::table_store::delta::files::file_writer::{FileFormat, FileWriter, positions, rows_of_size};
use crate::table_store::delta::files::key_columns::{KeyColumns, key_names};
use crate::table_store::delta::files::new_files::{NewFile, NewFiles};
use crate::table_store::delta::files::partition::Partition;
use crate::table_store::delta::files::write_memory_budget::WriteMemoryBudget;
use crate::table_store::delta::options::DeltaOptions;
use crate::table_store::delta::space::state::SpaceState;
use crate::table_store::delta::space::table::TableState;
use crate::table_store::delta::upsert::change::Change;
use crate::table_store::delta::upsert::rows::sorted::SortedRows;
use crate::table_store::schema_plan::{Column, SchemaPlan};

/// More copied rows than these are sorted on disk on their way into the index.
const COPIED_IN_MEMORY_MAX: u64 = 200_000;

/// Encoded rows are about this much smaller than rows in memory; only a first guess for the size of files.
const COMPRESSION_GUESS: usize = 4;

/// Files of a partition that are opened beside each other.
const FILES_OPENED_AT_ONCE: usize = 8;

/// Files of a partition that stay open until it is their turn.
const FILES_HELD_OPEN: usize = 32;

/// Partitions of a change that are written beside each other.
const PARTITIONS_AT_ONCE: usize = 16;

/// What a file in the making holds for a column: a dictionary takes 70 kB with a single value.
const COLUMN_BYTES: usize = 80 << 10;

/// However much a partition reads and writes, it holds about a row group of each in memory.
const ROWS_BYTES_MAX: usize = 32 << 20;

/// What the index knows a row by, with its version; `None` for one without an id.
type RowKey = Option<(IdHash, i64)>;

/// What was written.
#[derive(Default)]
pub(crate) struct WrittenFiles {
    /// New files.
    pub(crate) added: Vec<NewFile>,
    /// Where the new rows stand.
    pub(crate) inserted: Vec<IndexEntry>,
    /// Where the copied rows stand, if they are not in the run.
    pub(crate) copied: Vec<IndexEntry>,
    /// The same where they are very many.
    pub(crate) run: Option<RunBuilder>,
}

/// What to write, and how.
pub(crate) struct PartitionFiles<'a> {
    pub(crate) state: &'a SpaceState,
    pub(crate) table: &'a TableState,
    pub(crate) change: &'a Change,
    /// The folder of the table.
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) plan: &'a SchemaPlan,
    pub(crate) partition_columns: &'a [String],
    pub(crate) options: &'a DeltaOptions,
    /// Shared by everything that writes files of batches.
    pub(crate) memory: &'a WriteMemoryBudget,
}

impl PartitionFiles<'_> {
    /// Writes the new rows and the rows of `rewritten` that stay. `present`: sources of the columns that the new rows have.
    pub(crate) async fn write(
        &self,
        rows: Option<SortedRows>,
        rewritten: Vec<&DataFile>,
        present: &HashSet<String>,
    ) -> Result<WrittenFiles, EngineError> {
        let mut groups: BTreeMap<&Partition, (Vec<&DataFile>, Range<usize>)> = BTreeMap::new();
        let copied_rows: i64 = rewritten.iter().map(|file| file.live_rows()).sum();
        for file in rewritten {
            groups.entry(&file.partition).or_insert((Vec::new(), 0..0)).0.push(file);
        }
        if let Some(rows) = &rows {
            for (partition, range) in &rows.partitions {
                groups.entry(partition).or_insert((Vec::new(), 0..0)).1 = range.clone();
            }
        }
        let mut run = None;
        if copied_rows.unsigned_abs() > COPIED_IN_MEMORY_MAX {
            run = Some(Mutex::new(self.state.index().run_builder().map_err(EngineError::Index)?));
        }
        let (run_of_all, failed) = (run.as_ref(), &AtomicBool::new(false));
        let writing: Vec<_> = groups
            .into_iter()
            .map(|(partition, (files, range))| {
                let new = rows.as_ref().filter(|_| !range.is_empty());
                async move {
                    let _room = self.memory.room_for(self.bytes_in_memory(&files, new, &range)).await;
                    if failed.load(Ordering::Relaxed) {
                        return Ok(WrittenFiles::default());
                    }
                    let writing = self.write_partition(partition, &files, new, range, present, run_of_all);
                    // On the heap only when it is its turn.
                    let written = writing.boxed().await;
                    failed.fetch_or(written.is_err(), Ordering::Relaxed);
                    written
                }
                .boxed()
            })
            .collect();
        let mut writing = stream::iter(writing).buffer_unordered(PARTITIONS_AT_ONCE);
        let (mut output, mut failure) = (WrittenFiles::default(), None);
        // After a failure those that are under way come to their end, so that no upload stays open.
        while let Some(written) = writing.next().await {
            match written {
                Ok(written) => output.append(written),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        drop(writing);
        if let Some(error) = failure {
            NewFiles::new(&output.added, []).discard(&self.store).await;
            return Err(error);
        }
        output.run = run.map(|run| run.into_inner().unwrap_or_else(PoisonError::into_inner));
        Ok(output)
    }

    /// About how much memory the writing of a partition takes: what a file in the making holds for each column, and what it reads and
    /// writes, up to a few row groups.
    fn bytes_in_memory(&self, files: &[&DataFile], new: Option<&SortedRows>, range: &Range<usize>) -> usize {
        let copied: u64 = files.iter().map(|file| file.size.unsigned_abs()).sum();
        let entering = new.map_or(0, |new| new.bytes_of(range));
        let columns = self.plan.schema.columns.len().saturating_mul(COLUMN_BYTES);
        let rows = usize::try_from(copied).unwrap_or(usize::MAX).saturating_add(entering).min(ROWS_BYTES_MAX);
        columns.saturating_add(rows)
    }

    async fn write_partition(
        &self,
        partition: &Partition,
        files: &[&DataFile],
        new: Option<&SortedRows>,
        range: Range<usize>,
        present: &HashSet<String>,
        run: Option<&Mutex<RunBuilder>>,
    ) -> Result<WrittenFiles, EngineError> {
        let mut opened = self.open_files(files).await?;
        if new.is_some() {
            opened.sources.extend(present.iter().map(String::as_str));
        }
        // A column that is NULL in all rows of a file is left out of it: readers fill it in, and wide tables stay small.
        let is_written = |column: &&Column| {
            opened.sources.contains(column.source.as_str()) && !self.partition_columns.contains(&column.name)
        };
        let columns: Vec<&Column> = self.plan.schema.columns.iter().filter(is_written).collect();
        let schema = data_file::file_schema(&columns);
        let (partition_columns, numbers) = (self.partition_columns.to_vec(), self.state.numbers().clone());
        let store = Arc::clone(&self.store);
        let format = FileFormat::new(store, Arc::clone(&schema), &self.plan.schema, partition_columns, numbers);
        let writer = FileWriter::new(&format, partition.clone(), self.rows_max(files, new, &range));
        let mut rows = PartitionRows { schema, columns, writer, run, output: WrittenFiles::default() };
        let writing = async {
            for file in files {
                let stream = match opened.streams.remove(&file.number) {
                    Some(stream) => stream,
                    None => data_file::open_with(&self.store, file, None, self.rows_copied_at_once()).await?.stream,
                };
                self.copy_survivors(file, stream, &mut rows).await?;
            }
            if let Some(new) = new {
                rows.insert(new, range).await?;
            }
            rows.writer.close().await
        };
        if let Err(error) = writing.await {
            rows.writer.discard().await;
            return Err(error);
        }
        Ok(WrittenFiles { added: rows.writer.into_files(), ..rows.output })
    }

    /// Rows of a file that are read at once.
    fn rows_copied_at_once(&self) -> usize {
        data_file::rows_at_once(self.table.schema().columns.len())
    }

    /// Opens files to learn which columns they have. Some of them stay open.
    async fn open_files<'a>(&'a self, files: &[&DataFile]) -> Result<OpenedFiles<'a>, EngineError> {
        let by_name: HashMap<&str, &Column> =
            self.table.schema().columns.iter().map(|column| (column.name.as_str(), column)).collect();
        let rows_at_once = self.rows_copied_at_once();
        let mut opened = OpenedFiles { streams: HashMap::new(), sources: HashSet::new() };
        for files in files.chunks(FILES_OPENED_AT_ONCE) {
            let opening = files.iter().map(|file| data_file::open_with(&self.store, file, None, rows_at_once));
            for (file, opened_file) in files.iter().zip(try_join_all(opening).await?) {
                let stream = opened_file.stream;
                let names = stream.schema().fields().iter().filter_map(|field| by_name.get(field.name().as_str()));
                opened.sources.extend(names.map(|column| column.source.as_str()));
                // Footers can be large: those of many files are read again.
                if opened.streams.len() < FILES_HELD_OPEN {
                    opened.streams.insert(file.number, stream);
                }
            }
        }
        Ok(opened)
    }

    /// Copies the rows of a file that stay.
    async fn copy_survivors(
        &self,
        file: &DataFile,
        mut stream: FileStream,
        rows: &mut PartitionRows<'_>,
    ) -> Result<(), EngineError> {
        let names = key_names(self.table.schema());
        let mut first = RowNumber::FIRST;
        while let Some(batch) = stream.try_next().await.map_err(EngineError::read_file)? {
            let (survivors, keys) = self.survivors(&batch, file, first, &names)?;
            first = first.offset(batch.num_rows() as u32);
            rows.copy(&survivors, keys).await?;
        }
        Ok(())
    }

    /// Rows after which a file is closed.
    fn rows_max(&self, files: &[&DataFile], new: Option<&SortedRows>, range: &Range<usize>) -> usize {
        let known: (i64, i64) = files.iter().fold((0, 0), |(rows, bytes), file| (rows + file.rows, bytes + file.size));
        let (rows, bytes) = match new {
            // The bytes of files with a few rows say little about those of a row.
            Some(new) if known.0 < range.len() as i64 => (range.len(), new.bytes_of(range) / COMPRESSION_GUESS),
            _ => (known.0.unsigned_abs() as usize, known.1.unsigned_abs() as usize),
        };
        rows_of_size(self.options.target_file_bytes, rows as u64, bytes as u64)
    }

    /// The rows of a batch that stay, with their keys. `first`: the row of the file with which the batch begins.
    fn survivors(
        &self,
        batch: &RecordBatch,
        file: &DataFile,
        first: RowNumber,
        [id, _, observed]: &[String; 3],
    ) -> Result<(RecordBatch, Vec<RowKey>), EngineError> {
        let keys = KeyColumns::without_version(batch, id, observed)
            .map_err(|error| EngineError::corrupt(format!("file {}: {error}", file.path)))?;
        let dead = self.change.dead.get(&file.number);
        let mut survivors = Vec::with_capacity(batch.num_rows());
        let stays = (0..batch.num_rows()).map(|at| {
            let row = first.offset(at as u32).get();
            let deleted = file.deleted_rows().is_some_and(|deleted| deleted.contains(row));
            let stays = !deleted && !dead.is_some_and(|dead| dead.contains(row));
            if stays {
                survivors.push(keys.id_hash(at).map(|id| (id, keys.order(at).observed_us)));
            }
            Some(stays)
        });
        let mask: BooleanArray = stays.collect();
        Ok((filter_record_batch(batch, &mask).map_err(EngineError::arrow)?, survivors))
    }
}

/// The files of a partition that are copied, opened.
struct OpenedFiles<'a> {
    /// Those that stay open until it is their turn.
    streams: HashMap<FileNumber, FileStream>,
    /// Sources of the columns that any of the files has.
    sources: HashSet<&'a str>,
}

/// The rows of a partition on their way into its new files.
struct PartitionRows<'a> {
    schema: SchemaRef,
    columns: Vec<&'a Column>,
    writer: FileWriter<'a>,
    /// Where entries of copied rows go if they are very many.
    run: Option<&'a Mutex<RunBuilder>>,
    output: WrittenFiles,
}

impl PartitionRows<'_> {
    /// Writes rows of a rewritten file.
    async fn copy(&mut self, batch: &RecordBatch, keys: Vec<RowKey>) -> Result<(), EngineError> {
        let batch = data_file::aligned(&self.schema, &self.columns, batch.num_rows(), |column| {
            batch.column_by_name(&column.name).cloned()
        })?;
        let places = self.writer.write(&batch).await?;
        self.output.copy(positions(places).zip(keys), self.run)
    }

    /// Writes new rows.
    async fn insert(&mut self, new: &SortedRows, range: Range<usize>) -> Result<(), EngineError> {
        let rows_at_once = data_file::new_rows_at_once(self.columns.len(), range.len(), new.bytes_of(&range));
        for from in range.clone().step_by(rows_at_once) {
            let rows = from..range.end.min(from + rows_at_once);
            let batch = new.slice(rows.clone(), &self.schema, &self.columns)?;
            let places = self.writer.write(&batch).await?;
            let keys = new.keys[rows].iter().map(|(id, order)| (*id, order.observed_us));
            self.output.inserted.extend(positions(places).zip(keys).map(|(position, key)| entry(position, key)));
        }
        Ok(())
    }
}

impl WrittenFiles {
    fn append(&mut self, other: Self) {
        self.added.extend(other.added);
        self.inserted.extend(other.inserted);
        self.copied.extend(other.copied);
    }

    fn copy(
        &mut self,
        rows: impl Iterator<Item = (Position, RowKey)>,
        run: Option<&Mutex<RunBuilder>>,
    ) -> Result<(), EngineError> {
        let mut entries = rows.filter_map(|(position, key)| Some(entry(position, key?)));
        let Some(run) = run else {
            self.copied.extend(entries);
            return Ok(());
        };
        let mut run = run.lock().unwrap_or_else(PoisonError::into_inner);
        entries.try_for_each(|entry| run.push(entry)).map_err(EngineError::Index)
    }
}

fn entry(position: Position, (id, observed_us): (IdHash, i64)) -> IndexEntry {
    IndexEntry { id, position, observed_us }
}

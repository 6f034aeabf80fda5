//! One change of one table: which files are marked, which are rewritten, and with what.
//!
//! *Merge on read*: the new rows become a file (one a partition), the rows they replace are marked in deletion vectors. The cost
//! follows the change. *Copy on write*, for small tables and where deletion vectors are not wanted: the files that hold a replaced,
//! deleted or stray row are read as a stream, their other rows are written together with the new ones. A type change
//! rewrites all files. Either way one commit exchanges the files.
//! Small files are folded into the new one of their partition where there are too many ([`super::file_plan`]).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::BooleanArray;
use arrow::compute::filter_record_batch;
use arrow::record_batch::RecordBatch;
use futures::TryStreamExt;
use futures::future::try_join_all;
use object_store::ObjectStore;
use roaring::RoaringBitmap;

use super::arriving::Arriving;
use super::batch::KeyColumns;
use super::deletion_vectors::{self, DeletionVector};
use super::file_plan::plan_files;
use super::file_writer::{FileFormat, FileWriter, NewFile, rows_of_size};
use super::files::{self, DataFile};
use super::keys::key_names;
use super::new_rows::NewRows;
use super::partition::Partition;
use super::space::{Slot, SpaceState};
use super::{DeltaOptions, EngineError, TableOptions};
use crate::key_index::{Entry, FinishedRun, KeyIndex, Position, RunBuilder, id_hash};
use crate::table_store::conversion::ColumnType;
use crate::table_store::schema_plan::{
    COMMITTED_SOURCE, Column, ID_SOURCE, OBSERVED_SOURCE, OVERFLOW_SOURCE, SchemaPlan, VERSION_SOURCE, plan,
};

/// More copied rows than these are sorted on disk on their way into the index.
const COPIED_IN_MEMORY_MAX: u64 = 200_000;

/// Encoded rows are about this much smaller than rows in memory; only a first guess for the size of files.
const COMPRESSION_GUESS: usize = 4;

/// Files that are opened beside each other.
const FILES_OPENED_AT_ONCE: usize = 8;

/// What is to happen to a table.
#[derive(Debug)]
pub(super) struct Change {
    /// Which table of the space.
    pub(super) number: u32,
    /// Rows that enter.
    pub(super) arriving: Arriving,
    /// Positions in this table that must leave, replaced ones and strays included.
    pub(super) dead: BTreeMap<u32, RoaringBitmap>,
    /// How many rows leave without being replaced.
    pub(super) deleted: u64,
}

/// A change whose files are written and durable, but not yet part of the table.
pub(super) struct Written {
    pub(super) plan: SchemaPlan,
    pub(super) partition_columns: Vec<String>,
    /// New files.
    pub(super) added: Vec<NewFile>,
    /// Files that leave.
    pub(super) removed: Vec<u32>,
    /// Files with another deletion vector than before.
    pub(super) marked: Vec<(u32, DeletionVector)>,
    /// Where the new rows stand.
    pub(super) entered: Vec<Entry>,
    /// Where the copied rows stand.
    pub(super) copied: Vec<Entry>,
    /// The same where they are very many.
    pub(super) copied_run: Option<FinishedRun>,
}

/// Which columns partition a table that is about to be made: those of the options that it has.
fn partition_columns(slot: &Slot, plan: &SchemaPlan, options: &TableOptions) -> Vec<String> {
    if slot.version.is_some() {
        return slot.partition_columns.clone();
    }
    // Text and dates are written as partition values by every engine in the same way; other types are not.
    let can = |column: &Column| matches!(column.column_type, ColumnType::String | ColumnType::Date);
    let has = |name: &&String| plan.schema.columns.iter().any(|column| &&column.name == name && can(column));
    let (columns, ignored): (Vec<&String>, Vec<&String>) = options.partition_by.iter().partition(|name| has(name));
    if !ignored.is_empty() {
        tracing::warn!(
            table = slot.name,
            ?ignored,
            "a new table is not partitioned by what it lacks or what is no text or date"
        );
    }
    columns.into_iter().cloned().collect()
}

/// Plans the schema, then reads and writes files. Nothing is visible yet.
pub(super) async fn write(
    state: &SpaceState,
    change: &Change,
    store: Arc<dyn ObjectStore>,
    options: &DeltaOptions,
    marks: bool,
    now_us: i64,
) -> Result<Written, EngineError> {
    let slot = state.slot(change.number);
    let table_options = options.of_table(&slot.name);
    let fields = if change.arriving.len() == 0 { Vec::new() } else { change.arriving.fields(&slot.schema)? };
    let plan = plan(&slot.schema, &fields, options.columns_max).map_err(EngineError::BadRows)?;
    let partition_columns = partition_columns(slot, &plan, &table_options);
    check_partition_types(slot, &plan, &partition_columns)?;
    let mut present: HashSet<String> = fields.into_iter().map(|field| field.source).collect();
    present.extend([ID_SOURCE, VERSION_SOURCE, OBSERVED_SOURCE, COMMITTED_SOURCE].map(str::to_owned));
    present.extend((!plan.overflow.is_empty()).then(|| OVERFLOW_SOURCE.to_owned()));
    let arriving_columns: Vec<&Column> = plan
        .schema
        .columns
        .iter()
        .filter(|column| present.contains(&column.source) || partition_columns.contains(&column.name))
        .collect();
    let rows = NewRows::of(&change.arriving, &arriving_columns, &plan, &partition_columns, now_us)?;
    let touched: HashSet<&Partition> =
        rows.iter().flat_map(|rows| &rows.partitions).map(|(partition, _)| partition).collect();
    let file_plan = plan_files(slot, &change.dead, plan.rewrites, marks, &touched, options);
    let mut removed: Vec<u32> = file_plan.removed.iter().map(|file| file.number).collect();
    removed.extend(file_plan.rewritten.iter().map(|file| file.number));
    let vectors = file_plan.marked.iter().map(|(_, rows)| Arc::clone(rows)).collect();
    let vectors = deletion_vectors::store(&store, vectors).await?;
    let marked = file_plan.marked.iter().map(|(file, _)| file.number).zip(vectors).collect();
    let writing = Rewrite { state, slot, change, store, plan: &plan, partition_columns: &partition_columns, options };
    let out = writing.run(rows, file_plan.rewritten, &present).await?;
    let copied_run = match out.run {
        Some(run) => Some(finished(run).await?),
        None => None,
    };
    let Output { added, entered, copied, .. } = out;
    Ok(Written { plan, partition_columns, added, removed, marked, entered, copied, copied_run })
}

/// Sorts the entries of a run. No id is there twice: each live row is copied once.
async fn finished(run: RunBuilder) -> Result<FinishedRun, EngineError> {
    let finishing = tokio::task::spawn_blocking(move || run.finish(&mut |_, _| {}));
    finishing.await.map_err(EngineError::interrupted)?.map_err(EngineError::Index)
}

/// A partition column cannot change its type: every file would move.
fn check_partition_types(slot: &Slot, plan: &SchemaPlan, partition_columns: &[String]) -> Result<(), EngineError> {
    let changed =
        slot.schema.columns.iter().zip(&plan.schema.columns).find(|(before, after)| {
            before.column_type != after.column_type && partition_columns.contains(&before.name)
        });
    changed.map_or(Ok(()), |(column, _)| {
        let reason = format!("column {} partitions the table, so its type cannot change", column.name);
        Err(EngineError::BadRows(reason))
    })
}

/// What a rewrite made.
#[derive(Default)]
struct Output {
    added: Vec<NewFile>,
    entered: Vec<Entry>,
    copied: Vec<Entry>,
    run: Option<RunBuilder>,
}

/// Writes the new rows and the surviving rows of rewritten files, partition by partition.
struct Rewrite<'a> {
    state: &'a SpaceState,
    slot: &'a Slot,
    change: &'a Change,
    store: Arc<dyn ObjectStore>,
    plan: &'a SchemaPlan,
    partition_columns: &'a [String],
    options: &'a DeltaOptions,
}

impl Rewrite<'_> {
    async fn run(
        &self,
        rows: Option<NewRows>,
        rewritten: Vec<&DataFile>,
        present: &HashSet<String>,
    ) -> Result<Output, EngineError> {
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
        let mut output = Output::default();
        if copied_rows.unsigned_abs() > COPIED_IN_MEMORY_MAX {
            output.run = Some(builder(&self.state.index)?);
        }
        for (partition, (files, range)) in groups {
            let new = rows.as_ref().filter(|_| !range.is_empty());
            self.write_partition(partition, &files, new, range, present, &mut output).await?;
        }
        Ok(output)
    }

    async fn write_partition(
        &self,
        partition: &Partition,
        files: &[&DataFile],
        new: Option<&NewRows>,
        range: Range<usize>,
        present: &HashSet<String>,
        output: &mut Output,
    ) -> Result<(), EngineError> {
        let by_name: HashMap<&str, &Column> =
            self.slot.schema.columns.iter().map(|column| (column.name.as_str(), column)).collect();
        let mut sources: HashSet<&str> = HashSet::new();
        if new.is_some() {
            sources.extend(present.iter().map(String::as_str));
        }
        let mut streams = Vec::with_capacity(files.len());
        let copied_at_once = files::rows_at_once(self.slot.schema.columns.len());
        for files in files.chunks(FILES_OPENED_AT_ONCE) {
            let opening = files.iter().map(|file| files::open_with(&self.store, file, None, copied_at_once));
            for (file, stream) in files.iter().zip(try_join_all(opening).await?) {
                let names = stream.schema().fields().iter().filter_map(|field| by_name.get(field.name().as_str()));
                sources.extend(names.map(|column| column.source.as_str()));
                streams.push((*file, stream));
            }
        }
        // A column that is NULL in all rows of a file is left out of it: readers fill it in, and wide tables stay small.
        let columns: Vec<&Column> = self
            .plan
            .schema
            .columns
            .iter()
            .filter(|column| sources.contains(column.source.as_str()) && !self.partition_columns.contains(&column.name))
            .collect();
        let schema = files::file_schema(&columns);
        let (partition_columns, numbers) = (self.partition_columns.to_vec(), self.state.numbers.clone());
        let store = Arc::clone(&self.store);
        let format = FileFormat::new(store, Arc::clone(&schema), &self.plan.schema, partition_columns, numbers);
        let rows_max = self.rows_max(files, new, &range);
        let mut writer = FileWriter::new(&format, partition.clone(), rows_max);
        let writing = async {
            let names = key_names(&self.slot.schema);
            for (file, mut stream) in streams {
                let mut row = 0;
                while let Some(batch) = stream.try_next().await.map_err(EngineError::read_file)? {
                    let (batch, keys) = self.survivors(&batch, file, &mut row, &names)?;
                    let rows = batch.num_rows();
                    let batch =
                        files::aligned(&schema, &columns, rows, |column| batch.column_by_name(&column.name).cloned())?;
                    let places = writer.write(&batch).await?;
                    output.copy(positions(places).zip(keys))?;
                }
            }
            if let Some(new) = new {
                let rows_at_once = files::rows_at_once(columns.len());
                for from in range.clone().step_by(rows_at_once) {
                    let rows = from..range.end.min(from + rows_at_once);
                    let batch = new.slice(rows.clone(), &schema, &columns)?;
                    let places = writer.write(&batch).await?;
                    let keys = new.keys[rows].iter().map(|(id, order)| (*id, order.version_us));
                    output.entered.extend(positions(places).zip(keys).map(entry));
                }
            }
            Ok(())
        };
        if let Err(error) = writing.await {
            writer.give_up().await;
            return Err(error);
        }
        output.added.extend(writer.finish().await?);
        Ok(())
    }

    /// Rows after which a file is closed.
    fn rows_max(&self, files: &[&DataFile], new: Option<&NewRows>, range: &Range<usize>) -> usize {
        let known: (i64, i64) = files.iter().fold((0, 0), |(rows, bytes), file| (rows + file.rows, bytes + file.size));
        let (rows, bytes) = match new {
            // The bytes of files with a few rows say little about those of a row.
            Some(new) if known.0 < range.len() as i64 => {
                (range.len(), new.bytes * range.len() / new.keys.len().max(1) / COMPRESSION_GUESS)
            }
            _ => (known.0.unsigned_abs() as usize, known.1.unsigned_abs() as usize),
        };
        rows_of_size(self.options.target_file_bytes, rows as u64, bytes as u64)
    }

    /// The rows of a batch that stay, with their keys. `row` is the number of the first one in its file.
    fn survivors(
        &self,
        batch: &RecordBatch,
        file: &DataFile,
        row: &mut u32,
        [id, version, _]: &[String; 3],
    ) -> Result<(RecordBatch, Vec<(u128, i64)>), EngineError> {
        let keys = KeyColumns::without_observation(batch, id, version)
            .map_err(|error| EngineError::corrupt(format!("file {}: {error}", file.path)))?;
        let dead = self.change.dead.get(&file.number);
        let mut survivors = Vec::with_capacity(batch.num_rows());
        let stays = (0..batch.num_rows()).zip(*row..).map(|(at, row)| {
            let deleted = file.deleted_rows().is_some_and(|deleted| deleted.contains(row));
            let stays = !deleted && !dead.is_some_and(|dead| dead.contains(row));
            if stays {
                survivors.push((id_hash(keys.id(at).unwrap_or_default()), keys.order(at).version_us));
            }
            Some(stays)
        });
        let mask: BooleanArray = stays.collect();
        *row += batch.num_rows() as u32;
        Ok((filter_record_batch(batch, &mask).map_err(EngineError::arrow)?, survivors))
    }
}

impl Output {
    fn copy(&mut self, rows: impl Iterator<Item = (Position, (u128, i64))>) -> Result<(), EngineError> {
        match &mut self.run {
            None => self.copied.extend(rows.map(entry)),
            Some(run) => {
                for row in rows {
                    run.push(entry(row)).map_err(EngineError::Index)?;
                }
            }
        }
        Ok(())
    }
}

fn builder(index: &KeyIndex) -> Result<RunBuilder, EngineError> {
    index.run_builder().map_err(EngineError::Index)
}

fn entry((position, (id, version_us)): (Position, (u128, i64))) -> Entry {
    Entry { id, position, version_us }
}

/// Every position of some places.
pub(super) fn positions(places: Vec<(Position, usize)>) -> impl Iterator<Item = Position> {
    places.into_iter().flat_map(|(first, count)| {
        (first.row..first.row + count as u32).map(move |row| Position { file: first.file, row })
    })
}

/// Bounds of the instants at which the rows of each new file were observed. They came with this change or stood in the files that it
/// takes out of the partition.
fn observed_us(slot: &Slot, change: &Change, written: &Written) -> Vec<Option<(i64, i64)>> {
    let joined = |one: (i64, i64), other: (i64, i64)| (one.0.min(other.0), one.1.max(other.1));
    let arrived = change.arriving.keys.iter().map(|(_, order)| (order.observed_us, order.observed_us)).reduce(joined);
    let mut copied: HashMap<&Partition, Option<(i64, i64)>> = HashMap::new();
    for file in written.removed.iter().filter_map(|number| slot.files.get(number)) {
        let bounds = copied.entry(&file.partition).or_insert(file.observed_us);
        *bounds = bounds.zip(file.observed_us).map(|(one, other)| joined(one, other));
    }
    let of_file = |file: &NewFile| match (arrived, copied.get(&file.partition)) {
        (arrived, None) => arrived,
        (None, Some(copied)) => *copied,
        (Some(arrived), Some(copied)) => copied.map(|copied| joined(arrived, copied)),
    };
    written.added.iter().map(of_file).collect()
}

/// Brings index and file list of a table in step with a commit of a change.
pub(super) fn committed(state: &mut SpaceState, change: &Change, written: Written, version: u64) {
    let number = change.number;
    let observed = observed_us(state.slot(number), change, &written);
    // The files first: the index may forget entries of files that it does not know to be live.
    let live = state.live_mut();
    for file in &written.removed {
        live.remove(*file);
    }
    for (file, vector) in &written.marked {
        live.set(*file, number, Some(Arc::clone(&vector.rows)));
    }
    for file in &written.added {
        live.set(file.number, number, None);
    }
    state.index.put(written.copied.into_iter().chain(written.entered));
    if let Some(run) = written.copied_run {
        state.index.attach(run);
    }
    let (published, fetched) = change.arriving.freshness();
    let slot = state.slot_mut(number);
    for file in written.removed {
        slot.files.remove(&file);
    }
    for (file, vector) in written.marked {
        if let Some(file) = slot.files.get_mut(&file) {
            file.deleted = Some(vector);
        }
    }
    for (file, observed_us) in written.added.into_iter().zip(observed) {
        slot.files.insert(file.number, file.into_data_file(observed_us));
    }
    slot.schema_recorded &= !written.plan.changed;
    slot.schema = written.plan.schema;
    slot.partition_columns = written.partition_columns;
    slot.version = Some(version);
    slot.changed = true;
    let unrecorded = slot.unrecorded.get_or_insert_default();
    unrecorded.newest_published_us = unrecorded.newest_published_us.max(published);
    unrecorded.newest_fetched_us = unrecorded.newest_fetched_us.max(fetched);
}

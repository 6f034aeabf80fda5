//! Compaction while batches go on being applied.
//!
//! Three steps: *choose* files under the lock of the space; *rewrite* them without it, remembering where each row goes and building
//! the entries of the key index beside the index; *commit* under the lock again, where the rows that were deleted meanwhile become
//! deletion vectors of the new files. If anything else happened to the files meanwhile, the new ones are thrown away.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use deltalake::kernel::{Action, LogicalFileView};
use futures::{StreamExt, TryStreamExt};
use lake_shared::identity::{Space, TableKey};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::errors::ParquetError;
use roaring::RoaringBitmap;
use serde_json::Value;

use super::batch::KeyColumns;
use super::commit::{self, Features, Label, Outcome};
use super::deletion_vectors::{self, DeletionVector};
use super::file_writer::{FileFormat, FileNumbers, FileWriter, NewFile};
use super::files::{self, DataFile, ROWS_AT_ONCE};
use super::keys::key_names;
use super::options::DeletionVectors;
use super::partition::Partition;
use super::space::{Slot, SpaceState};
use super::{DeltaTableStore, EngineError, SpaceCell, change, now_us};
use crate::compaction::{
    ClusterKeys, ClusterRange, ColumnBounds, FileFacts, Input, Job, Policy, PositionMap, merge, plan,
};
use crate::key_index::{Entry, FinishedRun, Liveness, Position, RunBuilder, id_hash};
use crate::table_store::Compacted;
use crate::table_store::schema_plan::{Column, TableSchema, clustering};
use crate::telemetry;

/// Files that one compaction reads. A row group of each may be in memory.
const FILES_MAX: usize = 8;

/// Rows that one compaction reads: where each of them goes is in memory, 8 bytes a row.
const ROWS_MAX: u64 = 16_000_000;

/// Compactions of one call; what is left is for the next.
const JOBS_MAX: usize = 64;

/// What one rewrite needs to know, taken under the lock.
struct Chosen {
    number: u32,
    key: TableKey,
    generation: u64,
    job: Job,
    inputs: Vec<DataFile>,
    starts: Vec<Option<Vec<u8>>>,
    schema: TableSchema,
    partition_columns: Vec<String>,
    store: Arc<dyn ObjectStore>,
    numbers: FileNumbers,
}

/// What a rewrite made.
struct Rewritten {
    added: Vec<NewFile>,
    positions: PositionMap,
    run: FinishedRun,
    /// Entries of ids that the run has another entry of: one of their rows has to leave.
    again: Vec<Entry>,
}

impl DeltaTableStore {
    /// Compacts what the policy asks for in a space that is in use. One at a time.
    pub(super) async fn compact_space(&self, space: &Space) -> Result<Compacted, EngineError> {
        let shared = self.shared(space);
        let _alone = shared.compacting.lock().await;
        let mut compacted = Compacted::default();
        let (mut number, mut failure) = (0, None);
        for _ in 0..JOBS_MAX {
            let done = match self.compact_next(&shared, &mut number, &mut compacted).await {
                Ok(Some(done)) => done,
                Ok(None) => return failure.map_or(Ok(compacted), Err),
                Err(error) => {
                    failure.get_or_insert(error);
                    false
                }
            };
            // A table that cannot be compacted now does not keep the others from their turn.
            number += u32::from(!done);
        }
        compacted.more = true;
        failure.map_or(Ok(compacted), Err)
    }

    /// Compacts once, in the next table that needs it, `number` or after. `None`: none does. `false`: in vain, files changed meanwhile.
    async fn compact_next(
        &self,
        shared: &SpaceCell,
        number: &mut u32,
        compacted: &mut Compacted,
    ) -> Result<Option<bool>, EngineError> {
        let (chosen, run) = loop {
            // Let go between two tables: a batch waits for one at most.
            let mut guard = shared.state.lock().await;
            guard.take_if(|state| state.torn);
            let Some(state) = guard.as_mut().filter(|state| (*number as usize) < state.slots.len()) else {
                return Ok(None);
            };
            let locked = Instant::now();
            let chosen = self.choose(state, *number).await;
            compacted.held_up_max = compacted.held_up_max.max(locked.elapsed());
            if let Some(chosen) = chosen? {
                break chosen;
            }
            *number += 1;
        };
        let began = Instant::now();
        let (inputs, key, reason) = (chosen.inputs.len(), chosen.key.clone(), chosen.job.reason);
        let rewritten = rewrite(&chosen, run).await?;
        let waited = Instant::now();
        let mut guard = shared.state.lock().await;
        guard.take_if(|state| state.torn);
        let locked = Instant::now();
        let bytes: i64 = rewritten.added.iter().map(|file| file.add.size).sum();
        let outputs = rewritten.added.len();
        let done = match guard.as_mut() {
            Some(state) => self.commit_rewrite(state, &chosen, rewritten).await?,
            None => {
                self.discard(&chosen.store, &rewritten.added).await;
                false
            }
        };
        drop(guard);
        compacted.held_up_max = compacted.held_up_max.max(locked.elapsed());
        if !done {
            tracing::debug!(table = %key, ?reason, "files changed while they were compacted; tried again later");
            return Ok(Some(false));
        }
        compacted.commits += 1;
        compacted.files_before += inputs as u64;
        compacted.files_after += outputs as u64;
        compacted.bytes_written += bytes.unsigned_abs();
        let kind = key.space.kind.name();
        metrics::counter!(telemetry::COMPACTED_FILES_TOTAL, "kind" => kind).increment(inputs as u64);
        let held = lake_shared::retry::milliseconds(locked.elapsed());
        let milliseconds = lake_shared::retry::milliseconds(began.elapsed());
        let waited = lake_shared::retry::milliseconds(locked - waited);
        tracing::info!(
            table = %key, ?reason, files = inputs, into = outputs, bytes, milliseconds, lock_waited = waited,
            lock_held = held, "compacted"
        );
        Ok(Some(true))
    }

    /// The most urgent work in a table, if there is any.
    async fn choose(&self, state: &mut SpaceState, number: u32) -> Result<Option<(Chosen, RunBuilder)>, EngineError> {
        let slot = state.slot(number);
        let purge_all = self.options.of_table(&slot.name).deletion_vectors == DeletionVectors::Off;
        if !slot.changed || !self.may_need_work(slot, purge_all) {
            state.slot_mut(number).changed = false;
            return Ok(None);
        }
        let Some(table) = self.table_at(state, number).await? else {
            self.refresh(state, number).await?;
            return Ok(None);
        };
        let slot = state.slot(number);
        let (facts, starts) = facts(slot, table.snapshot().map_err(EngineError::delta)?.log_data().iter());
        let (store, key) = (table.object_store(), slot.key.clone());
        self.handles.put(key.clone(), table);
        let Some(job) = plan(&facts, &self.policy(purge_all)).into_iter().next() else {
            state.slot_mut(number).changed = false;
            return Ok(None);
        };
        let slot = state.slot(number);
        let inputs: Vec<DataFile> = job.files.iter().filter_map(|file| slot.files.get(file)).cloned().collect();
        let starts = inputs.iter().map(|file| starts.get(&file.number).cloned()).collect();
        let run = state.index.run_builder().map_err(EngineError::Index)?;
        let chosen = Chosen {
            number,
            key,
            generation: state.generation,
            job,
            inputs,
            starts,
            schema: slot.schema.clone(),
            partition_columns: slot.partition_columns.clone(),
            store,
            numbers: state.numbers.clone(),
        };
        Ok(Some((chosen, run)))
    }

    /// Whether the policy can ask for anything, as far as can be told without the log. Most tables of a lake are small and need nothing.
    fn may_need_work(&self, slot: &Slot, purge_all: bool) -> bool {
        let few = self.options.small_files_max.min(self.options.overlap_max);
        let has_many_deleted = |file: &DataFile| {
            let deleted = file.rows - file.live_rows();
            deleted > 0 && (purge_all || deleted as f64 > file.rows as f64 * self.options.deleted_share_max)
        };
        slot.files.len() > few || slot.files.values().any(has_many_deleted)
    }

    fn policy(&self, purge_all: bool) -> Policy {
        Policy {
            target_file_bytes: self.options.target_file_bytes.get(),
            small_file_bytes: self.options.small_file_bytes,
            small_files_max: self.options.small_files_max,
            deleted_share_max: self.options.deleted_share_max,
            overlap_max: self.options.overlap_max,
            job_bytes_max: self.options.compaction_bytes_max,
            job_files_max: FILES_MAX,
            job_rows_max: ROWS_MAX,
            purge_all,
        }
    }

    /// Exchanges the files. `false`: something else happened to them meanwhile.
    async fn commit_rewrite(
        &self,
        state: &mut SpaceState,
        chosen: &Chosen,
        mut rewritten: Rewritten,
    ) -> Result<bool, EngineError> {
        if state.generation != chosen.generation || !is_current(state.slot(chosen.number), chosen) {
            self.discard(&chosen.store, &rewritten.added).await;
            return Ok(false);
        }
        let number = chosen.number;
        let Some(table) = self.table_at(state, number).await? else {
            self.discard(&chosen.store, &rewritten.added).await;
            self.refresh(state, number).await?;
            return Ok(false);
        };
        let slot = state.slot(number);
        let now_ms = now_us() / 1_000;
        let mut dead: BTreeMap<u32, RoaringBitmap> = BTreeMap::new();
        let mut strays: Vec<Position> = Vec::new();
        let stray_rows: HashMap<u32, &RoaringBitmap> = state.live.strays_of(number).collect();
        let mut actions = Vec::new();
        for (ordinal, before) in (0..).zip(&chosen.inputs) {
            let Some(now) = slot.files.get(&before.number) else { continue };
            let rows = |file: &DataFile| file.deleted_rows().map(Arc::clone);
            let moved = rewritten.positions.remap(ordinal, rows(before).as_deref(), rows(now).as_deref());
            for (output, row) in moved {
                dead.entry(output).or_default().insert(row);
            }
            let left = stray_rows.get(&before.number).into_iter().flat_map(|rows| rows.iter());
            let left = left.filter_map(|row| rewritten.positions.target(ordinal, row));
            strays.extend(left.map(|(file, row)| Position { file, row }));
            let removal = commit::removal(now, &slot.partition_columns, false, now_ms);
            actions.push(Action::Remove(removal));
        }
        let vectors = deletion_vectors::store(&chosen.store, dead.values().cloned().map(Arc::new).collect()).await?;
        let vectors: HashMap<u32, DeletionVector> = dead.into_keys().zip(vectors).collect();
        for file in rewritten.added.iter().filter(|file| !is_empty(file, &vectors)) {
            let mut add = file.add.clone();
            add.data_change = false;
            if let Some(vector) = vectors.get(&file.number) {
                add.deletion_vector = Some(vector.descriptor.clone());
                add.stats = add.stats.as_deref().map(commit::loosened);
            }
            actions.push(Action::Add(add));
        }
        let deletion_vectors = if vectors.is_empty() { self.unwanted(slot) } else { Some(true) };
        let snapshot = table.snapshot().map_err(EngineError::delta)?;
        actions.extend(commit::changes(snapshot, None, Features { deletion_vectors, retention_hours: None })?);
        let (version, table) = match commit::commit(table, actions, Label::Compaction).await? {
            Outcome::Conflict => {
                self.discard(&chosen.store, &rewritten.added).await;
                self.refresh(state, number).await?;
                return Ok(false);
            }
            Outcome::Committed { version, table } => (version, table),
        };
        self.keep(&chosen.key, version, table);
        let dead: Vec<NewFile> = rewritten.added.iter().filter(|file| is_empty(file, &vectors)).cloned().collect();
        let again = std::mem::take(&mut rewritten.again);
        self.exchanged(state, chosen, rewritten, vectors, version);
        for stray in strays {
            state.live_mut().condemn(stray);
        }
        // Memory holds one entry of an id: that of a row which is there to stay.
        let live = Arc::clone(&state.live);
        state.index.put(again.into_iter().filter(|entry| live.is_live(entry.position)));
        self.discard(&chosen.store, &dead).await;
        self.record(state).await?;
        Ok(true)
    }

    /// Whether the property of a table that allows deletion vectors is to be taken away.
    fn unwanted(&self, slot: &Slot) -> Option<bool> {
        (self.options.of_table(&slot.name).deletion_vectors == DeletionVectors::Off).then_some(false)
    }

    fn exchanged(
        &self,
        state: &mut SpaceState,
        chosen: &Chosen,
        rewritten: Rewritten,
        mut vectors: HashMap<u32, DeletionVector>,
        version: u64,
    ) {
        let number = chosen.number;
        let live = state.live_mut();
        for file in rewritten.added.iter().filter(|file| !is_empty(file, &vectors)) {
            let deleted = vectors.get(&file.number).map(|vector| Arc::clone(&vector.rows));
            live.set(file.number, number, deleted);
        }
        for file in &chosen.inputs {
            live.remove(file.number);
        }
        state.index.attach(rewritten.run);
        let slot = state.slot_mut(number);
        for file in &chosen.inputs {
            slot.files.remove(&file.number);
        }
        for file in rewritten.added {
            if is_empty(&file, &vectors) {
                continue;
            }
            let deleted = vectors.remove(&file.number);
            let file = DataFile { deleted, ..file.into_data_file(None) };
            slot.files.insert(file.number, file);
        }
        slot.version = Some(version);
        slot.unrecorded.get_or_insert_default();
    }

    /// Deletes new files that no commit names. What cannot be deleted now is found by the clean-up.
    async fn discard(&self, store: &Arc<dyn ObjectStore>, files: &[NewFile]) {
        for file in files {
            let Ok(path) = Path::parse(&file.add.path) else { continue };
            if let Err(error) = store.delete(&path).await {
                tracing::debug!(%path, %error, "file of a vain compaction stays for the clean-up");
            }
        }
    }
}

/// Whether every row of a new file was deleted while it was written.
fn is_empty(file: &NewFile, vectors: &HashMap<u32, DeletionVector>) -> bool {
    vectors.get(&file.number).is_some_and(|vector| vector.rows.len() >= file.rows as u64)
}

/// Whether the chosen files are still part of the table, and its columns still have the types that were written.
fn is_current(slot: &Slot, chosen: &Chosen) -> bool {
    let same_file = |file: &DataFile| slot.files.get(&file.number).is_some_and(|now| now.path == file.path);
    let same_column = |column: &Column| slot.schema.columns.contains(column);
    chosen.inputs.iter().all(same_file)
        && chosen.schema.columns.iter().all(same_column)
        && slot.partition_columns == chosen.partition_columns
}

/// Reads the files and writes their live rows in the order of the clustering columns.
async fn rewrite(chosen: &Chosen, mut run: RunBuilder) -> Result<Rewritten, EngineError> {
    let mut streams = Vec::with_capacity(chosen.inputs.len());
    let mut present: HashSet<String> = HashSet::new();
    // Many files are read with small batches, so that one of each is not much.
    let rows_at_once = (8 * ROWS_AT_ONCE / chosen.inputs.len().max(1)).clamp(512, ROWS_AT_ONCE);
    for file in &chosen.inputs {
        let stream = files::open_with(&chosen.store, file, None, rows_at_once).await?;
        present.extend(stream.schema().fields().iter().map(|field| field.name().clone()));
        streams.push(stream);
    }
    let columns: Vec<&Column> = chosen
        .schema
        .columns
        .iter()
        .filter(|column| present.contains(&column.name) && !chosen.partition_columns.contains(&column.name))
        .collect();
    let schema: SchemaRef = files::file_schema(&columns);
    let owned: Arc<Vec<Column>> = Arc::new(columns.iter().map(|column| (*column).clone()).collect());
    let inputs = streams.into_iter().zip(&chosen.inputs).zip(&chosen.starts).map(|((stream, file), starts_at)| Input {
        batches: {
            let (schema, columns) = (Arc::clone(&schema), Arc::clone(&owned));
            let typed = move |batch: Result<RecordBatch, ParquetError>| {
                let columns: Vec<&Column> = columns.iter().collect();
                files::in_table_types(&batch?, &schema, &columns)
            };
            stream.map(typed).boxed()
        },
        deleted: file.deleted_rows().cloned(),
        starts_at: starts_at.clone(),
    });
    let sort_by: Vec<String> = clustering()
        .filter_map(|source| columns.iter().find(|column| column.source == source))
        .map(|column| column.name.clone())
        .collect();
    let merged = merge(inputs.collect(), Arc::clone(&schema), &sort_by, ROWS_AT_ONCE);
    let mut merged = std::pin::pin!(merged);
    let format = FileFormat::new(
        Arc::clone(&chosen.store),
        schema,
        &chosen.schema,
        chosen.partition_columns.clone(),
        chosen.numbers.clone(),
    );
    let live: u64 = chosen.inputs.iter().map(|file| file.live_rows().unsigned_abs()).sum();
    let rows_max = live.div_ceil(chosen.job.outputs.max(1) as u64).max(1);
    let partition = chosen.inputs.first().map(|file| file.partition.clone()).unwrap_or_default();
    let mut writer = FileWriter::new(&format, partition, usize::try_from(rows_max).unwrap_or(usize::MAX));
    let rows: Vec<u64> = chosen.inputs.iter().map(|file| file.rows.unsigned_abs()).collect();
    let mut positions = PositionMap::new(&rows);
    let [id, version, _] = key_names(&chosen.schema);
    let writing = async {
        while let Some(merged) = merged.try_next().await.map_err(EngineError::Merge)? {
            let keys = KeyColumns::without_observation(&merged.batch, &id, &version).map_err(EngineError::Corrupt)?;
            let places = writer.write(&merged.batch).await?;
            let mut from = 0;
            for (first, count) in &places {
                positions.record_all(&merged.sources[from..from + count], first.file, first.row);
                from += count;
            }
            for (row, position) in change::positions(places).enumerate() {
                let id = id_hash(keys.id(row).unwrap_or_default());
                let entry = Entry { id, position, version_us: keys.order(row).version_us };
                run.push(entry).map_err(EngineError::Index)?;
            }
            // Whoever applies batches meanwhile goes first.
            tokio::task::yield_now().await;
        }
        Ok(())
    };
    if let Err(error) = writing.await {
        writer.give_up().await;
        return Err(error);
    }
    let added = writer.finish().await?;
    let (run, again) = finished(run).await?;
    Ok(Rewritten { added, positions, run, again })
}

/// Sorts the entries of a run, which holds one entry of an id. Answers the others.
async fn finished(run: RunBuilder) -> Result<(FinishedRun, Vec<Entry>), EngineError> {
    let finishing = tokio::task::spawn_blocking(move || {
        let mut again = Vec::new();
        run.finish(&mut |_, other| again.push(other)).map(|run| (run, again))
    });
    finishing.await.map_err(EngineError::interrupted)?.map_err(EngineError::Index)
}

/// What the policy needs to know of the files of a table.
/// Beside it, below which key no row of a file is.
fn facts(slot: &Slot, views: impl Iterator<Item = LogicalFileView>) -> (Vec<FileFacts>, HashMap<u32, Vec<u8>>) {
    let columns: Vec<&Column> = clustering()
        .filter_map(|source| slot.schema.column(source))
        .filter(|column| column.source != crate::table_store::schema_plan::ID_SOURCE)
        .filter(|column| !slot.partition_columns.contains(&column.name))
        .collect();
    let types: Vec<_> = columns.iter().map(|column| column.column_type.arrow()).collect();
    let keys = if columns.is_empty() { None } else { ClusterKeys::new(&types).ok() };
    let numbers: HashMap<&str, &DataFile> = slot.files.values().map(|file| (file.path.as_str(), file)).collect();
    let mut partitions: HashMap<&Partition, u32> = HashMap::new();
    let (mut facts, mut starts) = (Vec::with_capacity(slot.files.len()), HashMap::new());
    for view in views {
        let Some(file) = numbers.get(view.path().as_ref()) else { continue };
        let next = partitions.len() as u32;
        let place = keys.as_ref().and_then(|keys| place(keys, &columns, &view.stats()?));
        let (clustered, start) = place.unwrap_or_default();
        starts.extend(start.map(|start| (file.number, start)));
        facts.push(FileFacts {
            number: file.number,
            partition: *partitions.entry(&file.partition).or_insert(next),
            bytes: file.size.unsigned_abs(),
            rows: file.rows.unsigned_abs(),
            deleted: (file.rows - file.live_rows()).unsigned_abs(),
            clustered,
        });
    }
    (facts, starts)
}

/// Where a file is in the clustering order, by its statistics: the range that it spans for certain, and a key that no row is below.
fn place(keys: &ClusterKeys, columns: &[&Column], stats: &str) -> Option<(Option<ClusterRange>, Option<Vec<u8>>)> {
    let stats: Value = serde_json::from_str(stats).ok()?;
    let bounds: Vec<ColumnBounds<'_>> = columns
        .iter()
        .map(|column| {
            let value = |which: &str| stats[which][&column.name].as_str();
            let nulls = stats["nullCount"][&column.name].as_i64();
            // A file without the column has NULL in every row.
            let nulls = nulls.map_or(value("minValues").is_none(), |nulls| nulls > 0);
            ColumnBounds { min: value("minValues"), max: value("maxValues"), nulls }
        })
        .collect();
    Some((keys.range(&bounds), keys.lowest(&bounds)))
}

//! Reading keys out of data files: into the index, and the instants of observation that the index does not hold.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStore;
use roaring::RoaringBitmap;
use tokio::sync::{Semaphore, mpsc};

use crate::key_index::{Entry, IdHash, Liveness, Position, ROWS_PER_FILE_MAX, RunBuilder};
use crate::table_store::by_id_hash::ByIdHash;
use crate::table_store::delta::files::data_file::{self, DataFile};
use crate::table_store::delta::permanent_error;
use crate::table_store::delta::space::state::{Found, SpaceState};
use crate::table_store::delta::upsert::decide::KeyColumns;
use crate::table_store::delta::{DeltaTableStore, EngineError};
use crate::table_store::schema_plan::{ID_SOURCE, OBSERVED_SOURCE, TableSchema, VERSION_SOURCE};

/// Files read at once when an index is built.
const FILES_AT_ONCE: usize = 3;

/// Requests at once when it is only asked whether files are there.
const LOOKS_AT_ONCE: usize = 16;

/// Chunks of keys that wait for the index.
const CHUNKS_WAITING: usize = 16;

/// More rows than these are sorted on disk instead of entering the index one by one.
const ROWS_IN_MEMORY_MAX: i64 = 200_000;

/// Ids with two rows whose instants of observation are held at once, about 60 bytes each: somebody may have doubled a whole table.
const SETTLED_AT_ONCE: usize = 500_000;

/// How often the reading of keys says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// A file whose keys are to be read.
struct FileToRead {
    table: u32,
    store: Arc<dyn ObjectStore>,
    file: DataFile,
    /// Names of its key columns.
    names: Arc<[String; 3]>,
}

/// Files whose keys are to be read.
#[derive(Default)]
pub(crate) struct KeysToRead {
    files: Vec<FileToRead>,
}

impl KeysToRead {
    /// Adds files of a table.
    pub(crate) fn add(&mut self, state: &SpaceState, table: u32, store: Arc<dyn ObjectStore>, numbers: Vec<u32>) {
        let slot = state.slot(table);
        let names = Arc::new(key_names(&slot.schema));
        let files = numbers.iter().filter_map(|number| slot.files.get(number));
        self.files.extend(files.map(|file| {
            let (store, names) = (Arc::clone(&store), Arc::clone(&names));
            FileToRead { table, store, file: file.clone(), names }
        }));
    }

    pub(crate) fn files(&self) -> usize {
        self.files.len()
    }

    pub(crate) fn rows(&self) -> i64 {
        // A file without statistics counts as a large one.
        let rows = self.files.iter().map(|to_read| to_read.file.rows);
        rows.map(|rows| if rows < 0 { ROWS_IN_MEMORY_MAX + 1 } else { rows }).sum()
    }

    /// Fails at a file that is not there, before many others are read in vain.
    pub(crate) async fn check_presence(&self) -> Result<(), EngineError> {
        let looks: Vec<_> =
            self.files.iter().map(|to_read| data_file::check_presence(&to_read.store, &to_read.file)).collect();
        let mut looks = stream::iter(looks).buffer_unordered(LOOKS_AT_ONCE);
        while looks.try_next().await?.is_some() {}
        Ok(())
    }
}

/// Names of the columns of id, version and observation.
pub(crate) fn key_names(schema: &TableSchema) -> [String; 3] {
    [ID_SOURCE, VERSION_SOURCE, OBSERVED_SOURCE]
        .map(|source| schema.column(source).map(|column| column.name.clone()).unwrap_or_default())
}

/// What comes from a file.
enum Read {
    Keys(Vec<Entry>),
    Done { table: u32, file: u32, rows: i64 },
    Failed { table: u32, file: u32, error: EngineError },
}

/// What came of reading keys.
#[derive(Debug, Default)]
pub(crate) struct KeysRead {
    /// Tables with files that cannot be read, now or later. Nothing of them counts any more.
    pub(crate) broken: BTreeMap<u32, EngineError>,
    /// Ids of rows that were read and that may have tombstones.
    pub(crate) buried: Vec<IdHash>,
}

/// Where entries of new files go until all of them have come: a table that turns out to be broken half-way must have no effect.
enum Sink {
    Memory(Vec<Vec<Entry>>),
    Run(RunBuilder),
}

impl DeltaTableStore {
    /// Reads the keys of files into the index. Two live rows of one id: the older one must leave. Tables that cannot be read are left
    /// out and named in the answer.
    pub(crate) async fn read_keys(
        &self,
        state: &mut SpaceState,
        to_read: KeysToRead,
        index_is_new: bool,
    ) -> Result<KeysRead, EngineError> {
        let total = to_read.rows();
        let read_from = to_read.files.iter().map(|to_read| (to_read.file.number, to_read.table));
        let mut outstanding: HashMap<u32, u32> = read_from.collect();
        let mut sink = if total > ROWS_IN_MEMORY_MAX {
            Sink::Run(state.index.run_builder().map_err(EngineError::Index)?)
        } else {
            Sink::Memory(Vec::new())
        };
        let mut outcome = KeysRead::default();
        let (mut rows, began, mut said) = (0_u64, Instant::now(), Instant::now());
        let mut reading = start_reading(to_read);
        let mut twice: Vec<(Position, i64, Position, i64)> = Vec::new();
        while let Some(read) = reading.recv().await {
            let entries = match read {
                Read::Failed { table, file, error } if permanent_error::is_lasting(&error) => {
                    outstanding.remove(&file);
                    outcome.broken.entry(table).or_insert(error);
                    continue;
                }
                Read::Failed { error, .. } => return Err(error),
                Read::Done { table, file, rows } => {
                    outstanding.remove(&file);
                    if let Some(file) = state.slot_mut(table).files.get_mut(&file) {
                        file.rows = rows;
                    }
                    continue;
                }
                Read::Keys(entries) => entries,
            };
            rows += entries.len() as u64;
            outcome.buried.extend(entries.iter().map(|entry| entry.id).filter(|id| state.tombstones.may_have(*id)));
            match &mut sink {
                Sink::Run(run) => {
                    // Nothing can be found in an index whose only content is still being sorted.
                    if !index_is_new {
                        twice.extend(held_elsewhere(state, &entries).await?);
                    }
                    for entry in entries {
                        run.push(entry).map_err(EngineError::Index)?;
                    }
                }
                Sink::Memory(chunks) => chunks.push(entries),
            }
            if said.elapsed() >= PROGRESS_EVERY {
                said = Instant::now();
                let seconds = began.elapsed().as_secs();
                tracing::info!(space = %state.space, rows, of = total, seconds, "reading keys into the index");
            }
        }
        // A reader that says nothing any more has met what the format never foresaw.
        for table in outstanding.into_values() {
            let error = || EngineError::corrupt("the reading of a data file broke off");
            outcome.broken.entry(table).or_insert_with(error);
        }
        for table in outcome.broken.keys() {
            state.take_out(*table);
        }
        match sink {
            Sink::Run(run) => self.attach_run(state, run, twice).await?,
            Sink::Memory(chunks) => {
                for entries in chunks {
                    self.put_newer(state, entries).await?;
                }
            }
        }
        Ok(outcome)
    }

    /// Makes the sorted entries part of the index.
    async fn attach_run(
        &self,
        state: &mut SpaceState,
        run: RunBuilder,
        mut twice: Vec<(Position, i64, Position, i64)>,
    ) -> Result<(), EngineError> {
        let finishing = tokio::task::spawn_blocking(move || {
            let mut duplicates = Vec::new();
            run.finish(&mut |kept, other| duplicates.push((kept, other))).map(|run| (run, duplicates))
        });
        let (run, duplicates) = finishing.await.map_err(EngineError::interrupted)?.map_err(EngineError::Index)?;
        state.index.attach(run);
        let pairs =
            duplicates.iter().map(|(kept, other)| (kept.position, kept.version_us, other.position, other.version_us));
        twice.extend(pairs);
        self.settle_twice(state, twice).await?;
        // The other one of two is not in the run. When the kept one has to leave, it is found in memory.
        let winners = duplicates.into_iter().map(|(_, other)| other);
        self.put_newer(state, winners.collect()).await
    }

    /// Enters keys of live rows into memory one by one. There an id has one entry, so the loser of two is condemned at once.
    async fn put_newer(&self, state: &mut SpaceState, mut entries: Vec<Entry>) -> Result<(), EngineError> {
        entries.retain(|entry| state.live.is_live(entry.position));
        if entries.is_empty() {
            return Ok(());
        }
        let conflicts = held_elsewhere(state, &entries).await?;
        self.settle_twice(state, conflicts).await?;
        let mut fresh: ByIdHash<Entry> = ByIdHash::default();
        let mut again = Vec::new();
        for entry in entries {
            if !state.live.is_live(entry.position) {
                continue;
            }
            // The same id twice in one chunk: settled like any other pair, one after the other.
            if let Some(first) = fresh.get(&entry.id) {
                again.push((*first, entry));
            } else {
                fresh.insert(entry.id, entry);
            }
        }
        state.index.put(fresh.into_values());
        for (first, second) in again {
            let held = state.find(vec![first.id]).await?.remove(&first.id);
            if let Some(held) = held {
                let pair = (held.position, held.order.version_us, second.position, second.version_us);
                self.settle_twice(state, vec![pair]).await?;
            }
            if state.live.is_live(second.position) {
                state.index.put([second]);
            }
        }
        Ok(())
    }

    /// Of two live rows of one id the older one must leave.
    async fn settle_twice(
        &self,
        state: &mut SpaceState,
        mut twice: Vec<(Position, i64, Position, i64)>,
    ) -> Result<(), EngineError> {
        // So that a file is read for few of the parts.
        twice.sort_unstable_by_key(|(one, ..)| *one);
        let mut condemned = 0_u64;
        for part in twice.chunks(SETTLED_AT_ONCE) {
            condemned += self.settle_some(state, part).await?;
        }
        if condemned > 0 {
            tracing::info!(space = %state.space, ids = condemned, "ids have two rows; the older ones will leave");
        }
        Ok(())
    }

    /// How many rows must leave.
    async fn settle_some(
        &self,
        state: &mut SpaceState,
        twice: &[(Position, i64, Position, i64)],
    ) -> Result<u64, EngineError> {
        let tied = twice.iter().filter(|(_, one, _, other)| one == other);
        let positions: Vec<Position> = tied.flat_map(|(one, _, other, _)| [*one, *other]).collect();
        let observed = loop {
            match self.observed_at(state, &positions).await {
                // The rows of that table do not count any more.
                Err(EngineError::Broken { number, source }) => self.give_up_reading(state, number, &source).await?,
                observed => break observed?,
            }
        };
        let mut condemned = 0_u64;
        for &(one, one_version, other, other_version) in twice {
            if !state.live.is_live(one) || !state.live.is_live(other) {
                continue;
            }
            let order = one_version
                .cmp(&other_version)
                .then_with(|| observed.get(&one).cmp(&observed.get(&other)))
                .then_with(|| one.cmp(&other));
            condemned += 1;
            state.live_mut().condemn(if order == Ordering::Greater { other } else { one });
        }
        Ok(condemned)
    }

    /// Fills in when found rows were observed, exactly or by a bound that decides as well. A question is an id with an instant that is to
    /// be compared with that of its row.
    pub(crate) async fn observe(
        &self,
        state: &mut SpaceState,
        found: &mut ByIdHash<Found>,
        questions: &[(IdHash, i64)],
    ) -> Result<(), EngineError> {
        let mut asked: BTreeMap<u32, Vec<(IdHash, i64)>> = BTreeMap::new();
        for (id, observed_us) in questions {
            if let Some(row) = found.get(id) {
                asked.entry(row.position.file).or_default().push((*id, *observed_us));
            }
        }
        let mut exact: Vec<IdHash> = Vec::new();
        for (file, asked) in asked {
            let bounds = self.observed_bounds(state, file).await?;
            let mut instants: ByIdHash<(i64, i64)> = ByIdHash::default();
            for (id, instant) in asked {
                let range = instants.entry(id).or_insert((instant, instant));
                *range = (range.0.min(instant), range.1.max(instant));
            }
            for (id, (earliest, latest)) in instants {
                let bound =
                    bounds.and_then(
                        |(least, most)| {
                            if earliest > most { Some(most) } else { (latest < least).then_some(least) }
                        },
                    );
                match (bound, found.get_mut(&id)) {
                    (Some(bound), Some(row)) => row.order.observed_us = bound,
                    _ => exact.push(id),
                }
            }
        }
        let positions: Vec<Position> = exact.iter().filter_map(|id| Some(found.get(id)?.position)).collect();
        let observed = self.observed_at(state, &positions).await?;
        for id in exact {
            if let Some(row) = found.get_mut(&id) {
                row.order.observed_us = observed.get(&row.position).copied().unwrap_or(i64::MIN);
            }
        }
        Ok(())
    }

    async fn observed_bounds(&self, state: &mut SpaceState, file: u32) -> Result<Option<(i64, i64)>, EngineError> {
        let Some(table) = state.live.table(file) else { return Ok(None) };
        let slot = state.slot(table);
        let Some(held) = slot.files.get(&file) else { return Ok(None) };
        if held.observed_us.is_some() {
            return Ok(held.observed_us);
        }
        let [_, _, column] = key_names(&slot.schema);
        let store = self.closed(&slot.path)?.object_store();
        let bounds = data_file::instant_bounds(&store, held, &column).await.map_err(|error| error.of_table(table))?;
        if let Some(held) = state.slot_mut(table).files.get_mut(&file) {
            held.observed_us = bounds;
        }
        Ok(bounds)
    }

    /// When the rows at these positions were observed, read from their files.
    async fn observed_at(
        &self,
        state: &SpaceState,
        positions: &[Position],
    ) -> Result<HashMap<Position, i64>, EngineError> {
        let mut by_file: BTreeMap<u32, RoaringBitmap> = BTreeMap::new();
        for position in positions {
            by_file.entry(position.file).or_default().insert(position.row);
        }
        let mut observed = HashMap::with_capacity(positions.len());
        for (number, rows) in by_file {
            let Some(table) = state.live.table(number) else { continue };
            let slot = state.slot(table);
            let Some(file) = slot.files.get(&number) else { continue };
            let [_, _, column] = key_names(&slot.schema);
            let store = self.closed(&slot.path)?.object_store();
            let instants = data_file::instants(&store, file, &column, &rows).await;
            let instants = instants.map_err(|error| error.of_table(table))?;
            let places = rows.iter().map(|row| Position { file: number, row });
            observed.extend(places.zip(instants));
        }
        Ok(observed)
    }
}

/// Rows of the same ids that the index knows, each with the one that was read.
async fn held_elsewhere(
    state: &SpaceState,
    entries: &[Entry],
) -> Result<Vec<(Position, i64, Position, i64)>, EngineError> {
    let found = state.find(entries.iter().map(|entry| entry.id).collect()).await?;
    let held = entries.iter().filter_map(|entry| {
        let held = found.get(&entry.id).filter(|held| held.position != entry.position)?;
        Some((held.position, held.order.version_us, entry.position, entry.version_us))
    });
    Ok(held.collect())
}

/// Reads files beside each other. Deleted rows are left out.
fn start_reading(to_read: KeysToRead) -> mpsc::Receiver<Read> {
    let (sender, receiver) = mpsc::channel(CHUNKS_WAITING);
    tokio::spawn(async move {
        let permits = Arc::new(Semaphore::new(FILES_AT_ONCE));
        for FileToRead { table, store, file, names } in to_read.files {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            let sender = sender.clone();
            // Whoever waits may have gone: then the first send fails and the reading ends.
            if sender.is_closed() {
                return;
            }
            tokio::spawn(async move {
                if let Err(error) = read_file(table, &store, &file, &names, &sender).await {
                    let _ = sender.send(Read::Failed { table, file: file.number, error }).await;
                }
                drop(permit);
            });
        }
    });
    receiver
}

/// A file of somebody else may have more rows than the index can tell apart.
fn check_rows(file: &DataFile, rows: i64) -> Result<(), EngineError> {
    if rows <= i64::from(ROWS_PER_FILE_MAX) {
        return Ok(());
    }
    let (path, advice) = (&file.path, "write it anew as several files");
    Err(EngineError::corrupt(format!(
        "file {path} has more than the {ROWS_PER_FILE_MAX} rows that an index takes; {advice}"
    )))
}

async fn read_file(
    table: u32,
    store: &Arc<dyn ObjectStore>,
    file: &DataFile,
    names: &[String; 3],
    sender: &mpsc::Sender<Read>,
) -> Result<(), EngineError> {
    let [id, version, _] = names;
    check_rows(file, file.rows)?;
    let mut batches = data_file::open(store, file, Some(&[id, version])).await?;
    let mut row = 0_u32;
    while let Some(batch) = batches.try_next().await.map_err(EngineError::read_file)? {
        let columns = KeyColumns::without_observation(&batch, id, version)
            .map_err(|error| EngineError::corrupt(format!("file {}: {error}", file.path)))?;
        let rows = (0..batch.num_rows()).zip(row..);
        let live = rows.filter(|(_, row)| !file.deleted_rows().is_some_and(|deleted| deleted.contains(*row)));
        let entries = live.filter_map(|(at, row)| {
            let id = columns.id_hash(at)?;
            let position = Position { file: file.number, row };
            Some(Entry { id, position, version_us: columns.order(at).version_us })
        });
        let entries = entries.collect();
        row += batch.num_rows() as u32;
        check_rows(file, i64::from(row))?;
        if sender.send(Read::Keys(entries)).await.is_err() {
            return Ok(());
        }
    }
    let done = Read::Done { table, file: file.number, rows: i64::from(row) };
    // Nobody waits any more: nothing to do.
    let _ = sender.send(done).await;
    Ok(())
}

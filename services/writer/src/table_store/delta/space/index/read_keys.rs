//! Reading keys out of data files into the index.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use lake_shared::identity::Space;
use object_store::ObjectStore;
use tokio::sync::{Semaphore, mpsc};

use crate::key_index::{
    FileNumber, IdHash, IndexEntry, Liveness, Located, Position, ROWS_PER_FILE_MAX, RowNumber, RunBuilder,
};
use crate::table_store::by_id_hash::ByIdHash;
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::data_file::{self, DataFile};
use crate::table_store::delta::files::key_columns::{KeyColumns, key_names};
use crate::table_store::delta::permanent_error;
use crate::table_store::delta::space::loader::SpaceLoader;
use crate::table_store::delta::space::state::SpaceState;
use crate::table_store::delta::table_number::TableNumber;

/// Files read at once when an index is built.
const FILES_AT_ONCE: usize = 3;

/// Requests at once when it is only asked whether files are there.
const LOOKS_AT_ONCE: usize = 16;

/// Chunks of keys that wait for the index.
const CHUNKS_WAITING: usize = 16;

/// More rows than these are sorted on disk instead of entering the index one by one.
const ROWS_IN_MEMORY_MAX: i64 = 200_000;

/// Ids with two rows whose versions are held at once, about 60 bytes each: another program may have doubled a whole table.
const RESOLVED_AT_ONCE: usize = 500_000;

/// How often the reading of keys says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// A file whose keys are to be read.
struct FileToRead {
    table: TableNumber,
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
    pub(crate) fn add(
        &mut self,
        state: &SpaceState,
        table: TableNumber,
        store: Arc<dyn ObjectStore>,
        numbers: Vec<FileNumber>,
    ) {
        let held = state.table(table);
        let names = Arc::new(key_names(held.schema()));
        let files = numbers.iter().filter_map(|number| held.file(*number));
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

    /// Fails at a file that is not there, before many others are read for nothing.
    pub(crate) async fn check_presence(&self) -> Result<(), EngineError> {
        let looks: Vec<_> =
            self.files.iter().map(|to_read| data_file::check_presence(&to_read.store, &to_read.file)).collect();
        let mut looks = stream::iter(looks).buffer_unordered(LOOKS_AT_ONCE);
        while looks.try_next().await?.is_some() {}
        Ok(())
    }
}

/// What comes from a file.
enum Read {
    Keys(Vec<IndexEntry>),
    Done { table: TableNumber, file: FileNumber, rows: i64 },
    Failed { table: TableNumber, file: FileNumber, error: EngineError },
}

/// What came of reading keys.
#[derive(Debug, Default)]
pub(crate) struct KeysRead {
    /// Tables with files that cannot be read, now or later. Nothing of them counts any more.
    pub(crate) broken: BTreeMap<TableNumber, EngineError>,
    /// Ids of rows that were read and that may have tombstones.
    pub(crate) tombstoned: Vec<IdHash>,
}

/// Two live rows of one id: the older one must leave.
#[derive(Clone, Copy)]
struct DuplicateRows {
    first: Located,
    second: Located,
}

/// Where entries of new files go until all of them have come: a table that turns out to be broken half-way must have no effect.
enum Sink {
    Memory(Vec<Vec<IndexEntry>>),
    Run(RunBuilder),
}

impl Sink {
    /// The place for so many entries.
    fn of_rows(state: &SpaceState, rows: i64) -> Result<Self, EngineError> {
        if rows <= ROWS_IN_MEMORY_MAX {
            return Ok(Self::Memory(Vec::new()));
        }
        Ok(Self::Run(state.index().run_builder().map_err(EngineError::Index)?))
    }

    /// Takes entries. Answers the rows of the same ids that the index knows; of entries in memory these are looked up when they enter
    /// the index.
    async fn take(
        &mut self,
        state: &SpaceState,
        entries: Vec<IndexEntry>,
        index_is_new: bool,
    ) -> Result<Vec<DuplicateRows>, EngineError> {
        let run = match self {
            Self::Memory(chunks) => {
                chunks.push(entries);
                return Ok(Vec::new());
            }
            Self::Run(run) => run,
        };
        // Nothing can be found in an index whose only content is still being sorted.
        let duplicates = if index_is_new { Vec::new() } else { held_elsewhere(state, &entries).await? };
        for entry in entries {
            run.push(entry).map_err(EngineError::Index)?;
        }
        Ok(duplicates)
    }
}

/// How far the reading of keys is; the log is told every few seconds.
struct ReadingProgress {
    rows: u64,
    total: i64,
    began: Instant,
    told: Instant,
}

impl ReadingProgress {
    fn of_rows(total: i64) -> Self {
        let now = Instant::now();
        Self { rows: 0, total, began: now, told: now }
    }

    fn advance(&mut self, space: &Space, rows: usize) {
        self.rows += rows as u64;
        if self.told.elapsed() >= PROGRESS_EVERY {
            self.told = Instant::now();
            let seconds = self.began.elapsed().as_secs();
            tracing::info!(%space, rows = self.rows, of = self.total, seconds, "reading keys into the index");
        }
    }
}

impl SpaceLoader {
    /// Reads the keys of files into the index. Two live rows of one id: the older one must leave. Tables that cannot be read are left
    /// out and named in the answer.
    ///
    /// # Errors
    /// When the store or the disk of the index fails for now.
    pub(crate) async fn read_keys(
        &self,
        state: &mut SpaceState,
        to_read: KeysToRead,
        index_is_new: bool,
    ) -> Result<KeysRead, EngineError> {
        let total = to_read.rows();
        let read_from = to_read.files.iter().map(|to_read| (to_read.file.number, to_read.table));
        let mut outstanding: HashMap<FileNumber, TableNumber> = read_from.collect();
        let mut sink = Sink::of_rows(state, total)?;
        let mut outcome = KeysRead::default();
        let mut progress = ReadingProgress::of_rows(total);
        let mut reading = start_reading(to_read);
        let mut duplicates: Vec<DuplicateRows> = Vec::new();
        while let Some(read) = reading.recv().await {
            match read {
                Read::Failed { table, file, error } if permanent_error::is_permanent(&error) => {
                    outstanding.remove(&file);
                    outcome.broken.entry(table).or_insert(error);
                }
                Read::Failed { error, .. } => return Err(error),
                Read::Done { table, file, rows } => {
                    outstanding.remove(&file);
                    state.table_mut(table).set_rows_of_file(file, rows);
                }
                Read::Keys(entries) => {
                    let ids = entries.iter().map(|entry| entry.id);
                    outcome.tombstoned.extend(ids.filter(|id| state.tombstones().may_have(*id)));
                    let rows = entries.len();
                    duplicates.extend(sink.take(state, entries, index_is_new).await?);
                    progress.advance(state.space(), rows);
                }
            }
        }
        // A reader that ended without saying so has met what the format never foresaw.
        for table in outstanding.into_values() {
            let error = || EngineError::corrupt("the reading of a data file broke off");
            outcome.broken.entry(table).or_insert_with(error);
        }
        for table in outcome.broken.keys() {
            state.clear_table(*table);
        }
        match sink {
            Sink::Run(run) => self.attach_run(state, run, duplicates).await?,
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
        mut duplicates: Vec<DuplicateRows>,
    ) -> Result<(), EngineError> {
        let finishing = tokio::task::spawn_blocking(move || {
            let mut pairs = Vec::new();
            run.finish(&mut |kept, other| pairs.push((kept, other))).map(|run| (run, pairs))
        });
        let (run, pairs) = finishing.await.map_err(EngineError::interrupted)?.map_err(EngineError::Index)?;
        state.attach_keys(run);
        let within_run =
            pairs.iter().map(|(kept, other)| DuplicateRows { first: kept.located(), second: other.located() });
        duplicates.extend(within_run);
        self.resolve_duplicates(state, duplicates).await?;
        // The other one of two is not in the run. When the kept one has to leave, it is found in memory.
        let winners = pairs.into_iter().map(|(_, other)| other);
        self.put_newer(state, winners.collect()).await
    }

    /// Enters keys of live rows into memory one by one. There an id has one entry, so the loser of two is marked as stale at once.
    async fn put_newer(&self, state: &mut SpaceState, mut entries: Vec<IndexEntry>) -> Result<(), EngineError> {
        entries.retain(|entry| state.live().is_live(entry.position));
        if entries.is_empty() {
            return Ok(());
        }
        let conflicts = held_elsewhere(state, &entries).await?;
        self.resolve_duplicates(state, conflicts).await?;
        let mut fresh: ByIdHash<IndexEntry> = ByIdHash::default();
        let mut again = Vec::new();
        for entry in entries {
            if !state.live().is_live(entry.position) {
                continue;
            }
            // The same id twice in one chunk: resolved like any other pair, one after the other.
            if let Some(first) = fresh.get(&entry.id) {
                again.push((*first, entry));
            } else {
                fresh.insert(entry.id, entry);
            }
        }
        state.put_keys(fresh.into_values());
        for (first, second) in again {
            let held = state.find(vec![first.id]).await?.remove(&first.id);
            if let Some(held) = held {
                let pair = DuplicateRows { first: held.located(), second: second.located() };
                self.resolve_duplicates(state, vec![pair]).await?;
            }
            if state.live().is_live(second.position) {
                state.put_keys([second]);
            }
        }
        Ok(())
    }

    /// Of two live rows of one id the older one must leave.
    async fn resolve_duplicates(
        &self,
        state: &mut SpaceState,
        mut duplicates: Vec<DuplicateRows>,
    ) -> Result<(), EngineError> {
        // So that a file is read for few of the parts.
        duplicates.sort_unstable_by_key(|pair| pair.first.position);
        let mut marked_stale = 0_u64;
        for part in duplicates.chunks(RESOLVED_AT_ONCE) {
            marked_stale += self.resolve_some(state, part).await?;
        }
        if marked_stale > 0 {
            tracing::info!(space = %state.space(), ids = marked_stale, "ids have two rows; the older ones will leave");
        }
        Ok(())
    }

    /// How many rows must leave.
    async fn resolve_some(&self, state: &mut SpaceState, duplicates: &[DuplicateRows]) -> Result<u64, EngineError> {
        let tied = duplicates.iter().filter(|pair| pair.first.observed_us == pair.second.observed_us);
        let positions: Vec<Position> = tied.flat_map(|pair| [pair.first.position, pair.second.position]).collect();
        let versions = loop {
            match self.versions_at(state, &positions).await {
                // The rows of that table do not count any more.
                Err(EngineError::Broken { number, source }) => {
                    self.disable_while_loading(state, number, &source).await?
                }
                versions => break versions?,
            }
        };
        let mut marked_stale = 0_u64;
        for DuplicateRows { first, second } in duplicates {
            let (one, other) = (first.position, second.position);
            if !state.live().is_live(one) || !state.live().is_live(other) {
                continue;
            }
            let order = first
                .observed_us
                .cmp(&second.observed_us)
                .then_with(|| versions.get(&one).cmp(&versions.get(&other)))
                .then_with(|| one.cmp(&other));
            marked_stale += 1;
            state.mark_stale(if order == Ordering::Greater { other } else { one });
        }
        Ok(marked_stale)
    }
}

/// Rows of the same ids that the index knows, each with the one that was read.
async fn held_elsewhere(state: &SpaceState, entries: &[IndexEntry]) -> Result<Vec<DuplicateRows>, EngineError> {
    let found = state.find(entries.iter().map(|entry| entry.id).collect()).await?;
    let held = entries.iter().filter_map(|entry| {
        let held = found.get(&entry.id).filter(|held| held.position != entry.position)?;
        Some(DuplicateRows { first: held.located(), second: entry.located() })
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
            // The receiver may be gone: then nothing more is read.
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

/// Refuses a file, written by another program, with more rows than the index can tell apart.
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
    table: TableNumber,
    store: &Arc<dyn ObjectStore>,
    file: &DataFile,
    names: &[String; 3],
    sender: &mpsc::Sender<Read>,
) -> Result<(), EngineError> {
    let [id, _, observed] = names;
    check_rows(file, file.rows)?;
    let mut batches = data_file::open(store, file, Some(&[id, observed])).await?;
    let mut first = RowNumber::FIRST;
    while let Some(batch) = batches.try_next().await.map_err(EngineError::read_file)? {
        let columns = KeyColumns::without_version(&batch, id, observed)
            .map_err(|error| EngineError::corrupt(format!("file {}: {error}", file.path)))?;
        let rows = (0..batch.num_rows()).map(|at| (at, first.offset(at as u32)));
        let live = rows.filter(|(_, row)| !file.deleted_rows().is_some_and(|deleted| deleted.contains(row.get())));
        let entries = live.filter_map(|(at, row)| {
            let id = columns.id_hash(at)?;
            let position = Position { file: file.number, row };
            Some(IndexEntry { id, position, observed_us: columns.order(at).observed_us })
        });
        let entries = entries.collect();
        first = first.offset(batch.num_rows() as u32);
        check_rows(file, i64::from(first.get()))?;
        if sender.send(Read::Keys(entries)).await.is_err() {
            return Ok(());
        }
    }
    let done = Read::Done { table, file: file.number, rows: i64::from(first.get()) };
    // Fails only when the receiver is gone, which then does not need to know.
    let _ = sender.send(done).await;
    Ok(())
}

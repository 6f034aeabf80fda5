//! The index itself: memory, frozen memory, runs.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError, Weak};

use super::entry::{IdHash, IndexEntry, Key, Located, Packed};
use super::error::IndexError;
use super::folder::Folder;
use super::manifest::Manifest;
use super::memory::MemoryEntries;
use super::merge::{MergeJob, MergedRuns, runs_to_keep};
use super::position::Position;
use super::run::Run;
use super::run_builder::{FinishedRun, RunBuilder};
use super::run_writer::RunWriter;
use super::{IndexOptions, Liveness};

/// Entries that are put under one lock.
const PUT_ENTRIES: usize = 16_384;

/// Memory is overfull with so many times the entries that it should hold. A writer at work lets it come to two.
const OVERFULL: usize = 4;

/// The key index of a space; clones are the same index. All methods may block on the disk, except where noted. The folder is
/// locked until all clones, builders, jobs and runs of the index are gone.
#[derive(Clone, Debug)]
pub struct KeyIndex(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: Arc<Folder>,
    options: IndexOptions,
    state: RwLock<State>,
    /// Held while frozen memory is written: by one at a time. Taken before `state`.
    flushing: Mutex<()>,
    /// Held by a checkpoint. Taken before `flushing`.
    checkpointing: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    memory: MemoryEntries,
    /// Memory that is being written as runs, or could not be written.
    frozen: Vec<Arc<MemoryEntries>>,
    /// The greatest first.
    runs: Vec<HeldRun>,
    /// Runs that are not part of the index any more, but perhaps of the manifest.
    retired: Vec<Arc<Run>>,
    /// Of the merge job that is under way.
    merging: Weak<()>,
    /// Why entries are missing.
    broken: Option<Broken>,
}

#[derive(Clone, Debug)]
struct HeldRun {
    run: Arc<Run>,
    /// A manifest that was written, or is being written, names it.
    named: bool,
}

#[derive(Clone, Copy, Debug)]
enum Broken {
    RowTooLarge(Position),
    ForeignRun,
}

impl State {
    fn add(&mut self, run: Arc<Run>) {
        let at = self.runs.partition_point(|held| held.run.entries() >= run.entries());
        self.runs.insert(at, HeldRun { run, named: false });
    }

    fn freeze(&mut self) {
        if self.memory.len() > 0 {
            self.frozen.push(Arc::new(std::mem::take(&mut self.memory)));
        }
    }
}

impl KeyIndex {
    /// An empty index. Deletes the files of any index in the folder; files of other names stay.
    pub fn create(folder: &Path, options: IndexOptions) -> Result<Self, IndexError> {
        let folder = Folder::lock(folder)?;
        // The manifest first: what it names may be incomplete from here on.
        folder.clean(|path| path != folder.manifest())?;
        folder.clean(|_| false)?;
        folder.sync()?;
        Ok(Self::new(folder, options, State::default()))
    }

    /// The index as it was at its last checkpoint, and the stamp of that. `None`: there is none, or it cannot be trusted (damaged,
    /// of another format, incomplete), which is logged; it has to be created anew.
    pub fn open(folder: &Path, options: IndexOptions) -> Result<Option<(Self, Vec<u8>)>, IndexError> {
        let path = folder;
        let folder = Folder::lock(path)?;
        let manifest = match Manifest::load(&folder)? {
            Ok(manifest) => manifest,
            Err(reason) => {
                tracing::info!(folder = %path.display(), reason, "no key index to continue with");
                return Ok(None);
            }
        };
        let mut state = State::default();
        for footer in &manifest.runs {
            match Run::open(&folder, *footer) {
                Ok(run) => state.add(Arc::new(run)),
                Err(reason) if is_absent_or_corrupt(&reason) => {
                    tracing::info!(folder = %path.display(), %reason, "no key index to continue with");
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        state.runs.iter_mut().for_each(|held| held.named = true);
        let named: Vec<_> = manifest.runs.iter().map(|footer| folder.run(footer.run)).collect();
        folder.clean(|file| file == folder.manifest() || named.iter().any(|named| named == file))?;
        folder.continue_at(manifest.next_number);
        Ok(Some((Self::new(folder, options, state), manifest.stamp)))
    }

    fn new(folder: Folder, options: IndexOptions, state: State) -> Self {
        Self(Arc::new(Inner {
            folder: Arc::new(folder),
            options,
            state: RwLock::new(state),
            flushing: Mutex::new(()),
            checkpointing: Mutex::new(()),
        }))
    }

    /// For each id, in the order given and as often as it is given, a live position of it. Where there are two for a moment,
    /// either may be the answer.
    ///
    /// Answers are right for ids whose rows do not change during the call: the engine looks up the ids of a batch under the same
    /// lock under which it commits the batch and puts its entries.
    pub fn lookup(&self, ids: &[IdHash], live: &dyn Liveness) -> Result<Vec<Option<Located>>, IndexError> {
        let mut keys: Vec<Key> = ids.iter().copied().map(Key::of).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut search = Search { answers: vec![None; keys.len()], live };
        let (runs, frozen, candidates) = {
            let state = self.state();
            self.check(&state)?;
            (state.runs.clone(), state.frozen.clone(), in_memory(&state.memory, &keys, 0..keys.len()))
        };
        search.settle(candidates, |number| number);
        for memory in frozen {
            search.settle(in_memory(&memory, &keys, search.open()), |number| number);
        }
        for held in runs {
            let open: Vec<usize> = search.open().collect();
            if open.is_empty() {
                break;
            }
            let wanted: Vec<Key> = open.iter().map(|number| keys[*number]).collect();
            let mut found = held.run.find(&wanted, self.0.options.lookup_threads)?;
            found.reverse();
            search.settle(found, |number| open[number]);
        }
        let answer = |id: &IdHash| keys.binary_search(&Key::of(*id)).ok().and_then(|number| search.answers[number]);
        Ok(ids.iter().map(answer).collect())
    }

    /// Adds entries. Each says where the live row of its id is: it is put after the row's commit, and in any order with the
    /// entries of other commits. May write a run when memory is full; when that fails the entries stay in memory, and
    /// the checkpoint says so.
    pub fn put(&self, entries: impl IntoIterator<Item = IndexEntry>) {
        let mut entries = entries.into_iter().peekable();
        while entries.peek().is_some() {
            let mut broken = None;
            let mut packed = Vec::new();
            for entry in entries.by_ref().take(PUT_ENTRIES) {
                match Packed::new(&entry) {
                    Some(entry) => packed.push(entry),
                    None => broken = Some(Broken::RowTooLarge(entry.position)),
                }
            }
            packed.sort_unstable();
            let mut state = self.state_mut();
            packed.into_iter().for_each(|entry| state.memory.put(entry));
            state.broken = state.broken.or(broken);
            let held = state.memory.len();
            drop(state);
            self.make_room(held);
        }
    }

    /// Adds a run that was built beside the index. Does not block.
    pub fn attach(&self, mut run: FinishedRun) {
        let mut state = self.state_mut();
        if !Arc::ptr_eq(&run.folder, &self.0.folder) {
            state.broken = Some(Broken::ForeignRun);
        } else if let Some(run) = run.take() {
            state.add(run);
        }
    }

    /// For a run of many entries, built beside the index. Does not block.
    pub fn run_builder(&self) -> Result<RunBuilder, IndexError> {
        Ok(RunBuilder::new(&self.0.folder, self.0.options.builder_memory_bytes))
    }

    /// What is put from now on replaces nothing that was put before. To be called together with the making of a stamp whose checkpoint
    /// is written later. Does not block.
    pub fn seal(&self) {
        self.state_mut().freeze();
    }

    /// Makes the index of now durable, with a stamp that [`Self::open`] gives back. Puts and look-ups go on meanwhile; what is put
    /// or attached after the call began may or may not be part of the checkpoint. On an error the last checkpoint stands.
    pub fn checkpoint(&self, stamp: &[u8]) -> Result<(), IndexError> {
        let _checkpointing = lock(&self.0.checkpointing);
        let flushing = lock(&self.0.flushing);
        let mut runs = {
            let mut state = self.state_mut();
            self.check(&state)?;
            state.freeze();
            state.runs.iter_mut().for_each(|held| held.named = true);
            state.runs.iter().map(|held| held.run.clone()).collect::<Vec<_>>()
        };
        runs.extend(self.write_frozen(true)?);
        drop(flushing);
        let doomed = {
            let state = self.state();
            let named = |run: &Arc<Run>| runs.iter().any(|other| other.number() == run.number());
            state.retired.iter().filter(|run| !named(run)).cloned().collect::<Vec<_>>()
        };
        for run in runs.iter().filter(|run| !run.is_durable()) {
            run.make_durable()?;
        }
        let footers = runs.iter().map(|run| run.footer()).collect();
        let next_number = self.0.folder.next_number();
        Manifest { next_number, runs: footers, stamp: stamp.to_vec() }.store(&self.0.folder)?;
        let is_doomed = |run: &Arc<Run>| doomed.iter().any(|other| other.number() == run.number());
        self.state_mut().retired.retain(|run| !is_doomed(run));
        doomed.iter().for_each(|run| run.delete());
        Ok(())
    }

    /// Runs that are to be merged now. Does not block. `None`: there are few enough, or another job is under way.
    pub fn merge_due(&self) -> Option<MergeJob> {
        let mut state = self.state_mut();
        if state.merging.strong_count() > 0 {
            return None;
        }
        let sizes: Vec<u64> = state.runs.iter().map(|held| held.run.entries()).collect();
        let keep = runs_to_keep(&sizes, self.0.options.run_size_ratio);
        if keep == sizes.len() {
            return None;
        }
        let token = Arc::new(());
        state.merging = Arc::downgrade(&token);
        let inputs = state.runs[keep..].iter().map(|held| held.run.clone()).collect();
        Some(MergeJob { folder: self.0.folder.clone(), inputs, token })
    }

    /// Whether a merge is under way. Does not block.
    pub fn is_merging(&self) -> bool {
        self.state().merging.strong_count() > 0
    }

    /// Puts the output of a merge in place of its inputs. `false`: they are not part of this index (any more), and nothing was
    /// changed. Does not block but for the deletion of files.
    pub fn install(&self, mut merged: MergedRuns) -> bool {
        let is_input = |run: &Arc<Run>| merged.inputs.iter().any(|input| Arc::ptr_eq(input, run));
        let mut state = self.state_mut();
        if state.runs.iter().filter(|held| is_input(&held.run)).count() != merged.inputs.len() {
            return false;
        }
        let (inputs, others) = std::mem::take(&mut state.runs).into_iter().partition(|held| is_input(&held.run));
        state.runs = others;
        let (named, unnamed): (Vec<HeldRun>, Vec<HeldRun>) = Vec::into_iter(inputs).partition(|held| held.named);
        state.retired.extend(named.into_iter().map(|held| held.run));
        if let Some(output) = merged.output.take() {
            state.add(output);
        }
        drop(state);
        unnamed.iter().for_each(|held| held.run.delete());
        true
    }

    /// Whether memory holds many times what it should: runs cannot be written. Does not block.
    pub fn is_overfull(&self) -> bool {
        self.entries_in_memory() > self.0.options.entries_in_memory_max.saturating_mul(OVERFULL)
    }

    /// Writes memory as runs.
    ///
    /// # Errors
    /// When the disk does not take them; memory keeps the entries.
    pub fn flush(&self) -> Result<(), IndexError> {
        let _flushing = lock(&self.0.flushing);
        self.state_mut().freeze();
        self.write_frozen(false).map(drop)
    }

    /// Entries that no run holds yet.
    pub fn entries_in_memory(&self) -> usize {
        let state = self.state();
        state.memory.len() + state.frozen.iter().map(|memory| memory.len()).sum::<usize>()
    }

    /// Entries, dead ones that were not merged away included.
    pub fn entries(&self) -> u64 {
        let runs: u64 = self.state().runs.iter().map(|held| held.run.entries()).sum();
        runs + self.entries_in_memory() as u64
    }

    /// Number of runs.
    pub fn runs(&self) -> usize {
        self.state().runs.len()
    }

    /// Bytes on disk, files that only the last manifest needs included.
    pub fn bytes(&self) -> u64 {
        let state = self.state();
        state.runs.iter().map(|held| &held.run).chain(&state.retired).map(|run| run.footer().file_bytes()).sum()
    }

    /// Bytes in memory.
    pub fn memory_bytes(&self) -> usize {
        let state = self.state();
        let runs: usize = state.runs.iter().map(|held| held.run.memory_bytes()).sum();
        runs + state.memory.memory_bytes() + state.frozen.iter().map(|memory| memory.memory_bytes()).sum::<usize>()
    }

    /// Writes memory as a run when it is full; waits for another writer only when it is overfull.
    fn make_room(&self, held: usize) {
        let most = self.0.options.entries_in_memory_max;
        if held < most {
            return;
        }
        let flushing = match self.0.flushing.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) if held < most.saturating_mul(2) => return,
            Err(TryLockError::WouldBlock) => lock(&self.0.flushing),
        };
        {
            let mut state = self.state_mut();
            if state.memory.len() < most {
                return;
            }
            state.freeze();
        }
        if let Err(error) = self.write_frozen(false) {
            let folder = self.0.folder.path().display();
            tracing::warn!(%folder, %error, "a key index could not write its memory to disk and keeps it");
        }
        drop(flushing);
    }

    /// Writes all frozen memory as runs, which are returned. Only with `flushing` held.
    fn write_frozen(&self, named: bool) -> Result<Vec<Arc<Run>>, IndexError> {
        let mut runs = Vec::new();
        loop {
            let Some(memory) = self.state().frozen.first().cloned() else { return Ok(runs) };
            let mut writer = RunWriter::create(&self.0.folder)?;
            for entry in memory.iter() {
                writer.push(entry)?;
            }
            let run = writer.finish()?.map(Arc::new);
            let mut state = self.state_mut();
            state.frozen.remove(0);
            if let Some(run) = run {
                state.add(run.clone());
                state.runs.iter_mut().filter(|held| Arc::ptr_eq(&held.run, &run)).for_each(|held| held.named = named);
                runs.push(run);
            }
        }
    }

    fn check(&self, state: &State) -> Result<(), IndexError> {
        match state.broken {
            None => Ok(()),
            Some(Broken::RowTooLarge(Position { file, row })) => Err(IndexError::RowTooLarge { file, row }),
            Some(Broken::ForeignRun) => Err(IndexError::ForeignRun { folder: self.0.folder.path().to_owned() }),
        }
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.0.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_absent_or_corrupt(error: &IndexError) -> bool {
    match error {
        IndexError::Corrupt { .. } => true,
        IndexError::Io { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

/// The entries of those keys, each with its key's number; the newest of a key first.
fn in_memory(memory: &MemoryEntries, keys: &[Key], numbers: impl Iterator<Item = usize>) -> Vec<(usize, Packed)> {
    numbers.flat_map(|number| memory.of(keys[number]).iter().rev().map(move |entry| (number, *entry))).collect()
}

/// A look-up that is under way.
struct Search<'a> {
    answers: Vec<Option<Located>>,
    live: &'a dyn Liveness,
}

impl Search<'_> {
    /// The keys without an answer.
    fn open(&self) -> impl Iterator<Item = usize> + '_ {
        self.answers.iter().enumerate().filter(|(_, answer)| answer.is_none()).map(|(number, _)| number)
    }

    fn settle(&mut self, found: Vec<(usize, Packed)>, key_of: impl Fn(usize) -> usize) {
        for (number, entry) in found {
            let answer = &mut self.answers[key_of(number)];
            if answer.is_none() && self.live.is_live(entry.position()) {
                *answer = Some(entry.located());
            }
        }
    }
}

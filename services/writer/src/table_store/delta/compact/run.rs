//! Compaction while batches go on being applied.
//!
//! Three steps: *choose* files ([`crate::table_store::delta::compact::select`]), of which only the look at the table holds the lock of the space; *rewrite* them without
//! it ([`crate::table_store::delta::compact::rewrite`]), remembering where each row goes and building the entries of the key index beside the index; *commit* under the
//! lock again, where the rows that were deleted meanwhile become deletion vectors of the new files. A commit holds many small
//! jobs. If anything else happened to the files of a job meanwhile, what became of them is thrown away.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use deltalake::kernel::Action;
use lake_shared::identity::Space;
use roaring::RoaringBitmap;

use crate::key_index::{Liveness, Position, RunBuilder};
use crate::metric_names;
use crate::table_store::Compacted;
use crate::table_store::delta::compact::rewrite::{Output, Rewritten, rewrite};
use crate::table_store::delta::compact::select::{Chosen, Task, View};
use crate::table_store::delta::files::data_file::DataFile;
use crate::table_store::delta::files::deletion_vectors::{self, DeletionVector};
use crate::table_store::delta::files::file_writer::{NewFile, discard};
use crate::table_store::delta::log::commit::{self, Features, Label, Outcome};
use crate::table_store::delta::options::DeletionVectors;
use crate::table_store::delta::permanent_error;
use crate::table_store::delta::space::state::{Slot, SpaceState};
use crate::table_store::delta::{DeltaTableStore, EngineError, SpaceCell, now_us};
use crate::table_store::schema_plan::Column;

/// Commits of one call to one table; what is left is for the next call, so that every table of a space has its turn.
const COMMITS_OF_TABLE_MAX: usize = 32;

/// What a commit of compaction came to.
#[derive(Default)]
struct Exchange {
    tasks: usize,
    files_before: usize,
    files_after: usize,
    bytes: u64,
    /// Files that did not enter the table.
    vain: Vec<NewFile>,
}

impl DeltaTableStore {
    /// Compacts what the policy asks for in a space that is in use. One at a time.
    pub(crate) async fn compact_space(&self, space: &Space) -> Result<Compacted, EngineError> {
        let shared = self.shared(space);
        let _alone = shared.compacting.lock().await;
        let mut compacted = Compacted::default();
        let (mut number, mut failure) = (0, None);
        let (mut table, mut commits) = (number, 0);
        loop {
            let outcome = self.compact_next(&shared, &mut number, &mut compacted).await;
            if table != number {
                (table, commits) = (number, 0);
            }
            commits += 1;
            let goes_on = match outcome {
                Ok(Some(done)) => done,
                Ok(None) => return failure.map_or(Ok(compacted), Err),
                Err(error) => {
                    failure.get_or_insert(error);
                    false
                }
            };
            // A table that cannot be compacted now, or that always needs more, does not keep the others from their turn.
            if !goes_on || commits >= COMMITS_OF_TABLE_MAX {
                compacted.more |= goes_on;
                number += 1;
            }
        }
    }

    /// Compacts once, in the next table that needs it, `number` or after. `None`: none does. `false`: in vain, files changed meanwhile.
    async fn compact_next(
        &self,
        shared: &SpaceCell,
        number: &mut u32,
        compacted: &mut Compacted,
    ) -> Result<Option<bool>, EngineError> {
        let (chosen, run) = loop {
            let view = {
                // Let go between two tables: a batch waits for one at most.
                let mut guard = shared.state.lock().await;
                guard.take_if(|state| state.torn);
                let Some(state) = guard.as_mut().filter(|state| (*number as usize) < state.slots.len()) else {
                    return Ok(None);
                };
                let locked = Instant::now();
                let view = self.view(state, *number).await;
                compacted.held_up_max = compacted.held_up_max.max(locked.elapsed());
                view?
            };
            if let Some(view) = view
                && let Some(chosen) = choose(shared, view).await?
            {
                break chosen;
            }
            *number += 1;
        };
        let began = Instant::now();
        let mut rewritten = rewrite(&chosen, run, &self.batches).await?;
        let failures = std::mem::take(&mut rewritten.failures);
        let waited = Instant::now();
        let mut guard = shared.state.lock().await;
        guard.take_if(|state| state.torn);
        let locked = Instant::now();
        let exchange = match guard.as_mut() {
            Some(state) => {
                let exchange = self.commit_rewrite(state, &chosen, rewritten).await?;
                self.give_up_broken(state, &chosen, &failures).await?;
                exchange
            }
            None => Exchange::vain(rewritten.outputs.into_iter().flatten()),
        };
        drop(guard);
        let held = locked.elapsed();
        compacted.held_up_max = compacted.held_up_max.max(held);
        discard(&chosen.store, &exchange.vain).await;
        let (key, of) = (&chosen.key, chosen.tasks.len());
        let Exchange { tasks, files_before: files, files_after: into, bytes, .. } = exchange;
        if tasks > 0 {
            compacted.commits += 1;
            compacted.files_before += files as u64;
            compacted.files_after += into as u64;
            compacted.bytes_written += bytes;
            let kind = key.space.kind.name();
            metrics::counter!(metric_names::COMPACTED_FILES_TOTAL, "kind" => kind).increment(files as u64);
            metrics::counter!(metric_names::COMPACTED_BYTES_TOTAL, "kind" => kind).increment(bytes);
            metrics::histogram!(metric_names::COMPACTION_SECONDS, "kind" => kind).record(began.elapsed().as_secs_f64());
            metrics::histogram!(metric_names::COMPACTION_HOLD_SECONDS, "kind" => kind).record(held.as_secs_f64());
            let held = lake_shared::retry::milliseconds(held);
            let milliseconds = lake_shared::retry::milliseconds(began.elapsed());
            let waited = lake_shared::retry::milliseconds(locked - waited);
            let reason = chosen.tasks.first().map(|task| task.job.reason);
            tracing::info!(
                table = %key, ?reason, jobs = tasks, of, files, into, bytes, milliseconds, lock_waited = waited,
                lock_held = held, "compacted"
            );
        } else {
            tracing::debug!(table = %key, of, "files changed while they were compacted; tried again later");
        }
        failures.into_iter().next().map_or(Ok(Some(tasks > 0)), |(_, error)| Err(error))
    }

    /// A table whose files cannot be read, now or later, is left alone as it is when a batch meets them.
    async fn give_up_broken(
        &self,
        state: &mut SpaceState,
        chosen: &Chosen,
        failures: &[(usize, EngineError)],
    ) -> Result<(), EngineError> {
        // What left the table meanwhile may have been cleaned up.
        let is_broken = |(task, error): &&(usize, EngineError)| {
            permanent_error::is_lasting(error) && is_current(state.slot(chosen.number), &chosen.tasks[*task])
        };
        match failures.iter().find(is_broken) {
            Some((_, error)) if state.generation == chosen.generation => {
                self.give_up(state, chosen.number, error).await
            }
            _ => Ok(()),
        }
    }

    /// Exchanges the files of those tasks to which nothing else happened meanwhile.
    async fn commit_rewrite(
        &self,
        state: &mut SpaceState,
        chosen: &Chosen,
        rewritten: Rewritten,
    ) -> Result<Exchange, EngineError> {
        let number = chosen.number;
        if state.generation != chosen.generation || !has_same_columns(state.slot(number), chosen) {
            return Ok(Exchange::vain(rewritten.outputs.into_iter().flatten()));
        }
        let slot = state.slot(number);
        let done = chosen.tasks.iter().zip(rewritten.outputs).filter_map(|(task, output)| Some((task, output?)));
        let (current, outdated): (Vec<_>, Vec<_>) = done.partition(|(task, _)| is_current(slot, task));
        let mut vain = Exchange::vain(outdated.into_iter().map(|(_, output)| output)).vain;
        if current.is_empty() {
            return Ok(Exchange { vain, ..Exchange::default() });
        }
        let Some(table) = self.table_at(state, number).await? else {
            self.refresh(state, number).await?;
            vain.extend(current.into_iter().flat_map(|(_, output)| output.added));
            return Ok(Exchange { vain, ..Exchange::default() });
        };
        let Moved { mut actions, dead, strays } = moved(state, number, &current);
        let vectors = deletion_vectors::store(&chosen.store, dead.values().cloned().map(Into::into).collect());
        let (vectors, footing) = futures::try_join!(vectors, self.footing(state, number))?;
        let mut vectors: HashMap<u32, DeletionVector> = dead.into_keys().zip(vectors).collect();
        let (inputs, outputs): (Vec<&[DataFile]>, Vec<Output>) =
            current.into_iter().map(|(task, output)| (task.inputs.as_slice(), output)).unzip();
        let exchange = Exchange {
            tasks: inputs.len(),
            files_before: inputs.iter().map(|files| files.len()).sum(),
            files_after: outputs.iter().map(|output| output.added.len()).sum(),
            bytes: outputs.iter().flat_map(|output| &output.added).map(|file| file.add.size.unsigned_abs()).sum(),
            vain: Vec::new(),
        };
        let (empty, added): (Vec<NewFile>, Vec<NewFile>) =
            outputs.into_iter().flat_map(|output| output.added).partition(|file| is_empty(file, &vectors));
        for file in &added {
            let mut add = file.add.clone();
            add.data_change = false;
            if let Some(vector) = vectors.get(&file.number) {
                add.deletion_vector = Some(vector.descriptor.clone());
                add.stats = add.stats.as_deref().map(commit::loosened);
            }
            actions.push(Action::Add(add));
        }
        let slot = state.slot(number);
        let deletion_vectors = if vectors.is_empty() { self.unwanted(slot) } else { Some(true) };
        let snapshot = table.snapshot().map_err(EngineError::delta)?;
        actions.extend(commit::changes(snapshot, None, Features { deletion_vectors, retention_hours: None })?);
        let (version, table) = match commit::commit(table, actions, Label::Compaction, footing, slot).await? {
            Outcome::Conflict => {
                self.refresh(state, number).await?;
                vain.extend(empty.into_iter().chain(added));
                return Ok(Exchange { vain, ..Exchange::default() });
            }
            // The files may be part of the table. If they are not, the clean-up finds them.
            Outcome::Unknown => {
                self.refresh(state, number).await?;
                return Ok(Exchange { vain, ..Exchange::default() });
            }
            Outcome::Committed { version, table } => (version, table),
        };
        self.keep(&chosen.key, version, table);
        // The files first: the index may forget entries of files that it does not know to be live.
        let removed = inputs.into_iter().flatten().map(|file| file.number);
        exchange_files(state, number, removed, added, &mut vectors, version);
        state.index.attach(rewritten.run);
        for stray in strays {
            state.live_mut().condemn(stray);
        }
        // Memory holds one entry of an id: that of a row which is there to stay.
        let live = state.live.clone();
        state.index.put(rewritten.again.into_iter().filter(|entry| live.is_live(entry.position)));
        state.tell_keys();
        self.record(state).await?;
        vain.extend(empty);
        Ok(Exchange { vain, ..exchange })
    }

    /// Whether the property of a table that allows deletion vectors is to be taken away.
    pub(crate) fn unwanted(&self, slot: &Slot) -> Option<bool> {
        (self.options.of_table(&slot.name).deletion_vectors == DeletionVectors::Off).then_some(false)
    }
}

/// Chooses work on a table that was looked at, if it needs any.
async fn choose(shared: &SpaceCell, view: View) -> Result<Option<(Chosen, RunBuilder)>, EngineError> {
    let seen = view.seen();
    let choosing = tokio::task::spawn_blocking(move || view.choose());
    let chosen = choosing.await.map_err(EngineError::interrupted)??;
    if chosen.is_none()
        && let Some(state) = shared.state.lock().await.as_mut()
    {
        seen.remember(state);
    }
    Ok(chosen)
}

impl Exchange {
    /// Nothing of it entered the table.
    fn vain(outputs: impl IntoIterator<Item = Output>) -> Self {
        Self { vain: outputs.into_iter().flat_map(|output| output.added).collect(), ..Self::default() }
    }
}

/// What became of the rows of rewritten files.
struct Moved {
    /// The old files leave.
    actions: Vec<Action>,
    /// Rows of new files that were deleted meanwhile.
    dead: BTreeMap<u32, RoaringBitmap>,
    /// Where rows stand now that have to leave with the next commit.
    strays: Vec<Position>,
}

fn moved(state: &SpaceState, number: u32, current: &[(&Task, Output)]) -> Moved {
    let slot = state.slot(number);
    let now_ms = now_us() / 1_000;
    let stray_rows: HashMap<u32, &RoaringBitmap> = state.live.strays_of(number).collect();
    let mut moved = Moved { actions: Vec::new(), dead: BTreeMap::new(), strays: Vec::new() };
    for (task, output) in current {
        for (ordinal, before) in (0..).zip(&task.inputs) {
            let Some(now) = slot.files.get(&before.number) else { continue };
            let deleted = |file: &DataFile| file.deleted_rows().cloned();
            for (file, row) in output.positions.remap(ordinal, deleted(before).as_deref(), deleted(now).as_deref()) {
                moved.dead.entry(file).or_default().insert(row);
            }
            let left = stray_rows.get(&before.number).into_iter().flat_map(|rows| rows.iter());
            let left = left.filter_map(|row| output.positions.target(ordinal, row));
            moved.strays.extend(left.map(|(file, row)| Position { file, row }));
            moved.actions.push(Action::Remove(commit::removal(now, &slot.partition_columns, false, now_ms)));
        }
    }
    moved
}

/// Brings the file list of a table in step with a commit.
fn exchange_files(
    state: &mut SpaceState,
    number: u32,
    removed: impl Iterator<Item = u32> + Clone,
    added: Vec<NewFile>,
    vectors: &mut HashMap<u32, DeletionVector>,
    version: u64,
) {
    let live = state.live_mut();
    for file in &added {
        let deleted = vectors.get(&file.number).map(|vector| vector.rows.clone());
        live.set(file.number, number, deleted);
    }
    for file in removed.clone() {
        live.remove(file);
    }
    let slot = state.slot_mut(number);
    for file in removed {
        slot.files.remove(&file);
    }
    for file in added {
        let deleted = vectors.remove(&file.number);
        let file = DataFile { deleted, ..file.into_data_file(None) };
        slot.files.insert(file.number, file);
    }
    slot.version = Some(version);
    slot.unrecorded.get_or_insert_default();
}

/// Whether every row of a new file was deleted while it was written.
fn is_empty(file: &NewFile, vectors: &HashMap<u32, DeletionVector>) -> bool {
    vectors.get(&file.number).is_some_and(|vector| vector.rows.len() >= file.rows as u64)
}

/// Whether the files of a task are still part of the table.
fn is_current(slot: &Slot, task: &Task) -> bool {
    let same_file = |file: &DataFile| slot.files.get(&file.number).is_some_and(|now| now.path == file.path);
    task.inputs.iter().all(same_file)
}

/// Whether the columns of the table still have the types that were written.
fn has_same_columns(slot: &Slot, chosen: &Chosen) -> bool {
    let same_column = |column: &Column| slot.schema.columns.contains(column);
    chosen.schema.columns.iter().all(same_column) && slot.partition_columns == chosen.partition_columns
}

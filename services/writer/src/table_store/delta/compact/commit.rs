//! Exchanging the files of a table for those that compaction wrote from them.

use std::collections::{BTreeMap, HashMap};

use deltalake::kernel::Action;
use roaring::RoaringBitmap;

use crate::key_index::{FileNumber, FinishedRun, IndexEntry, Liveness, Position, RowNumber};
use crate::table_store::delta::clock::now_us;
use crate::table_store::delta::compact::rewrite::{Rewritten, RewrittenFiles};
use crate::table_store::delta::compact::select::{CompactionPlan, Task};
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::data_file::DataFile;
use crate::table_store::delta::files::deletion_vectors::{self, DeletionVector};
use crate::table_store::delta::files::new_files::{NewFile, NewFiles};
use crate::table_store::delta::log::commit::{Commit, Label};
use crate::table_store::delta::log::file_actions::{loosened, removal};
use crate::table_store::delta::log::metadata::{self, Features};
use crate::table_store::delta::log::table_access::CommitResult;
use crate::table_store::delta::options::{DeletionVectors, DeltaOptions};
use crate::table_store::delta::space::loader::SpaceLoader;
use crate::table_store::delta::space::state::SpaceState;
use crate::table_store::delta::space::table::{CommittedFiles, OwnCommit, TableState};
use crate::table_store::delta::table_number::TableNumber;
use crate::table_store::schema_plan::Column;

/// What a commit of compaction came to.
#[derive(Default)]
pub(crate) struct CompactionCommit {
    /// How many jobs of the plan are part of the commit; none: nothing was committed.
    pub(crate) tasks: usize,
    pub(crate) files_before: usize,
    pub(crate) files_after: usize,
    /// Bytes of the new files.
    pub(crate) bytes: u64,
    /// Files that did not enter the table, to be deleted once the lock of the space is free.
    pub(crate) discarded: NewFiles,
}

impl CompactionCommit {
    /// Nothing of these outputs entered the table.
    pub(crate) fn discarded(outputs: impl IntoIterator<Item = RewrittenFiles>) -> Self {
        let added: Vec<NewFile> = outputs.into_iter().flat_map(|output| output.added).collect();
        Self { discarded: NewFiles::new(&added, []), ..Self::default() }
    }
}

/// Exchanges the files of those tasks to which nothing else happened meanwhile.
///
/// # Errors
/// When the store fails, and the outcome of the commit is known not to be.
pub(crate) async fn commit_rewritten(
    loader: &SpaceLoader,
    options: &DeltaOptions,
    state: &mut SpaceState,
    plan: &CompactionPlan,
    rewritten: Rewritten,
) -> Result<CompactionCommit, EngineError> {
    let (number, access) = (plan.number, loader.access());
    if state.generation() != plan.generation || !has_same_columns(state.table(number), plan) {
        return Ok(CompactionCommit::discarded(rewritten.outputs.into_iter().flatten()));
    }
    let held = state.table(number);
    let done = plan.tasks.iter().zip(rewritten.outputs).filter_map(|(task, output)| Some((task, output?)));
    let (current, outdated): (Vec<_>, Vec<_>) = done.partition(|(task, _)| is_current(held, task));
    let outdated = CompactionCommit::discarded(outdated.into_iter().map(|(_, output)| output));
    if current.is_empty() {
        return Ok(outdated);
    }
    let Some(table) = access.at_known_version(&held.known()).await? else {
        loader.refresh(state, number).await?;
        let mut discarded = outdated.discarded;
        discarded.extend(CompactionCommit::discarded(current.into_iter().map(|(_, output)| output)).discarded);
        return Ok(CompactionCommit { discarded, ..CompactionCommit::default() });
    };
    let RemappedDeletes { mut actions, dead, stale_rows } = remapped_deletes(state, number, &current);
    let known = held.known();
    let storing = deletion_vectors::store(&plan.store, dead.values().cloned().map(Into::into).collect());
    let (vectors, base) = futures::try_join!(storing, access.base_version(&known))?;
    let vectors: HashMap<FileNumber, DeletionVector> = dead.into_keys().zip(vectors).collect();
    let (tasks, outputs): (Vec<&Task>, Vec<RewrittenFiles>) = current.into_iter().unzip();
    let written: Vec<NewFile> = outputs.into_iter().flat_map(|output| output.added).collect();
    let removed: Vec<FileNumber> = tasks.iter().flat_map(|task| &task.inputs).map(|file| file.number).collect();
    let mut commit = CompactionCommit {
        tasks: tasks.len(),
        files_before: removed.len(),
        files_after: written.len(),
        bytes: written.iter().map(|file| file.add.size.unsigned_abs()).sum(),
        discarded: outdated.discarded,
    };
    let new_files = NewFiles::new(&written, vectors.values());
    let (empty, added): (Vec<NewFile>, Vec<NewFile>) = written.into_iter().partition(|file| is_empty(file, &vectors));
    actions.extend(added.iter().map(|file| add(file, vectors.get(&file.number))));
    let deletion_vectors = deletion_vectors_feature(options, held, &vectors);
    let snapshot = table.snapshot().map_err(EngineError::delta)?;
    actions.extend(metadata::changes(snapshot, None, Features { deletion_vectors, retention_hours: None })?);
    let logged = held.logged_paths();
    let entry = Commit { table, base, label: Label::Compaction, actions, logged, new_files };
    let entry = match access.commit(&plan.key, entry).await? {
        CommitResult::Committed(entry) => entry,
        CommitResult::Conflict { mut discarded } => {
            loader.refresh(state, number).await?;
            discarded.extend(commit.discarded);
            return Ok(CompactionCommit { discarded, ..CompactionCommit::default() });
        }
    };
    let added = added.into_iter().map(|file| data_file(file, &vectors)).collect();
    // Should it be replaced, its rows are still in the old files.
    let own = OwnCommit { entry, added: Vec::new() };
    state.commit_applied(number, CommittedFiles { own, id: None, removed, marked: Vec::new(), added });
    enter_keys(state, rewritten.run, rewritten.again, stale_rows);
    loader.report_state(state).await?;
    commit.discarded.extend(NewFiles::new(&empty, []));
    Ok(commit)
}

/// Makes the entries of the new files part of the index, once the files are part of their table. `again`: entries of ids that the run
/// has another entry of.
fn enter_keys(state: &mut SpaceState, run: FinishedRun, again: Vec<IndexEntry>, stale_rows: Vec<Position>) {
    state.attach_keys(run);
    for stale_row in stale_rows {
        state.mark_stale(stale_row);
    }
    // Memory holds one entry of an id: that of a row which is there to stay.
    let live = state.live().clone();
    state.put_keys(again.into_iter().filter(|entry| live.is_live(entry.position)));
    state.count_keys();
}

/// Whether the commit says that the table has deletion vectors: needed where new files have some, taken back where they are switched
/// off. `None`: it stays as it is.
fn deletion_vectors_feature(
    options: &DeltaOptions,
    held: &TableState,
    vectors: &HashMap<FileNumber, DeletionVector>,
) -> Option<bool> {
    if !vectors.is_empty() {
        return Some(true);
    }
    (options.of_table(held.name()).deletion_vectors == DeletionVectors::Off).then_some(false)
}

/// The action by which a new file enters; its rows are no new ones to readers that follow changes.
fn add(file: &NewFile, vector: Option<&DeletionVector>) -> Action {
    let mut add = file.add.clone();
    add.data_change = false;
    if let Some(vector) = vector {
        add.deletion_vector = Some(vector.descriptor.clone());
        add.stats = add.stats.as_deref().map(loosened);
    }
    Action::Add(add)
}

fn data_file(file: NewFile, vectors: &HashMap<FileNumber, DeletionVector>) -> DataFile {
    let deleted = vectors.get(&file.number).cloned();
    DataFile { deleted, ..file.into_data_file(None) }
}

/// What became of the rows of rewritten files.
struct RemappedDeletes {
    /// The old files leave.
    actions: Vec<Action>,
    /// Rows of new files that were deleted meanwhile.
    dead: BTreeMap<FileNumber, RoaringBitmap>,
    /// Where rows are now that have to leave with the next commit.
    stale_rows: Vec<Position>,
}

fn remapped_deletes(state: &SpaceState, number: TableNumber, current: &[(&Task, RewrittenFiles)]) -> RemappedDeletes {
    let held = state.table(number);
    let now_ms = now_us() / 1_000;
    let stale_rows: HashMap<FileNumber, &RoaringBitmap> = state.live().stale_rows_of(number).collect();
    let mut remapped = RemappedDeletes { actions: Vec::new(), dead: BTreeMap::new(), stale_rows: Vec::new() };
    for (task, output) in current {
        for (ordinal, before) in (0..).zip(&task.inputs) {
            let Some(now) = held.file(before.number) else { continue };
            let deleted = |file: &DataFile| file.deleted_rows().cloned();
            for place in output.positions.remap(ordinal, deleted(before).as_deref(), deleted(now).as_deref()) {
                remapped.dead.entry(place.file).or_default().insert(place.row.get());
            }
            let left = stale_rows.get(&before.number).into_iter().flat_map(|rows| rows.iter());
            let left = left.filter_map(|row| output.positions.target(ordinal, RowNumber::new(row)));
            remapped.stale_rows.extend(left);
            remapped.actions.push(Action::Remove(removal(now, held.partition_columns(), false, now_ms)));
        }
    }
    remapped
}

/// Whether every row of a new file was deleted while it was written.
fn is_empty(file: &NewFile, vectors: &HashMap<FileNumber, DeletionVector>) -> bool {
    vectors.get(&file.number).is_some_and(|vector| vector.rows.len() >= file.rows as u64)
}

/// Whether the files of a task are still part of the table.
pub(crate) fn is_current(held: &TableState, task: &Task) -> bool {
    let same_file = |file: &DataFile| held.file(file.number).is_some_and(|now| now.path == file.path);
    task.inputs.iter().all(same_file)
}

/// Whether the columns of the table still have the types that were written.
fn has_same_columns(held: &TableState, plan: &CompactionPlan) -> bool {
    let same_column = |column: &Column| held.schema().columns.contains(column);
    plan.schema.columns.iter().all(same_column) && held.partition_columns() == plan.partition_columns
}

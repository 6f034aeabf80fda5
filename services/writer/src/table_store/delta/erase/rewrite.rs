//! Live files that hold rows of erased records, as rows that are hidden, are replaced by others without them. It is compaction of these files
//! alone, to which the rows count as deleted: batches go on, and rows that they hide meanwhile are hidden in the new files.

use std::collections::BTreeSet;
use std::sync::Arc;

use object_store::ObjectStore;
use roaring::RoaringBitmap;

use crate::compaction::{Job, JobReason};
use crate::key_index::RunBuilder;
use crate::table_store::delta::compact::commit::{CompactionCommit, commit_rewritten};
use crate::table_store::delta::compact::rewrite::rewrite;
use crate::table_store::delta::compact::select::{CompactionPlan, Task};
use crate::table_store::delta::compact::yield_to_batches::Batches;
use crate::table_store::delta::erase::search::{TableSearch, Wanted};
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::data_file::DataFile;
use crate::table_store::delta::files::deletion_vectors::DeletionVector;
use crate::table_store::delta::options::DeltaOptions;
use crate::table_store::delta::space::cell::SpaceCell;
use crate::table_store::delta::space::loader::SpaceLoader;
use crate::table_store::delta::space::state::SpaceState;

/// Bytes of files that share a commit; a larger file has one of its own.
const SHARED_BYTES_MAX: i64 = 64 << 20;
/// Files that share a commit.
const SHARED_FILES_MAX: usize = 32;
/// How often files may change while they are rewritten before it is given up for now.
const FRUITLESS_MAX: usize = 5;

/// What files are rewritten with.
pub(super) struct RewriteTools<'t> {
    pub(super) loader: &'t SpaceLoader,
    pub(super) options: &'t DeltaOptions,
    pub(super) batches: &'t Batches,
}

/// What is to be done next.
enum Next {
    /// Files came that were not read yet.
    Look,
    Rewrite(Box<CompactionPlan>, RunBuilder),
    Done,
}

/// The state of a space that has to be there.
pub(super) fn loaded<'g>(
    guard: &'g mut Option<SpaceState>,
    search: &TableSearch,
) -> Result<&'g mut SpaceState, EngineError> {
    let state = guard.as_mut().filter(|state| !state.is_poisoned());
    state.ok_or_else(|| EngineError::NotLoaded(search.key.space.clone()))
}

/// The live files of a table; none where it is not registered any more.
pub(super) fn live_files(state: &SpaceState, search: &TableSearch) -> Result<Vec<DataFile>, EngineError> {
    let Some(number) = state.number_of(&search.key.document_type) else { return Ok(Vec::new()) };
    state.check_usable(&[number])?;
    Ok(state.table(number).files().cloned().collect())
}

/// Rewrites the live files of a table that hold rows of the ids, until none does. Answers the paths of those that were. No compaction runs
/// meanwhile.
///
/// # Errors
/// When files change all the time, when they cannot be read, or when the store or the metastore fails.
pub(super) async fn rewrite_live_files(
    tools: &RewriteTools<'_>,
    cell: &SpaceCell,
    search: &mut TableSearch,
    wanted: &Wanted,
) -> Result<BTreeSet<String>, EngineError> {
    let store = tools.loader.access().unloaded(&search.path)?.object_store();
    let (mut rewritten, mut fruitless) = (BTreeSet::new(), 0);
    while fruitless < FRUITLESS_MAX {
        let live = live_files(loaded(&mut *cell.state.lock().await, search)?, search)?;
        search.look(&store, wanted, &live).await?;
        let next = next(loaded(&mut *cell.state.lock().await, search)?, search, &store)?;
        let (plan, run) = match next {
            Next::Done => return Ok(rewritten),
            Next::Look => {
                fruitless += 1;
                continue;
            }
            Next::Rewrite(plan, run) => (plan, run),
        };
        let mut made = rewrite(&plan, run, tools.batches).await?;
        if let Some((_, error)) = std::mem::take(&mut made.failures).into_iter().next() {
            let written = made.outputs.into_iter().flatten();
            CompactionCommit::discarded(written).discarded.discard(&store).await;
            return Err(error);
        }
        let commit = {
            let mut guard = cell.state.lock().await;
            let state = loaded(&mut guard, search)?;
            commit_rewritten(tools.loader, tools.options, state, &plan, made).await?
        };
        commit.discarded.discard(&store).await;
        if commit.tasks == 0 {
            fruitless += 1;
        } else {
            rewritten.extend(plan.tasks.iter().flat_map(|task| &task.inputs).map(|file| file.path.clone()));
        }
    }
    Err(EngineError::Contended(search.key.clone()))
}

/// What is left to be done to a table.
fn next(state: &SpaceState, search: &TableSearch, store: &Arc<dyn ObjectStore>) -> Result<Next, EngineError> {
    let Some(number) = state.number_of(&search.key.document_type) else { return Ok(Next::Done) };
    state.check_usable(&[number])?;
    let held = state.table(number);
    if held.files().any(|file| !search.has_read(&file.path)) {
        return Ok(Next::Look);
    }
    let (mut tasks, mut bytes) = (Vec::new(), 0_i64);
    for file in held.files() {
        let Some(rows) = search.rows_in(&file.path) else { continue };
        bytes = bytes.saturating_add(file.size);
        if !tasks.is_empty() && (bytes > SHARED_BYTES_MAX || tasks.len() >= SHARED_FILES_MAX) {
            break;
        }
        tasks.push(task(file, rows));
    }
    if tasks.is_empty() {
        return Ok(Next::Done);
    }
    let plan = CompactionPlan {
        number,
        key: held.key().clone(),
        generation: state.generation(),
        tasks,
        schema: held.schema().clone(),
        partition_columns: held.partition_columns().to_vec(),
        store: Arc::clone(store),
        numbers: state.numbers().clone(),
    };
    Ok(Next::Rewrite(Box::new(plan), state.index().run_builder().map_err(EngineError::Index)?))
}

/// A file is written anew without these rows, and without those that are hidden.
fn task(file: &DataFile, rows: &RoaringBitmap) -> Task {
    let hidden = file.deleted_rows().map_or_else(|| rows.clone(), |hidden| rows | hidden.as_ref());
    let input = DataFile { deleted: Some(DeletionVector::unstored(hidden)), ..file.clone() };
    let job = Job {
        files: vec![file.number],
        reason: JobReason::DeletedRows,
        outputs: usize::from(input.live_rows() > 0),
        bytes: file.size.unsigned_abs(),
    };
    Task { job, inputs: vec![input], starts: vec![None] }
}

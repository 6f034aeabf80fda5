//! Compaction while batches go on being applied.
//!
//! Three steps: *select* files ([`super::select`]), of which only the look at the table holds the lock of the space; *rewrite* them without
//! it ([`super::rewrite`]), remembering where each row goes and building the entries of the key index beside the index; *commit* under the
//! lock again ([`super::commit`]), where the rows that were deleted meanwhile become deletion vectors of the new files. A commit holds many
//! small jobs. If anything else happened to the files of a job meanwhile, what became of them is deleted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lake_shared::identity::DocumentType;

use crate::key_index::RunBuilder;
use crate::metric_names;
use crate::table_store::Compacted;
use crate::table_store::delta::compact::commit::{CompactionCommit, commit_rewritten, is_current};
use crate::table_store::delta::compact::rewrite::rewrite;
use crate::table_store::delta::compact::select::{CompactionInput, CompactionPlan};
use crate::table_store::delta::compact::yield_to_batches::Batches;
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::options::DeltaOptions;
use crate::table_store::delta::permanent_error;
use crate::table_store::delta::space::cell::SpaceCell;
use crate::table_store::delta::space::loader::SpaceLoader;
use crate::table_store::delta::space::state::SpaceState;
use crate::table_store::delta::table_number::TableNumber;

/// Commits of one call to one table; what is left is for the next call, so that every table of a space has its turn.
const COMMITS_OF_TABLE_MAX: usize = 32;

/// Compacts tables.
pub(crate) struct Compactor {
    loader: Arc<SpaceLoader>,
    options: Arc<DeltaOptions>,
    /// Those that are being applied, of all spaces.
    batches: Batches,
}

impl Compactor {
    pub(crate) fn new(loader: Arc<SpaceLoader>, options: Arc<DeltaOptions>) -> Self {
        Self { loader, options, batches: Batches::default() }
    }

    /// To be told of the batches that compaction gives way to.
    pub(crate) const fn batches(&self) -> &Batches {
        &self.batches
    }

    /// Compacts what the policy asks for in a space that is loaded. One at a time.
    ///
    /// # Errors
    /// The first error of a table; the other tables have had their turn.
    pub(crate) async fn compact_space(&self, cell: &SpaceCell) -> Result<Compacted, EngineError> {
        let _alone = cell.compacting.lock().await;
        self.compact_tables(cell, TableNumber::FIRST, None).await
    }

    /// The same for one table of a space that is loaded. Without such a table nothing is done.
    ///
    /// # Errors
    /// When the table cannot be used, or its files or the metastore fail.
    pub(crate) async fn compact_table(
        &self,
        cell: &SpaceCell,
        document_type: &DocumentType,
    ) -> Result<Compacted, EngineError> {
        let _alone = cell.compacting.lock().await;
        let number = {
            let guard = cell.state.lock().await;
            let Some(state) = guard.as_ref() else { return Ok(Compacted::default()) };
            let Some(number) = state.number_of(document_type) else { return Ok(Compacted::default()) };
            state.check_usable(&[number])?;
            number
        };
        self.compact_tables(cell, number, Some(number)).await
    }

    /// Compacts the tables from the first to the last number, or to the last table (`None`).
    async fn compact_tables(
        &self,
        cell: &SpaceCell,
        first: TableNumber,
        last: Option<TableNumber>,
    ) -> Result<Compacted, EngineError> {
        let mut compacted = Compacted::default();
        let (mut number, mut failure) = (first, None);
        let (mut table, mut commits) = (number, 0);
        loop {
            let outcome = self.compact_next(cell, &mut number, last, &mut compacted).await;
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
                number = number.next();
            }
        }
    }

    /// Compacts once, in the next table that needs it, from `number` to `last`. `None`: none does. `false`: nothing was committed, as files
    /// changed meanwhile.
    async fn compact_next(
        &self,
        cell: &SpaceCell,
        number: &mut TableNumber,
        last: Option<TableNumber>,
        compacted: &mut Compacted,
    ) -> Result<Option<bool>, EngineError> {
        let Some((plan, run)) = self.next_plan(cell, number, last, compacted).await? else { return Ok(None) };
        let began = Instant::now();
        let mut rewritten = rewrite(&plan, run, &self.batches).await?;
        let failures = std::mem::take(&mut rewritten.failures);
        let waiting = Instant::now();
        let mut guard = cell.state.lock().await;
        guard.take_if(|state| state.is_poisoned());
        let locked = Instant::now();
        let commit = match guard.as_mut() {
            Some(state) => {
                let commit = commit_rewritten(&self.loader, &self.options, state, &plan, rewritten).await?;
                self.disable_broken(state, &plan, &failures).await?;
                commit
            }
            None => CompactionCommit::discarded(rewritten.outputs.into_iter().flatten()),
        };
        drop(guard);
        let held = locked.elapsed();
        compacted.held_up_max = compacted.held_up_max.max(held);
        commit.discarded.discard(&plan.store).await;
        if commit.tasks > 0 {
            report(&plan, &commit, began, locked - waiting, held, compacted);
        } else {
            let jobs = plan.tasks.len();
            tracing::debug!(table = %plan.key, jobs, "files changed while they were compacted; tried again later");
        }
        failures.into_iter().next().map_or(Ok(Some(commit.tasks > 0)), |(_, error)| Err(error))
    }

    /// The plan of the next table that needs work, from `number` to `last`, with the builder of its index entries.
    async fn next_plan(
        &self,
        cell: &SpaceCell,
        number: &mut TableNumber,
        last: Option<TableNumber>,
        compacted: &mut Compacted,
    ) -> Result<Option<(CompactionPlan, RunBuilder)>, EngineError> {
        loop {
            let input = {
                // Let go between two tables: a batch waits for one at most.
                let mut guard = cell.state.lock().await;
                guard.take_if(|state| state.is_poisoned());
                let is_left = |state: &&mut SpaceState| {
                    last.is_none_or(|last| *number <= last) && number.index() < state.tables().len()
                };
                let Some(state) = guard.as_mut().filter(is_left) else { return Ok(None) };
                let locked = Instant::now();
                let input = CompactionInput::take(&self.loader, &self.options, state, *number).await;
                compacted.held_up_max = compacted.held_up_max.max(locked.elapsed());
                input?
            };
            if let Some(input) = input
                && let Some(plan) = plan(cell, input).await?
            {
                return Ok(Some(plan));
            }
            *number = number.next();
        }
    }

    /// A table whose files cannot be read, now or later, is disabled as it is when a batch meets them.
    async fn disable_broken(
        &self,
        state: &mut SpaceState,
        plan: &CompactionPlan,
        failures: &[(usize, EngineError)],
    ) -> Result<(), EngineError> {
        // What left the table meanwhile may have been cleaned up.
        let is_broken = |(task, error): &&(usize, EngineError)| {
            permanent_error::is_permanent(error) && is_current(state.table(plan.number), &plan.tasks[*task])
        };
        match failures.iter().find(is_broken) {
            Some((_, error)) if state.generation() == plan.generation => {
                self.loader.disable_unless_changed(state, plan.number, error).await
            }
            _ => Ok(()),
        }
    }
}

/// Plans work on a table that was looked at, if it needs any.
async fn plan(cell: &SpaceCell, input: CompactionInput) -> Result<Option<(CompactionPlan, RunBuilder)>, EngineError> {
    let planned = input.planned_version();
    let planning = tokio::task::spawn_blocking(move || input.plan());
    let plan = planning.await.map_err(EngineError::interrupted)??;
    if plan.is_none()
        && let Some(state) = cell.state.lock().await.as_mut()
    {
        planned.set_unchanged(state);
    }
    Ok(plan)
}

/// Tells log, metrics and caller of a commit.
fn report(
    plan: &CompactionPlan,
    commit: &CompactionCommit,
    began: Instant,
    waited: Duration,
    held: Duration,
    compacted: &mut Compacted,
) {
    let &CompactionCommit { tasks: jobs, files_before, files_after, bytes, .. } = commit;
    compacted.commits += 1;
    compacted.files_before += files_before as u64;
    compacted.files_after += files_after as u64;
    compacted.bytes_written += bytes;
    let kind = plan.key.space.kind.name();
    metrics::counter!(metric_names::COMPACTED_FILES_TOTAL, "kind" => kind).increment(files_before as u64);
    metrics::counter!(metric_names::COMPACTED_BYTES_TOTAL, "kind" => kind).increment(bytes);
    metrics::histogram!(metric_names::COMPACTION_SECONDS, "kind" => kind).record(began.elapsed().as_secs_f64());
    metrics::histogram!(metric_names::COMPACTION_HOLD_SECONDS, "kind" => kind).record(held.as_secs_f64());
    let [milliseconds, lock_waited, lock_held] = [began.elapsed(), waited, held].map(lake_shared::retry::milliseconds);
    let reason = plan.tasks.first().map(|task| task.job.reason);
    tracing::info!(
        table = %plan.key, ?reason, jobs, of = plan.tasks.len(), files = files_before, into = files_after, bytes,
        milliseconds, lock_waited, lock_held, "compacted"
    );
}

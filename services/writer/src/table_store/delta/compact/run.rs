//! Compaction while batches go on being applied.
//!
//! Three steps: *select* files ([`super::select`]), of which only the look at the table holds the lock of the space; *rewrite* them without
//! it ([`super::rewrite`]), remembering where each row goes and building the entries of the key index beside the index; *commit* under the
//! lock again ([`super::commit`]), where the rows that were deleted meanwhile become deletion vectors of the new files. A commit holds many
//! small jobs. If anything else happened to the files of a job meanwhile, what became of them is deleted.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use lake_shared::error_chain::Chain;
use lake_shared::identity::TableKey;

use crate::key_index::RunBuilder;
use crate::metric_names;
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
use crate::table_store::{Compacted, PlannedCompaction};

/// Commits of one call to one table; what is left is for the next call, so that every table of a space has its turn.
const COMMITS_OF_TABLE_MAX: usize = 32;

/// What is to be compacted.
#[derive(Clone, Copy)]
pub(crate) enum Scope<'a> {
    /// All tables of the space.
    Space,
    /// One table of it; nothing where it is not registered.
    Table(&'a TableKey),
}

/// Compacts tables.
pub(crate) struct Compactor {
    loader: Arc<SpaceLoader>,
    options: Arc<DeltaOptions>,
    /// Those that are being applied, of all spaces.
    batches: Batches,
    /// Tables that rounds leave out, and why.
    skipped: Mutex<HashMap<TableKey, String>>,
}

impl Compactor {
    pub(crate) fn new(loader: Arc<SpaceLoader>, options: Arc<DeltaOptions>) -> Self {
        Self { loader, options, batches: Batches::default(), skipped: Mutex::default() }
    }

    /// To be told of the batches that compaction gives way to.
    pub(crate) const fn batches(&self) -> &Batches {
        &self.batches
    }

    /// Compacts what the policy asks for in a space, or in one table of it, that is loaded. One at a time.
    ///
    /// # Errors
    /// The first error of a table; the other tables have had their turn. A table alone: also when it cannot be used, or when its space
    /// has left memory meanwhile.
    pub(crate) async fn compact(&self, cell: &SpaceCell, scope: Scope<'_>) -> Result<Compacted, EngineError> {
        let _alone = cell.compacting.lock().await;
        let mut compacted = Compacted::default();
        let (mut number, mut failure) = (TableNumber::FIRST, None);
        let (mut table, mut commits) = (number, 0);
        loop {
            let outcome = self.compact_next(cell, &mut number, scope, &mut compacted).await;
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
                if let Scope::Table(_) = scope {
                    return failure.map_or(Ok(compacted), Err);
                }
                number = number.next();
            }
        }
    }

    /// What would be compacted in a table of a loaded space; nothing where it is not registered.
    ///
    /// # Errors
    /// When the table cannot be used or its log not be read, or when its space has left memory meanwhile.
    pub(crate) async fn outlook(&self, cell: &SpaceCell, table: &TableKey) -> Result<PlannedCompaction, EngineError> {
        let _alone = cell.compacting.lock().await;
        let input = {
            let mut guard = cell.state.lock().await;
            guard.take_if(|state| state.is_poisoned());
            let mut number = TableNumber::FIRST;
            match Scope::Table(table).next_table(guard.as_mut(), &mut number)? {
                Some(state) => CompactionInput::take(&self.loader, &self.options, state, number).await?,
                None => None,
            }
        };
        let Some(input) = input else { return Ok(PlannedCompaction::default()) };
        let looking = tokio::task::spawn_blocking(move || input.outlook());
        looking.await.map_err(EngineError::interrupted)?
    }

    /// Compacts once, in the next table of the scope that needs it, `number` or after. `None`: none does. `false`: nothing was committed, as
    /// files changed meanwhile.
    async fn compact_next(
        &self,
        cell: &SpaceCell,
        number: &mut TableNumber,
        scope: Scope<'_>,
        compacted: &mut Compacted,
    ) -> Result<Option<bool>, EngineError> {
        let Some((plan, run)) = self.next_plan(cell, number, scope, compacted).await? else { return Ok(None) };
        let is_changing = AtomicBool::new(false);
        match AssertUnwindSafe(self.compact_planned(cell, &plan, run, compacted, &is_changing)).catch_unwind().await {
            Ok(done) => {
                if matches!(done, Ok(true)) {
                    self.skipped().remove(&plan.key);
                    metrics::gauge!(metric_names::NOT_COMPACTED_TABLES).set(self.skipped().len() as f64);
                }
                done.map(Some)
            }
            Err(panic) => {
                if is_changing.into_inner() {
                    *cell.state.lock().await = None;
                }
                Err(self.skip(&plan.key, EngineError::panicked(panic.as_ref())))
            }
        }
    }

    /// Rewrites and commits what was planned. `false`: nothing was committed, as files changed meanwhile. `is_changing`: set as soon as the state
    /// of the space may be half changed.
    async fn compact_planned(
        &self,
        cell: &SpaceCell,
        plan: &CompactionPlan,
        run: RunBuilder,
        compacted: &mut Compacted,
        is_changing: &AtomicBool,
    ) -> Result<bool, EngineError> {
        let began = Instant::now();
        let mut rewritten = rewrite(plan, run, &self.batches).await?;
        let failures = std::mem::take(&mut rewritten.failures);
        let waiting = Instant::now();
        let mut guard = cell.state.lock().await;
        guard.take_if(|state| state.is_poisoned());
        let locked = Instant::now();
        let commit = match guard.as_mut() {
            Some(state) => {
                is_changing.store(true, Ordering::Relaxed);
                let commit = commit_rewritten(&self.loader, &self.options, state, plan, rewritten).await?;
                self.disable_broken(state, plan, &failures).await?;
                commit
            }
            None => CompactionCommit::discarded(rewritten.outputs.into_iter().flatten()),
        };
        drop(guard);
        let held = locked.elapsed();
        compacted.held_up_max = compacted.held_up_max.max(held);
        commit.discarded.discard(&plan.store).await;
        if commit.tasks > 0 {
            report(plan, &commit, began, locked - waiting, held, compacted);
        } else {
            let jobs = plan.tasks.len();
            tracing::debug!(table = %plan.key, jobs, "files changed while they were compacted; tried again later");
        }
        failures.into_iter().next().map_or(Ok(commit.tasks > 0), |(_, error)| Err(error))
    }

    /// Why rounds leave a table out.
    pub(crate) fn not_compacted(&self, table: &TableKey) -> Option<String> {
        self.skipped().get(table).cloned()
    }

    fn skipped(&self) -> MutexGuard<'_, HashMap<TableKey, String>> {
        self.skipped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a table out of rounds after a panic, which would come again each time.
    fn skip(&self, table: &TableKey, error: EngineError) -> EngineError {
        let reason = Chain(&error).to_string();
        tracing::error!(
            %table, reason,
            "table is not compacted any more until it is asked for or the writer starts anew; report this as a fault of the lake"
        );
        self.skipped().insert(table.clone(), reason);
        metrics::gauge!(metric_names::NOT_COMPACTED_TABLES).set(self.skipped().len() as f64);
        error
    }

    /// The plan of the next table of the scope that needs work, `number` or after, with the builder of its index entries.
    async fn next_plan(
        &self,
        cell: &SpaceCell,
        number: &mut TableNumber,
        scope: Scope<'_>,
        compacted: &mut Compacted,
    ) -> Result<Option<(CompactionPlan, RunBuilder)>, EngineError> {
        loop {
            let input = {
                // Let go between two tables: a batch waits for one at most.
                let mut guard = cell.state.lock().await;
                guard.take_if(|state| state.is_poisoned());
                let Some(state) = scope.next_table(guard.as_mut(), number)? else { return Ok(None) };
                let is_round = matches!(scope, Scope::Space);
                let held = state.table(*number);
                if is_round
                    && (self.skipped().contains_key(held.key()) || !self.options.of_table(held.name()).compaction)
                {
                    *number = number.next();
                    continue;
                }
                let locked = Instant::now();
                let input = CompactionInput::take(&self.loader, &self.options, state, *number).await;
                compacted.held_up_max = compacted.held_up_max.max(locked.elapsed());
                input?
            };
            if let Some(input) = input {
                let key = input.table().clone();
                match plan(cell, input).await {
                    Ok(Some(plan)) => return Ok(Some(plan)),
                    Ok(None) => {}
                    Err(error @ EngineError::Panicked(_)) => return Err(self.skip(&key, error)),
                    Err(error) => return Err(error),
                }
            }
            if let Scope::Table(_) = scope {
                return Ok(None);
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
        if state.generation() != plan.generation {
            return Ok(());
        }
        // What left the table meanwhile may have been cleaned up.
        let is_broken = |(task, error): &&(usize, EngineError)| {
            permanent_error::is_permanent(error) && is_current(state.table(plan.number), &plan.tasks[*task])
        };
        match failures.iter().find(is_broken) {
            Some((_, error)) => self.loader.disable_unless_changed(state, plan.number, error).await,
            None => Ok(()),
        }
    }
}

impl Scope<'_> {
    /// The state, if it has a table left: `number`, which is found anew for a table alone, as numbers change when a space is loaded anew.
    fn next_table<'s>(
        self,
        state: Option<&'s mut SpaceState>,
        number: &mut TableNumber,
    ) -> Result<Option<&'s mut SpaceState>, EngineError> {
        match self {
            Self::Space => Ok(state.filter(|state| number.index() < state.tables().len())),
            Self::Table(table) => {
                let state = state.ok_or_else(|| EngineError::NotLoaded(table.space.clone()))?;
                let Some(found) = state.number_of(&table.document_type) else { return Ok(None) };
                state.check_usable(&[found])?;
                *number = found;
                Ok(Some(state))
            }
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

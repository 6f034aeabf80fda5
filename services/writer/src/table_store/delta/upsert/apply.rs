//! Applying one batch to a space: what is decided about each id, and the commits that come of it, planned again after other commits.

use std::sync::Arc;

use lake_shared::error_chain::Chain;
use lake_shared::identity::{DocumentType, TableKey};

use crate::key_index::IdHash;
use crate::order_guard::{KnownOrders, TombstoneOrder};
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::write_memory_budget::WriteMemoryBudget;
use crate::table_store::delta::options::DeltaOptions;
use crate::table_store::delta::permanent_error;
use crate::table_store::delta::space::cell::SpaceCell;
use crate::table_store::delta::space::loader::SpaceLoader;
use crate::table_store::delta::space::state::SpaceState;
use crate::table_store::delta::table_number::TableNumber;
use crate::table_store::delta::upsert::plan::decide::BatchEntries;
use crate::table_store::delta::upsert::plan::grouping::{self, CommitGroups};
use crate::table_store::delta::upsert::plan::rewrite_budget::RewriteBudget;
use crate::table_store::delta::upsert::progress::Progress;
use crate::table_store::delta::upsert::rows::restored;
use crate::table_store::{Applied, SpaceBatch};

/// How often a batch is planned again after commits of other programs.
const PLANS_MAX: usize = 5;

/// Applies batches.
pub(crate) struct Upserter {
    pub(super) loader: Arc<SpaceLoader>,
    pub(super) options: Arc<DeltaOptions>,
    pub(super) rewrite_budget: RewriteBudget,
    pub(super) write_memory: WriteMemoryBudget,
}

/// Whether a plan came to its end.
enum PlanResult {
    Done,
    /// Other programs committed to these tables.
    Conflicts(Vec<TableNumber>),
}

impl Upserter {
    pub(crate) fn new(loader: Arc<SpaceLoader>, options: Arc<DeltaOptions>) -> Self {
        let rewrite_budget = RewriteBudget::new(options.copy_on_write_bytes_per_second);
        Self { loader, options, rewrite_budget, write_memory: WriteMemoryBudget::default() }
    }

    /// Applies a batch; see [`crate::table_store::TableStore::apply`]. `held`: the state of the space, which is loaded where it is missing.
    pub(crate) async fn apply(
        &self,
        cell: &SpaceCell,
        held: &mut Option<SpaceState>,
        batch: &SpaceBatch,
    ) -> Result<Applied, EngineError> {
        let entries = BatchEntries::of(batch).map_err(EngineError::BadRows)?;
        let (loader, indexes) = (&self.loader, self.loader.indexes());
        // The state is taken out while it changes: an error half-way leaves nothing behind that could be wrong.
        let is_lost = indexes.is_lost(&batch.space);
        let mut state = match held.take().filter(|state| !state.is_poisoned() && !is_lost) {
            Some(state) => state,
            None => loader.load_space(&batch.space, &cell.index_upkeep).await?,
        };
        if state.index().is_overfull() {
            // Where the disk does not take it the state goes, and memory with it: the next call begins with what is on disk.
            indexes.flush(&state).await?;
        }
        let stripped = match admitted(&state, batch) {
            Ok(stripped) => stripped,
            Err(reason) => {
                *held = Some(state);
                return Err(EngineError::BadRows(reason));
            }
        };
        let (batch, entries) = stripped.as_ref().map_or((batch, &entries), |(batch, entries)| (batch, entries));
        let mut progress = Progress::default();
        let outcome = self.plans_and_restores(&mut state, batch, entries, &mut progress).await;
        state.count_keys();
        match outcome {
            Ok(()) => {}
            // Rows that are refused before anything is written leave the state as it was.
            Err(EngineError::BadRows(reason)) => {
                *held = Some(state);
                return Err(EngineError::BadRows(reason));
            }
            // Whatever failed, the state says what was committed. A commit of unknown outcome is met by its version, as any other.
            Err(error) if !state.is_poisoned() && !matches!(error, EngineError::Index(_)) => {
                *held = Some(state);
                return Err(error);
            }
            Err(error) => return Err(error),
        }
        indexes.maintain(&mut state, &cell.index_upkeep);
        let reported = loader.report_state(&mut state).await;
        let applied = progress.applied(&state);
        *held = Some(state);
        reported.map(|()| applied)
    }

    /// Applies the batch, and whatever else was found to be lost.
    async fn plans_and_restores(
        &self,
        state: &mut SpaceState,
        batch: &SpaceBatch,
        entries: &BatchEntries,
        progress: &mut Progress,
    ) -> Result<(), EngineError> {
        self.plans(state, batch, entries, progress).await?;
        for _ in 0..PLANS_MAX {
            let Some((number, lost)) = state.tables_with_lost_rows().next() else { return Ok(()) };
            let table = state.table(number);
            let rows = match restored::rows_of(self.loader.access(), table, lost).await {
                Err(error) if permanent_error::is_permanent(&error) => {
                    tracing::error!(
                        table = %table.key(), error = %Chain(&error),
                        "rows of an overwritten commit cannot be read, so they stay lost; backfill the table"
                    );
                    state.lost_rows_restored(number);
                    continue;
                }
                rows => rows?,
            };
            let batch = SpaceBatch { space: batch.space.clone(), upserts: vec![rows], tombstones: Vec::new() };
            let batch = state.kept_out().stripped(&batch).map_err(EngineError::BadRows)?.unwrap_or(batch);
            let entries = BatchEntries::of(&batch).map_err(EngineError::BadRows)?;
            self.plans(state, &batch, &entries, progress).await?;
            state.lost_rows_restored(number);
        }
        Ok(())
    }

    async fn plans(
        &self,
        state: &mut SpaceState,
        batch: &SpaceBatch,
        entries: &BatchEntries,
        progress: &mut Progress,
    ) -> Result<(), EngineError> {
        let mut conflicting = None;
        for _ in 0..PLANS_MAX {
            match self.plan(state, batch, entries, progress).await {
                Ok(PlanResult::Done) => return Ok(()),
                Ok(PlanResult::Conflicts(numbers)) => {
                    for number in numbers {
                        self.loader.refresh(state, number).await?;
                        conflicting = Some(number);
                    }
                }
                // Without that table the plan is another one.
                Err(EngineError::Broken { number, source }) => {
                    self.loader.disable_unless_changed(state, number, &source).await?;
                    conflicting = Some(number);
                }
                Err(error) => return Err(error),
            }
        }
        let table = conflicting.map_or_else(
            || TableKey { space: batch.space.clone(), document_type: "".into() },
            |number| state.table(number).key().clone(),
        );
        Err(EngineError::Contended(table))
    }

    /// One plan and its commits.
    async fn plan(
        &self,
        state: &mut SpaceState,
        batch: &SpaceBatch,
        entries: &BatchEntries,
        progress: &mut Progress,
    ) -> Result<PlanResult, EngineError> {
        // First, as opening a table that exists already brings rows into the index.
        let document_types: Vec<DocumentType> = batch.upserts.iter().map(|rows| rows.document_type.clone()).collect();
        let numbers = self.loader.numbers_of(state, &document_types).await?;
        state.check_usable(&numbers)?;
        let mut found = state.find(entries.ids()).await?;
        let needed = entries.tie_breakers_needed(|id| found.get(&id).map(|row| row.order.observed_us));
        self.loader.load_tie_breakers(state, &mut found, &needed).await?;
        let tombstones = self.loader.tombstones_of(state, &entries.ids()).await?;
        let mut decisions = entries.decide(batch, |id| KnownOrders {
            row: found.get(&id).map(|row| row.order),
            tombstone: tombstones.get(&id).copied(),
        });
        let completed = self.complete_rows(state, batch, &mut decisions, &found).await?;
        let batch = completed.as_ref().unwrap_or(batch);
        self.loader.remember(state, &decisions.remembered).await?;
        let CommitGroups { independent, dependent } = grouping::group(&numbers, &decisions, &found, state.live());
        let conflicts = self.commit_independent(state, independent, batch, &decisions, progress).await?;
        if !conflicts.is_empty() {
            return Ok(PlanResult::Conflicts(conflicts));
        }
        // The others are done; their commits may have taken away the files that rows were found in.
        found.retain(|_, row| dependent.contains(&row.table));
        let dependent: Vec<(usize, TableNumber)> =
            numbers.iter().copied().enumerate().filter(|(_, number)| dependent.contains(number)).collect();
        if let Some(conflict) = self.commit_dependent(state, &dependent, batch, &decisions, found, progress).await? {
            return Ok(PlanResult::Conflicts(vec![conflict]));
        }
        let upserted = decisions.upserts.iter().flatten().map(|row| row.id);
        let superseded = upserted.filter_map(|id| Some((id, *tombstones.get(&id)?)));
        let superseded: Vec<(IdHash, TombstoneOrder)> = superseded.collect();
        self.loader.forget_superseded(state, &superseded).await?;
        Ok(PlanResult::Done)
    }
}

/// A batch without what is kept out and without the rows of dropped tables, with its entries. `None`: it has neither.
fn admitted(state: &SpaceState, batch: &SpaceBatch) -> Result<Option<(SpaceBatch, BatchEntries)>, String> {
    let kept = state.kept_out().stripped(batch)?;
    let stripped = state.dropped().stripped(kept.as_ref().unwrap_or(batch))?.or(kept);
    stripped.map(|batch| BatchEntries::of(&batch).map(|entries| (batch, entries))).transpose()
}

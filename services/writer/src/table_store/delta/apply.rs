//! Applying one batch to a space.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use deltalake::kernel::Action;

use super::arriving::Arriving;
use super::batch::{Decisions, Entries};
use super::change::{self, Change};
use super::commit::{self, Outcome};
use super::space::SpaceState;
use super::{DeltaTableStore, EngineError, PLANS_MAX, now_us};
use crate::metastore::TableState;
use crate::table_store::key_index::IdHash;
use crate::table_store::{Applied, AppliedTable, SpaceBatch};
use crate::telemetry;
use lake_shared::identity::TableKey;

/// What one call has done so far, over all its plans.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// By table number, with the order of the last commits.
    counts: HashMap<u32, Counts>,
    commits: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    upserted: u64,
    deleted: u64,
    last_commit: usize,
    published_us: Option<i64>,
    fetched_us: Option<i64>,
}

/// Whether a plan came to its end.
enum Planned {
    Done,
    Conflict(u32),
}

impl DeltaTableStore {
    /// Applies a batch; see [`crate::table_store::TableStore::apply`].
    pub(super) async fn apply_to(
        &self,
        held: &mut Option<SpaceState>,
        batch: &SpaceBatch,
        progress: &mut Progress,
    ) -> Result<Applied, EngineError> {
        let entries = Entries::of(batch).map_err(EngineError::BadRows)?;
        // The state is taken out while it changes: an error half-way leaves nothing behind that could be wrong.
        let mut state = match held.take() {
            Some(state) => state,
            None => self.load_space(&batch.space).await?,
        };
        let keys_before = state.index.len();
        let outcome = self.plans(&mut state, batch, &entries, progress).await;
        metrics::gauge!(telemetry::INDEX_KEYS).increment(state.index.len() as f64 - keys_before as f64);
        match outcome {
            Ok(()) => {}
            // Rows that are refused before anything is written leave the state as it was.
            Err(EngineError::BadRows(reason)) => {
                *held = Some(state);
                return Err(EngineError::BadRows(reason));
            }
            Err(error) => {
                metrics::gauge!(telemetry::INDEX_KEYS).decrement(state.index.len() as f64);
                return Err(error);
            }
        }
        let recorded = self.record(&mut state).await;
        let applied = progress.applied(&state);
        *held = Some(state);
        recorded.map(|()| applied)
    }

    async fn plans(
        &self,
        state: &mut SpaceState,
        batch: &SpaceBatch,
        entries: &Entries,
        progress: &mut Progress,
    ) -> Result<(), EngineError> {
        let mut conflicting = None;
        for _ in 0..PLANS_MAX {
            match self.plan(state, batch, entries, progress).await? {
                Planned::Done => return Ok(()),
                Planned::Conflict(number) => {
                    self.refresh(state, number).await?;
                    conflicting = Some(number);
                }
            }
        }
        let table = conflicting.map_or_else(
            || TableKey { space: batch.space.clone(), document_type: "".into() },
            |number| state.slot(number).key.clone(),
        );
        Err(EngineError::Contended(table))
    }

    /// One plan and its commits.
    async fn plan(
        &self,
        state: &mut SpaceState,
        batch: &SpaceBatch,
        entries: &Entries,
        progress: &mut Progress,
    ) -> Result<Planned, EngineError> {
        // First, as opening a table that exists already brings rows into the index.
        let mut numbers = Vec::with_capacity(batch.upserts.len());
        for rows in &batch.upserts {
            let key = TableKey { space: batch.space.clone(), document_type: rows.document_type.clone() };
            numbers.push(self.slot_of(state, &key).await?);
        }
        let decisions = entries.decide(batch, |id| state.held(id));
        self.remember(state, &decisions).await?;
        // Rows enter before rows of the same ids leave other tables: a reader may see an id twice for a moment, never not at all.
        let entering: HashSet<IdHash> = decisions.entering.iter().flatten().map(|row| row.id).collect();
        let mut leaving: HashSet<IdHash> =
            decisions.leaving.iter().copied().chain(state.condemned.iter().copied()).collect();
        // A condemned row whose id comes back is replaced; it must not take the new one with it.
        leaving.retain(|id| !entering.contains(id));
        for (position, number) in numbers.iter().enumerate() {
            if decisions.entering[position].is_empty() {
                continue;
            }
            let arriving = Arriving::of(&batch.upserts[position], &decisions.entering[position])?;
            let change = Change { number: *number, arriving, leaving: taken_from(state, &mut leaving, *number) };
            if !self.commit_change(state, change, progress).await? {
                return Ok(Planned::Conflict(*number));
            }
        }
        let mut rest: Vec<u32> =
            leaving.iter().filter_map(|id| state.index.get(*id)).map(|place| place.table).collect();
        rest.extend(state.index.tables_with_strays());
        rest.sort_unstable();
        rest.dedup();
        for number in rest {
            let change =
                Change { number, arriving: Arriving::default(), leaving: taken_from(state, &mut leaving, number) };
            if !self.commit_change(state, change, progress).await? {
                return Ok(Planned::Conflict(number));
            }
        }
        self.forget_outlived(state, &decisions).await?;
        Ok(Planned::Done)
    }

    /// Makes the tombstones durable before anything depends on them.
    async fn remember(&self, state: &mut SpaceState, decisions: &Decisions) -> Result<(), EngineError> {
        if decisions.remembered.is_empty() {
            return Ok(());
        }
        let written = self.metastore.remember_tombstones(&state.space, &decisions.remembered).await;
        written.map_err(EngineError::Metastore)?;
        for tombstone in &decisions.remembered {
            state.tombstones.insert(tombstone.id_hash, tombstone.order);
        }
        Ok(())
    }

    /// Drops the tombstones of ids that have come back. Left in place they would change nothing, so a failure may wait.
    async fn forget_outlived(&self, state: &mut SpaceState, decisions: &Decisions) -> Result<(), EngineError> {
        let entered = decisions.entering.iter().flatten().map(|row| row.id);
        let outlived: Vec<IdHash> = entered.filter(|id| state.tombstones.remove(id).is_some()).collect();
        if outlived.is_empty() {
            return Ok(());
        }
        self.metastore.forget_tombstones(&state.space, &outlived).await.map_err(EngineError::Metastore)
    }

    /// Commits one change. `false`: somebody else committed in between.
    async fn commit_change(
        &self,
        state: &mut SpaceState,
        change: Change,
        progress: &mut Progress,
    ) -> Result<bool, EngineError> {
        let began = Instant::now();
        let kind = state.space.kind.name();
        let slot = state.slot(change.number);
        let (key, name) = (slot.key.clone(), slot.name.clone());
        let mut table = match self.handles.take(&key) {
            Some(table) => table,
            None => self.closed(&slot.path)?,
        };
        if table.version() != slot.version && (slot.version.is_some() || table.version().is_some()) {
            commit::load(&mut table).await?;
            if table.version() != slot.version {
                return Ok(false);
            }
        }
        let now = now_us();
        let written = change::write(state, &change, table.object_store(), &self.options, now).await?;
        let mut actions: Vec<Action> = match table.snapshot() {
            Err(_) => commit::creation(&name, &written.plan.schema, now / 1_000)?,
            Ok(snapshot) if written.plan.changed => {
                vec![commit::changed_schema(snapshot.metadata(), &written.plan.schema)?]
            }
            Ok(_) => Vec::new(),
        };
        actions.extend(change::actions(&written, now / 1_000));
        let bytes: i64 = written.added.iter().map(|(add, _)| add.size).sum();
        let (version, table) = match commit::commit(table, actions).await? {
            Outcome::Conflict => return Ok(false),
            Outcome::Committed { version, table } => (version, table),
        };
        if let Some(table) = table {
            self.handles.put(key.clone(), *table);
        }
        let (upserted, deleted) = (change.arriving.len() as u64, change.leaving.len() as u64);
        progress.add(&change, upserted, deleted);
        let (removed, added) = (written.removed.len(), written.added.len());
        change::committed(state, &change, written, version);
        metrics::histogram!(telemetry::COMMIT_SECONDS, "kind" => kind).record(began.elapsed().as_secs_f64());
        metrics::counter!(telemetry::ROWS_UPSERTED_TOTAL, "kind" => kind).increment(upserted);
        metrics::counter!(telemetry::ROWS_DELETED_TOTAL, "kind" => kind).increment(deleted);
        metrics::counter!(telemetry::BYTES_WRITTEN_TOTAL, "kind" => kind).increment(bytes.unsigned_abs());
        let milliseconds = lake_shared::retry::milliseconds(began.elapsed());
        tracing::debug!(table = %key, version, upserted, deleted, removed, added, milliseconds, "committed");
        Ok(true)
    }

    /// Tells the metastore what the commits made of their tables. What it does not hear now it hears with the next batch.
    async fn record(&self, state: &mut SpaceState) -> Result<(), EngineError> {
        for slot in &mut state.slots {
            let Some(unrecorded) = slot.unrecorded else { continue };
            let table_state = TableState {
                version: slot.version.and_then(|version| i64::try_from(version).ok()),
                schema: slot.schema.to_delta().to_string(),
                rows: slot.rows(),
                files: slot.files.len() as i64,
                bytes: slot.bytes(),
                newest_published_us: unrecorded.newest_published_us,
                newest_fetched_us: unrecorded.newest_fetched_us,
                last_commit_us: None,
            };
            self.metastore.record_commit(&slot.key, &table_state).await.map_err(EngineError::Metastore)?;
            slot.unrecorded = None;
            if let Some(published_us) = unrecorded.newest_published_us {
                metrics::gauge!(telemetry::FRESHNESS_SECONDS, "table" => slot.name.clone())
                    .set(published_us as f64 / 1e6);
            }
            metrics::gauge!(telemetry::TABLE_ROWS, "table" => slot.name.clone()).set(table_state.rows as f64);
            metrics::gauge!(telemetry::TABLE_FILES, "table" => slot.name.clone()).set(table_state.files as f64);
            metrics::gauge!(telemetry::TABLE_BYTES, "table" => slot.name.clone()).set(table_state.bytes as f64);
        }
        Ok(())
    }
}

/// Those of the ids whose rows are in this table; they are no longer in `leaving` afterwards.
fn taken_from(state: &SpaceState, leaving: &mut HashSet<IdHash>, number: u32) -> HashSet<IdHash> {
    let here = |id: &IdHash| state.index.get(*id).is_some_and(|place| place.table == number);
    let taken: HashSet<IdHash> = leaving.iter().copied().filter(here).collect();
    leaving.retain(|id| !taken.contains(id));
    taken
}

impl Progress {
    fn add(&mut self, change: &Change, upserted: u64, deleted: u64) {
        self.commits += 1;
        let (published, fetched) = change.arriving.freshness();
        let counts = self.counts.entry(change.number).or_default();
        counts.upserted += upserted;
        counts.deleted += deleted;
        counts.last_commit = self.commits;
        counts.published_us = counts.published_us.max(published);
        counts.fetched_us = counts.fetched_us.max(fetched);
    }

    fn applied(&self, state: &SpaceState) -> Applied {
        let mut changed: Vec<(&u32, &Counts)> = self.counts.iter().collect();
        changed.sort_by_key(|(_, counts)| counts.last_commit);
        let tables = changed.into_iter().map(|(number, counts)| {
            let slot = state.slot(*number);
            AppliedTable {
                table: slot.key.clone(),
                version: slot.version.unwrap_or_default(),
                rows_upserted: counts.upserted,
                rows_deleted: counts.deleted,
                rows_total: slot.rows().unsigned_abs(),
                files: slot.files.len() as u64,
                bytes: slot.bytes().unsigned_abs(),
                newest_published_us: counts.published_us,
                newest_fetched_us: counts.fetched_us,
            }
        });
        Applied { tables: tables.collect() }
    }
}

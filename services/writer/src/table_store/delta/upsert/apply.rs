//! Applying one batch to a space.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use deltalake::DeltaTable;
use roaring::RoaringBitmap;

use crate::key_index::{IdHash, Liveness, Position};
use crate::metric_names;
use crate::table_store::by_id_hash::{ByIdHash, IdHashes};
use crate::table_store::delta::log::base_version;
use crate::table_store::delta::log::commit::{self, Features, Outcome};
use crate::table_store::delta::options::DeletionVectors;
use crate::table_store::delta::permanent_error;
use crate::table_store::delta::space::load::NUMBERS_MAX;
use crate::table_store::delta::space::state::{Found, Slot, SpaceState};
use crate::table_store::delta::upsert::decide::{Decisions, Entries};
use crate::table_store::delta::upsert::grouping::{self, Division};
use crate::table_store::delta::upsert::rows::incoming::Arriving;
use crate::table_store::delta::upsert::write_change::{self, Change, Written};
use crate::table_store::delta::{DeltaTableStore, EngineError, PLANS_MAX, now_us};
use crate::table_store::order_guard::Held;
use crate::table_store::{Applied, AppliedTable, SpaceBatch};
use lake_shared::identity::{DocumentType, TableKey};

/// What one call has done so far, over all its plans.
#[derive(Debug, Default)]
pub(crate) struct Progress {
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

/// Readers of this version of the protocol may meet deletion vectors.
const READS_VECTORS: i32 = 3;

/// Whether a plan came to its end.
enum Planned {
    Done,
    /// Somebody else committed to these tables.
    Conflicts(Vec<u32>),
}

/// A change that is in the log of its table, and not yet in the state.
pub(crate) struct Committed {
    change: Change,
    written: Written,
    version: u64,
    /// Identity of the table, if the commit said it.
    id: Option<String>,
}

impl Committed {
    /// How many entries of the index it holds.
    pub(crate) fn entries(&self) -> usize {
        self.written.entered.len() + self.written.copied.len()
    }
}

impl DeltaTableStore {
    /// Applies a batch; see [`crate::table_store::TableStore::apply`].
    pub(crate) async fn apply_to(
        &self,
        held: &mut Option<SpaceState>,
        batch: &SpaceBatch,
        progress: &mut Progress,
    ) -> Result<Applied, EngineError> {
        let entries = Entries::of(batch).map_err(EngineError::BadRows)?;
        // The state is taken out while it changes: an error half-way leaves nothing behind that could be wrong.
        let is_lost = self.lost_indexes().contains(&batch.space);
        let mut state = match held.take().filter(|state| !state.torn && !is_lost) {
            Some(state) => state,
            None => self.load_space(&batch.space).await?,
        };
        if state.index.is_overfull() {
            // Where the disk does not take it the state goes, and memory with it: the next call begins with what is on disk.
            self.relieve(&state).await?;
        }
        let outcome = self.plans(&mut state, batch, &entries, progress).await;
        state.tell_keys();
        match outcome {
            Ok(()) => {}
            // Rows that are refused before anything is written leave the state as it was.
            Err(EngineError::BadRows(reason)) => {
                *held = Some(state);
                return Err(EngineError::BadRows(reason));
            }
            // Whatever failed, the state says what was committed. A commit of unknown outcome is met by its version, as any other.
            Err(error) if !state.torn && !matches!(error, EngineError::Index(_)) => {
                *held = Some(state);
                return Err(error);
            }
            Err(error) => return Err(error),
        }
        self.tend_index(&state);
        if state.numbers.last() > NUMBERS_MAX {
            self.lost_indexes().insert(state.space.clone());
            state.torn = true;
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
            match self.plan(state, batch, entries, progress).await {
                Ok(Planned::Done) => return Ok(()),
                Ok(Planned::Conflicts(numbers)) => {
                    for number in numbers {
                        self.refresh(state, number).await?;
                        conflicting = Some(number);
                    }
                }
                // Without that table the plan is another one.
                Err(EngineError::Broken { number, source }) => {
                    self.give_up(state, number, &source).await?;
                    conflicting = Some(number);
                }
                Err(error) => return Err(error),
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
        let document_types: Vec<DocumentType> = batch.upserts.iter().map(|rows| rows.document_type.clone()).collect();
        let numbers = self.slots_of(state, &document_types).await?;
        state.check_usable(&numbers)?;
        let mut found = state.find(entries.ids()).await?;
        let questions = entries.questions(|id| found.get(&id).map(|row| row.order.version_us));
        self.observe(state, &mut found, &questions).await?;
        let tombstones = self.tombstones_of(state, &entries.ids()).await?;
        let decisions = entries.decide(batch, |id| Held {
            row: found.get(&id).map(|row| row.order),
            tombstone: tombstones.get(&id).copied(),
        });
        self.remember(state, &decisions).await?;
        let Division { apart, tied } = grouping::divide(&numbers, &decisions, &found, &state.live);
        let conflicts = self.commit_apart(state, apart, batch, &decisions, progress).await?;
        if !conflicts.is_empty() {
            return Ok(Planned::Conflicts(conflicts));
        }
        // The others are done; their commits may have taken away the files that rows were found in.
        found.retain(|_, row| tied.contains(&row.table));
        let tied: Vec<(usize, u32)> =
            numbers.iter().copied().enumerate().filter(|(_, number)| tied.contains(number)).collect();
        if let Some(conflict) = self.commit_tied(state, &tied, batch, &decisions, found, progress).await? {
            return Ok(Planned::Conflicts(vec![conflict]));
        }
        self.forget_outlived(state, &decisions, &tombstones).await?;
        Ok(Planned::Done)
    }

    /// Commits the changes of tables between which rows move, one after the other. `tied`: positions in `SpaceBatch::upserts` with the
    /// numbers of their tables; `found`: rows in such tables only. Answers a table in which somebody else committed.
    async fn commit_tied(
        &self,
        state: &mut SpaceState,
        tied: &[(usize, u32)],
        batch: &SpaceBatch,
        decisions: &Decisions,
        mut found: ByIdHash<Found>,
        progress: &mut Progress,
    ) -> Result<Option<u32>, EngineError> {
        // Rows enter before rows of the same ids leave other tables: a reader may see an id twice for a moment, never not at all.
        let mut leaving: IdHashes = decisions.leaving.iter().copied().filter(|id| found.contains_key(id)).collect();
        for (position, number) in tied {
            let entering = &decisions.entering[*position];
            if entering.is_empty() {
                continue;
            }
            let replaced = entering.iter().filter_map(|row| found.get(&row.id));
            let (here, elsewhere): (Vec<&Found>, Vec<&Found>) = replaced.partition(|row| row.table == *number);
            let here = here.into_iter().map(|row| row.position);
            let elsewhere: Vec<Position> = elsewhere.into_iter().map(|row| row.position).collect();
            let arriving = Arriving::of(&batch.upserts[*position], entering);
            let change = change_of(state, *number, arriving, here, &found, &mut leaving);
            let Some(committed) = self.commit_change(state, change).await? else { return Ok(Some(*number)) };
            self.adopt(state, committed, progress);
            for position in elsewhere {
                state.live_mut().condemn(position);
            }
            follow_copies(state, &mut found).await?;
        }
        let mut rest: Vec<u32> = leaving.iter().filter_map(|id| found.get(id)).map(|row| row.table).collect();
        rest.extend(state.live.tables_with_strays());
        rest.sort_unstable();
        rest.dedup();
        for number in rest {
            let change = change_of(state, number, Arriving::default(), std::iter::empty(), &found, &mut leaving);
            let Some(committed) = self.commit_change(state, change).await? else { return Ok(Some(number)) };
            self.adopt(state, committed, progress);
            follow_copies(state, &mut found).await?;
        }
        Ok(None)
    }

    /// Writes the files of one change and commits it. The state is to be told of it ([`Self::adopt`]). `None`: somebody else committed in
    /// between.
    pub(crate) async fn commit_change(
        &self,
        state: &SpaceState,
        mut change: Change,
    ) -> Result<Option<Committed>, EngineError> {
        let began = Instant::now();
        let kind = state.space.kind.name();
        let slot = state.slot(change.number);
        let (key, name) = (slot.key.clone(), slot.name.clone());
        let Some(table) = self.table_at(state, change.number).await? else { return Ok(None) };
        let now = now_us();
        let marks = self.marks(slot, &change);
        let store = table.object_store();
        let writing =
            write_change::write(state, &change, store.clone(), &self.options, &self.writer_memory, marks, now);
        let (written, footing) = futures::join!(writing, self.footing(state, change.number));
        let written = written.map_err(|error| error.of_table(change.number))?;
        let footing = match footing {
            Ok(footing) => footing,
            Err(error) => {
                written.discard(&store).await;
                return Err(error);
            }
        };
        let hours = self.options.retention_hours;
        let deletion_vectors = match written.marked.is_empty() {
            true => self.unwanted(state.slot(change.number)).filter(|_| takes_last_vector(state, &change, &written)),
            false => Some(true),
        };
        let wanted = Features { deletion_vectors, retention_hours: Some(hours) };
        let gets_vectors = !written.marked.is_empty()
            && table.snapshot().is_ok_and(|snapshot| snapshot.protocol().min_reader_version() < READS_VECTORS);
        let mut actions = match table.snapshot() {
            Err(_) => {
                commit::creation(&name, &written.plan.schema, &written.partition_columns, &self.options, now / 1_000)?
            }
            Ok(snapshot) => commit::changes(snapshot, written.plan.changed.then_some(&written.plan.schema), wanted)?,
        };
        actions.extend(commit::file_actions(slot, &table, &written, now / 1_000)?);
        change.arriving.release();
        let id = base_version::id_in(&actions);
        let (version, table) = match commit::commit(table, actions, commit::Label::Upsert, footing, slot).await? {
            Outcome::Conflict => {
                written.discard(&store).await;
                return Ok(None);
            }
            // The files may be part of the table. If they are not, the clean-up finds them.
            Outcome::Unknown => return Ok(None),
            Outcome::Committed { version, table } => (version, table),
        };
        if gets_vectors {
            tracing::info!(
                table = %key, version,
                "table gets its first deletion vectors: from now on it needs readers that know them; deletion_vectors = \"off\" prevents \
                 that for tables that may be rewritten with each change"
            );
        }
        self.keep(&key, version, table);
        metrics::histogram!(metric_names::COMMIT_SECONDS, "kind" => kind).record(began.elapsed().as_secs_f64());
        let (upserted, deleted) = (change.arriving.len(), change.deleted);
        let (removed, added, marked) = (written.removed.len(), written.added.len(), written.marked.len());
        let milliseconds = lake_shared::retry::milliseconds(began.elapsed());
        tracing::debug!(table = %key, version, upserted, deleted, removed, added, marked, milliseconds, "committed");
        Ok(Some(Committed { change, written, version, id }))
    }

    /// Makes a commit part of the state.
    pub(crate) fn adopt(&self, state: &mut SpaceState, committed: Committed, progress: &mut Progress) {
        let Committed { change, written, version, id } = committed;
        let kind = state.space.kind.name();
        let bytes: i64 = written.added.iter().map(|file| file.add.size).sum();
        let (upserted, deleted) = (change.arriving.len() as u64, change.deleted);
        progress.add(&change, upserted, deleted);
        write_change::committed(state, &change, written, version);
        let slot = state.slot_mut(change.number);
        slot.id = id.or(slot.id.take());
        metrics::counter!(metric_names::ROWS_UPSERTED_TOTAL, "kind" => kind).increment(upserted);
        metrics::counter!(metric_names::ROWS_DELETED_TOTAL, "kind" => kind).increment(deleted);
        metrics::counter!(metric_names::BYTES_WRITTEN_TOTAL, "kind" => kind).increment(bytes.unsigned_abs());
    }

    /// Whether deletion vectors may be written for a change.
    fn marks(&self, slot: &Slot, change: &Change) -> bool {
        let options = self.options.of_table(&slot.name);
        if options.deletion_vectors != DeletionVectors::Auto || options.marks(slot.bytes()) {
            return options.marks(slot.bytes());
        }
        let rewritten = change.dead.keys().filter_map(|number| slot.files.get(number));
        !self.copy_budget.take(rewritten.map(|file| file.size.unsigned_abs()).sum())
    }

    /// The handle of a table at the version that the state stands for; `None` when the log is further.
    pub(crate) async fn table_at(&self, state: &SpaceState, number: u32) -> Result<Option<DeltaTable>, EngineError> {
        let slot = state.slot(number);
        let mut table = match self.handles.take(&slot.key) {
            Some(table) => table,
            None => self.closed(&slot.path)?,
        };
        if table.version() != slot.version && (slot.version.is_some() || table.version().is_some()) {
            let is_there = match commit::load(&mut table).await {
                // Whoever reads the table anew finds out what is wrong with it.
                Err(error) if permanent_error::is_lasting(&error) => false,
                loaded => loaded?,
            };
            let id = table.snapshot().ok().map(base_version::id_of);
            let is_same = slot.id.is_none() || slot.id == id;
            if table.version() != slot.version || !is_same || is_there != slot.version.is_some() {
                return Ok(None);
            }
        }
        Ok(Some(table))
    }
}

/// Whether a table has deletion vectors before a change and none after it.
fn takes_last_vector(state: &SpaceState, change: &Change, written: &Written) -> bool {
    let files = state.slot(change.number).files.values();
    let mut marked = files.filter(|file| file.deleted.is_some()).peekable();
    marked.peek().is_some() && marked.all(|file| written.removed.contains(&file.number))
}

/// A commit may have copied rows that the rest of the batch is about into other files.
async fn follow_copies(state: &SpaceState, found: &mut ByIdHash<Found>) -> Result<(), EngineError> {
    let moved = found.iter().filter(|(_, row)| !state.live.file_is_live(row.position.file));
    let moved: Vec<IdHash> = moved.map(|(id, _)| *id).collect();
    if !moved.is_empty() {
        found.extend(state.find(moved).await?);
    }
    Ok(())
}

/// A change of one table: rows enter, what they replace leaves, and so do its share of the leaving ids and its strays. The ids are no
/// longer in `leaving` afterwards.
fn change_of(
    state: &SpaceState,
    number: u32,
    arriving: Arriving,
    replaced: impl Iterator<Item = Position>,
    found: &ByIdHash<Found>,
    leaving: &mut IdHashes,
) -> Change {
    let mut dead: BTreeMap<u32, RoaringBitmap> =
        state.live.strays_of(number).map(|(file, rows)| (file, rows.clone())).collect();
    let here = |id: &IdHash| found.get(id).filter(|row| row.table == number);
    let taken: Vec<IdHash> = leaving.iter().copied().filter(|id| here(id).is_some()).collect();
    for id in &taken {
        leaving.remove(id);
    }
    let deleted = taken.iter().filter_map(here).map(|row| row.position);
    for position in replaced.chain(deleted) {
        dead.entry(position.file).or_default().insert(position.row);
    }
    Change { number, arriving, dead, deleted: taken.len() as u64 }
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

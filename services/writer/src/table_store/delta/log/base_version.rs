//! Noticing what others do to the tables: commits, and tables that are dropped or made anew.
//!
//! A commit notices commits of others by its own version being taken. It does not notice that the log it follows is gone, so each commit
//! looks whether the version it is made upon is still there ([`Footing`]). Tables without batches are looked at by the rounds of compaction.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use deltalake::DeltaTable;
use deltalake::kernel::Action;
use deltalake::table::state::DeltaTableState;
use futures::{StreamExt, stream};
use lake_shared::identity::{Space, TableKey};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::table_store::delta::permanent_error;
use crate::table_store::delta::space::state::SpaceState;
use crate::table_store::delta::upsert::apply::Progress;
use crate::table_store::delta::{DeltaTableStore, EngineError, SpaceCell};
use crate::table_store::{Compacted, SpaceBatch};

/// Tables that one round looks at, per space.
const TABLES_A_ROUND: usize = 32;

/// Requests of a round under way at once.
const LOOKS_AT_ONCE: usize = 8;

/// Tells two objects of one name apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    e_tag: Option<String>,
    size: u64,
    written: DateTime<Utc>,
}

/// What a commit would be made upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Footing {
    /// The last version that is known, or no table yet.
    Firm,
    /// The same, by a checkpoint: its entry was cleaned up.
    Checkpoint,
    /// Another table, or an earlier version of it, or nothing.
    Gone,
}

/// A table to be looked at.
struct Look {
    number: u32,
    version: Option<u64>,
    /// It has loaded nothing.
    table: DeltaTable,
}

/// What was found of the log.
struct Sighting {
    number: u32,
    version: Option<u64>,
    /// The entry of the version that is known.
    here: Option<Mark>,
    /// Whether there is the one after it, or any where none is known.
    next: bool,
}

/// Identity of the table that a loaded version is of.
pub(crate) fn id_of(snapshot: &DeltaTableState) -> String {
    snapshot.metadata().id().to_owned()
}

/// Identity of the table that actions make or alter.
pub(crate) fn id_in(actions: &[Action]) -> Option<String> {
    actions.iter().find_map(|action| match action {
        Action::Metadata(metadata) => Some(metadata.id().to_owned()),
        _ => None,
    })
}

async fn mark_of(store: &Arc<dyn ObjectStore>, version: u64) -> Result<Option<Mark>, EngineError> {
    match store.head(&Path::from(format!("_delta_log/{version:020}.json"))).await {
        Ok(found) => Ok(Some(Mark { e_tag: found.e_tag, size: found.size, written: found.last_modified })),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(EngineError::Store(error)),
    }
}

impl Look {
    async fn sighting(self) -> Result<Sighting, EngineError> {
        let Self { number, version, table } = self;
        let Some(known) = version else {
            // The first entries may have been cleaned up.
            let next = table.verify_deltatable_existence().await.map_err(EngineError::delta)?;
            return Ok(Sighting { number, version, here: None, next });
        };
        let store = table.object_store();
        let (here, next) = futures::try_join!(mark_of(&store, known), mark_of(&store, known + 1))?;
        Ok(Sighting { number, version, here, next: next.is_some() })
    }
}

impl Sighting {
    /// Whether the log has to be read to know what happened. `seen`: the version of the last look and what it saw of its entry.
    fn is_strange(&self, seen: Option<&(u64, Option<Mark>)>) -> bool {
        if self.next {
            return true;
        }
        let Some(version) = self.version else { return false };
        match seen.filter(|(seen, _)| *seen == version) {
            Some((_, before)) => *before != self.here,
            None => self.here.is_none(),
        }
    }
}

impl SpaceState {
    /// The next tables in turn.
    fn next_looks(&mut self, store: &DeltaTableStore) -> Result<Vec<Look>, EngineError> {
        let total = self.slots.len();
        let first = self.looked_at;
        let count = total.min(TABLES_A_ROUND);
        self.looked_at = if total == 0 { 0 } else { (first + count) % total };
        let numbers = (first..first + count).map(|number| number % total);
        let usable = numbers.filter(|number| self.slots[*number].unusable.is_none());
        let looks = usable.map(|number| {
            let slot = &self.slots[number];
            Ok(Look { number: number as u32, version: slot.version, table: store.closed(&slot.path)? })
        });
        looks.collect()
    }
}

impl DeltaTableStore {
    /// A round of compaction and what belongs to it: others are noticed before, rows that have to leave do so after it.
    pub(crate) async fn compaction_round(&self, space: &Space) -> Result<Compacted, EngineError> {
        let shared = self.shared(space);
        let noticed = self.look_for_strangers(&shared).await;
        let compacted = self.compact_space(space).await;
        let cleared = self.remove_strays(space, &shared).await;
        noticed?;
        let compacted = compacted?;
        cleared.map(|()| compacted)
    }

    /// Looks whether somebody else has committed to some of the tables, or taken them away.
    async fn look_for_strangers(&self, shared: &SpaceCell) -> Result<(), EngineError> {
        let (generation, looks) = {
            let mut guard = shared.state.lock().await;
            let Some(state) = guard.as_mut().filter(|state| !state.torn) else { return Ok(()) };
            (state.generation, state.next_looks(self)?)
        };
        let sightings: Vec<_> =
            stream::iter(looks.into_iter().map(Look::sighting)).buffered(LOOKS_AT_ONCE).collect().await;
        let mut failure = None;
        for sighting in sightings {
            let noticed = match sighting {
                Ok(sighting) => self.notice(shared, generation, sighting).await,
                Err(error) => Err(error),
            };
            failure = failure.or(noticed.err());
        }
        failure.map_or(Ok(()), Err)
    }

    async fn notice(&self, shared: &SpaceCell, generation: u64, sighting: Sighting) -> Result<(), EngineError> {
        // Let go between two tables: a batch waits for one at most.
        let mut guard = shared.state.lock().await;
        let Some(state) = guard.as_mut().filter(|state| !state.torn && state.generation == generation) else {
            return Ok(());
        };
        let slot = state.slot_mut(sighting.number);
        // Our own commits since then are no strangers.
        if slot.version != sighting.version || slot.unusable.is_some() {
            return Ok(());
        }
        let is_strange = sighting.is_strange(slot.seen.as_ref());
        slot.seen = sighting.version.map(|version| (version, sighting.here));
        if is_strange {
            tracing::info!(table = %slot.key, version = slot.version, "somebody else has been at the table; reading its log");
            self.refresh(state, sighting.number).await?;
            self.record(state).await?;
        }
        Ok(())
    }

    /// Rows that came back or are there twice leave without waiting for a batch.
    async fn remove_strays(&self, space: &Space, shared: &SpaceCell) -> Result<(), EngineError> {
        let mut guard = shared.state.lock().await;
        let has_strays = |state: &SpaceState| !state.torn && !state.live.tables_with_strays().is_empty();
        if guard.as_ref().is_some_and(has_strays) {
            let nothing = SpaceBatch { space: space.clone(), upserts: Vec::new(), tombstones: Vec::new() };
            self.apply_to(&mut guard, &nothing, &mut Progress::default()).await?;
        }
        Ok(())
    }

    /// Compares a version that was loaded for another purpose with what is known of the table.
    pub(crate) async fn compare(&self, key: &TableKey, table: Option<&DeltaTable>) -> Result<(), EngineError> {
        let id = match table {
            Some(table) => Some(id_of(table.snapshot().map_err(EngineError::delta)?)),
            None => None,
        };
        let version = table.and_then(DeltaTable::version);
        let shared = self.shared(&key.space);
        let mut guard = shared.state.lock().await;
        let Some(state) = guard.as_mut().filter(|state| !state.torn) else { return Ok(()) };
        let Some(number) = state.by_type.get(&key.document_type).copied() else { return Ok(()) };
        let slot = state.slot(number);
        // A later version is our own, and so is the identity of a table that was made meanwhile.
        let is_other = slot.id.is_some() && slot.id != id;
        if slot.unusable.is_none() && (is_other || slot.version < version) {
            self.refresh(state, number).await?;
            self.record(state).await?;
        }
        Ok(())
    }

    /// What the next commit to a table would be made upon. To be asked while its files are written.
    pub(crate) async fn footing(&self, state: &SpaceState, number: u32) -> Result<Footing, EngineError> {
        let slot = state.slot(number);
        let Some(version) = slot.version else {
            // A put of the first entry would succeed in a log that was cleaned up behind a checkpoint, and nobody would ever read it.
            if self.has_log(&slot.path).await? {
                return Ok(Footing::Gone);
            }
            // Where the volume is not mounted any more, no table seems to be there.
            self.lake.ensure_marked().await.map_err(EngineError::Lake)?;
            return Ok(Footing::Firm);
        };
        let store = self.closed(&slot.path)?.object_store();
        let here = mark_of(&store, version).await?;
        let seen = slot.seen.as_ref().filter(|(seen, _)| *seen == version).and_then(|(_, mark)| mark.as_ref());
        if here.is_some() && seen.is_none_or(|seen| Some(seen) == here.as_ref()) {
            return Ok(Footing::Firm);
        }
        let table = match self.opened(&slot.path).await {
            // Whoever reads the table anew finds out what is wrong with it.
            Err(error) if permanent_error::is_lasting(&error) => None,
            opened => opened?,
        };
        let Some(table) = table else { return Ok(Footing::Gone) };
        let id = id_of(table.snapshot().map_err(EngineError::delta)?);
        if table.version() != slot.version || slot.id.as_ref().is_some_and(|held| *held != id) {
            return Ok(Footing::Gone);
        }
        Ok(if here.is_some() { Footing::Firm } else { Footing::Checkpoint })
    }
}

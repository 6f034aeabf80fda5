//! The engine on Delta Lake tables: upserts and deletions by key whose cost follows the change, not the table.
//!
//! The key index of a space ([`crate::key_index`]) says where the row of each id is. A batch becomes, for each table, one file of
//! new rows, one file of deletion vectors for the rows they replace, and one commit (`upsert`); small tables are rewritten
//! instead and stay free of deletion vectors. Tables between which no rows move are committed beside each other.
//! Compaction (`compact`) runs beside batches; `upkeep` cleans up and follows what other programs do.
//!
//! Each folder imports only what stands below it: `files` < `log` < `space` < `upsert`, `compact`, `upkeep` < `erase` < this face.
//!
//! Order of durability, each step before the next: tombstones in the metastore, data files and deletion vectors, the commit (a put
//! that fails when the version exists), the index in memory, the metastore's record of the table, the answer. A crash between
//! any two steps is repaired by applying the batch again: what is done already is recognised and left alone. The index is
//! derived data: its checkpoints say which files it stands for, what came after is read from the tables (`space/load.rs`).
//!
//! One space is changed by one call at a time. Commits of other programs are noticed by their version: the files of the table are compared
//! with those that the index knows (`space/reconcile.rs`), and the batch is planned again. A table that they made unusable is left alone,
//! the others of its space go on (`space/unusable`).

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use async_trait::async_trait;
use futures::FutureExt;
use lake_shared::comparison::BucketSums;
use lake_shared::identity::{Space, TableKey};

use self::compact::run::{Compactor, Scope};
use self::erase::run::Eraser;
use self::error::EngineError;
use self::log::table_access::TableAccess;
use self::space::cell::{SpaceCell, Spaces};
use self::space::loader::SpaceLoader;
use self::upkeep::compared_rows::RowComparer;
use self::upkeep::drop_tables::TableDropper;
use self::upkeep::external_changes::ExternalChanges;
use self::upkeep::locate::RowLocator;
use self::upkeep::restore::TableRestorer;
use self::upkeep::startup_check;
use self::upkeep::status_table::StatusTable;
use self::upkeep::vacuum::Vacuum;
use self::upsert::apply::Upserter;
use super::compared_rows::{ComparedScope, RowState, WantedRows};
use super::erasure::{Erased, Erasure};
use super::lake_store::LakeStore;
use super::table_changes::TableChanges;
use super::{
    Applied, Compacted, InMemoryTable, LocatedRow, Maintained, PlannedCompaction, Restored, SpaceBatch, StoreError,
    TableStatus, TableStore,
};
use crate::consent::{Consent, Destroyed};
use crate::key_index::id_hash;
use crate::metastore::Metastore;
use crate::metastore::steering::OperationTarget;
use crate::metastore::steering::restore_point::RestorePoint;

pub use self::options::{DeletionVectors, DeltaOptions, NamedTableOptions, TableOptions};
pub use self::upkeep::startup_check::StartupCheckError;

mod clock;
mod compact;
mod erase;
mod error;
mod files;
pub mod inspect;
mod log;
mod options;
mod permanent_error;
mod space;
mod table_number;
#[cfg(test)]
mod tests;
mod upkeep;
mod upsert;

/// The engine.
pub struct DeltaTableStore {
    access: Arc<TableAccess>,
    metastore: Arc<dyn Metastore>,
    options: Arc<DeltaOptions>,
    spaces: Spaces,
    loader: Arc<SpaceLoader>,
    upserter: Upserter,
    compactor: Compactor,
    eraser: Eraser,
    external_changes: Arc<ExternalChanges>,
    vacuum: Vacuum,
    dropper: TableDropper,
    restorer: TableRestorer,
    status_table: StatusTable,
    locator: RowLocator,
    comparer: RowComparer,
}

impl DeltaTableStore {
    /// An engine on a lake; spaces are loaded when they are first used. Run [`LakeStore::probe`] before. With a fenced metastore
    /// ([`Metastore::fenced`]) it commits only while the lease is held.
    pub fn new(lake: Arc<LakeStore>, metastore: Arc<dyn Metastore>, options: DeltaOptions) -> Self {
        let options = Arc::new(options);
        let access = Arc::new(TableAccess::new(lake, metastore.fence().cloned(), &options));
        let loader = Arc::new(SpaceLoader::new(Arc::clone(&access), Arc::clone(&metastore), &options));
        let external_changes = Arc::new(ExternalChanges::new(Arc::clone(&loader)));
        let vacuum = Vacuum::new(
            Arc::clone(&access),
            Arc::clone(&metastore),
            Arc::clone(&external_changes),
            Arc::clone(&options),
        );
        Self {
            spaces: Spaces::default(),
            upserter: Upserter::new(Arc::clone(&loader), Arc::clone(&options)),
            compactor: Compactor::new(Arc::clone(&loader), Arc::clone(&options)),
            eraser: Eraser::new(Arc::clone(&loader), Arc::clone(&options)),
            locator: RowLocator::new(Arc::clone(&loader)),
            comparer: RowComparer::new(Arc::clone(&loader), Arc::clone(&external_changes)),
            dropper: TableDropper::new(Arc::clone(&access), Arc::clone(&metastore)),
            restorer: TableRestorer::new(Arc::clone(&loader)),
            status_table: StatusTable::new(Arc::clone(&access), metastore.fence().cloned(), Arc::clone(&options)),
            access,
            metastore,
            options,
            loader,
            external_changes,
            vacuum,
        }
    }

    /// Looks for some of the tables that have had a commit, and marks the root, so that it is missed when it goes away later. To be called
    /// before the first batch.
    ///
    /// # Errors
    /// When none of the tables is there, unless [`DeltaOptions::start_without_tables`] allows it; when the metastore or the store fails.
    pub async fn check_at_startup(&self) -> Result<(), StartupCheckError> {
        startup_check::check_at_startup(&self.access, &*self.metastore, &self.options).await
    }

    /// Where it is told that tables come, go, or have other columns.
    pub fn changes(&self) -> &TableChanges {
        self.loader.changes()
    }

    /// Forgets what is held in memory about a space; to be called when its ownership is lost. The next use loads it anew.
    pub async fn forget(&self, space: &Space) {
        let cell = self.spaces.cell(space);
        *cell.state.lock().await = None;
    }

    /// Makes the indexes of all spaces durable, so that the next start finds them up to date. Without it the next start reads what
    /// came since the last checkpoint.
    pub async fn close(&self) {
        for cell in self.spaces.cells() {
            if let Some(state) = cell.state.lock().await.take().filter(|state| !state.is_poisoned())
                && let Err(error) = self.loader.indexes().checkpoint(&state).await
            {
                tracing::warn!(
                    space = %state.space(), %error, "key index could not be saved; the next start catches up"
                );
            }
        }
    }

    /// Runs work on a space. A panic in it is an error, after which the space is loaded anew.
    async fn caught<T>(
        &self,
        space: &Space,
        work: impl Future<Output = Result<T, EngineError>>,
    ) -> Result<T, EngineError> {
        match AssertUnwindSafe(work).catch_unwind().await {
            Ok(outcome) => outcome,
            Err(panic) => {
                self.forget(space).await;
                Err(EngineError::panicked(panic.as_ref()))
            }
        }
    }

    /// A round of compaction and what belongs to it: commits of other programs are noticed before, stale rows leave after it.
    async fn compaction_round(&self, space: &Space) -> Result<Compacted, EngineError> {
        let cell = self.spaces.cell(space);
        let noticed = self.external_changes.probe(&cell).await;
        let compacted = self.compactor.compact(&cell, Scope::Space).await;
        let removed = self.remove_stale_rows(space, &cell).await;
        noticed?;
        let compacted = compacted?;
        removed.map(|()| compacted)
    }

    /// Compacts one table, after a look at what other programs did to it.
    async fn compact_one(&self, table: &TableKey) -> Result<Compacted, EngineError> {
        self.loader.load_if_absent(&self.spaces, &table.space).await?;
        let cell = self.spaces.cell(&table.space);
        self.external_changes.follow(&cell, table).await?;
        let compacted = self.compactor.compact(&cell, Scope::Table(table)).await?;
        self.remove_stale_rows(&table.space, &cell).await?;
        Ok(compacted)
    }

    /// Rows that came back or are there twice leave, and lost ones come back, without waiting for a batch.
    async fn remove_stale_rows(&self, space: &Space, cell: &SpaceCell) -> Result<(), EngineError> {
        let mut guard = cell.state.lock().await;
        let has_work = guard.as_ref().is_some_and(|state| {
            let has_stale_rows = !state.live().tables_with_stale_rows().is_empty();
            !state.is_poisoned() && (has_stale_rows || state.tables_with_lost_rows().next().is_some())
        });
        if has_work {
            let nothing = SpaceBatch { space: space.clone(), upserts: Vec::new(), tombstones: Vec::new() };
            self.upserter.apply(cell, &mut guard, &nothing).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl TableStore for DeltaTableStore {
    async fn apply(&self, batch: SpaceBatch) -> Result<Applied, StoreError> {
        let cell = self.spaces.cell(&batch.space);
        let under_way = self.compactor.batches().begin();
        let mut guard = cell.state.lock().await;
        let outcome = self.upserter.apply(&cell, &mut guard, &batch).await;
        if outcome.as_ref().is_err_and(permanent_error::may_be_due_to_rows) {
            // Whatever the cause: the next try does not depend on what is in memory.
            *guard = None;
        }
        self.spaces.note_use(&cell, guard.as_ref());
        drop((guard, under_way));
        self.loader.evict_to_fit(&self.spaces, self.options.spaces_bytes_max).await;
        outcome.map_err(|error| {
            self.loader.indexes().note_error(&batch.space, &error);
            store_error(&batch.space, "applying a batch", error)
        })
    }

    async fn compact(&self, space: &Space) -> Result<Compacted, StoreError> {
        let outcome = self.caught(space, self.compaction_round(space)).await;
        outcome.map_err(|error| {
            self.loader.indexes().note_error(space, &error);
            store_error(space, "compaction", error)
        })
    }

    async fn compact_table(&self, table: &TableKey) -> Result<Compacted, StoreError> {
        let space = &table.space;
        let outcome = self.caught(space, self.compact_one(table)).await;
        self.loader.evict_to_fit(&self.spaces, self.options.spaces_bytes_max).await;
        outcome.map_err(|error| {
            self.loader.indexes().note_error(space, &error);
            store_error(space, "compaction", error)
        })
    }

    async fn plan_compaction(&self, table: &TableKey) -> Result<PlannedCompaction, StoreError> {
        let space = &table.space;
        let work = async {
            self.loader.load_if_absent(&self.spaces, space).await?;
            let cell = self.spaces.cell(space);
            self.external_changes.follow(&cell, table).await?;
            self.compactor.outlook(&cell, table).await
        };
        let outcome = self.caught(space, work).await;
        self.loader.evict_to_fit(&self.spaces, self.options.spaces_bytes_max).await;
        outcome.map_err(|error| store_error(space, "planning a compaction", error))
    }

    async fn describe(&self, table: &TableKey) -> Option<InMemoryTable> {
        // A space that is only asked about is not in use.
        let cell = self.spaces.cell_in_use(&table.space)?;
        let guard = cell.state.lock().await;
        let state = guard.as_ref().filter(|state| !state.is_poisoned())?;
        let described = state.table(state.number_of(&table.document_type)?).describe();
        Some(InMemoryTable { not_compacted: self.compactor.not_compacted(table), ..described })
    }

    async fn maintain(&self, space: &Space) -> Result<Maintained, StoreError> {
        self.loader.load_for_maintenance(&self.spaces, space).await;
        let cell = self.spaces.cell(space);
        let tried = self.loader.try_unusable(&cell).await;
        let compacted = self.compact(space).await;
        let cleaned = {
            let _alone = cell.cleaning.lock().await;
            self.caught(space, self.vacuum.clean_space(&cell, space)).await
        };
        self.loader.evict_to_fit(&self.spaces, self.options.spaces_bytes_max).await;
        let outcome = tried.and(cleaned);
        let (compacted, maintained) = (compacted?, outcome.map_err(|error| store_error(space, "maintenance", error))?);
        Ok(Maintained { files_compacted: compacted.files_before, held_up_max: compacted.held_up_max, ..maintained })
    }

    async fn vacuum_table(&self, table: &TableKey, consent: &Consent) -> Result<Destroyed, StoreError> {
        let space = &table.space;
        let cell = self.spaces.cell(space);
        let work = async {
            let _alone = cell.cleaning.lock().await;
            let record = self.metastore.table(table).await.map_err(EngineError::Metastore)?;
            match record {
                Some(record) => self.vacuum.vacuum_table(&cell, &record, consent).await,
                None => Ok(Destroyed::default()),
            }
        };
        self.caught(space, work).await.map_err(|error| store_error(space, "vacuum", error))
    }

    async fn checkpoint_table(&self, table: &TableKey) -> Result<Option<u64>, StoreError> {
        let space = &table.space;
        let work = async {
            match self.metastore.table(table).await.map_err(EngineError::Metastore)? {
                Some(record) => self.access.checkpoint(&record.path).await,
                None => Ok(None),
            }
        };
        self.caught(space, work).await.map_err(|error| store_error(space, "writing a checkpoint", error))
    }

    async fn drop_tables(
        &self,
        target: &OperationTarget,
        asked_by: &str,
        consent: &Consent,
    ) -> Result<Destroyed, StoreError> {
        let (space, cell) = (&target.space, self.spaces.cell(&target.space));
        let dropped = self.caught(space, self.dropper.drop_tables(&cell, target, asked_by, consent)).await;
        self.changes().tell();
        dropped.map_err(|error| store_error(space, "dropping tables", error))
    }

    async fn restore_table(
        &self,
        table: &TableKey,
        to: RestorePoint,
        consent: &Consent,
    ) -> Result<Restored, StoreError> {
        let space = &table.space;
        let work = async {
            self.loader.load_if_absent(&self.spaces, space).await?;
            let cell = self.spaces.cell(space);
            self.external_changes.follow(&cell, table).await?;
            let restored = self.restorer.restore(&cell, table, to, consent).await?;
            // What was deleted in HQ since then leaves again.
            self.remove_stale_rows(space, &cell).await?;
            Ok(restored)
        };
        let outcome = self.caught(space, work).await;
        self.loader.evict_to_fit(&self.spaces, self.options.spaces_bytes_max).await;
        outcome.map_err(|error| store_error(space, "restoring a table", error))
    }

    async fn allow_tables(&self, target: &OperationTarget) -> Result<u64, StoreError> {
        let space = &target.space;
        let allowed = self.metastore.allow_tables(target).await.map_err(EngineError::Metastore);
        let allowed = allowed.map_err(|error| store_error(space, "letting tables be made anew", error))?;
        // The marks are read with the space.
        self.forget(space).await;
        Ok(allowed)
    }

    async fn erase(&self, asked: &Erasure, consent: &Consent) -> Result<Erased, StoreError> {
        let space = &asked.space;
        let work = async {
            self.loader.load_if_absent(&self.spaces, space).await?;
            let cell = self.spaces.cell(space);
            for table in self.metastore.tables(Some(space)).await.map_err(EngineError::Metastore)? {
                self.external_changes.follow(&cell, &table.key).await?;
            }
            self.eraser.erase(&cell, &self.upserter, self.compactor.batches(), asked, consent).await
        };
        let outcome = self.caught(space, work).await;
        self.loader.evict_to_fit(&self.spaces, self.options.spaces_bytes_max).await;
        outcome.map_err(|error| store_error(space, "erasing records", error))
    }

    async fn allow_records(&self, space: &Space, hashes: &[String], allowed_by: &str) -> Result<u64, StoreError> {
        let let_in = self.metastore.let_in(space, hashes, allowed_by).await.map_err(EngineError::Metastore);
        let let_in = let_in.map_err(|error| store_error(space, "letting erased records in again", error))?;
        // What is kept out is read with the space.
        self.forget(space).await;
        Ok(let_in)
    }

    async fn tell_status(&self, tables: &[TableStatus]) -> Result<(), StoreError> {
        let record = self.status_table.record();
        let written = self.status_table.replace(tables).await;
        written.map_err(|error| store_error(&record.key.space, "writing the table of tables", error))
    }

    async fn clean_up_status(&self) -> Result<Maintained, StoreError> {
        let record = self.status_table.record();
        let cleaned = self.vacuum.clean_unregistered(&record).await;
        cleaned.map_err(|error| store_error(&record.key.space, "cleaning up the table of tables", error))
    }

    async fn present(&self, space: &Space, ids: &[String]) -> Result<HashSet<String>, StoreError> {
        let work = async {
            self.loader.load_if_absent(&self.spaces, space).await?;
            let cell = self.spaces.cell(space);
            let guard = cell.state.lock().await;
            let Some(state) = guard.as_ref().filter(|state| !state.is_poisoned()) else { return Ok(HashSet::new()) };
            let found = state.find(ids.iter().map(|id| id_hash(id)).collect()).await?;
            Ok(ids.iter().filter(|id| found.contains_key(&id_hash(id))).cloned().collect())
        };
        self.caught(space, work).await.map_err(|error| store_error(space, "looking for rows", error))
    }

    async fn observed(&self, space: &Space, ids: &[String]) -> Result<Vec<Option<i64>>, StoreError> {
        let observed = self.caught(space, self.locator.observed(&self.spaces, space, ids)).await;
        self.loader.evict_to_fit(&self.spaces, self.options.spaces_bytes_max).await;
        observed.map_err(|error| store_error(space, "looking up ids", error))
    }

    async fn locate(&self, space: &Space, id: &str) -> Result<Option<LocatedRow>, StoreError> {
        let located = self.caught(space, self.locator.locate(&self.spaces, space, id)).await;
        self.loader.evict_to_fit(&self.spaces, self.options.spaces_bytes_max).await;
        located.map_err(|error| store_error(space, "looking up an id", error))
    }

    async fn follow_tables(&self, space: &Space) -> Result<(), StoreError> {
        let work = async {
            self.comparer.follow(&self.spaces, space).await?;
            self.remove_stale_rows(space, &self.spaces.cell(space)).await
        };
        let followed = self.caught(space, work).await;
        self.loader.evict_to_fit(&self.spaces, self.options.spaces_bytes_max).await;
        followed.map_err(|error| store_error(space, "following the tables", error))
    }

    async fn bucket_sums(&self, scope: &ComparedScope, bucket_count: u32) -> Result<BucketSums, StoreError> {
        let sums = self.caught(&scope.space, self.comparer.sums(&self.spaces, scope, bucket_count)).await;
        sums.map_err(|error| store_error(&scope.space, "summing up rows", error))
    }

    async fn row_states(&self, scope: &ComparedScope, wanted: WantedRows<'_>) -> Result<Vec<RowState>, StoreError> {
        let states = self.caught(&scope.space, self.comparer.states(&self.spaces, scope, wanted)).await;
        states.map_err(|error| store_error(&scope.space, "comparing rows", error))
    }

    async fn close(&self) {
        Self::close(self).await;
    }

    fn spaces_in_use(&self) -> Vec<Space> {
        self.spaces.in_use()
    }
}

fn store_error(space: &Space, action: &'static str, error: EngineError) -> StoreError {
    match error {
        EngineError::BadRows(reason) => StoreError::BadRows { space: space.clone(), reason },
        EngineError::Unusable { table, reason } => StoreError::UnusableTable { table, reason },
        EngineError::TooManyTypes { types_max, refused } => {
            StoreError::TooManyTypes { space: space.clone(), types_max, refused }
        }
        EngineError::NotRestorable(reason) => StoreError::NotRestorable { space: space.clone(), reason },
        EngineError::StalePlan(stale) => StoreError::StalePlan { space: space.clone(), stale },
        error if permanent_error::may_be_due_to_rows(&error) => {
            StoreError::Unexplained { space: space.clone(), source: Box::new(error) }
        }
        other => StoreError::Unavailable { space: space.clone(), action, source: Box::new(other) },
    }
}

//! Erasing records from the tables of a space, step by step; see [`crate::table_store::delta::erase`].

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use object_store::path::Path;

use crate::consent::Consent;
use crate::key_index::{IdHash, id_hash};
use crate::order_guard::TombstoneOrder;
use crate::table_store::SpaceBatch;
use crate::table_store::conversion::{ColumnType, converted};
use crate::table_store::delta::compact::yield_to_batches::Batches;
use crate::table_store::delta::erase::log_renewal::renew_log;
use crate::table_store::delta::erase::rewrite::{RewriteTools, live_files, loaded, rewrite_live_files};
use crate::table_store::delta::erase::search::{TableSearch, Wanted};
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::data_file;
use crate::table_store::delta::files::key_columns::key_names;
use crate::table_store::delta::options::DeltaOptions;
use crate::table_store::delta::space::cell::SpaceCell;
use crate::table_store::delta::space::loader::SpaceLoader;
use crate::table_store::delta::space::state::{RowLocation, SpaceState};
use crate::table_store::delta::upkeep::vacuum;
use crate::table_store::delta::upsert::apply::Upserter;
use crate::table_store::erasure::{Erased, Erasure, erasure_plan};

/// Takes records out of tables.
pub(crate) struct Eraser {
    loader: Arc<SpaceLoader>,
    options: Arc<DeltaOptions>,
}

impl Eraser {
    pub(crate) const fn new(loader: Arc<SpaceLoader>, options: Arc<DeltaOptions>) -> Self {
        Self { loader, options }
    }

    /// Erases records of a loaded space, as far as the consent goes. Batches go on, but for moments; compaction and clean-up wait.
    ///
    /// # Errors
    /// When a table cannot be used or a file not be read, as nobody knows then what is in it; when another plan was to be kept to; when the store
    /// or the metastore fails. What was begun is gone on with when it is asked for again by the same operation.
    pub(crate) async fn erase(
        &self,
        cell: &SpaceCell,
        upserter: &Upserter,
        batches: &Batches,
        asked: &Erasure,
        consent: &Consent,
    ) -> Result<Erased, EngineError> {
        let _no_compaction = cell.compacting.lock().await;
        let _no_clean_up = cell.cleaning.lock().await;
        let wanted = Wanted::of(&asked.ids);
        let mut searches = self.look(cell, asked, &wanted).await?;
        let tombstones = self.tombstones(asked).await?;
        let mut erased = found(asked, &searches, &tombstones);
        let goes_on = *consent != Consent::DryRun && self.was_begun(asked).await?;
        if !goes_on && !consent.allows(&erased.plan).map_err(EngineError::StalePlan)? {
            return Ok(erased);
        }
        self.keep_out(cell, asked).await?;
        self.remove_rows(cell, upserter, asked).await?;
        // One that came before they were kept out is found as well.
        let tombstones = self.tombstones(asked).await?;
        let forgotten = self.loader.metastore().forget_tombstones(&asked.space, &tombstones).await;
        forgotten.map_err(EngineError::Metastore)?;
        for search in &mut searches {
            self.erase_from(cell, batches, search, &wanted, &mut erased).await?;
        }
        erased.done = true;
        Ok(erased)
    }

    /// Reads all files of all tables of the space.
    async fn look(&self, cell: &SpaceCell, asked: &Erasure, wanted: &Wanted) -> Result<Vec<TableSearch>, EngineError> {
        let mut searches: Vec<(TableSearch, Vec<_>)> = Vec::new();
        {
            let guard = cell.state.lock().await;
            let state = guard.as_ref().filter(|state| !state.is_poisoned());
            let state = state.ok_or_else(|| EngineError::NotLoaded(asked.space.clone()))?;
            for (number, table) in state.numbered_tables() {
                state.check_usable(&[number])?;
                let [id, ..] = key_names(table.schema());
                // A table without a commit has no columns yet.
                let id = if id.is_empty() { "_id".to_owned() } else { id };
                let search = TableSearch::new(table.key().clone(), table.path().to_owned(), id);
                searches.push((search, table.files().cloned().collect()));
            }
        }
        let mut looked = Vec::with_capacity(searches.len());
        for (mut search, live) in searches {
            let store = self.loader.access().unloaded(&search.path)?.object_store();
            search.look(&store, wanted, &live).await?;
            looked.push(search);
        }
        Ok(looked)
    }

    /// The remembered deletions of the records.
    async fn tombstones(&self, asked: &Erasure) -> Result<Vec<(IdHash, TombstoneOrder)>, EngineError> {
        let ids: HashSet<&String> = asked.ids.iter().collect();
        let hashes: Vec<IdHash> = ids.iter().map(|id| id_hash(id)).collect();
        let remembered = self.loader.metastore().tombstones_of(&asked.space, &hashes).await;
        let remembered = remembered.map_err(EngineError::Metastore)?;
        // Another id may have the same hash.
        let own = remembered.into_iter().filter(|tombstone| ids.contains(&tombstone.id));
        Ok(own.map(|tombstone| (tombstone.id_hash, tombstone.order)).collect())
    }

    /// Whether the operation has already begun to erase these records: what it had consent to is not found whole any more.
    async fn was_begun(&self, asked: &Erasure) -> Result<bool, EngineError> {
        let hashes = asked.hashes();
        let known = self.loader.metastore().erasures_of(&hashes).await.map_err(EngineError::Metastore)?;
        let own: HashSet<&String> = known
            .iter()
            .filter(|record| record.operation_id == asked.operation_id && record.allowed_us.is_none())
            .map(|record| &record.id_hash)
            .collect();
        Ok(!own.is_empty() && hashes.iter().all(|hash| own.contains(hash)))
    }

    /// From now on nothing of the records enters.
    async fn keep_out(&self, cell: &SpaceCell, asked: &Erasure) -> Result<(), EngineError> {
        let Erasure { space, asked_by, operation_id, .. } = asked;
        let kept = self.loader.metastore().keep_out(space, &asked.hashes(), asked_by, operation_id).await;
        kept.map_err(EngineError::Metastore)?;
        // A state that is loaded later knows it from the start.
        match cell.state.lock().await.as_mut() {
            Some(state) => self.loader.load_kept_out(state).await,
            None => Ok(()),
        }
    }

    /// The rows of the records leave by commits.
    async fn remove_rows(&self, cell: &SpaceCell, upserter: &Upserter, asked: &Erasure) -> Result<(), EngineError> {
        let mut guard = cell.state.lock().await;
        let state = guard.as_mut().filter(|state| !state.is_poisoned());
        let state = state.ok_or_else(|| EngineError::NotLoaded(asked.space.clone()))?;
        let hashes: Vec<IdHash> = asked.ids.iter().map(|id| id_hash(id)).collect();
        let found = state.find(hashes).await?;
        let ids: HashSet<&str> = asked.ids.iter().map(String::as_str).collect();
        for row in found.values() {
            if self.is_of(state, row, &ids).await? {
                state.mark_stale(row.position);
            }
        }
        let nothing = SpaceBatch { space: asked.space.clone(), upserts: Vec::new(), tombstones: Vec::new() };
        upserter.apply(cell, &mut guard, &nothing).await.map(drop)
    }

    /// Whether the row that was found is one of these: another id may have the same hash.
    async fn is_of(&self, state: &SpaceState, row: &RowLocation, ids: &HashSet<&str>) -> Result<bool, EngineError> {
        let table = state.table(row.table);
        let Some(file) = table.file(row.position.file) else { return Ok(false) };
        let [id, ..] = key_names(table.schema());
        let store = self.loader.access().unloaded(table.path())?.object_store();
        let cells = data_file::row(&store, file, &[id.as_str()], row.position.row.get()).await?;
        let cell = cells.column_by_name(&id).and_then(|cell| converted(cell, ColumnType::String));
        // Where the id is not in the file it is in its path, by which the search goes.
        Ok(cell.is_none_or(|cell| cell.is_valid(0) && ids.contains(cell.as_string::<i32>().value(0))))
    }

    /// Takes the records out of one table, of which no row is live any more.
    async fn erase_from(
        &self,
        cell: &SpaceCell,
        batches: &Batches,
        search: &mut TableSearch,
        wanted: &Wanted,
        erased: &mut Erased,
    ) -> Result<(), EngineError> {
        let tools = RewriteTools { loader: &self.loader, options: &self.options, batches };
        erased.files_rewritten += rewrite_live_files(&tools, cell, search, wanted).await?.len() as u64;
        if let Some(deleted) = renew_log(&self.loader, cell, search).await? {
            erased.logs_renewed += 1;
            erased.log_files_deleted += deleted;
        }
        erased.files_deleted += self.delete_files(cell, search).await?;
        let store = self.loader.access().unloaded(&search.path)?.object_store();
        let live = live_files(loaded(&mut *cell.state.lock().await, search)?, search)?;
        search.look(&store, wanted, &live).await?;
        let left = search.naming().len() as u64;
        if left > 0 {
            tracing::warn!(
                table = %search.key, files = left,
                "the log names an erased id still, as a row of another record or a folder of a partition does"
            );
        }
        erased.log_files_left += left;
        match search.found().count() {
            0 => Ok(()),
            _ => Err(EngineError::Contended(search.key.clone())),
        }
    }

    /// Deletes the files of all versions that hold rows of the records. None of them is part of the newest version.
    async fn delete_files(&self, cell: &SpaceCell, search: &TableSearch) -> Result<u64, EngineError> {
        let access = self.loader.access();
        // No batch of this process is half-way.
        let _guard = cell.state.lock().await;
        let doomed: BTreeSet<&String> = search.found().map(|(path, _)| path).collect();
        if doomed.is_empty() {
            return Ok(0);
        }
        if let Some(table) = access.latest(&search.path).await? {
            let snapshot = table.snapshot().map_err(EngineError::delta)?;
            // Another program has committed meanwhile.
            if snapshot.log_data().iter().any(|view| doomed.contains(&view.path().into_owned())) {
                return Err(EngineError::Contended(search.key.clone()));
            }
        }
        access.check_lease()?;
        let paths = doomed.into_iter().map(Path::parse);
        let paths = paths.collect::<Result<Vec<_>, _>>().map_err(|error| EngineError::corrupt(error.to_string()))?;
        vacuum::delete(&access.unloaded(&search.path)?.object_store(), paths).await
    }
}

/// What was found before anything is done.
fn found(asked: &Erasure, searches: &[TableSearch], tombstones: &[(IdHash, TombstoneOrder)]) -> Erased {
    let objects = searches.iter().flat_map(TableSearch::objects);
    let tombstones_found = tombstones.iter().map(|(id, order)| format!("deletion {id:x} {order:?}"));
    let mut erased = Erased {
        plan: erasure_plan(asked, objects.chain(tombstones_found)),
        records: asked.ids.len() as u64,
        tables: searches.len() as u64,
        tombstones: tombstones.len() as u64,
        ..Erased::default()
    };
    for search in searches {
        let (files, log_files) = search.searched();
        erased.files_searched += files;
        erased.log_files_searched += log_files;
        erased.log_files_found += search.naming().len() as u64;
        for (_, file) in search.found() {
            erased.files_found += 1;
            erased.rows += file.rows.len();
            erased.bytes += file.size;
        }
    }
    erased
}

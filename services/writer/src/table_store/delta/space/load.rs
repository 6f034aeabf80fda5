//! Loading a space: the checkpoint of its key index, what happened to its tables since, what is not in the index yet. And reloading one of
//! its tables after a commit of another program.

use std::sync::Arc;
use std::time::{Duration, Instant};

use deltalake::DeltaTable;
use futures::{StreamExt, stream};
use lake_shared::identity::{Space, TableKey};

use crate::metastore::TableRecord;
use crate::metric_names;
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::file_writer::FileNumbers;
use crate::table_store::delta::log::base_version::OwnEntry;
use crate::table_store::delta::permanent_error;
use crate::table_store::delta::space::index::read_keys::{KeysRead, KeysToRead};
use crate::table_store::delta::space::index::snapshot::SnapshotFiles;
use crate::table_store::delta::space::index::upkeep::IndexUpkeep;
use crate::table_store::delta::space::loader::SpaceLoader;
use crate::table_store::delta::space::state::SpaceState;
use crate::table_store::delta::space::table::{LostRows, TableState};
use crate::table_store::delta::space::tombstones::dropped_types::DroppedTypes;
use crate::table_store::delta::space::tombstones::kept_out::KeptOut;
use crate::table_store::delta::table_number::TableNumber;

/// Logs opened at once.
const LOGS_AT_ONCE: usize = 8;

/// Version and rows of a table that the metastore knows; `None`: it has had no commit.
type Reported = Option<(i64, i64)>;

impl SpaceLoader {
    /// Loads a space: every table that the metastore knows, every key, every tombstone. Tables that cannot be read are disabled.
    ///
    /// # Errors
    /// When the metastore, the store or the disk of the index fails for now.
    pub(crate) async fn load_space(&self, space: &Space, upkeep: &IndexUpkeep) -> Result<SpaceState, EngineError> {
        let began = Instant::now();
        let (index, snapshot) = self.indexes().open(space).await?;
        let index_is_new = snapshot.is_none();
        let mut snapshot = snapshot.unwrap_or_default();
        let mut state = SpaceState::new(space.clone(), index, FileNumbers::after(snapshot.last_number));
        // Numbers of an index that was lost mean nothing to this one.
        upkeep.set_saved(state.numbers().last());
        let mut to_read = KeysToRead::default();
        let mut known = snapshot.take_files();
        let records = self.metastore().tables(Some(space)).await.map_err(EngineError::Metastore)?;
        let opening = records.into_iter().map(|record| self.open(record));
        let mut tables = stream::iter(opening).buffered(LOGS_AT_ONCE);
        while let Some((record, opened)) = tables.next().await {
            let known = known.remove(&record.path).unwrap_or_default();
            let reported = record.state.version.map(|version| (version, record.state.rows));
            let number = state.add_table(record);
            match self.enter(&mut state, number, reported, opened, known, &mut to_read).await {
                Err(error) if permanent_error::is_permanent(&error) => state.disable(number, &error, Duration::ZERO),
                entered => entered?,
            }
        }
        drop(tables);
        for stale_row in snapshot.stale_rows() {
            state.mark_stale(stale_row);
        }
        let (files_read, rows_read) = (to_read.files(), to_read.rows());
        let KeysRead { broken, .. } = self.read_keys(&mut state, to_read, index_is_new).await?;
        for (number, error) in broken {
            state.disable(number, &error, began.elapsed());
        }
        self.load_tombstones(&mut state).await?;
        let dropped = self.metastore().dropped(Some(space)).await.map_err(EngineError::Metastore)?;
        state.set_dropped(DroppedTypes::of(dropped));
        self.load_kept_out(&mut state).await?;
        tracing::info!(
            %space, tables = state.tables().len(), keys = state.index().entries(), tombstones = state.tombstones().held(),
            files_read, rows_read, index_is_new, milliseconds = lake_shared::retry::milliseconds(began.elapsed()),
            "space loaded"
        );
        state.count_keys();
        if index_is_new && rows_read > 0 {
            self.indexes().checkpoint(&state).await?;
            upkeep.set_saved(state.numbers().last());
        }
        Ok(state)
    }

    /// Learns which records of a space are kept out.
    pub(crate) async fn load_kept_out(&self, state: &mut SpaceState) -> Result<(), EngineError> {
        let kept_out = self.metastore().kept_out(state.space()).await.map_err(EngineError::Metastore)?;
        state.set_kept_out(KeptOut::of(kept_out));
        Ok(())
    }

    async fn open(&self, record: TableRecord) -> (TableRecord, Result<Option<DeltaTable>, EngineError>) {
        let opened = self.access().latest(&record.path).await;
        (record, opened)
    }

    /// Enters a table into a space that is being loaded, if there is one. The keys of its new files are to be read.
    async fn enter(
        &self,
        state: &mut SpaceState,
        number: TableNumber,
        reported: Reported,
        opened: Result<Option<DeltaTable>, EngineError>,
        known: SnapshotFiles,
        to_read: &mut KeysToRead,
    ) -> Result<(), EngineError> {
        let Some(table) = opened? else {
            if let Some((version, rows)) = reported {
                warn_gone(state.table(number).key(), version, rows);
            }
            return Ok(());
        };
        let unread = state.reconcile(number, &table, known).await?;
        // A commit that the metastore has not heard of, as the process ended before it was told.
        if reported.map(|(version, _)| version) != table.version().and_then(|version| i64::try_from(version).ok()) {
            state.table_mut(number).set_unreported();
        }
        to_read.add(state, number, table.object_store(), unread);
        self.access().put_back(state.table(number).key(), table);
        Ok(())
    }

    /// Brings a table's part of the state to the latest version in its log. A table that cannot be used, now or any more, is disabled.
    ///
    /// # Errors
    /// When the store or the metastore fails for now. The state is poisoned then, unless nothing of it had changed yet.
    pub(crate) async fn refresh(&self, state: &mut SpaceState, number: TableNumber) -> Result<(), EngineError> {
        let began = Instant::now();
        // Asked before anything changes: with an error the state is as it was.
        let is_replaced = self.is_last_commit_replaced(state.table(number)).await?;
        let id = state.table(number).id().map(str::to_owned);
        let own = state.table_mut(number).take_own();
        match self.reload(state, number).await {
            Err(error) if permanent_error::is_permanent(&error) => state.disable(number, &error, began.elapsed()),
            reloaded => reloaded?,
        }
        let is_same_table = state.table(number).id() == id.as_deref();
        if let Some((entry, rows)) = own.filter(|_| is_replaced && is_same_table) {
            note_lost(state, number, entry, rows);
        }
        state.reload_ended();
        Ok(())
    }

    /// Whether another program has overwritten the last entry that this process has put into the log of a table.
    async fn is_last_commit_replaced(&self, table: &TableState) -> Result<bool, EngineError> {
        let Some(own) = table.own_entry() else { return Ok(false) };
        match self.access().is_replaced(table.path(), &own).await {
            // The reload finds out what is wrong with it.
            Err(error) if permanent_error::is_permanent(&error) => Ok(false),
            answered => answered,
        }
    }

    async fn reload(&self, state: &mut SpaceState, number: TableNumber) -> Result<(), EngineError> {
        let table = state.table(number);
        let (key, unusable) = (table.key().clone(), table.unusable().cloned());
        self.access().close(&key);
        let opened = self.access().latest(table.path()).await?;
        // Before the rows: none of them may come back that was deleted by whoever wrote the log.
        let deleted = self.learn_new_tombstones(state).await?;
        state.poison();
        let Some(table) = opened else {
            let table = state.table(number);
            if let Some(version) = table.version() {
                warn_gone(&key, version as i64, table.rows());
            }
            state.forget_table(number);
            state.enable(number);
            return Ok(());
        };
        let unread = state.reconcile(number, &table, SnapshotFiles::default()).await?;
        let mut to_read = KeysToRead::default();
        to_read.add(state, number, table.object_store(), unread);
        if unusable.is_some() {
            to_read.check_presence().await?;
        }
        let KeysRead { broken, mut tombstoned } = self.read_keys(state, to_read, false).await?;
        if let Some((_, error)) = broken.into_iter().next() {
            return Err(error);
        }
        tombstoned.extend(deleted);
        self.resolve_tombstoned(state, &tombstoned).await?;
        // If the reason is another one by now, what had to be known to resolve its rows could not be read.
        if state.table(number).unusable().map(Arc::as_ptr) == unusable.as_ref().map(Arc::as_ptr) {
            state.table_mut(number).set_unreported();
            state.enable(number);
            self.access().put_back(&key, table);
        }
        Ok(())
    }
}

/// The rows that an overwritten commit brought are lost to readers; their files are still there, and they are to be committed again.
fn note_lost(state: &mut SpaceState, number: TableNumber, own: OwnEntry, rows: LostRows) {
    let table = state.table(number);
    // Of a table that was dropped or put back to an older state nothing is brought back.
    if table.version().is_none_or(|version| version < own.version) {
        return;
    }
    tracing::error!(
        table = %table.key(), version = own.version, files = rows.added.len(),
        "another program has overwritten a commit of the lake; its rows are committed again. Let that program put log entries only if absent \
         (on S3: a log store with conditional writes), or let it leave the lake's tables alone"
    );
    metrics::counter!(metric_names::COMMIT_CONFLICTS_TOTAL, "outcome" => "overwritten").increment(1);
    state.table_mut(number).set_lost(rows);
}

/// A table was dropped, or it is not where it was. It is made anew by the next rows for it.
fn warn_gone(table: &TableKey, version: i64, rows: i64) {
    tracing::warn!(
        %table, version, rows,
        "table is gone from the lake; the next rows make it anew and earlier ones are not in it: put it back before that, or backfill"
    );
    metrics::counter!(metric_names::GONE_TABLES_TOTAL, "kind" => table.space.kind.name()).increment(1);
}

//! The only way to a Delta table: loading it, the open handles, what a commit would be made upon, and the commit itself.

use std::sync::Arc;

use deltalake::{DeltaTable, checkpoints};
use lake_shared::identity::TableKey;
use tokio::sync::OwnedSemaphorePermit;

use crate::metastore::fence::Fence;
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::new_files::NewFiles;
use crate::table_store::delta::log::base_version::{BaseVersion, KnownTable, OwnEntry, Probe, entry_version};
use crate::table_store::delta::log::checkpoint_files;
use crate::table_store::delta::log::checkpoints::LogCheckpoints;
use crate::table_store::delta::log::commit::{self, Commit, Outcome};
use crate::table_store::delta::log::entry;
use crate::table_store::delta::log::open_tables::OpenTables;
use crate::table_store::delta::options::DeltaOptions;
use crate::table_store::delta::permanent_error;
use crate::table_store::lake_store::LakeStore;

/// How a commit ended.
pub(crate) enum CommitResult {
    /// It is the last version of the table.
    Committed(OwnEntry),
    /// The table is not what the actions were made for: reload it and plan again.
    Conflict {
        /// Files that certainly no version names, to be deleted.
        discarded: NewFiles,
    },
}

/// Owns the handles of open tables and decides when their logs get checkpoints.
pub(crate) struct TableAccess {
    lake: Arc<LakeStore>,
    /// The right to commit; `None`: nobody else commits.
    fence: Option<Fence>,
    open_tables: Arc<OpenTables>,
    checkpoints: Arc<LogCheckpoints>,
}

impl TableAccess {
    pub(crate) fn new(lake: Arc<LakeStore>, fence: Option<Fence>, options: &DeltaOptions) -> Self {
        Self {
            lake,
            fence,
            open_tables: Arc::new(OpenTables::new(options.tables_open_max, options.files_open_max)),
            checkpoints: Arc::new(LogCheckpoints::new(options.checkpoint_every_commits)),
        }
    }

    /// The root that the tables are in.
    pub(crate) fn lake(&self) -> &LakeStore {
        &self.lake
    }

    /// A handle that has loaded nothing yet.
    pub(crate) fn unloaded(&self, path: &str) -> Result<DeltaTable, EngineError> {
        Ok(DeltaTable::new(self.lake.log_store(path).map_err(EngineError::Lake)?))
    }

    /// A table at its latest version, in a handle of its own; `None`: there is none.
    pub(crate) async fn latest(&self, path: &str) -> Result<Option<DeltaTable>, EngineError> {
        let mut table = self.unloaded(path)?;
        match commit::load(&mut table).await {
            Ok(exists) => return Ok(exists.then_some(table)),
            // The log may have been cleaned up while it was read. What is still wrong at the second reading is wrong.
            Err(error) if permanent_error::is_permanent(&error) => {}
            Err(error) => return Err(error),
        }
        let mut table = self.unloaded(path)?;
        if checkpoint_files::delete_dangling_hint(&table.object_store()).await? {
            tracing::warn!(
                path,
                "the log of a table named a checkpoint that is not there; the hint (_last_checkpoint) was deleted, so that readers find the log again"
            );
        }
        Ok(commit::load(&mut table).await?.then_some(table))
    }

    /// Whether the folder of a table has a log, whatever its first entry is.
    pub(crate) async fn has_log(&self, path: &str) -> Result<bool, EngineError> {
        self.unloaded(path)?.verify_deltatable_existence().await.map_err(EngineError::delta)
    }

    /// The handle of a table at the version that is known; `None` when the log says something else.
    pub(crate) async fn at_known_version(&self, known: &KnownTable<'_>) -> Result<Option<DeltaTable>, EngineError> {
        let mut table = match self.open_tables.take(known.key) {
            Some(table) => table,
            None => self.unloaded(known.path)?,
        };
        if table.version() == known.version {
            return Ok(Some(table));
        }
        let is_there = match commit::load(&mut table).await {
            // The next reload finds out what is wrong with it.
            Err(error) if permanent_error::is_permanent(&error) => false,
            loaded => loaded?,
        };
        if !known.is(is_there.then_some(&table))? {
            return Ok(None);
        }
        if is_there { Ok(Some(table)) } else { self.unloaded(known.path).map(Some) }
    }

    /// Whether a table is still the one that is known, at the same version. A log that cannot be read any more is no other table.
    pub(crate) async fn is_unchanged(&self, known: &KnownTable<'_>) -> Result<bool, EngineError> {
        match self.latest(known.path).await {
            Ok(None) => Ok(false),
            Ok(table) => known.is(table.as_ref()),
            Err(error) if permanent_error::is_permanent(&error) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// What the next commit to a table would be made upon. To be asked while its files are written.
    pub(crate) async fn base_version(&self, known: &KnownTable<'_>) -> Result<BaseVersion, EngineError> {
        let Some(version) = known.version else {
            // A put of the first entry would succeed in a log that was cleaned up behind a checkpoint, and no reader would ever see it.
            if self.has_log(known.path).await? {
                return Ok(BaseVersion::Stale);
            }
            // Where the volume is not mounted any more, no table seems to be there.
            self.lake.ensure_marked().await.map_err(EngineError::Lake)?;
            return Ok(BaseVersion::Current);
        };
        let entry = entry_version(&self.unloaded(known.path)?.object_store(), version).await?;
        if known.is_replaced_by(entry.as_ref()) {
            return Ok(BaseVersion::Stale);
        }
        if entry.is_some() && known.entry.is_none_or(|seen| Some(seen) == entry.as_ref()) {
            return Ok(BaseVersion::Current);
        }
        let latest = match self.latest(known.path).await {
            // The next reload finds out what is wrong with it.
            Err(error) if permanent_error::is_permanent(&error) => None,
            latest => latest?,
        };
        Ok(match latest {
            Some(table) if known.is(Some(&table))? => {
                if entry.is_some() {
                    BaseVersion::Current
                } else {
                    BaseVersion::CurrentByCheckpoint
                }
            }
            _ => BaseVersion::Stale,
        })
    }

    /// Whether an entry that this process has put into the log of a table is another program's by now. No, where it was cleaned up.
    pub(crate) async fn is_replaced(&self, path: &str, own: &OwnEntry) -> Result<bool, EngineError> {
        let log_store = self.unloaded(path)?.log_store();
        let entry = log_store.read_commit_entry(own.version).await.map_err(EngineError::delta)?;
        Ok(entry.is_some_and(|entry| !entry::carries(&entry, own.id)))
    }

    /// A probe of a table's log; see [`Probe`].
    pub(crate) fn probe(&self, known: &KnownTable<'_>) -> Result<Probe, EngineError> {
        Ok(Probe::new(known, self.unloaded(known.path)?))
    }

    /// Puts actions into the log of a table, keeps its handle for the next commit and has a checkpoint made when one is due.
    ///
    /// # Errors
    /// When the store fails: the log tells that the commit did not happen, or cannot be read for now. The next try meets it by its version.
    /// When the lease is lost: nothing was committed.
    pub(crate) async fn commit(&self, key: &TableKey, commit: Commit<'_>) -> Result<CommitResult, EngineError> {
        self.fence.as_ref().map_or(Ok(()), Fence::check).map_err(EngineError::LeaseLost)?;
        let new_files = commit.new_files.clone();
        match commit::commit(commit).await? {
            Outcome::Committed { entry, table } => {
                if let Some(table) = table {
                    self.checkpoints.committed(key, entry.version, &table, &self.open_tables);
                    self.open_tables.put(key.clone(), *table);
                }
                Ok(CommitResult::Committed(entry))
            }
            Outcome::Conflict => Ok(CommitResult::Conflict { discarded: new_files }),
            // The files may be part of the table. If they are not, the clean-up finds them.
            Outcome::Unknown => Ok(CommitResult::Conflict { discarded: NewFiles::default() }),
        }
    }

    /// Writes a checkpoint of a table's log now. The answer is its version; `None`: there is no table.
    ///
    /// # Errors
    /// When the log cannot be read or written.
    pub(crate) async fn checkpoint(&self, path: &str) -> Result<Option<u64>, EngineError> {
        let _turn = self.checkpoints.turn().await;
        let Some(table) = self.latest(path).await? else { return Ok(None) };
        checkpoints::create_checkpoint(&table, None).await.map_err(EngineError::delta)?;
        Ok(table.version())
    }

    /// No checkpoint of any table is made by this process as long as the answer is held.
    pub(crate) async fn no_checkpoints(&self) -> Option<OwnedSemaphorePermit> {
        self.checkpoints.turn().await
    }

    /// Whether the lease is still held.
    ///
    /// # Errors
    /// It is not.
    pub(crate) fn check_lease(&self) -> Result<(), EngineError> {
        self.fence.as_ref().map_or(Ok(()), Fence::check).map_err(EngineError::LeaseLost)
    }

    /// Keeps a handle open for its next use.
    pub(crate) fn put_back(&self, key: &TableKey, table: DeltaTable) {
        self.open_tables.put(key.clone(), table);
    }

    #[cfg(test)]
    pub(crate) fn is_open(&self, key: &TableKey) -> bool {
        let table = self.open_tables.take(key);
        table.map(|table| self.open_tables.put(key.clone(), table)).is_some()
    }

    /// Closes the handle of a table, so that the next use loads it from its log.
    pub(crate) fn close(&self, key: &TableKey) {
        drop(self.open_tables.take(key));
    }
}

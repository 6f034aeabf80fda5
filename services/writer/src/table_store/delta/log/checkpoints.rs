//! Checkpoints of the logs: when one is due, and making it beside what else happens.
//!
//! A checkpoint holds every file that left the table within the retention, once for each deletion vector that it had, so in a table with
//! many commits it takes seconds however little has changed. Its cost stays a small share of the time between two of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use deltalake::logstore::LogStoreRef;
use deltalake::{DeltaTable, DeltaTableError, checkpoints};
use lake_shared::identity::TableKey;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::log::checkpoint_files;
use crate::table_store::delta::log::commit;
use crate::table_store::delta::log::open_tables::OpenTables;

/// A checkpoint that took longer than this is large: commits alone do not bring the next one.
const LARGE_FROM: Duration = Duration::from_secs(2);

/// After a large checkpoint there is none for so many times as long as it took.
const PAUSE_FACTOR: u32 = 20;

/// After one that failed there is none for so long.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(60);

/// The last checkpoint of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LastCheckpoint {
    /// `None`: there is none.
    version: Option<u64>,
    /// The next one comes no earlier.
    not_before: Option<Instant>,
}

impl LastCheckpoint {
    /// Whether the next one is to be made of this version.
    fn is_due(self, version: u64, every_commits: u64, now: Instant) -> bool {
        let commits = self.version.map_or(version + 1, |last| version.saturating_sub(last));
        commits >= every_commits && self.not_before.is_none_or(|instant| now >= instant)
    }
}

#[derive(Debug, Default)]
struct KnownCheckpoint {
    /// `None`: it was not looked up yet.
    last: Option<LastCheckpoint>,
    is_busy: bool,
}

/// What is known of the checkpoints of tables.
#[derive(Debug)]
pub(crate) struct LogCheckpoints {
    every_commits: u64,
    tables: Mutex<HashMap<TableKey, KnownCheckpoint>>,
    /// Tables that are always written together are all due together.
    turns: Arc<Semaphore>,
}

impl LogCheckpoints {
    /// Checkpoints every so many commits, made one after the other.
    pub(crate) fn new(every_commits: u64) -> Self {
        Self { every_commits: every_commits.max(1), tables: Mutex::default(), turns: Arc::new(Semaphore::new(1)) }
    }

    /// After a commit: has a checkpoint made if one is due, beside what else happens. One that fails is made by a later commit.
    pub(crate) fn committed(
        self: &Arc<Self>,
        key: &TableKey,
        version: u64,
        table: &DeltaTable,
        handles: &Arc<OpenTables>,
    ) {
        if !self.begin(key, version, Instant::now()) {
            return;
        }
        let (checkpoints, handles, key) = (Arc::clone(self), Arc::clone(handles), key.clone());
        let turn = Arc::clone(&self.turns).try_acquire_owned().ok();
        // Handles are large, and very many tables may wait for their turn: they are opened again then.
        let (table, log_store) = (turn.is_some().then(|| table.clone()), table.log_store());
        tokio::spawn(async move {
            let waited = match turn {
                Some(turn) => Ok(turn),
                None => Arc::clone(&checkpoints.turns).acquire_owned().await,
            };
            let Ok(_turn) = waited else { return };
            let opened = match table {
                Some(table) => Ok(table),
                None => opened_at(log_store, version).await,
            };
            let table = match opened {
                Ok(table) => table,
                Err(error) => {
                    tracing::warn!(table = %key, version, %error, "no checkpoint is made, as the table cannot be opened");
                    return checkpoints.end(&key, None);
                }
            };
            let last = match checkpoints.look_up(&key, version, &table).await {
                Ok(last) if last.is_due(version, checkpoints.every_commits, Instant::now()) => last,
                known => {
                    if let Err(error) = &known {
                        tracing::warn!(table = %key, %error, "last checkpoint of the log could not be looked up");
                    }
                    return checkpoints.end(&key, known.ok());
                }
            };
            let last = make(&key, version, table, handles, last).await;
            checkpoints.end(&key, Some(last));
        });
    }

    /// Waits until no checkpoint is being made, and keeps others from being made as long as the answer is held.
    pub(crate) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        // Nobody closes it.
        Arc::clone(&self.turns).acquire_owned().await.ok()
    }

    /// Whether there is something to do, or to look up first. Then other callers are told that there is not, until the work has ended.
    fn begin(&self, key: &TableKey, version: u64, now: Instant) -> bool {
        let mut tables = self.locked();
        let known = tables.entry(key.clone()).or_default();
        if known.is_busy {
            return false;
        }
        if version == 0 {
            known.last = Some(LastCheckpoint::default());
        }
        // A log that is shorter than it was is another one.
        known.last = known.last.filter(|last| last.version.is_none_or(|last| last <= version));
        known.is_busy = known.last.is_none_or(|last| last.is_due(version, self.every_commits, now));
        known.is_busy
    }

    fn end(&self, key: &TableKey, last: Option<LastCheckpoint>) {
        self.locked().insert(key.clone(), KnownCheckpoint { last, is_busy: false });
    }

    /// The last checkpoint before a version: as remembered, or out of the log.
    async fn look_up(&self, key: &TableKey, version: u64, table: &DeltaTable) -> Result<LastCheckpoint, EngineError> {
        let known = self.locked().get(key).and_then(|known| known.last);
        if let Some(last) = known {
            return Ok(last);
        }
        let found = checkpoint_files::hint(&table.object_store()).await?;
        Ok(LastCheckpoint { version: found.filter(|last| *last <= version), not_before: None })
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, HashMap<TableKey, KnownCheckpoint>> {
        // A panic elsewhere cannot leave the map half changed.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn opened_at(log_store: LogStoreRef, version: u64) -> Result<DeltaTable, DeltaTableError> {
    let mut table = DeltaTable::new(log_store);
    table.load_version(version).await?;
    Ok(table)
}

/// Makes a checkpoint, and a new handle: those that are open do not fold what they have gathered. The answer is the last checkpoint then.
pub(crate) async fn make(
    key: &TableKey,
    version: u64,
    table: DeltaTable,
    handles: Arc<OpenTables>,
    before: LastCheckpoint,
) -> LastCheckpoint {
    let began = Instant::now();
    let runtime = tokio::runtime::Handle::current();
    // It computes more than it waits.
    let making = tokio::task::spawn_blocking(move || {
        runtime.block_on(async {
            checkpoints::create_checkpoint(&table, None).await.map_err(EngineError::delta)?;
            let mut anew = DeltaTable::new(table.log_store());
            Ok::<_, EngineError>((began.elapsed(), commit::load(&mut anew).await.map(|_| anew)))
        })
    });
    let (took, anew) = match making.await.map_err(EngineError::interrupted).flatten() {
        Ok(made) => made,
        Err(error) => {
            tracing::warn!(table = %key, version, %error, "checkpoint failed; a later commit tries again");
            return LastCheckpoint { not_before: Some(Instant::now() + PAUSE_AFTER_FAILURE), ..before };
        }
    };
    match anew {
        Ok(anew) => handles.renew(key, anew, version),
        Err(_) => handles.outdate(key, version),
    }
    let milliseconds = lake_shared::retry::milliseconds(took);
    tracing::debug!(table = %key, version, milliseconds, "checkpoint made");
    let not_before = (took > LARGE_FROM).then(|| Instant::now() + took * PAUSE_FACTOR);
    LastCheckpoint { version: Some(version), not_before }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use lake_shared::identity::{Kind, Space};

    use super::*;

    fn key() -> TableKey {
        TableKey { space: Space { domain: "demo".into(), kind: Kind::Case }, document_type: "t".into() }
    }

    #[test]
    fn commits_bring_the_next_checkpoint_and_a_large_one_waits() {
        let now = Instant::now();
        let none = LastCheckpoint::default();
        assert!(!none.is_due(62, 64, now) && none.is_due(63, 64, now) && none.is_due(0, 1, now));
        let last = LastCheckpoint { version: Some(70), not_before: None };
        assert!(!last.is_due(133, 64, now) && last.is_due(134, 64, now) && last.is_due(500, 64, now));
        let large = LastCheckpoint { not_before: Some(now + Duration::from_secs(100)), ..last };
        assert!(!large.is_due(500, 64, now) && large.is_due(500, 64, now + Duration::from_secs(100)));
    }

    #[test]
    fn a_table_is_looked_at_once_and_by_one() {
        let (checkpoints, now) = (LogCheckpoints::new(10), Instant::now());
        assert!(checkpoints.begin(&key(), 500, now), "not looked up yet");
        assert!(!checkpoints.begin(&key(), 501, now), "being looked up");
        checkpoints.end(&key(), Some(LastCheckpoint { version: Some(498), not_before: None }));
        assert!(!checkpoints.begin(&key(), 507, now));
        assert!(checkpoints.begin(&key(), 508, now));
        checkpoints.end(&key(), Some(LastCheckpoint { version: Some(508), not_before: None }));
        assert!(checkpoints.begin(&key(), 7, now), "another log");
        checkpoints.end(&key(), None);
        assert!(!checkpoints.begin(&key(), 0, now), "a new log has none");
        assert!(checkpoints.begin(&key(), 9, now));
    }
}

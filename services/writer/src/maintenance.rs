//! Regular compaction and clean-up of the tables, space by space, beside the commits.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lake_shared::error_chain::Chain;
use lake_shared::identity::Space;
use serde::Deserialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::metastore::{Metastore, MetastoreError, QuarantineBounds};
use crate::table_store::{TableStatus, TableStore};

/// Section `[maintenance]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MaintenanceOptions {
    /// Hours between two rounds of clean-up.
    pub every_hours: u64,
    /// Seconds between two rounds of compaction; 0 leaves compaction to the clean-up, which begins with it.
    pub compact_every_seconds: u64,
    /// Seconds between two looks whether the table of tables, which tells analysts how fresh each table is, is to be written anew; 0: there is none.
    pub status_table_every_seconds: u64,
    /// Days after which an entry leaves the quarantine.
    pub quarantine_days: u32,
    /// Most entries of the quarantine; beyond them the older ones leave, of the domains that have most.
    pub quarantine_entries_max: u32,
    /// Most bytes of what the entries keep, in the same way.
    pub quarantine_payload_bytes_max: u64,
}

impl MaintenanceOptions {
    /// How much the quarantine keeps.
    pub fn quarantine_bounds(&self) -> QuarantineBounds {
        QuarantineBounds {
            age_max_us: i64::from(self.quarantine_days).saturating_mul(86_400_000_000),
            entries_max: self.quarantine_entries_max.into(),
            payload_bytes_max: i64::try_from(self.quarantine_payload_bytes_max).unwrap_or(i64::MAX),
        }
    }
}

impl Default for MaintenanceOptions {
    /// Clean-up every 6 hours, compaction every 30 s, the table of tables every 5 minutes; a quarantine of 90 days, 100,000 entries and 1 GiB.
    fn default() -> Self {
        Self {
            every_hours: 6,
            compact_every_seconds: 30,
            status_table_every_seconds: 300,
            quarantine_days: 90,
            quarantine_entries_max: 100_000,
            quarantine_payload_bytes_max: 1 << 30,
        }
    }
}

/// The first clean-up comes no earlier than so many seconds after the start, when indexes are loaded and the queue is worked off.
const FIRST_CLEAN_UP_SECONDS: u64 = 300;

/// After this time the table of tables is written anew although nothing has changed.
const STATUS_TOLD_AGAIN_AFTER: Duration = Duration::from_secs(3_600);

/// Compacts and cleans up in rounds until `shutdown`. A failure in one space is logged and does not keep the others from their turn.
pub async fn run(
    store: Arc<dyn TableStore>,
    metastore: Arc<dyn Metastore>,
    options: MaintenanceOptions,
    shutdown: CancellationToken,
) {
    tokio::select! {
        () = compact(&*store, options.compact_every_seconds) => {}
        () = clean_up(&*store, &*metastore, waits(options.every_hours), &shutdown) => {}
        () = tell_status(&*store, &*metastore, Duration::from_secs(options.status_table_every_seconds), STATUS_TOLD_AGAIN_AFTER) => {}
        // What is under way is given up: files of a compaction that is not committed are found by a clean-up.
        () = shutdown.cancelled() => {}
    }
}

async fn compact(store: &dyn TableStore, every_seconds: u64) {
    if every_seconds == 0 {
        return std::future::pending().await;
    }
    let mut more = false;
    loop {
        if !std::mem::take(&mut more) {
            tokio::time::sleep(Duration::from_secs(every_seconds)).await;
        }
        for space in store.spaces_in_use() {
            match store.compact(&space).await {
                Ok(compacted) => more |= compacted.more,
                Err(error) => {
                    tracing::warn!(%space, error = %Chain(&error), "compaction failed; next round tries again");
                }
            }
        }
    }
}

/// Keeps the table of tables up to date, and writes it anew after a while in which nothing has changed, so that readers see that somebody looks.
async fn tell_status(store: &dyn TableStore, metastore: &dyn Metastore, every: Duration, again_after: Duration) {
    if every.is_zero() {
        return std::future::pending().await;
    }
    let mut told: Option<(Vec<TableStatus>, Instant)> = None;
    loop {
        tokio::time::sleep(every).await;
        let now = match status(metastore).await {
            Ok(now) => now,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the table of tables stays as it is; the next round tries again");
                continue;
            }
        };
        let is_told = told.as_ref().is_some_and(|(told, at)| *told == now && at.elapsed() < again_after);
        if is_told || (told.is_none() && now.is_empty()) {
            continue;
        }
        match store.tell_status(&now).await {
            Ok(()) => told = Some((now, Instant::now())),
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the table of tables could not be written; the next round tries again");
            }
        }
    }
}

/// The rows of the table of tables.
async fn status(metastore: &dyn Metastore) -> Result<Vec<TableStatus>, MetastoreError> {
    let (tables, pauses) = tokio::join!(metastore.tables(None), metastore.pauses());
    let pauses = pauses?;
    let is_paused = |of: &Space| pauses.iter().any(|pause| pause.space.as_ref().is_none_or(|space| space == of));
    let rows = tables?.into_iter().map(|record| TableStatus { paused: is_paused(&record.key.space), record });
    Ok(rows.collect())
}

/// Time before the first clean-up, and before each other one. The first one comes soon, as a writer may be started again more often than
/// rounds come, but not at the same time in all that are started together.
fn waits(every_hours: u64) -> (Duration, Duration) {
    let every = Duration::from_secs(every_hours.max(1).saturating_mul(3_600));
    let random = Uuid::new_v4().as_u128() % u128::from(FIRST_CLEAN_UP_SECONDS);
    let first = Duration::from_secs(FIRST_CLEAN_UP_SECONDS + u64::try_from(random).unwrap_or_default());
    (first.min(every), every)
}

async fn clean_up(
    store: &dyn TableStore,
    metastore: &dyn Metastore,
    (mut wait, every): (Duration, Duration),
    shutdown: &CancellationToken,
) {
    loop {
        tokio::time::sleep(std::mem::replace(&mut wait, every)).await;
        for space in spaces(metastore).await {
            if shutdown.is_cancelled() {
                return;
            }
            match store.maintain(&space).await {
                Ok(done) => tracing::info!(
                    %space,
                    tables = done.tables,
                    files_compacted = done.files_compacted,
                    files_deleted = done.files_deleted,
                    log_files_deleted = done.log_files_deleted,
                    tombstones_forgotten = done.tombstones_forgotten,
                    "cleaned up"
                ),
                Err(error) => tracing::warn!(%space, error = %Chain(&error), "clean-up failed; next round tries again"),
            }
        }
        if let Err(error) = store.clean_up_status().await {
            tracing::warn!(error = %Chain(&error), "the table of tables was not cleaned up; next round tries again");
        }
    }
}

async fn spaces(metastore: &dyn Metastore) -> BTreeSet<Space> {
    metastore.spaces().await.unwrap_or_else(|error| {
        tracing::warn!(error = %Chain(&error), "the spaces to clean up are not known; next round tries again");
        BTreeSet::new()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use lake_shared::identity::{Kind, TableKey};

    use super::*;
    use crate::metastore::NewTable;
    use crate::metastore::sqlite::SqliteMetastore;
    use crate::metastore::steering::Steering;
    use crate::table_store::fake::FakeStore;

    #[test]
    fn the_first_clean_up_does_not_wait_for_its_round() {
        for hours in [0, 1, 6, u64::MAX] {
            let (first, every) = waits(hours);
            assert!(first >= Duration::from_secs(300) && first < Duration::from_secs(600), "{first:?}");
            assert!(every >= Duration::from_secs(3_600));
        }
    }

    #[tokio::test]
    async fn each_clean_up_has_its_wait() {
        let shutdown = CancellationToken::new();
        let metastore = SqliteMetastore::memory();
        metastore.migrate().await.unwrap();
        let space = Space { domain: "demo".into(), kind: Kind::Case };
        let key = TableKey { space, document_type: "t".into() };
        let table = NewTable { key, path: "path".into(), location: "path".into(), suffix: String::new() };
        metastore.register_tables(&[table]).await.unwrap();
        let (soon, never) = (Duration::from_millis(1), Duration::from_secs(3_600));
        for (waits, at_least) in [((soon, never), 1), ((soon, soon), 3)] {
            let store = FakeStore::new();
            let counted = async {
                while store.cleaned() < at_least {
                    tokio::time::sleep(soon).await;
                }
            };
            tokio::select! {
                () = clean_up(&*store, &metastore, waits, &shutdown) => {}
                () = counted => {}
            }
            assert!(at_least > 1 || store.cleaned() == 1);
        }
    }

    #[tokio::test]
    async fn the_table_of_tables_is_written_when_something_has_changed_and_once_in_a_while() {
        let metastore = SqliteMetastore::memory();
        metastore.migrate().await.unwrap();
        let space = Space { domain: "demo".into(), kind: Kind::Case };
        let table = |name: &str| {
            let key = TableKey { space: space.clone(), document_type: name.into() };
            NewTable { key, path: name.into(), location: name.into(), suffix: String::new() }
        };
        let store = FakeStore::new();
        let told = |times: usize| {
            let store = &store;
            async move {
                while store.told.lock().unwrap().len() < times {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                store.told.lock().unwrap().last().cloned().unwrap_or_default()
            }
        };
        let (often, never, soon) = (Duration::from_millis(1), Duration::from_secs(3_600), Duration::from_millis(5));
        let steps = async {
            // There is nothing to tell of.
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(store.told.lock().unwrap().len(), 0);
            metastore.register_tables(&[table("t")]).await.unwrap();
            assert_eq!(told(1).await.len(), 1);
            metastore.register_tables(&[table("u")]).await.unwrap();
            assert_eq!(told(2).await.len(), 2);
            metastore.pause(Some(&space), "ann", "").await.unwrap();
            assert!(told(3).await.iter().all(|row| row.paused));
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(store.told.lock().unwrap().len(), 3, "nothing has changed");
        };
        tokio::select! {
            () = tell_status(&*store, &metastore, often, never) => {}
            () = steps => {}
        }
        tokio::select! {
            () = tell_status(&*store, &metastore, often, soon) => {}
            rows = told(6) => assert_eq!(rows.len(), 2),
        }
    }
}

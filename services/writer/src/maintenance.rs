//! Regular compaction and clean-up of the tables, space by space, beside the commits.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lake_shared::error_chain::Chain;
use lake_shared::identity::Space;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::metastore::Metastore;
use crate::table_store::TableStore;

/// Section `[maintenance]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MaintenanceOptions {
    /// Hours between two rounds of clean-up.
    pub every_hours: u64,
    /// Seconds between two rounds of compaction; 0 for none but before each clean-up.
    pub compact_every_seconds: u64,
}

impl Default for MaintenanceOptions {
    fn default() -> Self {
        Self { every_hours: 6, compact_every_seconds: 30 }
    }
}

/// Compacts and cleans up in rounds until `shutdown`. Trouble with one space is logged and does not keep the others from their turn.
pub async fn run(
    store: Arc<dyn TableStore>,
    metastore: Arc<dyn Metastore>,
    options: MaintenanceOptions,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    tokio::select! {
        () = compact(&*store, options.compact_every_seconds) => {}
        () = clean_up(&*store, &*metastore, options.every_hours, &shutdown) => {}
        // What is under way is given up: files of a compaction that is not committed are found by a clean-up.
        () = shutdown.cancelled() => {}
    }
    Ok(())
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

async fn clean_up(store: &dyn TableStore, metastore: &dyn Metastore, every_hours: u64, shutdown: &CancellationToken) {
    let every = Duration::from_secs(every_hours.max(1) * 3_600);
    loop {
        tokio::time::sleep(every).await;
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
    }
}

async fn spaces(metastore: &dyn Metastore) -> BTreeSet<Space> {
    match metastore.tables(None).await {
        Ok(tables) => tables.into_iter().map(|table| table.key.space).collect(),
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "maintenance is put off");
            BTreeSet::new()
        }
    }
}

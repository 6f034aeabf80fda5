//! Regular clean-up of the tables, space by space, beside the commits.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lake_shared::error_chain::Chain;
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
}

impl Default for MaintenanceOptions {
    fn default() -> Self {
        Self { every_hours: 6 }
    }
}

/// Cleans up in rounds until `shutdown`. Trouble with one space is logged and does not keep the others from their turn.
pub async fn run(
    store: Arc<dyn TableStore>,
    metastore: Arc<dyn Metastore>,
    options: MaintenanceOptions,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let every = Duration::from_secs(options.every_hours.max(1) * 3_600);
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = shutdown.cancelled() => return Ok(()),
        }
        let tables = match metastore.tables(None).await {
            Ok(tables) => tables,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "clean-up is put off");
                continue;
            }
        };
        let spaces: BTreeSet<_> = tables.into_iter().map(|table| table.key.space).collect();
        for space in spaces {
            if shutdown.is_cancelled() {
                return Ok(());
            }
            match store.maintain(&space).await {
                Ok(done) => tracing::info!(
                    %space,
                    tables = done.tables,
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

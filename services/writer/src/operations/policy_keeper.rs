//! Brings the policies of tables that are kept in the metastore ([`crate::metastore::steering`]) into force, in the writer that holds the lease.

use std::sync::Arc;
use std::time::Duration;

use lake_shared::error_chain::Chain;
use lake_shared::retry::Backoff;
use tokio_util::sync::CancellationToken;

use crate::metastore::steering::table_policy::Policies;
use crate::metastore::{Metastore, MetastoreError};

/// Time between two looks at the policies.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Brings the policies into force before anything is written. Waits for a metastore that does not answer; `false`: `shutdown` came before.
pub(crate) async fn at_start(metastore: &dyn Metastore, policies: &Policies, shutdown: &CancellationToken) -> bool {
    let mut backoff = Backoff::default();
    loop {
        match read(metastore, policies).await {
            Ok(()) => return true,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the policies of tables cannot be read now; nothing is written before");
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return false,
            () = tokio::time::sleep(backoff.next_wait()) => {}
        }
    }
}

/// Keeps the policies as the metastore has them, until `shutdown`.
pub(crate) async fn run(metastore: Arc<dyn Metastore>, policies: Policies, shutdown: CancellationToken) {
    let mut is_known = true;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let read = read(&*metastore, &policies).await;
        if let Err(error) = &read
            && is_known
        {
            tracing::warn!(error = %Chain(error), "the policies of tables cannot be read now; those of before stay in force");
        }
        is_known = read.is_ok();
    }
}

async fn read(metastore: &dyn Metastore, policies: &Policies) -> Result<(), MetastoreError> {
    let kept = metastore.policies().await?;
    policies.replace(kept.into_iter().map(|record| (record.table, record.policy)).collect());
    Ok(())
}

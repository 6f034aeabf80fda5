//! The right to commit. One writer holds it; others wait until it is given back or expires.
//!
//! A holder that cannot renew in time stops before the lease runs out: by its own clock, measured from before the last renewal was asked for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::metastore::{Lease, Metastore, MetastoreError};

/// Name of the lease for all spaces of a lake.
const LEASE_NAME: &str = "writer";

/// Section `[lease]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LeaseOptions {
    /// How long a writer that died keeps others waiting, in seconds. It renews at a third of that.
    pub seconds: u64,
    /// Who holds it, for people; made up when empty.
    pub owner: String,
}

impl Default for LeaseOptions {
    fn default() -> Self {
        Self { seconds: 15, owner: String::new() }
    }
}

/// A lease that is held.
pub struct HeldLease {
    metastore: Arc<dyn Metastore>,
    lease: Lease,
    duration: Duration,
    asked: Instant,
}

impl HeldLease {
    /// Waits until nobody else holds the lease, or until `shutdown` (`None`).
    pub async fn acquire(
        metastore: Arc<dyn Metastore>,
        options: &LeaseOptions,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Option<Self>> {
        let duration = Duration::from_secs(options.seconds.max(3));
        let owner = match &*options.owner {
            "" => uuid::Uuid::new_v4().to_string(),
            // Two processes with one configuration are two owners.
            name => format!("{name}-{}", uuid::Uuid::new_v4()),
        };
        let mut told = false;
        loop {
            let asked = Instant::now();
            match metastore.acquire_lease(LEASE_NAME, &owner, microseconds(duration)).await {
                Ok(Some(lease)) => {
                    tracing::info!(owner, epoch = lease.epoch, "holding the writer's lease");
                    return Ok(Some(Self { metastore, lease, duration, asked }));
                }
                Ok(None) if !told => {
                    told = true;
                    tracing::info!(owner, "another writer is active; standing by");
                }
                Ok(None) => {}
                Err(error) => warn(&error),
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
                () = shutdown.cancelled() => return Ok(None),
            }
        }
    }

    /// Keeps the lease until `shutdown`, then gives it back. An error means that it is lost: nothing may be committed any more.
    pub async fn keep(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let every = self.duration / 3;
        loop {
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = shutdown.cancelled() => break,
            }
            let asked = Instant::now();
            // A database that hangs must not hide that time is up.
            let patience = self.duration.saturating_sub(self.asked.elapsed()).saturating_sub(every / 2);
            let renewing = self.metastore.renew_lease(&self.lease, microseconds(self.duration));
            match tokio::time::timeout(patience, renewing).await {
                Ok(Ok(Some(lease))) => (self.lease, self.asked) = (lease, asked),
                Ok(Ok(None)) => anyhow::bail!("another writer has taken the lease; this one stops"),
                Ok(Err(error)) => warn(&error),
                Err(_) => tracing::warn!("the metastore does not answer; the lease is not renewed"),
            }
            let left = self.duration.saturating_sub(self.asked.elapsed());
            anyhow::ensure!(
                left > every / 2,
                "the writer's lease could not be renewed in time; is the metastore reachable?"
            );
        }
        if let Err(error) = self.metastore.release_lease(&self.lease).await {
            warn(&error);
        }
        Ok(())
    }
}

fn microseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn warn(error: &MetastoreError) {
    tracing::warn!(error = %lake_shared::error_chain::Chain(error), "lease; will be tried again");
}

//! The lease: the right to commit to the tables of a lake. One writer holds it; others stand by until it is given back or expires.
//!
//! A holder that cannot renew the lease in time stops before it runs out: by its own clock, measured from before the last renewal was sent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::metastore::{Lease, Metastore, MetastoreError};

/// Name in the metastore of the lease for all spaces of a lake.
pub const LEASE_NAME: &str = "writer";

/// Section `[lease]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LeaseOptions {
    /// Seconds for which a writer that died keeps the others standing by; at least 3. The holder renews the lease after a third of it.
    pub seconds: u64,
    /// Name of this writer for people, in logs and in the metastore; a random one is added, as it must be unique. Empty: only the random one.
    pub owner: String,
    /// Where other processes reach this writer, for example `writer-0.lake:9700`. It stands in the metastore beside the lease. Empty: unknown.
    pub address: String,
}

impl Default for LeaseOptions {
    /// 15 s; no name and no address.
    fn default() -> Self {
        Self { seconds: 15, owner: String::new(), address: String::new() }
    }
}

impl LeaseOptions {
    /// A claimant of the lease with a name that no other process has.
    pub fn claimant(&self) -> LeaseClaimant {
        let owner = match &*self.owner {
            "" => uuid::Uuid::new_v4().to_string(),
            // Two processes with one configuration are two owners.
            name => format!("{name}-{}", uuid::Uuid::new_v4()),
        };
        let duration = Duration::from_secs(self.seconds.max(3));
        LeaseClaimant { owner, address: self.address.clone(), duration }
    }
}

/// A process that wants the lease.
#[derive(Clone, Debug)]
pub struct LeaseClaimant {
    /// Name of the process, unique to it.
    pub owner: String,
    /// Where other processes reach it; empty when that is not configured.
    pub address: String,
    /// For how long the lease is taken and renewed.
    pub duration: Duration,
}

/// The lease, held by this process. It ends by itself unless [`HeldLease::keep`] runs.
pub struct HeldLease {
    metastore: Arc<dyn Metastore>,
    lease: Lease,
    duration: Duration,
    /// When the call was made that took or renewed the lease last: it counts from then at the earliest.
    asked: Instant,
}

impl HeldLease {
    /// Stands by until no other owner holds the lease, and takes it; `None` when `shutdown` comes first. A metastore that does not answer is
    /// asked again.
    pub async fn acquire(
        metastore: Arc<dyn Metastore>,
        claimant: &LeaseClaimant,
        shutdown: &CancellationToken,
    ) -> Option<Self> {
        let LeaseClaimant { owner, address, duration } = claimant;
        let mut told = false;
        loop {
            let asked = Instant::now();
            match metastore.acquire_lease(LEASE_NAME, owner, address, microseconds(*duration)).await {
                Ok(Some(lease)) => {
                    tracing::info!(owner, epoch = lease.epoch, "holding the writer's lease");
                    return Some(Self { metastore, lease, duration: *duration, asked });
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
                () = shutdown.cancelled() => return None,
            }
        }
    }

    /// The lease as it was taken.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Keeps the lease until `shutdown`, then gives it back.
    ///
    /// # Errors
    ///
    /// The lease is lost, or will run out before it can be renewed: nothing may be committed any more.
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

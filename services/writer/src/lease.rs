//! The lease: the right to commit to the tables of a lake. One writer holds it; others stand by until it is given back or expires.
//!
//! A holder that cannot renew the lease in time stops before it runs out: by its own clock, measured from before the last renewal was sent, and
//! with the time in which its machine was suspended. Whatever it tries to write later is refused by the metastore ([`crate::metastore::fence`])
//! or met by the next holder as a commit of another program. A holder that reaches the queue or the store no longer gives way to one that does.

use std::time::Duration;

use serde::Deserialize;

pub use self::held::{HeldLease, LeaseEnd};
pub use self::reach::Reach;

mod held;
mod reach;

/// Name in the metastore of the lease for all spaces of a lake.
pub const LEASE_NAME: &str = "writer";

/// Section `[lease]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LeaseOptions {
    /// Seconds for which a writer that died keeps the others standing by; at least 3. The holder renews the lease after a third of it, and after
    /// twice of it without the queue or the store gives way to a writer that has them.
    pub seconds: u64,
    /// Name of this writer for people, in logs and in the metastore; a random one is added, as it must be unique. Empty: only the random one.
    pub owner: String,
    /// Where other processes reach this writer, for example `writer-0.lake:9700`. It stands in the metastore beside the lease. Empty: unknown.
    pub address: String,
}

impl Default for LeaseOptions {
    /// 9 s; no name and no address.
    fn default() -> Self {
        Self { seconds: 9, owner: String::new(), address: String::new() }
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

//! Standing by for the lease, keeping it, and giving it back.

use std::sync::Arc;
use std::time::Duration;

use lake_shared::error_chain::Chain;
use lake_shared::retry::Backoff;
use tokio_util::sync::CancellationToken;

use super::{LEASE_NAME, LeaseClaimant, Reach};
use crate::boot_clock::BootInstant;
use crate::metastore::fence::Fence;
use crate::metastore::{Lease, Metastore, MetastoreError};

/// Time between two tries to take the lease while another writer holds it.
const TRY_EVERY: Duration = Duration::from_millis(500);

/// Shortest and longest time between two tries while the metastore fails.
const FAILED_FIRST: Duration = Duration::from_millis(500);
const FAILED_LONGEST: Duration = Duration::from_secs(5);

/// A lease that another process asked for within this time, microseconds, is wanted.
const WANTED_WITHIN_US: i64 = 10_000_000;

/// Why a lease was not kept any longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseEnd {
    /// Another writer has taken it, or it could not be renewed in time: nothing may be written any more.
    Lost(&'static str),
    /// Something is missing that a writer needs, and another process that has it wants the lease. It is to be given back.
    GivesWay(String),
}

/// The lease, held by this process. It ends by itself unless [`HeldLease::keep`] runs.
pub struct HeldLease {
    metastore: Arc<dyn Metastore>,
    lease: Lease,
    duration: Duration,
    fence: Fence,
    reach: Reach,
}

impl HeldLease {
    /// Stands by until no other owner holds the lease and everything that a writer needs is there, and takes it; `None` when `shutdown` comes
    /// first. A metastore that does not answer is asked again.
    pub async fn acquire(
        metastore: &Arc<dyn Metastore>,
        claimant: &LeaseClaimant,
        reach: &Reach,
        shutdown: &CancellationToken,
    ) -> Option<Self> {
        let mut claiming = Claiming::default();
        loop {
            let wait = tokio::select! {
                claimed = claiming.claim(metastore, claimant, reach) => match claimed {
                    Ok(held) => return Some(held),
                    Err(wait) => wait,
                },
                () = shutdown.cancelled() => return None,
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = shutdown.cancelled() => return None,
            }
        }
    }

    /// The lease as it was taken or renewed last.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// What writes under this lease carry.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Keeps the lease for as long as that can be.
    pub async fn keep(&mut self) -> LeaseEnd {
        let every = self.duration / 3;
        let (fence, reach) = (self.fence.clone(), self.reach.clone());
        let mut looking = std::pin::pin!(async {
            loop {
                reach.look().await;
                tokio::time::sleep(every).await;
            }
        });
        loop {
            // Whatever hangs or sleeps in here: the time is over when it is over.
            tokio::select! {
                () = fence.lost() => return taken(),
                () = fence.run_out() => {
                    return LeaseEnd::Lost("it could not be renewed in time; is the metastore reachable?");
                }
                () = &mut looking => {}
                ended = self.renew_after(every) => {
                    if let Some(end) = ended {
                        return end;
                    }
                }
            }
        }
    }

    /// Gives the lease back, so that the next owner need not wait. To be called when nothing is written under it any more.
    pub async fn give_back(self) {
        let giving_back = self.metastore.release_lease(&self.lease);
        match tokio::time::timeout(self.duration, giving_back).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = %Chain(&error), "the lease was not given back and runs out"),
            Err(_) => tracing::warn!("the metastore does not answer; the lease was not given back and runs out"),
        }
    }

    /// Renews the lease after a while, and tries again soon where that fails. Answers why it is not to be kept any longer.
    async fn renew_after(&mut self, every: Duration) -> Option<LeaseEnd> {
        tokio::time::sleep(every).await;
        loop {
            let asked = BootInstant::now();
            let renewing = self.metastore.renew_lease(&self.lease, microseconds(self.duration));
            match tokio::time::timeout(every, renewing).await {
                Ok(Ok(Some(lease))) => {
                    self.fence.extend(surely_until(asked, self.duration));
                    self.lease = lease;
                    return self.gives_way();
                }
                Ok(Ok(None)) => return Some(taken()),
                Ok(Err(error)) => {
                    tracing::warn!(error = %Chain(&error), "the lease is not renewed; will be tried again")
                }
                Err(_) => {
                    tracing::warn!("the metastore does not answer; the lease is not renewed, will be tried again")
                }
            }
            tokio::time::sleep(every / 4).await;
        }
    }

    /// Whether another process that has all it needs should have the lease.
    fn gives_way(&self) -> Option<LeaseEnd> {
        let renewed_us = self.lease.expires_us.saturating_sub(microseconds(self.duration));
        let is_wanted = self.lease.wanted_us > renewed_us.saturating_sub(WANTED_WITHIN_US);
        self.reach.missing_for(self.duration * 2).filter(|_| is_wanted).map(LeaseEnd::GivesWay)
    }
}

/// Tries to take the lease, and what was told of them.
#[derive(Default)]
struct Claiming {
    told: Option<String>,
    backoff: Option<Backoff>,
}

impl Claiming {
    /// One try. The error is the time to wait before the next.
    async fn claim(
        &mut self,
        metastore: &Arc<dyn Metastore>,
        claimant: &LeaseClaimant,
        reach: &Reach,
    ) -> Result<HeldLease, Duration> {
        let LeaseClaimant { owner, address, duration } = claimant;
        if let Some(missing) = reach.missing().await {
            self.tell(format!("standing by without asking for the lease: {missing}"));
            return Err(TRY_EVERY);
        }
        let asked = BootInstant::now();
        let acquiring = metastore.acquire_lease(LEASE_NAME, owner, address, microseconds(*duration));
        match tokio::time::timeout(*duration, acquiring).await {
            Ok(Ok(Some(lease))) => {
                tracing::info!(owner, epoch = lease.epoch, "holding the writer's lease");
                let fence = Fence::new(&lease, surely_until(asked, *duration));
                let (metastore, reach) = (Arc::clone(metastore), reach.clone());
                Ok(HeldLease { metastore, lease, duration: *duration, fence, reach })
            }
            Ok(Ok(None)) => {
                self.tell("another writer is active; standing by".to_owned());
                self.backoff = None;
                Err(TRY_EVERY)
            }
            Ok(Err(error)) => Err(self.failed(&error)),
            Err(_) => {
                tracing::warn!("the metastore does not answer; the lease is asked for again");
                Err(TRY_EVERY)
            }
        }
    }

    fn failed(&mut self, error: &MetastoreError) -> Duration {
        tracing::warn!(error = %Chain(error), "the lease cannot be taken; will be tried again");
        self.told = None;
        self.backoff.get_or_insert_with(|| Backoff::new(FAILED_FIRST, FAILED_LONGEST)).next_wait()
    }

    /// Says something once, not at each try.
    fn tell(&mut self, what: String) {
        if self.told.as_ref() != Some(&what) {
            tracing::info!("{what}");
            self.told = Some(what);
        }
    }
}

fn taken() -> LeaseEnd {
    LeaseEnd::Lost("another writer has taken it")
}

/// Until when a lease surely lasts that was asked for at an instant: the last sixth of it is for what is under way at the end.
fn surely_until(asked: BootInstant, duration: Duration) -> BootInstant {
    asked.plus(duration - duration / 6)
}

fn microseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;

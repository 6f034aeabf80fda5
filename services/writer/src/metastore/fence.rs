//! The lease as those carry it who write under it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Lease;
use crate::boot_clock::BootInstant;

/// This writer does not hold the lease any more, so nothing may be written under it.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("this writer has lost its lease, and another one may be writing; nothing was written")]
pub struct LeaseLost;

/// Longest time between two looks at the clock while the end of a lease is waited for: a machine that was suspended notices the end that late.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The right to write that a held lease gives: what the metastore compares at each write, and until when it surely lasts by this machine's own
/// clock. Shared by all that write under one holding of the lease.
#[derive(Clone, Debug)]
pub struct Fence(Arc<Holding>);

#[derive(Debug)]
struct Holding {
    name: String,
    owner: String,
    epoch: i64,
    until: Mutex<BootInstant>,
    lost: CancellationToken,
}

impl Fence {
    /// The right that a lease gives until an instant.
    pub fn new(lease: &Lease, until: BootInstant) -> Self {
        Self(Arc::new(Holding {
            name: lease.name.clone(),
            owner: lease.owner.clone(),
            epoch: lease.epoch,
            until: Mutex::new(until),
            lost: CancellationToken::new(),
        }))
    }

    /// Name of the lease.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its holder.
    pub fn owner(&self) -> &str {
        &self.0.owner
    }

    /// Its epoch, which is another one as soon as somebody takes the lease again.
    pub fn epoch(&self) -> i64 {
        self.0.epoch
    }

    /// Whether something may be written now, as far as this process knows.
    ///
    /// # Errors
    /// When the lease was taken by another writer or may have run out.
    pub fn check(&self) -> Result<(), LeaseLost> {
        if self.0.lost.is_cancelled() || self.until().left().is_zero() {
            return Err(LeaseLost);
        }
        Ok(())
    }

    /// The lease was renewed.
    pub(crate) fn extend(&self, until: BootInstant) {
        *self.locked() = until;
    }

    /// A write was refused, as another writer has taken the lease.
    pub(crate) fn set_lost(&self) {
        self.0.lost.cancel();
    }

    /// Waits until a write is refused.
    pub(crate) async fn lost(&self) {
        self.0.lost.cancelled().await;
    }

    /// Waits until the lease may have run out.
    pub(crate) async fn run_out(&self) {
        loop {
            let left = self.until().left();
            if left.is_zero() {
                return;
            }
            // The timers of the runtime stand still while the machine is suspended.
            tokio::time::sleep(left.min(LOOK_EVERY)).await;
        }
    }

    fn until(&self) -> BootInstant {
        *self.locked()
    }

    fn locked(&self) -> MutexGuard<'_, BootInstant> {
        // An instant cannot be half changed.
        self.0.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fence(until: BootInstant) -> Fence {
        let lease = Lease {
            name: "writer".into(),
            owner: "a".into(),
            address: String::new(),
            epoch: 1,
            acquired_us: 0,
            expires_us: 0,
            wanted_us: 0,
        };
        Fence::new(&lease, until)
    }

    #[tokio::test]
    async fn it_lasts_until_its_time_is_over_or_a_write_is_refused() {
        let later = BootInstant::now().plus(Duration::from_secs(3_600));
        let (refused, over) = (fence(later), fence(BootInstant::now()));
        assert!(refused.check().is_ok());
        refused.set_lost();
        refused.lost().await;
        assert!(refused.check().is_err(), "whatever time is left");
        over.run_out().await;
        assert!(over.check().is_err());
        over.extend(later);
        assert!(over.check().is_ok());
    }
}

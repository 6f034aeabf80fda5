//! What the enricher remembers of HQ: location trees and users' locations. Bounded in size and age, and told what changed by broadcasts:
//! `lake.invalidate.location.<domain>` and `lake.invalidate.user.<domain>`, where the domain is a token and `_` stands for any.
//!
//! Invariant: what was read from HQ before an invalidation came is not used for anything that begins after it, not even when the
//! look-up was under way at that moment.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use lake_hq::source::Hq;
use lake_proto::queue::v1::Invalidation;
use lake_shared::escaped_names::UNKNOWN;
use lake_shared::queue::{Broadcast, Queue};
use lake_shared::retry::Backoff;
use lake_shared::wire;

use self::trees::Trees;
use self::users::Users;
use crate::metric_names;
use crate::options::EnricherOptions;

mod residents;
pub mod trees;
pub mod user_entries;
mod user_questions;
pub mod users;

/// The broadcasts that the caches listen to.
const PATTERN: &str = "lake.invalidate.>";

/// All caches of one enricher.
pub struct Caches {
    /// Location trees, by domain.
    pub trees: Trees,
    /// Locations of users, by user and domain.
    pub users: Users,
}

impl Caches {
    /// Empty caches in front of HQ.
    pub fn new(hq: &Hq, options: &EnricherOptions) -> Self {
        Self {
            trees: Trees::new(hq.database.clone(), &options.caches, options.location_types_max),
            users: Users::new(hq.users.clone(), &options.caches),
        }
    }

    /// Listens to invalidations for ever, and drops the entries that they name. `listening` is called once, when the first broadcast can be received.
    pub async fn keep_current(&self, queue: &dyn Queue, listening: impl FnOnce()) {
        let mut listening = Some(listening);
        let mut backoff = Backoff::default();
        loop {
            match queue.listen(PATTERN).await {
                Ok(mut broadcasts) => {
                    // Invalidations sent until now were not received.
                    self.forget_all();
                    backoff = Backoff::default();
                    if let Some(listening) = listening.take() {
                        listening();
                    }
                    while let Some(broadcast) = broadcasts.next().await {
                        self.invalidate(&broadcast);
                    }
                    tracing::debug!("the queue ended the broadcasts");
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot listen for invalidations; caches are cleared when it works again")
                }
            }
            // An ended stream may mean that the queue is closing: no hurry.
            tokio::time::sleep(backoff.next_wait().max(Duration::from_millis(100))).await;
        }
    }

    fn invalidate(&self, broadcast: &Broadcast) {
        match broadcast {
            Broadcast::MaybeMissed => {
                tracing::info!("invalidations may have been missed; caches cleared");
                self.forget_all();
            }
            Broadcast::Message { subject, payload } => {
                let mut tokens = subject.split('.').skip(2);
                let (what, domain) = (tokens.next(), tokens.next());
                let domain = domain.filter(|token| *token != UNKNOWN);
                match what {
                    Some("location") => {
                        metrics::counter!(metric_names::INVALIDATIONS_TOTAL, "cache" => "locations").increment(1);
                        self.trees.forget(domain, &ids(payload));
                    }
                    Some("user") => {
                        metrics::counter!(metric_names::INVALIDATIONS_TOTAL, "cache" => "users").increment(1);
                        self.users.forget(domain, &ids(payload));
                    }
                    _ => {}
                }
            }
        }
    }

    fn forget_all(&self) {
        self.trees.forget(None, &[]);
        self.users.forget(None, &[]);
    }
}

/// The ids of an invalidation. One that cannot be decoded counts as one without ids, which invalidates everything of the domain.
fn ids(payload: &Bytes) -> Vec<String> {
    wire::decode::<Invalidation>(payload).unwrap_or_default().ids
}

#[cfg(test)]
mod tests;

//! Each process of the lake says that it is alive, so that operators see which there are and how far they are.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lake_proto::queue::v1::Announcement;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Queue;
use crate::wire;

/// Time between two announcements.
pub const EVERY: Duration = Duration::from_secs(5);

/// Who has said nothing for so long is not there any more.
pub const GONE_AFTER: Duration = Duration::from_secs(16);

/// The announcements of all services, for a listener.
pub const SUBJECTS: &str = "lake.announce.*";

/// Letters of the part of an instance's name that is random.
const RANDOM_LETTERS: usize = 8;

/// Announces a service until `shutdown`. What it `tells` of itself beside its name and age is asked for each time. An announcement that is not taken is no trouble: the next one
/// follows.
pub async fn run(
    queue: Arc<dyn Queue>,
    service: &'static str,
    tells: impl Fn() -> Announcement + Send,
    shutdown: CancellationToken,
) {
    let host = std::env::var("HOSTNAME").unwrap_or_default();
    let random = Uuid::new_v4().simple().to_string();
    let instance = [service, &host, &random[..RANDOM_LETTERS]].into_iter().filter(|part| !part.is_empty());
    let instance = instance.collect::<Vec<_>>().join("-");
    let started_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    let subject = format!("lake.announce.{service}");
    let mut rounds = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = rounds.tick() => {}
        }
        let announcement = Announcement {
            service: service.to_owned(),
            instance: instance.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_us: i64::try_from(started_us).unwrap_or(i64::MAX),
            ..tells()
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            told = queue.broadcast(&subject, wire::encode(&announcement)) => {
                if let Err(error) = told {
                    tracing::debug!(%error, "the service could not announce itself");
                }
            }
        }
    }
}

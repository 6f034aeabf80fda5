//! Each process of the lake says that it is alive, so that operators see which there are and how far they are.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

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

/// Time over which a rate is told.
const RATE_OVER: Duration = Duration::from_secs(60);

/// What a service counts of its own work, for its announcements.
#[derive(Debug, Default)]
pub struct Activity {
    passed_total: AtomicU64,
    held_bytes: AtomicU64,
    held_bytes_max: AtomicU64,
}

impl Activity {
    /// Records or rows, with tombstones, are passed on.
    pub fn passed(&self, count: usize) {
        self.passed_total.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// So many bytes are held in memory now, of so many that may be.
    pub fn holds(&self, bytes: usize, bytes_max: usize) {
        self.held_bytes.store(bytes as u64, Ordering::Relaxed);
        self.held_bytes_max.store(bytes_max as u64, Ordering::Relaxed);
    }

    /// The part of an announcement that tells of it. Without a bound nothing was said of bytes.
    pub fn announcement(&self) -> Announcement {
        let held_bytes_max = Some(self.held_bytes_max.load(Ordering::Relaxed)).filter(|most| *most > 0);
        Announcement {
            passed_total: self.passed_total.load(Ordering::Relaxed),
            held_bytes: held_bytes_max.map(|_| self.held_bytes.load(Ordering::Relaxed)),
            held_bytes_max,
            ..Announcement::default()
        }
    }
}

/// A counter as it was lately, for its rate.
#[derive(Debug, Default)]
struct Rate(VecDeque<(Instant, u64)>);

impl Rate {
    /// Counts in a second, over the last minute or as much of it as is known.
    fn told(&mut self, now: Instant, total: u64) -> Option<f64> {
        while self.0.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > RATE_OVER) {
            self.0.pop_front();
        }
        self.0.push_back((now, total));
        let (since, before) = *self.0.front()?;
        let passed = now.saturating_duration_since(since).as_secs_f64();
        (passed > 0.0).then(|| total.saturating_sub(before) as f64 / passed)
    }
}

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
    let mut rate = Rate::default();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = rounds.tick() => {}
        }
        let told = tells();
        let announcement = Announcement {
            passed_per_second: rate.told(Instant::now(), told.passed_total),
            service: service.to_owned(),
            instance: instance.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_us: i64::try_from(started_us).unwrap_or(i64::MAX),
            ..told
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_minute() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        let mut told = |second: u64, total| rate.told(start + Duration::from_secs(second), total);
        assert_eq!((told(0, 500), told(10, 600)), (None, Some(10.0)));
        assert_eq!(told(60, 1_100), Some(10.0));
        assert_eq!(told(120, 1_100), Some(0.0), "what is older than a minute does not count");
        assert_eq!(told(130, 7), Some(0.0), "a total that falls is no rate below nothing");
    }

    #[test]
    fn bytes_are_told_by_who_bounds_them() {
        let activity = Activity::default();
        activity.passed(3);
        let told = activity.announcement();
        assert_eq!((told.passed_total, told.held_bytes, told.held_bytes_max), (3, None, None));
        activity.holds(0, 10);
        let told = activity.announcement();
        assert_eq!((told.held_bytes, told.held_bytes_max), (Some(0), Some(10)));
    }
}

//! What is known of the other processes of the lake, from what they announce ([`lake_shared::announcement`]).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use lake_proto::queue::v1::Announcement;
use lake_shared::announcement::{GONE_AFTER, SUBJECTS};
use lake_shared::queue::{Broadcast, Queue};
use lake_shared::wire;
use tokio_util::sync::CancellationToken;

/// Most processes that are remembered: what a client of the queue makes up must not fill the memory.
const REMEMBERED_MAX: usize = 1_000;

/// Time until listening is tried again.
const LISTEN_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// The processes that were heard of lately.
#[derive(Clone, Debug, Default)]
pub(crate) struct PipelineWatch(Arc<Mutex<HashMap<String, Heard>>>);

/// What was heard of a process last.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    pub(crate) announcement: Announcement,
    /// When.
    pub(crate) at: Instant,
}

impl PipelineWatch {
    /// Those that are there, by service and name.
    pub(crate) fn present(&self, now: Instant) -> Vec<Heard> {
        let mut heard = self.locked();
        heard.retain(|_, heard| now.saturating_duration_since(heard.at) < GONE_AFTER);
        let mut present: Vec<Heard> = heard.values().cloned().collect();
        drop(heard);
        let name = |heard: &Heard| (heard.announcement.service.clone(), heard.announcement.instance.clone());
        present.sort_by_cached_key(name);
        present
    }

    fn hear(&self, announcement: Announcement, now: Instant) {
        let mut heard = self.locked();
        if heard.len() >= REMEMBERED_MAX && !heard.contains_key(&announcement.instance) {
            heard.retain(|_, heard| now.saturating_duration_since(heard.at) < GONE_AFTER);
            if heard.len() >= REMEMBERED_MAX {
                return;
            }
        }
        heard.insert(announcement.instance.clone(), Heard { announcement, at: now });
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<String, Heard>> {
        // A panic elsewhere cannot leave an entry half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens until `shutdown`.
    pub(crate) async fn run(self, queue: Arc<dyn Queue>, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            match queue.listen(SUBJECTS).await {
                Ok(mut heard) => {
                    while let Some(Some(heard)) = shutdown.run_until_cancelled(heard.next()).await {
                        let Broadcast::Message { payload, .. } = heard else { continue };
                        match wire::decode::<Announcement>(&payload) {
                            Ok(announcement) => self.hear(announcement, Instant::now()),
                            Err(error) => tracing::debug!(%error, "an announcement cannot be understood"),
                        }
                    }
                }
                Err(error) => tracing::debug!(%error, "announcements cannot be listened to now"),
            }
            shutdown.run_until_cancelled(tokio::time::sleep(LISTEN_AGAIN_AFTER)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announcement(service: &str, instance: &str) -> Announcement {
        Announcement { service: service.into(), instance: instance.into(), ..Announcement::default() }
    }

    #[test]
    fn who_says_nothing_is_not_there_any_more() {
        let (watch, start) = (PipelineWatch::default(), Instant::now());
        watch.hear(announcement("writer", "w"), start);
        watch.hear(announcement("fetcher", "f2"), start);
        watch.hear(announcement("fetcher", "f1"), start + GONE_AFTER / 2);
        let names =
            |now| -> Vec<String> { watch.present(now).into_iter().map(|heard| heard.announcement.instance).collect() };
        assert_eq!(names(start), ["f1", "f2", "w"]);
        assert_eq!(names(start + GONE_AFTER), ["f1"]);
    }

    #[test]
    fn made_up_processes_do_not_fill_the_memory() {
        let (watch, start) = (PipelineWatch::default(), Instant::now());
        for number in 0..REMEMBERED_MAX + 10 {
            watch.hear(announcement("fetcher", &number.to_string()), start);
        }
        assert_eq!(watch.present(start).len(), REMEMBERED_MAX);
        watch.hear(announcement("writer", "new"), start + GONE_AFTER);
        assert_eq!(watch.present(start + GONE_AFTER).len(), 1);
    }
}

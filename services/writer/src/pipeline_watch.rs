//! What is known of the other processes of the lake, from what they announce ([`lake_shared::queue::announcement`]).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures::StreamExt;
use lake_proto::queue::v1::Announcement;
use lake_shared::queue::announcement::{EVERY, GONE_AFTER, SUBJECTS};
use lake_shared::queue::{Broadcast, Queue};
use lake_shared::wire;
use tokio_util::sync::CancellationToken;

/// Most processes that are remembered: what a client of the queue makes up must not fill the memory.
const REMEMBERED_MAX: usize = 1_000;

/// Most partitions whose times are remembered, for the same reason.
const PARTITIONS_MAX: usize = 10_000;

/// Time until listening is tried again.
const LISTEN_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// The processes that were heard of lately.
#[derive(Clone, Debug, Default)]
pub(crate) struct PipelineWatch(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// By name.
    heard: HashMap<String, Heard>,
    /// When a partition was last said to have no lag.
    without_lag: WithoutLag,
}

/// Times by topic and number of the partition.
type WithoutLag = HashMap<(String, i32), Instant>;

/// What was heard of a process last.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    pub(crate) announcement: Announcement,
    /// When.
    pub(crate) at: Instant,
}

/// How far a partition of HQ's change feed is read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PartitionProgress {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    /// Who reads it.
    pub(crate) reader: String,
    /// Messages that were not read yet; `None` while that is not known.
    pub(crate) lag: Option<i64>,
    /// How old the oldest of them can be, seconds: the age of the last one that was read, or the time since there were none.
    pub(crate) lag_seconds: Option<f64>,
}

/// What is not read yet of HQ's change feed; `None` where nothing is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Lag {
    /// Messages.
    pub(crate) messages: Option<i64>,
    /// How old the oldest of them can be.
    pub(crate) seconds: Option<f64>,
}

impl PipelineWatch {
    /// Those that are there, by service and name.
    pub(crate) fn present(&self, now: Instant) -> Vec<Heard> {
        let mut known = self.locked();
        known.heard.retain(|_, heard| now.saturating_duration_since(heard.at) < GONE_AFTER);
        let mut present: Vec<Heard> = known.heard.values().cloned().collect();
        drop(known);
        let name = |heard: &Heard| (heard.announcement.service.clone(), heard.announcement.instance.clone());
        present.sort_by_cached_key(name);
        present
    }

    /// The partitions of HQ's change feed, as those who are there read them.
    pub(crate) fn partitions(&self, now: Instant, clock: SystemTime) -> Vec<PartitionProgress> {
        let present = self.present(now);
        partitions(&present, &self.locked().without_lag, now, clock)
    }

    /// The lag of all partitions together.
    pub(crate) fn lag(&self, now: Instant, clock: SystemTime) -> Lag {
        let partitions = self.partitions(now, clock);
        let known = || partitions.iter().filter_map(|of| of.lag);
        Lag {
            messages: known().next().map(|_| known().sum()),
            seconds: partitions.iter().filter_map(|of| of.lag_seconds).reduce(f64::max),
        }
    }

    pub(crate) fn hear(&self, announcement: Announcement, now: Instant) {
        let mut known = self.locked();
        let Known { heard, without_lag } = &mut *known;
        if heard.len() >= REMEMBERED_MAX && !heard.contains_key(&announcement.instance) {
            heard.retain(|_, heard| now.saturating_duration_since(heard.at) < GONE_AFTER);
            if heard.len() >= REMEMBERED_MAX {
                return;
            }
        }
        for of in announcement.partitions.iter().filter(|of| of.lag == Some(0)) {
            let partition = (of.topic.clone(), of.partition);
            if without_lag.len() < PARTITIONS_MAX || without_lag.contains_key(&partition) {
                without_lag.insert(partition, now);
            }
        }
        heard.insert(announcement.instance.clone(), Heard { announcement, at: now });
    }

    fn locked(&self) -> MutexGuard<'_, Known> {
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

/// The partitions of all fetchers. In the middle of a rebalance two may think that one is theirs: who was heard of last is believed.
fn partitions(present: &[Heard], without_lag: &WithoutLag, now: Instant, clock: SystemTime) -> Vec<PartitionProgress> {
    let clock_us = clock.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros() as i64;
    let mut heard: Vec<&Heard> = present.iter().collect();
    heard.sort_by_key(|heard| std::cmp::Reverse(heard.at));
    let mut told: BTreeMap<(&str, i32), PartitionProgress> = BTreeMap::new();
    for heard in heard {
        for of in &heard.announcement.partitions {
            let age = of.last_published_us.map(|last_us| (clock_us - last_us).max(0) as f64 / 1e6);
            // What waits came later than the moment at which nothing waited; that was told up to a round afterwards.
            let since = without_lag.get(&(of.topic.clone(), of.partition));
            let since = since.map(|since| (now.saturating_duration_since(*since) + EVERY).as_secs_f64());
            let age = age.into_iter().chain(since).reduce(f64::min);
            told.entry((&of.topic, of.partition)).or_insert_with(|| PartitionProgress {
                topic: of.topic.clone(),
                partition: of.partition,
                reader: heard.announcement.instance.clone(),
                lag: of.lag,
                lag_seconds: if of.lag == Some(0) { Some(0.0) } else { of.lag.and(age) },
            });
        }
    }
    told.into_values().collect()
}

#[cfg(test)]
mod tests {
    use lake_proto::queue::v1::FeedPartition;

    use super::*;

    #[test]
    fn a_partition_is_told_once_with_the_age_of_what_waits() {
        let heard = |instance: &str, at, told: &[(i32, Option<i64>, Option<i64>)]| {
            let partition = |&(partition, lag, last_published_us)| FeedPartition {
                topic: "case-sql".into(),
                partition,
                lag,
                last_published_us,
            };
            let partitions = told.iter().map(partition).collect();
            Heard { announcement: Announcement { partitions, ..announcement("fetcher", instance) }, at }
        };
        let (start, clock) = (Instant::now(), SystemTime::UNIX_EPOCH + Duration::from_secs(100));
        let later = start + Duration::from_secs(1);
        let present = [
            heard("old", start, &[(0, Some(9), Some(1)), (1, Some(0), Some(1))]),
            heard("new", later, &[(0, Some(5), Some(90_000_000)), (2, Some(3), None), (3, None, Some(1))]),
        ];
        let told = partitions(&present, &WithoutLag::new(), later, clock);
        let told: Vec<_> = told.iter().map(|of| (of.partition, of.reader.as_str(), of.lag, of.lag_seconds)).collect();
        let expected = [
            (0, "new", Some(5), Some(10.0)),
            (1, "old", Some(0), Some(0.0)),
            (2, "new", Some(3), None),
            (3, "new", None, None),
        ];
        assert_eq!(told, expected);
        let watch = PipelineWatch::default();
        assert_eq!(watch.lag(start, clock), Lag::default());
        present.into_iter().for_each(|heard| watch.hear(heard.announcement, heard.at));
        assert_eq!(watch.lag(start, clock), Lag { messages: Some(8), seconds: Some(10.0) });
        // A partition that is quiet for long is not far behind when a message comes.
        let quiet = heard("new", later, &[(1, Some(2), Some(1))]);
        watch.hear(quiet.announcement, later + Duration::from_secs(2));
        let told = watch.partitions(later + Duration::from_secs(2), clock);
        let told = told.iter().find(|of| of.partition == 1).and_then(|of| of.lag_seconds);
        assert_eq!(told, Some((Duration::from_secs(3) + EVERY).as_secs_f64()));
    }

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

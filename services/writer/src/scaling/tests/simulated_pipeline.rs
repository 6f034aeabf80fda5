//! The way from HQ to the tables as flows of records: what comes, what each stage can pass on, and what it announces of it.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use lake_proto::queue::v1::{Announcement, FeedPartition, SourcePace};
use lake_shared::queue::Backlog;

use crate::pipeline_watch::PipelineWatch;
use crate::scaling::observation::Seen;
use crate::scaling::scaler::Scaler;

/// Partitions of HQ's feed.
pub(super) const PARTITIONS: u32 = 8;

/// Records a second that one replica can pass on.
const FETCHER_PASSES: f64 = 60.0;
const ENRICHER_PASSES: f64 = 80.0;

/// Most records that a stream takes, of a kilobyte each.
const STREAM_MAX: f64 = 200_000.0;
const RECORD_BYTES: f64 = 1_000.0;

/// What is different from moment to moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    /// Changes in HQ, records a second.
    pub(super) changes: f64,
    /// Records that HQ gives in a second.
    pub(super) hq_gives: f64,
    /// Rows that the writer commits in a second.
    pub(super) writer_commits: f64,
}

/// Records that wait, with the time at which they came.
#[derive(Default)]
pub(super) struct Waiting(VecDeque<(u64, f64)>);

impl Waiting {
    pub(super) fn count(&self) -> f64 {
        self.0.iter().map(|(_, records)| records).sum()
    }

    fn oldest(&self) -> Option<u64> {
        self.0.front().map(|(at, _)| *at)
    }

    pub(super) fn seconds(&self, now: u64) -> u64 {
        self.oldest().map_or(0, |at| now - at)
    }

    fn put(&mut self, now: u64, records: f64) {
        if records > 0.0 {
            self.0.push_back((now, records));
        }
    }

    /// Takes at most so many; says how many.
    fn take(&mut self, most: f64) -> f64 {
        let mut left = most;
        while let Some((_, records)) = self.0.front_mut() {
            if *records > left {
                *records -= left;
                return most;
            }
            left -= *records;
            self.0.pop_front();
        }
        most - left
    }

    fn backlog(&self, epoch_us: i64) -> Backlog {
        Backlog {
            messages: self.count() as u64,
            bytes: (self.count() * RECORD_BYTES) as u64,
            undelivered: self.count() as u64,
            bytes_max: Some((STREAM_MAX * RECORD_BYTES) as u64),
            oldest_us: self.oldest().map(|at| epoch_us + at as i64 * 1_000_000),
            in_flight_max: Some(1_000),
            ..Backlog::default()
        }
    }
}

/// All stages.
pub(super) struct Pipeline {
    pub(super) feed: Waiting,
    pub(super) records: Waiting,
    pub(super) rows: Waiting,
    watch: PipelineWatch,
    began: Instant,
    epoch: SystemTime,
}

impl Pipeline {
    pub(super) fn new() -> Self {
        let epoch = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let (feed, records, rows) = (Waiting::default(), Waiting::default(), Waiting::default());
        Self { feed, records, rows, watch: PipelineWatch::default(), began: Instant::now(), epoch }
    }

    /// Some seconds pass, with so many replicas; the scaler sees what came of it.
    pub(super) fn pass(&mut self, now: u64, seconds: u64, weather: Weather, replicas: [usize; 2], scaler: &Scaler) {
        let of = |rate: f64| rate * seconds as f64;
        let [fetchers, enrichers] = replicas.map(|count| count as f64);
        self.feed.put(now, of(weather.changes));
        let room = |stream: &Waiting| (STREAM_MAX - stream.count()).max(0.0);
        let fetched = of((fetchers * FETCHER_PASSES).min(weather.hq_gives)).min(room(&self.records));
        let fetched = self.feed.take(fetched);
        self.records.put(now, fetched);
        let enriched = self.records.take(of(enrichers * ENRICHER_PASSES).min(room(&self.rows)));
        self.rows.put(now, enriched);
        self.rows.take(of(weather.writer_commits));
        let passed = [fetched, enriched].map(|records| records / seconds as f64);
        self.announce(now, weather, replicas, passed);
        let instant = self.began + Duration::from_secs(now);
        let epoch_us = self.epoch_us();
        scaler.observe(&Seen {
            at: Duration::from_secs(now),
            clock_us: epoch_us + now as i64 * 1_000_000,
            present: &self.watch.present(instant),
            partitions: &self.watch.partitions(instant, self.epoch + Duration::from_secs(now)),
            records: Some(self.records.backlog(epoch_us)),
            rows: Some(self.rows.backlog(epoch_us)),
        });
    }

    fn epoch_us(&self) -> i64 {
        self.epoch.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros() as i64
    }

    fn announce(&self, now: u64, weather: Weather, replicas: [usize; 2], passed: [f64; 2]) {
        let instant = self.began + Duration::from_secs(now);
        // The limiter sees that answers take longer as soon as HQ has less to give than is asked for.
        let slow = weather.hq_gives < 200.0;
        let pace = SourcePace {
            source: "database".into(),
            at_once: if slow { 6 } else { 32 },
            at_once_max: 32,
            in_flight: 4,
            held_back_since_us: slow.then_some(1),
        };
        for (service, (count, passed)) in ["fetcher", "enricher"].into_iter().zip(replicas.into_iter().zip(passed)) {
            for number in 0..count {
                let own =
                    (0..PARTITIONS as usize).filter(|partition| service == "fetcher" && partition % count == number);
                self.watch.hear(
                    Announcement {
                        service: service.into(),
                        instance: format!("{service}-{number}"),
                        passed_per_second: Some(passed / count as f64),
                        partitions: own.map(|partition| self.partition(partition as i32)).collect(),
                        paces: if service == "fetcher" { vec![pace.clone()] } else { Vec::new() },
                        ..Announcement::default()
                    },
                    instant,
                );
            }
        }
    }

    fn partition(&self, partition: i32) -> FeedPartition {
        let lag = (self.feed.count() / f64::from(PARTITIONS)) as i64;
        let last_published_us = self.feed.oldest().map(|at| self.epoch_us() + at as i64 * 1_000_000);
        FeedPartition {
            topic: "case-sql".into(),
            partition,
            lag: Some(lag),
            last_published_us: last_published_us.or(Some(1)),
        }
    }
}

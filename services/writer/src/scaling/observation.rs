//! What is known of the stages, made of what processes announce and the queue tells. Pure.

use std::time::Duration;

use lake_shared::queue::Backlog;

use super::decision::{Observation, PushBack};
use crate::pipeline_watch::{Heard, PartitionProgress};

/// A stage whose oldest message has waited for so long does not keep up, seconds.
const BEHIND_SECONDS: f64 = 60.0;

/// A stream of which so much is taken is full, hundredths.
const FULL_PERCENT: u64 = 80;

/// HQ pushes back when it is asked no more than so much at once of what it is asked when all is well, hundredths. Smaller dips come and go.
const HELD_BACK_PERCENT: u64 = 75;

/// What is known at one moment.
pub(super) struct Seen<'s> {
    pub(super) at: Duration,
    /// Microseconds since 1970.
    pub(super) clock_us: i64,
    pub(super) present: &'s [Heard],
    pub(super) partitions: &'s [PartitionProgress],
    /// The streams of records and rows; `None`: the queue does not tell.
    pub(super) records: Option<Backlog>,
    pub(super) rows: Option<Backlog>,
}

impl Seen<'_> {
    pub(super) fn fetchers(&self) -> Observation {
        let behind = self.partitions.iter().map(|of| of.lag_seconds);
        let enrichers_behind = || self.waits(self.records) > BEHIND_SECONDS;
        Observation {
            at: self.at,
            replicas: self.replicas("fetcher"),
            seconds_behind: behind.reduce(|most, of| Some(most?.max(of?))).flatten(),
            rate: self.rate("fetcher"),
            partitions: u32::try_from(self.partitions.len()).ok(),
            messages: None,
            push_back: self.push_back().or_else(|| enrichers_behind().then_some(PushBack::EnrichersBehind)),
        }
    }

    pub(super) fn enrichers(&self) -> Observation {
        let all_handed_out = |of: Backlog| of.in_flight_max.is_some_and(|most| of.in_flight >= most);
        let all_handed_out = self.records.is_some_and(all_handed_out);
        Observation {
            at: self.at,
            replicas: self.replicas("enricher"),
            seconds_behind: self.records.map(|_| self.waits(self.records)),
            rate: self.rate("enricher"),
            partitions: None,
            messages: self.records.map(|of| of.messages),
            push_back: self.push_back().or_else(|| all_handed_out.then_some(PushBack::AllHandedOut)),
        }
    }

    fn of<'a>(&'a self, service: &'a str) -> impl Iterator<Item = &'a Heard> {
        self.present.iter().filter(move |heard| heard.announcement.service == service)
    }

    fn replicas(&self, service: &str) -> u32 {
        u32::try_from(self.of(service).count()).unwrap_or(u32::MAX)
    }

    /// Of those who tell it: one that has just begun does not. What is no number would spoil what is learnt of them for good.
    fn rate(&self, service: &str) -> Option<f64> {
        let rates = self.of(service).filter_map(|heard| heard.announcement.passed_per_second);
        rates.filter(|rate| rate.is_finite()).reduce(|all, rate| all + rate)
    }

    /// How long the oldest message of a stream has waited, seconds; 0 where all are handed out.
    fn waits(&self, stream: Option<Backlog>) -> f64 {
        let oldest = stream.filter(|of| of.undelivered > 0).and_then(|of| of.oldest_us);
        oldest.map_or(0.0, |oldest_us| self.clock_us.saturating_sub(oldest_us).max(0) as f64 / 1e6)
    }

    /// What pushes back on every stage.
    fn push_back(&self) -> Option<PushBack> {
        let paces = self.present.iter().flat_map(|heard| &heard.announcement.paces);
        let held_back = |of: &lake_proto::queue::v1::SourcePace| {
            of.held_back_since_us.is_some()
                && of.at_once.saturating_mul(100) <= of.at_once_max.saturating_mul(HELD_BACK_PERCENT)
        };
        if paces.into_iter().any(held_back) {
            return Some(PushBack::SlowHq);
        }
        let Some((records, rows)) = self.records.zip(self.rows) else { return Some(PushBack::QueueUnknown) };
        let full = |of: Backlog| {
            of.bytes_max.is_some_and(|most| of.bytes.saturating_mul(100) >= most.saturating_mul(FULL_PERCENT))
        };
        if full(rows) || full(records) {
            return Some(PushBack::StreamFull);
        }
        (self.waits(self.rows) > BEHIND_SECONDS).then_some(PushBack::WriterBehind)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use lake_proto::queue::v1::Announcement;

    use super::*;

    #[test]
    fn a_rate_that_is_no_number_is_none() {
        let heard = |rate: Option<f64>| {
            let announcement =
                Announcement { service: "fetcher".into(), passed_per_second: rate, ..Announcement::default() };
            Heard { announcement, at: Instant::now() }
        };
        let present = [Some(f64::NAN), Some(3.0), Some(f64::INFINITY), None, Some(4.0)].map(heard);
        let seen =
            Seen { at: Duration::ZERO, clock_us: 0, present: &present, partitions: &[], records: None, rows: None };
        assert_eq!((seen.fetchers().rate, seen.fetchers().replicas), (Some(7.0), 5));
        assert_eq!(seen.enrichers().rate, None);
    }
}

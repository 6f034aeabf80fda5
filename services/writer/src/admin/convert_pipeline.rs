//! What is known of the way from HQ to the tables, as messages of the interface. Pure.

use std::time::SystemTime;

use lake_proto::admin::v1 as proto;
use lake_shared::queue::{Backlog, QueueError, Stream};

use super::convert::{count, timestamp};
use crate::pipeline_watch::Heard;

pub(super) fn replica(heard: &Heard, now: SystemTime) -> proto::Replica {
    let announcement = &heard.announcement;
    proto::Replica {
        service: announcement.service.clone(),
        name: announcement.instance.clone(),
        version: announcement.version.clone(),
        started_at: Some(timestamp(announcement.started_us)),
        heard_at: now.checked_sub(heard.at.elapsed()).map(|at| timestamp(micros(at))),
        partitions: i32::try_from(announcement.partitions.len()).unwrap_or(i32::MAX),
    }
}

/// The partitions of all fetchers. In the middle of a rebalance two may think that one is theirs: who was heard of last is believed.
pub(super) fn partitions(present: &[Heard], now: SystemTime) -> Vec<proto::FeedPartition> {
    let mut heard: Vec<&Heard> = present.iter().collect();
    heard.sort_by_key(|heard| std::cmp::Reverse(heard.at));
    let mut told: Vec<proto::FeedPartition> = Vec::new();
    for heard in heard {
        for partition in &heard.announcement.partitions {
            let is_told = |known: &proto::FeedPartition| {
                (known.topic.as_str(), known.partition) == (partition.topic.as_str(), partition.partition)
            };
            if told.iter().any(is_told) {
                continue;
            }
            let age = partition.last_published_us.map(|last_us| (micros(now) - last_us).max(0) as f64 / 1e6);
            told.push(proto::FeedPartition {
                topic: partition.topic.clone(),
                partition: partition.partition,
                reader: heard.announcement.instance.clone(),
                lag: partition.lag,
                lag_seconds: if partition.lag == Some(0) { Some(0.0) } else { partition.lag.and(age) },
            });
        }
    }
    told.sort_by(|one, other| (&one.topic, one.partition).cmp(&(&other.topic, other.partition)));
    told
}

/// A stream, or why nothing is known of it. `None`: its queue cannot tell.
pub(super) fn stream(stream: Stream, backlog: Result<Option<Backlog>, QueueError>) -> Option<proto::QueueStream> {
    let name = stream.name().to_owned();
    Some(match backlog {
        Ok(backlog) => {
            let Backlog { messages, bytes, undelivered, in_flight, redelivered, published_total } = backlog?;
            proto::QueueStream {
                name,
                messages: count(messages),
                bytes: count(bytes),
                undelivered: count(undelivered),
                in_flight: count(in_flight),
                redelivered: count(redelivered),
                published_total: count(published_total),
                unknown_reason: String::new(),
            }
        }
        Err(error) => proto::QueueStream { name, unknown_reason: error.to_string(), ..Default::default() },
    })
}

fn micros(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::time::{Duration, Instant};

    use lake_proto::queue::v1::{Announcement, FeedPartition};

    use super::*;

    fn heard(instance: &str, at: Instant, partitions: &[(i32, Option<i64>, Option<i64>)]) -> Heard {
        let partition = |&(partition, lag, last_published_us)| FeedPartition {
            topic: "case-sql".into(),
            partition,
            lag,
            last_published_us,
        };
        let partitions = partitions.iter().map(partition).collect();
        let announcement =
            Announcement { service: "fetcher".into(), instance: instance.into(), partitions, ..Default::default() };
        Heard { announcement, at }
    }

    #[test]
    fn a_partition_is_told_once_with_the_age_of_what_waits() {
        let (start, now) = (Instant::now(), SystemTime::UNIX_EPOCH + Duration::from_secs(100));
        let later = start + Duration::from_secs(1);
        let present = [
            heard("old", start, &[(0, Some(9), Some(1)), (1, Some(0), Some(1))]),
            heard("new", later, &[(0, Some(5), Some(90_000_000)), (2, Some(3), None), (3, None, Some(1))]),
        ];
        let told = partitions(&present, now);
        let told: Vec<_> = told.iter().map(|of| (of.partition, of.reader.as_str(), of.lag, of.lag_seconds)).collect();
        let expected = [
            (0, "new", Some(5), Some(10.0)),
            (1, "old", Some(0), Some(0.0)),
            (2, "new", Some(3), None),
            (3, "new", None, None),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn a_queue_that_does_not_answer_is_no_empty_queue() {
        let failed = QueueError { action: "ask".into(), reason: "no answer".into() };
        assert!(stream(Stream::Rows, Err(failed)).unwrap().unknown_reason.contains("no answer"));
        assert_eq!(stream(Stream::Rows, Ok(None)), None);
        let backlog = Backlog { undelivered: 3, ..Backlog::default() };
        let told = stream(Stream::Rows, Ok(Some(backlog))).unwrap();
        assert_eq!((told.name.as_str(), told.undelivered, told.unknown_reason.as_str()), ("LAKE_ROWS", 3, ""));
    }
}

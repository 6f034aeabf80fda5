//! What is known of the way from HQ to the tables, as messages of the interface. Pure.

use std::time::SystemTime;

use lake_proto::admin::v1 as proto;
use lake_proto::queue::v1::SourcePace;
use lake_shared::queue::{Backlog, QueueError, Stream};

use super::convert::{count, timestamp};
use crate::pipeline_watch::{Heard, PartitionProgress};

pub(super) fn replica(heard: &Heard, now: SystemTime) -> proto::Replica {
    let announcement = &heard.announcement;
    proto::Replica {
        service: announcement.service.clone(),
        name: announcement.instance.clone(),
        version: announcement.version.clone(),
        started_at: Some(timestamp(announcement.started_us)),
        heard_at: now.checked_sub(heard.at.elapsed()).map(|at| timestamp(micros(at))),
        partitions: i32::try_from(announcement.partitions.len()).unwrap_or(i32::MAX),
        passed_per_second: announcement.passed_per_second,
        held_bytes: announcement.held_bytes,
        held_bytes_max: announcement.held_bytes_max,
        paces: announcement.paces.iter().map(pace).collect(),
    }
}

fn pace(of: &SourcePace) -> proto::SourcePace {
    proto::SourcePace {
        source: of.source.clone(),
        at_once: of.at_once,
        at_once_max: of.at_once_max,
        in_flight: of.in_flight,
        held_back_since: of.held_back_since_us.map(timestamp),
    }
}

pub(super) fn partition(of: PartitionProgress) -> proto::FeedPartition {
    proto::FeedPartition {
        topic: of.topic,
        partition: of.partition,
        reader: of.reader,
        lag: of.lag,
        lag_seconds: of.lag_seconds,
    }
}

/// A stream, or why nothing is known of it. `None`: its queue cannot tell.
pub(super) fn stream(stream: Stream, backlog: Result<Option<Backlog>, QueueError>) -> Option<proto::QueueStream> {
    let name = stream.name().to_owned();
    Some(match backlog {
        Ok(backlog) => {
            let backlog = backlog?;
            let Backlog { messages, bytes, undelivered, in_flight, redelivered, published_total, .. } = backlog;
            proto::QueueStream {
                name,
                messages: count(messages),
                bytes: count(bytes),
                undelivered: count(undelivered),
                in_flight: count(in_flight),
                redelivered: count(redelivered),
                published_total: count(published_total),
                unknown_reason: String::new(),
                bytes_max: backlog.bytes_max.map(count),
                oldest_at: backlog.oldest_us.map(timestamp),
                in_flight_max: backlog.in_flight_max.map(count),
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

    use super::*;

    #[test]
    fn how_much_hq_is_asked_is_told_of_each_kind_of_server() {
        let held = SourcePace {
            source: "database".into(),
            at_once: 2,
            at_once_max: 8,
            in_flight: 3,
            held_back_since_us: Some(5),
        };
        let told = pace(&held);
        assert_eq!((told.source.as_str(), told.at_once, told.at_once_max, told.in_flight), ("database", 2, 8, 3));
        assert_eq!(told.held_back_since, Some(timestamp(5)));
        assert_eq!(pace(&SourcePace { held_back_since_us: None, ..held }).held_back_since, None);
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

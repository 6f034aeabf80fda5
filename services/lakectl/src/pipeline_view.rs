//! What the interface answers about the way from HQ to the tables, as it is shown.

use lake_proto::admin::v1 as proto;
use serde::Serialize;

use crate::words::instant;

/// The way from HQ to the tables.
#[derive(Debug, Serialize)]
pub(crate) struct Pipeline {
    replicas_alive: usize,
    lag: Option<i64>,
    lag_seconds: Option<f64>,
    replicas: Vec<Replica>,
    partitions: Vec<Partition>,
    streams: Vec<QueueStream>,
}

#[derive(Debug, Serialize)]
struct Replica {
    service: String,
    name: String,
    version: String,
    started_at: Option<String>,
    heard_at: Option<String>,
    partitions: i32,
    passed_per_second: Option<f64>,
    held_bytes: Option<u64>,
    held_bytes_max: Option<u64>,
    paces: Vec<Pace>,
}

/// How much of HQ a process asks for at once.
#[derive(Debug, Serialize)]
struct Pace {
    source: String,
    at_once: u64,
    at_once_max: u64,
    in_flight: u64,
    held_back_since: Option<String>,
}

#[derive(Debug, Serialize)]
struct Partition {
    topic: String,
    partition: i32,
    lag: Option<i64>,
    lag_seconds: Option<f64>,
    reader: String,
}

#[derive(Debug, Serialize)]
struct QueueStream {
    name: String,
    messages: i64,
    bytes: i64,
    undelivered: i64,
    in_flight: i64,
    redelivered: i64,
    published_total: i64,
    bytes_max: Option<i64>,
    oldest_at: Option<String>,
    in_flight_max: Option<i64>,
    unknown_reason: String,
}

impl From<proto::GetPipelineResponse> for Pipeline {
    fn from(answer: proto::GetPipelineResponse) -> Self {
        let replica = |of: proto::Replica| Replica {
            service: of.service,
            name: of.name,
            version: of.version,
            started_at: instant(of.started_at),
            heard_at: instant(of.heard_at),
            partitions: of.partitions,
            passed_per_second: of.passed_per_second.map(|rate| (rate * 10.0).round() / 10.0),
            held_bytes: of.held_bytes,
            held_bytes_max: of.held_bytes_max,
            paces: of.paces.into_iter().map(pace).collect(),
        };
        let partition = |of: proto::FeedPartition| Partition {
            topic: of.topic,
            partition: of.partition,
            lag: of.lag,
            lag_seconds: of.lag_seconds,
            reader: of.reader,
        };
        let stream = |of: proto::QueueStream| QueueStream {
            name: of.name,
            messages: of.messages,
            bytes: of.bytes,
            undelivered: of.undelivered,
            in_flight: of.in_flight,
            redelivered: of.redelivered,
            published_total: of.published_total,
            bytes_max: of.bytes_max,
            oldest_at: instant(of.oldest_at),
            in_flight_max: of.in_flight_max,
            unknown_reason: of.unknown_reason,
        };
        let partitions: Vec<Partition> = answer.partitions.into_iter().map(partition).collect();
        let known = || partitions.iter().filter_map(|of| of.lag);
        Self {
            replicas_alive: answer.replicas.len(),
            lag: known().next().map(|_| known().sum()),
            lag_seconds: partitions.iter().filter_map(|of| of.lag_seconds).reduce(f64::max),
            replicas: answer.replicas.into_iter().map(replica).collect(),
            streams: answer.streams.into_iter().map(stream).collect(),
            partitions,
        }
    }
}

fn pace(of: proto::SourcePace) -> Pace {
    Pace {
        source: of.source,
        at_once: of.at_once,
        at_once_max: of.at_once_max,
        in_flight: of.in_flight,
        held_back_since: instant(of.held_back_since),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_of_all_is_told_first() {
        let partition = |lag, lag_seconds| proto::FeedPartition { lag, lag_seconds, ..Default::default() };
        let of = |partitions| Pipeline::from(proto::GetPipelineResponse { partitions, ..Default::default() });
        let known = of(vec![partition(Some(3), Some(1.5)), partition(None, None), partition(Some(4), Some(9.0))]);
        assert_eq!((known.lag, known.lag_seconds), (Some(7), Some(9.0)));
        let unknown = of(vec![partition(None, None)]);
        assert_eq!((unknown.lag, unknown.lag_seconds), (None, None));
    }
}

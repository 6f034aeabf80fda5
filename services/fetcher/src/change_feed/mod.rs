//! HQ's change feed as the fetcher sees it: a port with two adapters, [`kafka`] and [`memory`].
//!
//! Contract: a message is handed out again, to this fetcher or another one, unless it was reported [`ChangeFeed::done`] — and it may be
//! handed out again even then. No order is promised.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use lake_proto::queue::v1::FeedPartition;

mod group_member;
pub mod kafka;
pub mod memory;
pub mod offsets;
mod positions;
pub mod spark_checkpoint;
mod waiting;

/// Position of a message in the feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Kafka topic, for example `case-sql`.
    pub topic: Arc<str>,
    /// Partition of the topic.
    pub partition: i32,
    /// Offset within the partition.
    pub offset: i64,
    /// Which assignment of the partition to this process handed it out; reports of an older one are void.
    pub generation: u64,
}

/// One message of the feed.
#[derive(Clone, Debug)]
pub struct FeedMessage {
    /// Its position, with which it is reported as done.
    pub position: Position,
    /// Its value; `None` for a message without one.
    pub payload: Option<Bytes>,
}

/// HQ's change feed, with the contract that the module states.
#[async_trait]
pub trait ChangeFeed: Send + Sync + 'static {
    /// Waits for the next message; `None` when the feed is closed. Cancel safe.
    async fn next(&self) -> Option<FeedMessage>;

    /// Reports that everything that came of these messages is durable.
    fn done(&self, positions: &[Position]);

    /// Reports what is done to the broker and leaves. No message is handed out afterwards.
    async fn close(&self);

    /// How far the partitions are read that are this process's own.
    fn progress(&self) -> Vec<FeedPartition>;

    /// Whether the broker can be reached; for `/ready`.
    async fn check(&self) -> Result<(), String>;
}

//! The change feed in process: each message that is published is handed out once. For the demo and fast tests.

use async_trait::async_trait;
use bytes::Bytes;
use lake_proto::queue::v1::FeedPartition;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{ChangeFeed, FeedMessage, Position};

/// How many messages of a topic there were, and how many were handed out.
#[derive(Clone, Copy, Debug, Default)]
struct TopicRead {
    published: i64,
    handed_out: i64,
}

/// A feed without a broker. Nothing survives the process.
pub struct MemoryFeed {
    sender: Mutex<Option<UnboundedSender<FeedMessage>>>,
    receiver: tokio::sync::Mutex<UnboundedReceiver<FeedMessage>>,
    topics: Mutex<BTreeMap<String, TopicRead>>,
    unfinished: AtomicUsize,
}

impl Default for MemoryFeed {
    fn default() -> Self {
        let (sender, receiver) = unbounded_channel();
        Self {
            sender: Mutex::new(Some(sender)),
            receiver: tokio::sync::Mutex::new(receiver),
            topics: Mutex::default(),
            unfinished: AtomicUsize::new(0),
        }
    }
}

impl MemoryFeed {
    /// Puts a message on a topic.
    pub fn publish(&self, topic: &str, payload: impl Into<Bytes>) {
        let offset = {
            let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
            let read = topics.entry(topic.to_owned()).or_default();
            read.published += 1;
            read.published - 1
        };
        let position = Position { topic: topic.into(), partition: 0, offset, generation: 1 };
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = sender.as_ref()
            && sender.send(FeedMessage { position, payload: Some(payload.into()) }).is_ok()
        {
            self.unfinished.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Messages that are not done yet.
    pub fn unfinished(&self) -> usize {
        self.unfinished.load(Ordering::Acquire)
    }
}

#[async_trait]
impl ChangeFeed for MemoryFeed {
    async fn next(&self) -> Option<FeedMessage> {
        let message = self.receiver.lock().await.recv().await?;
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        topics.entry(message.position.topic.to_string()).or_default().handed_out += 1;
        drop(topics);
        Some(message)
    }

    fn done(&self, positions: &[Position]) {
        self.unfinished.fetch_sub(positions.len(), Ordering::AcqRel);
    }

    async fn close(&self) {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn progress(&self) -> Vec<FeedPartition> {
        let topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        let partition = |(topic, read): (&String, &TopicRead)| FeedPartition {
            topic: topic.clone(),
            partition: 0,
            lag: Some(read.published - read.handed_out),
            last_published_us: None,
        };
        topics.iter().map(partition).collect()
    }

    async fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

//! The change feed in process: each message that is published is handed out once. For the demo and fast tests.

use async_trait::async_trait;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{ChangeFeed, FeedMessage, Position};

/// A feed without a broker. Nothing survives the process.
pub struct MemoryFeed {
    sender: Mutex<Option<UnboundedSender<FeedMessage>>>,
    receiver: tokio::sync::Mutex<UnboundedReceiver<FeedMessage>>,
    next_offsets: Mutex<HashMap<String, i64>>,
    unfinished: AtomicUsize,
}

impl Default for MemoryFeed {
    fn default() -> Self {
        let (sender, receiver) = unbounded_channel();
        Self {
            sender: Mutex::new(Some(sender)),
            receiver: tokio::sync::Mutex::new(receiver),
            next_offsets: Mutex::default(),
            unfinished: AtomicUsize::new(0),
        }
    }
}

impl MemoryFeed {
    /// Puts a message on a topic.
    pub fn publish(&self, topic: &str, payload: impl Into<Bytes>) {
        let offset = {
            let mut offsets = self.next_offsets.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let next = offsets.entry(topic.to_owned()).or_insert(0);
            *next += 1;
            *next - 1
        };
        let position = Position { topic: topic.into(), partition: 0, offset, generation: 1 };
        let sender = self.sender.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
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
        self.receiver.lock().await.recv().await
    }

    fn done(&self, positions: &[Position]) {
        self.unfinished.fetch_sub(positions.len(), Ordering::AcqRel);
    }

    async fn close(&self) {
        self.sender.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    }

    async fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

//! A queue that takes and keeps every message, and has no consumers.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use lake_shared::queue::{Broadcast, Consumer, ConsumerOptions, Message, PublishError, Queue, QueueError, Stream};

/// The largest message that it takes, bytes.
const PAYLOAD_SIZE_MAX: usize = 8 << 20;

/// A queue that keeps what is published.
#[derive(Debug, Default)]
pub struct RecordingQueue {
    messages: Mutex<Vec<Message>>,
}

impl RecordingQueue {
    /// Payloads that were published to subjects that begin so, in the order of publishing.
    pub fn payloads(&self, subject_prefix: &str) -> Vec<Bytes> {
        let messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        let meant = messages.iter().filter(|message| message.subject.starts_with(subject_prefix));
        meant.map(|message| message.payload.clone()).collect()
    }
}

#[async_trait]
impl Queue for RecordingQueue {
    async fn publish(&self, message: Message) -> Result<(), PublishError> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner).push(message);
        Ok(())
    }

    async fn consumer(&self, _: Stream, _: ConsumerOptions) -> Result<Box<dyn Consumer>, QueueError> {
        Err(QueueError { action: "consume".into(), reason: "this queue only records".into() })
    }

    async fn broadcast(&self, _: &str, _: Bytes) -> Result<(), QueueError> {
        Ok(())
    }

    async fn listen(&self, _: &str) -> Result<BoxStream<'static, Broadcast>, QueueError> {
        Ok(Box::pin(futures::stream::pending()))
    }

    fn payload_size_max(&self) -> usize {
        PAYLOAD_SIZE_MAX
    }

    async fn check(&self) -> Result<(), QueueError> {
        Ok(())
    }
}

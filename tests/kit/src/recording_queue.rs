//! A queue that keeps every message that is not too large, and has no consumers.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use lake_shared::queue::{Broadcast, Consumer, ConsumerOptions, Message, PublishError, Queue, QueueError, Stream};

/// The largest message that it takes unless said otherwise, bytes.
const PAYLOAD_SIZE_MAX: usize = 8 << 20;

/// A queue that keeps what is published.
#[derive(Debug)]
pub struct RecordingQueue {
    messages: Mutex<Vec<Message>>,
    message_size_max: usize,
    payload_size_max: usize,
}

impl Default for RecordingQueue {
    fn default() -> Self {
        Self::of_payload_size_max(PAYLOAD_SIZE_MAX)
    }
}

impl RecordingQueue {
    /// A queue that refuses payloads of more bytes.
    pub fn of_payload_size_max(payload_size_max: usize) -> Self {
        Self::of_sizes(payload_size_max, payload_size_max)
    }

    /// A queue that refuses payloads of more bytes than the second number, and calls what has more than the first larger than one piece.
    pub fn of_sizes(message_size_max: usize, payload_size_max: usize) -> Self {
        Self { messages: Mutex::default(), message_size_max, payload_size_max }
    }

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
        let (size, size_max) = (message.payload.len(), self.payload_size_max);
        if size > size_max {
            return Err(PublishError::TooLarge { subject: message.subject, size, size_max });
        }
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
        self.payload_size_max
    }

    fn message_size_max(&self) -> usize {
        self.message_size_max
    }

    async fn check(&self) -> Result<(), QueueError> {
        Ok(())
    }
}

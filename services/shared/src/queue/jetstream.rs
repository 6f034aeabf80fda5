//! The queue between processes, on the streams of NATS JetStream.
//!
//! Invariants: a message is published when the server says that it is stored; the streams are work queues that refuse new
//! messages when they are full, so nothing is dropped and producers wait; each stream has one durable consumer, made anew
//! when it is gone; a message that is larger than the server takes lies in parts beside its stream (`parts.rs`); streams and consumers are kept as they must be ([`JetStreamQueue::keep`]); the connection is made again for ever. Broadcasts are plain messages that no stream keeps.

use std::future::Future;
use std::sync::Arc;

use async_nats::jetstream::context::PublishError as StoreError;
use async_nats::jetstream::message::PublishMessage;
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use self::config::JetStreamConfig;
use self::connection::Connection;
use self::consumer::JetStreamConsumer;
pub use self::keeper::REPAIRS_TOTAL;
use self::server_stream::ServerStream;
use super::{Backlog, Broadcast, Consumer, ConsumerOptions, Message, PublishError, Queue, QueueError, Stream, naming};
use crate::error_chain::Chain;
use crate::escaped_names;

mod abandoned_parts;
mod backlog;
mod config;
mod connection;
mod consumer;
mod durable;
mod keeper;
mod kept;
mod listener;
mod parts;
mod pull;
mod server_stream;
mod streams;

/// Room for our headers within the server's `max_payload`, which counts them.
const HEADERS_SIZE_MAX: usize = 512;
/// Longest dedupe id that is sent as it is, in bytes.
const DEDUPE_ID_LENGTH_MAX: usize = 200;

/// The queue on JetStream.
pub struct JetStreamQueue {
    connection: Connection,
    /// Taken by the one message that is being stored in parts: several at once would fill the room of parts, each with a beginning.
    storing_parts: Semaphore,
}

impl JetStreamQueue {
    /// Connects, and creates or updates the streams. Waits for a server that is not ready, and says so in the log, as long as
    /// `connect_attempts_max` allows.
    ///
    /// # Errors
    /// At once when the configuration cannot be used, the login is refused, or the streams cannot be as they must; after
    /// `connect_attempts_max` tries when no server was ready.
    pub async fn connect(config: JetStreamConfig) -> Result<Arc<Self>, QueueError> {
        let connection = Connection::open(config).await?;
        Ok(Arc::new(Self { connection, storing_parts: Semaphore::new(1) }))
    }

    /// Ends the queue: publishers get [`PublishError::Closed`], consumers and listeners `None`. What was handed out can still
    /// be acknowledged; waits for a moment until the acknowledgements given so far are with the server.
    pub async fn close(&self) {
        self.connection.closed.cancel();
        let reached = timeout(self.connection.config.request_timeout(), self.connection.client.flush()).await;
        if !matches!(reached, Ok(Ok(()))) {
            tracing::warn!("queue was closed without a connection, the last acknowledgements may come again");
        }
    }

    /// Keeps the streams, and the consumers that were opened here, as they must be, whatever happens to them on the servers; until `shutdown`.
    ///
    /// # Errors
    /// What only an operator can mend, such as a stream that was made anew in another way. The service is to end with it.
    pub async fn keep(self: Arc<Self>, shutdown: CancellationToken) -> anyhow::Result<()> {
        Ok(keeper::keep(&self.connection, shutdown).await?)
    }

    /// Whether a message was ever queued on this stream.
    ///
    /// # Errors
    /// Where the server does not answer.
    pub async fn was_used(&self, stream: Stream) -> Result<bool, QueueError> {
        self.connection.look_up(stream).await.map(|state| state.last_sequence > 0)
    }

    /// Gives up after the time for one request.
    async fn in_time<T>(&self, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
        let limit = self.connection.config.request_timeout();
        timeout(limit, work).await.unwrap_or_else(|_| Err(format!("no answer within {} ms", limit.as_millis())))
    }

    /// Stores a message in parts. The error says what prevents it now; trying again is safe.
    async fn store_in_parts(&self, stream: Stream, message: Message) -> Result<(), String> {
        let turn = self.storing_parts.acquire().await;
        let _turn = turn.map_err(|error| error.to_string())?;
        let within = self.connection.config.parts_abandoned_after() / 3;
        parts::publish(&self.connection, stream, message, self.message_size_max().max(1), within).await
    }

    async fn store(&self, message: Message) -> Result<(), StoreError> {
        self.connection.connected().await;
        let publish = PublishMessage::build().payload(message.payload).message_id(header_value(&message.dedupe_id));
        // Stored, or dropped as a repetition of what is stored: both are what was wanted.
        self.connection.context.send_publish(message.subject, publish).await?.await.map(|_stored| ())
    }
}

/// The id as it can stand in a header: others are replaced by their fingerprint.
fn header_value(dedupe_id: &str) -> String {
    let plain = !dedupe_id.is_empty()
        && dedupe_id.len() <= DEDUPE_ID_LENGTH_MAX
        && dedupe_id.bytes().all(|byte| byte.is_ascii_graphic());
    if plain { dedupe_id.to_owned() } else { escaped_names::fingerprint(dedupe_id) }
}

#[async_trait]
impl Queue for JetStreamQueue {
    async fn publish(&self, message: Message) -> Result<(), PublishError> {
        let subject = message.subject.clone();
        let stream = match naming::queued_in(&subject) {
            Ok(stream) => stream,
            Err(reason) => return Err(PublishError::Unavailable { subject, reason: reason.to_owned() }),
        };
        let size = message.payload.len();
        let size_max = if stream.takes_large() { self.payload_size_max() } else { self.message_size_max() };
        if size > size_max {
            return Err(PublishError::TooLarge { subject, size, size_max });
        }
        if size > self.message_size_max() {
            let stored = self.connection.closed.run_until_cancelled(self.store_in_parts(stream, message)).await;
            return stored.ok_or(PublishError::Closed)?.map_err(|reason| {
                self.connection.kept.doubt();
                PublishError::Unavailable { subject, reason }
            });
        }
        let limit = self.connection.config.request_timeout();
        let stored = self.connection.closed.run_until_cancelled(timeout(limit, self.store(message))).await;
        match stored {
            None => Err(PublishError::Closed),
            Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(error))) => {
                self.connection.kept.doubt();
                Err(PublishError::Unavailable { subject, reason: Chain(&error).to_string() })
            }
            Some(Err(_)) => {
                self.connection.kept.doubt();
                let reason = format!("not acknowledged within {} ms", limit.as_millis());
                Err(PublishError::Unavailable { subject, reason })
            }
        }
    }

    async fn consumer(&self, stream: Stream, options: ConsumerOptions) -> Result<Box<dyn Consumer>, QueueError> {
        Ok(Box::new(JetStreamConsumer::open(self.connection.clone(), stream, options).await?))
    }

    async fn broadcast(&self, subject: &str, payload: Bytes) -> Result<(), QueueError> {
        naming::check_broadcast(subject)?;
        let client = &self.connection.client;
        let told = self.in_time(async {
            self.connection.connected().await;
            client.publish(subject.to_owned(), payload).await.map_err(|error| error.to_string())?;
            client.flush().await.map_err(|error| error.to_string())
        });
        told.await.map_err(|reason| QueueError { action: format!("broadcast on {subject}"), reason })
    }

    async fn listen(&self, pattern: &str) -> Result<BoxStream<'static, Broadcast>, QueueError> {
        listener::listen(&self.connection, pattern).await
    }

    fn payload_size_max(&self) -> usize {
        self.connection.config.payload_size_max
    }

    fn message_size_max(&self) -> usize {
        // Asked for each time, since a server that is started again may take less.
        self.connection.client.max_payload().saturating_sub(HEADERS_SIZE_MAX).min(self.payload_size_max())
    }

    async fn backlog(&self, stream: Stream) -> Result<Option<Backlog>, QueueError> {
        let told = self.in_time(backlog::of(&self.connection.context, stream)).await;
        told.map(Some).map_err(|reason| QueueError { action: format!("tell what waits on {}", stream.name()), reason })
    }

    async fn check(&self) -> Result<(), QueueError> {
        if self.connection.closed.is_cancelled() {
            return Err(QueueError { action: "queue messages".into(), reason: "the queue is closed".into() });
        }
        if !self.connection.status.borrow().connected {
            let action = format!("reach {}", self.connection.config.servers_shown());
            return Err(QueueError { action, reason: "not connected; is the server running?".into() });
        }
        futures::future::try_join_all(ServerStream::ALL.map(|stream| self.connection.look_up(stream))).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dedupe_ids_fit_in_a_header() {
        assert_eq!(header_value("batch-17/3"), "batch-17/3");
        for odd in ["", " a", "a\r\nX: y", "घर", &"x".repeat(5_000)] {
            let value = header_value(odd);
            assert!(value.len() == 32 && value.bytes().all(|byte| byte.is_ascii_hexdigit()), "{odd}");
        }
        assert_ne!(header_value(&"x".repeat(5_000)), header_value(&"x".repeat(5_001)));
    }
}

//! The queue between the services: a port with two adapters, [`jetstream`] and [`memory`].
//!
//! Contract, held by both and shown by one suite (`tests/tests/queue_contract/`):
//! - `publish` returns `Ok` only when the message is safe: stored by JetStream, or, in process, acknowledged by its final consumer.
//! - Each message of a stream is handed to one of the consumers with the same durable name; until it is acknowledged it is handed
//!   out again after the acknowledgement time-out, a `retry`, or when its receipt is dropped. No order is promised.
//! - A consumer holds at most `in_flight_max` unacknowledged messages.
//! - A payload up to [`Queue::payload_size_max`] is published, handed out and acknowledged as one message, in however many parts it travels.
//! - A full queue makes `publish` wait or fail with [`PublishError::Unavailable`]; it never drops a message.
//! - Broadcasts reach the listeners of that moment only.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

pub use self::in_progress::while_in_progress;
pub use self::publish_until_safe::publish_until_safe;

pub mod announcement;
mod in_progress;
pub mod jetstream;
pub mod memory;
mod naming;
mod publish_until_safe;

/// The work queues between the services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Full documents, `lake.records.>`: fetcher to enricher.
    Records,
    /// Flattened rows, `lake.rows.>`: enricher to writer.
    Rows,
    /// Records that could not be handled, `lake.quarantine.>`: every service to the metastore.
    Quarantine,
    /// Documents that the lake itself asks for, `lake.changes.>`: writer to fetcher.
    Changes,
    /// What came of scans, `lake.reports.>`: fetcher to writer.
    Reports,
}

impl Stream {
    /// All streams: those that a record passes through in their order, then those by which the lake asks for records.
    pub const ALL: [Self; 5] = [Self::Records, Self::Rows, Self::Quarantine, Self::Changes, Self::Reports];

    /// The subjects of the stream.
    pub const fn subjects(self) -> &'static str {
        match self {
            Self::Records => "lake.records.>",
            Self::Rows => "lake.rows.>",
            Self::Quarantine => "lake.quarantine.>",
            Self::Changes => "lake.changes.>",
            Self::Reports => "lake.reports.>",
        }
    }

    /// The stream that a subject belongs to.
    pub fn of_subject(subject: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stream| subject.starts_with(stream.subjects().trim_end_matches('>')))
    }

    /// Name in logs, metrics and JetStream: `LAKE_RECORDS` and so on.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Records => "LAKE_RECORDS",
            Self::Rows => "LAKE_ROWS",
            Self::Quarantine => "LAKE_QUARANTINE",
            Self::Changes => "LAKE_CHANGES",
            Self::Reports => "LAKE_REPORTS",
        }
    }

    /// Whether a message may be larger than what travels in one piece. What is put on the others is cut or split by whoever puts it there.
    pub const fn takes_large(self) -> bool {
        matches!(self, Self::Records | Self::Rows)
    }
}

/// A message to be queued.
#[derive(Clone, Debug)]
pub struct Message {
    /// Subject, made by `crate::escaped_names`.
    pub subject: String,
    /// A message encoded by [`crate::wire`].
    pub payload: Bytes,
    /// A second message with the same id within the dedupe window is dropped; make it once per content, before any retry.
    pub dedupe_id: String,
}

/// How a consumer reads.
#[derive(Clone, Debug)]
pub struct ConsumerOptions {
    /// Consumers with one name share the messages.
    pub durable_name: String,
    /// Most unacknowledged messages, over all consumers of that name.
    pub in_flight_max: usize,
    /// How long an unacknowledged message is left with a consumer that says nothing.
    pub acknowledge_within: Duration,
}

/// Why a message could not be queued.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Passing trouble: full, not connected, time-out. The message may have been stored all the same; publish it again.
    #[error("queue does not take messages on {subject} now ({reason}); trying again is safe")]
    Unavailable {
        /// Subject of the message.
        subject: String,
        /// What the queue says.
        reason: String,
    },
    /// The message will never fit. Split the batch, or quarantine the record.
    #[error("message of {size} bytes on {subject} is larger than the {size_max} bytes the queue takes")]
    TooLarge {
        /// Subject of the message.
        subject: String,
        /// Size of the payload in bytes.
        size: usize,
        /// Largest payload in bytes.
        size_max: usize,
    },
    /// The queue is closed: the process is stopping.
    #[error("queue is closed")]
    Closed,
}

/// Any other trouble with the queue.
#[derive(Debug, thiserror::Error)]
#[error("queue: cannot {action}: {reason}")]
pub struct QueueError {
    /// What was tried, for example `create consumer enricher on LAKE_RECORDS`.
    pub action: String,
    /// What the queue says.
    pub reason: String,
}

/// The queue as producers and consumers see it.
#[async_trait]
pub trait Queue: Send + Sync + 'static {
    /// Queues a message. `Ok` means that it is safe; repeating a message after an error is safe too.
    ///
    /// # Errors
    /// See [`PublishError`]: only [`PublishError::Unavailable`] is worth trying again.
    async fn publish(&self, message: Message) -> Result<(), PublishError>;

    /// Joins the group of consumers with this name; a stream has one group.
    ///
    /// # Errors
    /// Where the options cannot be used, another group reads the stream, or the server does not answer.
    async fn consumer(&self, stream: Stream, options: ConsumerOptions) -> Result<Box<dyn Consumer>, QueueError>;

    /// Sends a broadcast to the listeners of this moment, without waiting for any of them.
    ///
    /// # Errors
    /// Where the subject belongs to a stream or is not valid, or the server does not answer.
    async fn broadcast(&self, subject: &str, payload: Bytes) -> Result<(), QueueError>;

    /// Listens to broadcasts from now on. `pattern` as in NATS: `*` is one token, a last `>` the rest.
    /// After a lost connection broadcasts may have been missed: the item [`Broadcast::MaybeMissed`] says so.
    ///
    /// # Errors
    /// Where the pattern is not valid, or the server does not answer.
    async fn listen(&self, pattern: &str) -> Result<BoxStream<'static, Broadcast>, QueueError>;

    /// Largest payload in bytes, on a stream that does not [take large ones](Stream::takes_large) that of [`Queue::message_size_max`].
    fn payload_size_max(&self) -> usize;

    /// What waits on a stream; `None`: this queue cannot tell.
    ///
    /// # Errors
    /// Where the server does not answer.
    async fn backlog(&self, _stream: Stream) -> Result<Option<Backlog>, QueueError> {
        Ok(None)
    }

    /// Largest payload that travels in one piece, in bytes. A larger one costs more: batches are to be split to this, and only what cannot be split
    /// is to be larger.
    fn message_size_max(&self) -> usize {
        self.payload_size_max()
    }

    /// Whether messages can be queued now; for `/ready`.
    ///
    /// # Errors
    /// What prevents it, for the operator.
    async fn check(&self) -> Result<(), QueueError>;
}

/// What waits on a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Messages that are held, handed out or not.
    pub messages: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
    /// Those of them that were not handed out yet.
    pub undelivered: u64,
    /// Those that were handed out and are not acknowledged.
    pub in_flight: u64,
    /// Those that were handed out more than once.
    pub redelivered: u64,
    /// Messages that were ever put on the stream: its growth is its rate.
    pub published_total: u64,
    /// Most bytes that it takes; more has to wait outside. `None`: not bounded.
    pub bytes_max: Option<u64>,
    /// When the oldest message that is held was put on it, microseconds since 1970 by the queue's clock. `None`: there is none.
    pub oldest_us: Option<i64>,
    /// Most messages that are handed out at once. `None` while nobody reads.
    pub in_flight_max: Option<u64>,
}

/// What a listener receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broadcast {
    /// A message that was broadcast.
    Message {
        /// Subject that it was sent on.
        subject: String,
        /// Payload as it was sent.
        payload: Bytes,
    },
    /// The connection was lost for a moment, so broadcasts may have been missed.
    MaybeMissed,
}

/// Hands out messages of one stream.
#[async_trait]
pub trait Consumer: Send {
    /// Waits for the next message. `None` when the queue is closed. Cancel safe.
    /// An error is passing (connection lost, consumer moved): call again after a moment.
    async fn next(&mut self) -> Option<Result<Delivery, QueueError>>;
}

/// A message that was handed out.
pub struct Delivery {
    /// Subject it was published on.
    pub subject: String,
    /// Payload as it was published.
    pub payload: Bytes,
    /// Identity within the stream, the same at each redelivery.
    pub id: String,
    /// How often it has been handed out, this time included.
    pub attempts: u64,
    /// How to answer it. Dropping it without an answer hands the message out again, sooner or later.
    pub receipt: Box<dyn Receipt>,
}

/// How a consumer answers a delivery.
#[async_trait]
pub trait Receipt: Send + Sync {
    /// Says that everything that came of the message is durable, so it is not needed any more.
    ///
    /// # Errors
    /// Where the queue cannot be told: the message may come again, which must do no harm.
    async fn acknowledge(self: Box<Self>) -> Result<(), QueueError>;

    /// Asks for the message to be handed out again after a while.
    ///
    /// # Errors
    /// Where the queue cannot be told: the message comes again after the acknowledgement time-out.
    async fn retry(self: Box<Self>, after: Duration) -> Result<(), QueueError>;

    /// Says that the message is still worked on, which starts its acknowledgement time-out anew.
    ///
    /// # Errors
    /// Where the queue cannot be told, or has handed the message out again.
    async fn in_progress(&self) -> Result<(), QueueError>;
}

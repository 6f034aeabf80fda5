//! The queue inside one process.
//!
//! Nothing is stored, so `publish` resolves only when the final consumer has acknowledged the message: its `Ok` means that what
//! came of the message is durable. A process that dies loses the messages; their publishers, which got no `Ok`, send them again.
//!
//! Invariants: a message leaves by being acknowledged or by [`MemoryQueue::close`]; each stream has room of its own, so that
//! one full stage cannot starve the stage that would empty it; no lock is held while waiting.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::listeners::Listeners;
use self::stream_messages::{HandedOut, StreamMessages, Submission};
use super::{
    Backlog, Broadcast, Consumer, ConsumerOptions, Delivery, Message, PublishError, Queue, QueueError, Receipt, Stream,
    naming,
};

mod listeners;
mod stream_messages;

/// Limits of a [`MemoryQueue`]; each stream has them for itself.
#[derive(Clone, Debug)]
pub struct MemoryQueueOptions {
    /// Largest payload, in bytes; of one in quarantine `message_size_max`.
    pub payload_size_max: usize,
    /// Largest payload of a batch, in bytes.
    pub message_size_max: usize,
    /// Most messages that are held; more publishers wait.
    pub messages_held_max: usize,
    /// Most bytes of payload that are held, at most 4 GiB; more publishers wait. A larger message is taken when it is alone.
    pub bytes_held_max: u32,
    /// How long the id of an acknowledged message is remembered.
    pub dedupe_window: Duration,
    /// Most broadcasts that wait for one slow listener.
    pub broadcasts_held_max: usize,
}

impl Default for MemoryQueueOptions {
    /// 64 MiB a message, 8 MiB a batch, 10,000 messages and 64 MiB a stream, two minutes, 1,000 broadcasts.
    fn default() -> Self {
        Self {
            payload_size_max: 64 << 20,
            message_size_max: 8 << 20,
            messages_held_max: 10_000,
            bytes_held_max: 64 << 20,
            dedupe_window: Duration::from_secs(120),
            broadcasts_held_max: 1_000,
        }
    }
}

/// The room that a held message takes up.
struct Room {
    _message: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

/// One stream, shared by the queue, its consumers and their receipts.
struct SharedStream {
    stream: Stream,
    held: Mutex<StreamMessages<Room>>,
    /// One wake-up for each message that can be handed out, and one for all when the next timer comes earlier.
    changed: Notify,
    messages: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    closed: CancellationToken,
}

impl SharedStream {
    fn lock(&self) -> MutexGuard<'_, StreamMessages<Room>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the messages, and wakes the sleeping consumers if the next timer comes earlier now.
    fn change<T>(&self, change: impl FnOnce(&mut StreamMessages<Room>, Instant) -> T) -> T {
        let mut held = self.lock();
        let before = held.next_timer();
        let outcome = change(&mut held, Instant::now());
        let after = held.next_timer();
        drop(held);
        if after.is_some_and(|after| before.is_none_or(|before| after < before)) {
            self.changed.notify_waiters();
        }
        outcome
    }

    fn error(&self, action: &str, reason: &str) -> QueueError {
        QueueError { action: format!("{action} on {}", self.stream.name()), reason: reason.to_owned() }
    }
}

/// The queue of one process. See the module for what it promises.
pub struct MemoryQueue {
    options: MemoryQueueOptions,
    streams: [Arc<SharedStream>; Stream::ALL.len()],
    listeners: Listeners,
    closed: CancellationToken,
}

impl MemoryQueue {
    /// A queue without messages.
    pub fn new(options: MemoryQueueOptions) -> Arc<Self> {
        let closed = CancellationToken::new();
        let messages_max = options.messages_held_max.clamp(1, Semaphore::MAX_PERMITS);
        let bytes_max = usize::try_from(options.bytes_held_max).unwrap_or(usize::MAX).clamp(1, Semaphore::MAX_PERMITS);
        let streams = Stream::ALL.map(|stream| {
            Arc::new(SharedStream {
                stream,
                held: Mutex::new(StreamMessages::new(options.dedupe_window)),
                changed: Notify::new(),
                messages: Arc::new(Semaphore::new(messages_max)),
                bytes: Arc::new(Semaphore::new(bytes_max)),
                closed: closed.clone(),
            })
        });
        let listeners = Listeners::new(options.broadcasts_held_max);
        Arc::new(Self { options, streams, listeners, closed })
    }

    /// Ends the queue: publishers get [`PublishError::Closed`], consumers and listeners `None`. Messages that were not
    /// acknowledged are dropped; their publishers got no `Ok`.
    pub fn close(&self) {
        self.closed.cancel();
        for shared in &self.streams {
            shared.lock().clear();
            shared.changed.notify_waiters();
        }
        self.listeners.close();
    }

    fn shared(&self, stream: Stream) -> &Arc<SharedStream> {
        match stream {
            Stream::Records => &self.streams[0],
            Stream::Rows => &self.streams[1],
            Stream::Quarantine => &self.streams[2],
            Stream::Changes => &self.streams[3],
            Stream::Reports => &self.streams[4],
        }
    }

    /// Waits until the message fits.
    async fn room(&self, shared: &SharedStream, size: usize) -> Option<Room> {
        let bytes = u32::try_from(size).unwrap_or(u32::MAX).clamp(1, self.options.bytes_held_max.max(1));
        let room = async {
            let message = Arc::clone(&shared.messages).acquire_owned().await.ok()?;
            let bytes = Arc::clone(&shared.bytes).acquire_many_owned(bytes).await.ok()?;
            Some(Room { _message: message, _bytes: bytes })
        };
        self.closed.run_until_cancelled(room).await.flatten()
    }
}

#[async_trait]
impl Queue for MemoryQueue {
    async fn publish(&self, message: Message) -> Result<(), PublishError> {
        let unavailable = |subject: &str, reason: &str| PublishError::Unavailable {
            subject: subject.to_owned(),
            reason: reason.to_owned(),
        };
        let stream = naming::queued_in(&message.subject).map_err(|reason| unavailable(&message.subject, reason))?;
        let size = message.payload.len();
        let size_max = if stream.takes_large() { self.payload_size_max() } else { self.message_size_max() };
        if size > size_max {
            return Err(PublishError::TooLarge { subject: message.subject, size, size_max });
        }
        let shared = self.shared(stream);
        // A repetition of what is held must not wait for room: it would wait for itself.
        let known = shared.lock().find(Instant::now(), &message.dedupe_id);
        let acknowledged = match known {
            Submission::Acknowledged => return Ok(()),
            Submission::Pending(acknowledged) => acknowledged,
            Submission::New => {
                let room = self.room(shared, size).await.ok_or(PublishError::Closed)?;
                let mut held = shared.lock();
                // Under the lock, since `close` cancels first and then clears under it.
                if self.closed.is_cancelled() {
                    return Err(PublishError::Closed);
                }
                match held.find(Instant::now(), &message.dedupe_id) {
                    Submission::Acknowledged => return Ok(()),
                    Submission::Pending(acknowledged) => acknowledged,
                    Submission::New => {
                        let acknowledged = held.hold(message, room);
                        drop(held);
                        shared.changed.notify_one();
                        acknowledged
                    }
                }
            }
        };
        acknowledged.await.map_err(|_| PublishError::Closed)
    }

    async fn consumer(&self, stream: Stream, options: ConsumerOptions) -> Result<Box<dyn Consumer>, QueueError> {
        naming::check_group(stream, &options)?;
        let shared = Arc::clone(self.shared(stream));
        let action = naming::group_action(stream, &options.durable_name);
        shared
            .lock()
            .join(options)
            .map_err(|group| QueueError { action, reason: format!("the consumer {group} reads the stream already") })?;
        shared.changed.notify_waiters();
        Ok(Box::new(MemoryConsumer { shared }))
    }

    async fn broadcast(&self, subject: &str, payload: Bytes) -> Result<(), QueueError> {
        naming::check_broadcast(subject)?;
        self.listeners.broadcast(subject, &payload);
        Ok(())
    }

    async fn listen(&self, pattern: &str) -> Result<BoxStream<'static, Broadcast>, QueueError> {
        naming::check_pattern(pattern)?;
        Ok(self.listeners.listen(pattern))
    }

    fn payload_size_max(&self) -> usize {
        self.options.payload_size_max
    }

    async fn backlog(&self, stream: Stream) -> Result<Option<Backlog>, QueueError> {
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let clock_us = i64::try_from(clock.as_micros()).unwrap_or(i64::MAX);
        let backlog = self.shared(stream).lock().backlog(Instant::now(), clock_us);
        Ok(Some(Backlog { bytes_max: Some(self.options.bytes_held_max.into()), ..backlog }))
    }

    fn message_size_max(&self) -> usize {
        self.options.message_size_max.min(self.options.payload_size_max)
    }

    async fn check(&self) -> Result<(), QueueError> {
        if self.closed.is_cancelled() {
            return Err(QueueError { action: "queue messages".into(), reason: "the queue is closed".into() });
        }
        Ok(())
    }
}

struct MemoryConsumer {
    shared: Arc<SharedStream>,
}

#[async_trait]
impl Consumer for MemoryConsumer {
    async fn next(&mut self) -> Option<Result<Delivery, QueueError>> {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            // Registered before looking, so that nothing that happens in between is slept through.
            changed.as_mut().enable();
            if self.shared.closed.is_cancelled() {
                return None;
            }
            if let Some(handed_out) = self.shared.change(|held, now| held.hand_out(now)) {
                return Some(Ok(self.delivery(handed_out)));
            }
            let timer = self.shared.lock().next_timer();
            match timer {
                None => changed.await,
                Some(at) => tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(at) => {}
                },
            }
        }
    }
}

impl MemoryConsumer {
    fn delivery(&self, handed_out: HandedOut) -> Delivery {
        let HandedOut { id, subject, payload, attempts } = handed_out;
        let receipt = MemoryReceipt { shared: Arc::clone(&self.shared), id, attempts, answered: false };
        Delivery { subject, payload, id: id.to_string(), attempts, receipt: Box::new(receipt) }
    }
}

/// Dropping it without an answer gives the message back at once.
struct MemoryReceipt {
    shared: Arc<SharedStream>,
    id: u64,
    attempts: u64,
    answered: bool,
}

impl MemoryReceipt {
    fn give_back(&mut self, after: Duration) {
        self.answered = true;
        self.shared.change(|held, now| held.give_back(now, self.id, self.attempts, after));
        // Either this message or, while it is delayed, another one can be handed out now.
        self.shared.changed.notify_one();
    }
}

#[async_trait]
impl Receipt for MemoryReceipt {
    async fn acknowledge(mut self: Box<Self>) -> Result<(), QueueError> {
        self.answered = true;
        let held = self.shared.change(|held, now| held.acknowledge(now, self.id));
        self.shared.changed.notify_one();
        if !held && self.shared.closed.is_cancelled() {
            return Err(self.shared.error(&format!("acknowledge message {}", self.id), "the queue is closed"));
        }
        Ok(())
    }

    async fn retry(mut self: Box<Self>, after: Duration) -> Result<(), QueueError> {
        self.give_back(after);
        Ok(())
    }

    async fn in_progress(&self) -> Result<(), QueueError> {
        if self.shared.change(|held, now| held.extend(now, self.id, self.attempts)) {
            return Ok(());
        }
        let action = format!("keep message {}", self.id);
        Err(self.shared.error(&action, "it took too long and is handed out again"))
    }
}

impl Drop for MemoryReceipt {
    fn drop(&mut self) {
        if !self.answered {
            self.give_back(Duration::ZERO);
        }
    }
}

//! Where the promises are tried: a queue of either kind, messages for it, and ways to wait that name what is missing.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use lake_shared::queue::jetstream::{JetStreamConfig, JetStreamQueue};
use lake_shared::queue::memory::{MemoryQueue, MemoryQueueOptions};
use lake_shared::queue::{Consumer, ConsumerOptions, Delivery, Message, PublishError, Queue, Stream};
use lake_tests::parts::Nats;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// Longer than anything should take; reached only when a promise is broken.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// A time-out that does not matter in the test at hand.
pub const LONG: Duration = Duration::from_secs(60);
/// How long to see that nothing comes.
pub const A_MOMENT: Duration = Duration::from_millis(400);

/// How large the queue under test is.
#[derive(Clone, Copy)]
pub enum Size {
    Ample,
    Small,
}

/// A queue to be tried, and a second door to it: another process has its own connection.
pub struct Ground {
    pub queue: Arc<dyn Queue>,
    pub other: Arc<dyn Queue>,
    ends: Ends,
    _server: Option<Nats>,
}

enum Ends {
    Memory(Arc<MemoryQueue>),
    JetStream(Arc<JetStreamQueue>),
}

impl Ground {
    pub async fn memory(size: Size) -> Self {
        let mut options = MemoryQueueOptions { broadcasts_held_max: 500, ..MemoryQueueOptions::default() };
        if matches!(size, Size::Small) {
            (options.messages_held_max, options.bytes_held_max) = (1_000, 64 << 10);
        }
        let queue = MemoryQueue::new(options);
        Self { queue: queue.clone(), other: queue.clone(), ends: Ends::Memory(queue), _server: None }
    }

    pub async fn jetstream(size: Size) -> Self {
        let server = Nats::start().unwrap();
        let mut config = JetStreamConfig { servers: vec![server.url()], ..JetStreamConfig::default() };
        config.stream_size_bytes_max = match size {
            Size::Ample => 256 << 20,
            Size::Small => 64 << 10,
        };
        config.quarantine_size_bytes_max = 1 << 20;
        config.changes_size_bytes_max = config.stream_size_bytes_max.min(8 << 20);
        let queue = JetStreamQueue::connect(config.clone()).await.unwrap();
        let other = JetStreamQueue::connect(config).await.unwrap();
        Self { queue: queue.clone(), other, ends: Ends::JetStream(queue), _server: Some(server) }
    }

    /// Publishes in the background, again and again while the queue does not take it.
    pub fn publish(&self, message: Message) -> JoinHandle<()> {
        let queue = Arc::clone(&self.queue);
        tokio::spawn(async move {
            loop {
                match queue.publish(message.clone()).await {
                    Ok(()) => return,
                    Err(PublishError::Unavailable { .. }) => sleep(Duration::from_millis(10)).await,
                    Err(error) => panic!("{error}"),
                }
            }
        })
    }

    pub fn publish_many(&self, count: usize) -> Vec<JoinHandle<()>> {
        (0..count).map(|number| self.publish(message(number))).collect()
    }

    pub async fn consumer(&self, in_flight_max: usize, acknowledge_within: Duration) -> Box<dyn Consumer> {
        self.queue.consumer(Stream::Rows, group(in_flight_max, acknowledge_within)).await.unwrap()
    }

    /// Whether messages are on the way for a while.
    pub fn is_remote(&self) -> bool {
        matches!(self.ends, Ends::JetStream(_))
    }

    pub async fn close(&self) {
        match &self.ends {
            Ends::Memory(queue) => queue.close(),
            Ends::JetStream(queue) => queue.close().await,
        }
    }
}

/// How the readers of the rows read.
pub fn group(in_flight_max: usize, acknowledge_within: Duration) -> ConsumerOptions {
    ConsumerOptions { durable_name: "writer".into(), in_flight_max, acknowledge_within }
}

/// Message of that number, on one of a few subjects.
pub fn message(number: usize) -> Message {
    Message {
        subject: format!("lake.rows.demo.case.type{}", number % 7),
        payload: Bytes::from(number.to_string()),
        dedupe_id: format!("message-{number}"),
    }
}

/// The number of the message.
pub fn number(delivery: &Delivery) -> usize {
    std::str::from_utf8(&delivery.payload).unwrap().split(' ').next().unwrap().parse().unwrap()
}

/// The next message; trouble is passing, and the contract says to call again.
pub async fn next(consumer: &mut Box<dyn Consumer>) -> Delivery {
    let wait = async {
        loop {
            if let Ok(delivery) = consumer.next().await.expect("the queue is open") {
                return delivery;
            }
        }
    };
    timeout(PATIENCE, wait).await.expect("a message comes")
}

/// The same with a patience of one's own; `None` when nothing came.
pub async fn next_within(consumer: &mut Box<dyn Consumer>, patience: Duration) -> Option<Delivery> {
    timeout(patience, consumer.next()).await.ok()?.expect("the queue is open").ok()
}

/// Fails when a message comes.
pub async fn assert_nothing_comes(consumer: &mut Box<dyn Consumer>, within: Duration) {
    if let Ok(Some(Ok(delivery))) = timeout(within, consumer.next()).await {
        panic!("{} came, attempt {}", number(&delivery), delivery.attempts);
    }
}

/// Waits until everything is published.
pub async fn all_safe(published: Vec<JoinHandle<()>>) {
    timeout(PATIENCE, join_all(published)).await.expect("all are published").into_iter().for_each(|done| done.unwrap());
}

//! A lake with a fake HQ and a consumer of its rows, all in one process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::{Array, AsArray};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use lake_hq::source::SourceError;
use lake_proto::queue::v1::{Quarantined, RecordBatch, RowBatch};
use lake_shared::queue::memory::{MemoryQueue, MemoryQueueOptions};
use lake_shared::queue::{Broadcast, Consumer, ConsumerOptions, Message, PublishError, Queue, QueueError, Stream};
use lake_shared::wire;
use lake_simulated_hq::memory_hq::MemoryHq;
use lake_simulated_hq::scripted_hq::{Question, Script, ScriptedHq};
use lake_simulated_hq::single_rows::{location, location_type, user};
use lake_simulated_hq::turn::Mutation;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::options::EnricherOptions;
use crate::pipeline::run;
use crate::rows::message::read_ipc;

pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// An HQ with a supervisor, two districts and a user `u` in it, that can be down.
pub(super) type FakeHq = ScriptedHq<Downtime>;

/// How long HQ is down, and how.
#[derive(Default)]
pub(super) struct Downtime {
    /// Answers that fail from now on.
    pub(super) failures_left: AtomicUsize,
    /// Whether HQ refuses then, instead of not being there.
    pub(super) refuses: AtomicBool,
    /// Whether the location tree of the domain `stuck` cannot be read, and nothing is answered about the user `slow`.
    pub(super) is_stuck: AtomicBool,
    /// Questions about users whose names begin with `slow`, now and at most at the same time.
    pub(super) slow_now: AtomicUsize,
    pub(super) slow_most: AtomicUsize,
}

#[async_trait]
impl Script for Downtime {
    async fn before(&self, question: &Question, _: &MemoryHq) -> Result<(), SourceError> {
        match question {
            Question::WholeTree { domain } if domain == "stuck" && self.is_stuck.load(Ordering::SeqCst) => {
                Err(SourceError::Unavailable { action: "read the tree".into(), reason: "test".into() })
            }
            Question::UserLocations(ids) if ids.iter().any(|id| id.starts_with("panic")) => {
                panic!("no such user can be")
            }
            Question::UserLocations(ids) if ids.iter().any(|id| id == "slow") => {
                while self.is_stuck.load(Ordering::SeqCst) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Ok(())
            }
            Question::UserLocations(ids) if ids.iter().any(|id| id.starts_with("slow")) => {
                let now = self.slow_now.fetch_add(1, Ordering::SeqCst) + 1;
                self.slow_most.fetch_max(now, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(100)).await;
                self.slow_now.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// An answer breaks off at its end: rows of a tree were handed over.
    fn after(&self, _: &Question) -> Result<(), SourceError> {
        let is_down =
            self.failures_left.try_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        let (action, reason) = ("read HQ".to_owned(), "test".to_owned());
        match (is_down, self.refuses.load(Ordering::SeqCst)) {
            (false, _) => Ok(()),
            (true, true) => Err(SourceError::Refused { action, reason }),
            (true, false) => Err(SourceError::Unavailable { action, reason }),
        }
    }
}

pub(super) fn fake_hq() -> Arc<FakeHq> {
    let hq = ScriptedHq::new(Downtime::default());
    hq.memory.change(&[
        location_type("demo", 1, "supervisor"),
        location_type("demo", 2, "district"),
        location("demo", 1, 1, "s", "Sita", None),
        district(2, "d", "North"),
        district(3, "e", "East"),
        user("u", "demo", Some("d")),
    ]);
    hq
}

/// A district below the supervisor.
pub(super) fn district(id: i64, location_id: &str, name: &str) -> Mutation {
    location("demo", 2, id, location_id, name, Some(1))
}

/// The user is assigned to another location.
pub(super) fn assign_user(hq: &FakeHq, location_id: &str) {
    hq.memory.change(&[user("u", "demo", Some(location_id))]);
}

/// The memory queue, but messages of rows may be smaller only than it says.
pub(super) struct StrictQueue {
    pub(super) inner: Arc<MemoryQueue>,
    pub(super) rows_size_max: usize,
}

#[async_trait]
impl Queue for StrictQueue {
    async fn publish(&self, message: Message) -> Result<(), PublishError> {
        let (size, size_max) = (message.payload.len(), self.rows_size_max);
        if size > size_max && message.subject.starts_with("lake.rows.") {
            return Err(PublishError::TooLarge { subject: message.subject, size, size_max });
        }
        self.inner.publish(message).await
    }
    async fn consumer(&self, stream: Stream, options: ConsumerOptions) -> Result<Box<dyn Consumer>, QueueError> {
        self.inner.consumer(stream, options).await
    }
    async fn broadcast(&self, subject: &str, payload: Bytes) -> Result<(), QueueError> {
        self.inner.broadcast(subject, payload).await
    }
    async fn listen(&self, pattern: &str) -> Result<BoxStream<'static, Broadcast>, QueueError> {
        self.inner.listen(pattern).await
    }
    fn payload_size_max(&self) -> usize {
        self.inner.payload_size_max()
    }
    async fn check(&self) -> Result<(), QueueError> {
        self.inner.check().await
    }
}

pub(super) struct Lake {
    pub(super) hq: Arc<FakeHq>,
    pub(super) queue: Arc<dyn Queue>,
    pub(super) rows: mpsc::UnboundedReceiver<(String, RowBatch)>,
    pub(super) quarantine: mpsc::UnboundedReceiver<(String, Quarantined)>,
    pub(super) shutdown: CancellationToken,
    pub(super) enricher: tokio::task::JoinHandle<anyhow::Result<()>>,
    published: usize,
}

impl Lake {
    pub(super) async fn start() -> Self {
        Self::start_with(EnricherOptions::default(), |queue| queue).await
    }

    pub(super) async fn start_with(
        options: EnricherOptions,
        wrap: impl FnOnce(Arc<MemoryQueue>) -> Arc<dyn Queue>,
    ) -> Self {
        let hq = fake_hq();
        let memory = MemoryQueue::new(MemoryQueueOptions { payload_size_max: 50_000, ..MemoryQueueOptions::default() });
        let rows = collect(&memory, Stream::Rows).await;
        let quarantine = collect(&memory, Stream::Quarantine).await;
        let queue = wrap(memory);
        let shutdown = CancellationToken::new();
        let enricher = tokio::spawn(run(Arc::clone(&queue), hq.hq(), options, Arc::default(), shutdown.clone()));
        Self { hq, queue, rows, quarantine, shutdown, enricher, published: 0 }
    }

    /// The handle resolves when the batch is acknowledged.
    pub(super) fn publish(&mut self, payload: Bytes) -> tokio::task::JoinHandle<Result<(), PublishError>> {
        self.published += 1;
        let dedupe_id = format!("test-{}", self.published);
        let message = Message { subject: "lake.records.demo.case.person".into(), payload, dedupe_id };
        let queue = Arc::clone(&self.queue);
        tokio::spawn(async move { queue.publish(message).await })
    }

    pub(super) async fn row_batch(&mut self) -> (String, RowBatch) {
        tokio::time::timeout(PATIENCE, self.rows.recv()).await.unwrap().unwrap()
    }

    pub(super) async fn quarantined(&mut self) -> (String, Quarantined) {
        tokio::time::timeout(PATIENCE, self.quarantine.recv()).await.unwrap().unwrap()
    }

    /// Sends one batch, waits until it is acknowledged, and returns the cells `_id` and `path` of what came of it.
    pub(super) async fn column(&mut self, batch: &RecordBatch, path: &str) -> Vec<(String, Option<String>)> {
        safe(self.publish(wire::encode(batch))).await;
        let mut found = Vec::new();
        while let Ok((_, rows)) = self.rows.try_recv() {
            found.extend(column(&rows, path));
        }
        found.sort();
        found
    }
}

pub(super) async fn safe(publishing: tokio::task::JoinHandle<Result<(), PublishError>>) {
    tokio::time::timeout(PATIENCE, publishing).await.unwrap().unwrap().unwrap();
}

async fn collect<M: prost::Message + Default + 'static>(
    queue: &MemoryQueue,
    stream: Stream,
) -> mpsc::UnboundedReceiver<(String, M)> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let options = ConsumerOptions {
        durable_name: "test".into(),
        in_flight_max: 1_000,
        acknowledge_within: Duration::from_secs(30),
    };
    let mut consumer = queue.consumer(stream, options).await.unwrap();
    tokio::spawn(async move {
        while let Some(Ok(delivery)) = consumer.next().await {
            let message = wire::decode::<M>(&delivery.payload).unwrap();
            if sender.send((delivery.subject, message)).is_ok() {
                delivery.receipt.acknowledge().await.unwrap();
            }
        }
    });
    receiver
}

pub(super) fn column(rows: &RowBatch, path: &str) -> Vec<(String, Option<String>)> {
    if rows.arrow_ipc.is_empty() {
        return Vec::new();
    }
    let batches = read_ipc(&rows.arrow_ipc).unwrap();
    let texts = |batch: &arrow::record_batch::RecordBatch, path: &str| -> Vec<Option<String>> {
        let column = batch.column_by_name(path).unwrap().as_string::<i32>().clone();
        (0..column.len()).map(|row| column.is_valid(row).then(|| column.value(row).to_owned())).collect()
    };
    let pairs = batches.iter().flat_map(|batch| texts(batch, "/_id").into_iter().zip(texts(batch, path)));
    pairs.map(|(id, cell)| (id.unwrap(), cell)).collect()
}

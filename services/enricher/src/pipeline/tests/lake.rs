//! A lake with a fake HQ and a consumer of its rows, all in one process.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::{Array, AsArray};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use lake_hq::source::{
    BlobReference, BlobStore, CaseRows, FormRows, Hq, HqDatabase, LocationKeys, LocationNode, LocationRows,
    LocationStep, Observation, ReadFrom, SourceError, TakeTreeRow, TreeExtent, TreeRow, UserDirectory,
};
use lake_proto::queue::v1::{Quarantined, RecordBatch, RowBatch};
use lake_shared::queue::memory::{MemoryQueue, MemoryQueueOptions};
use lake_shared::queue::{Broadcast, Consumer, ConsumerOptions, Message, PublishError, Queue, QueueError, Stream};
use lake_shared::wire;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::options::EnricherOptions;
use crate::pipeline::run;
use crate::rows::message::read_ipc;

pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// An HQ with a state, a district and a user in it, that can be down.
#[derive(Default)]
pub(super) struct FakeHq {
    pub(super) failures_left: AtomicUsize,
    pub(super) refuses: AtomicBool,
    pub(super) asked: AtomicUsize,
    pub(super) state: Mutex<State>,
}

#[derive(Clone)]
pub(super) struct State {
    pub(super) observed_us: i64,
    pub(super) district_name: String,
    pub(super) user_location: Option<String>,
}

impl Default for State {
    fn default() -> Self {
        Self { observed_us: 10, district_name: "North".into(), user_location: Some("d".into()) }
    }
}

impl FakeHq {
    pub(super) fn ports(self: &Arc<Self>) -> Hq {
        Hq { database: self.clone(), blobs: self.clone(), users: self.clone() }
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    fn answer<T>(&self, answer: T) -> Result<T, SourceError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let trouble = || ("read HQ".to_owned(), "test".to_owned());
        let down =
            self.failures_left.try_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        let (action, reason) = trouble();
        match (down, self.refuses.load(Ordering::SeqCst)) {
            (false, _) => Ok(answer),
            (true, true) => Err(SourceError::Refused { action, reason }),
            (true, false) => Err(SourceError::Unavailable { action, reason }),
        }
    }
}

#[async_trait]
impl HqDatabase for FakeHq {
    async fn cases(&self, _: &[String], _: ReadFrom) -> Result<Vec<Observation<CaseRows>>, SourceError> {
        Ok(Vec::new())
    }
    async fn forms(&self, _: &[String], _: ReadFrom) -> Result<Vec<Observation<FormRows>>, SourceError> {
        Ok(Vec::new())
    }
    async fn location_rows(&self, _: LocationKeys<'_>) -> Result<LocationRows, SourceError> {
        Ok(LocationRows::default())
    }
    async fn location_ancestors(&self, _: &[i64]) -> Result<Vec<LocationStep>, SourceError> {
        Ok(Vec::new())
    }
    async fn location_children(&self, _: &[i64]) -> Result<Vec<(i64, i64)>, SourceError> {
        Ok(Vec::new())
    }
    async fn location_tree(&self, _: &str, _: TreeExtent<'_>, take: &mut TakeTreeRow<'_>) -> Result<i64, SourceError> {
        let state = self.state.lock().unwrap().clone();
        for (type_id, type_name, id, location_id, name) in [
            (1, "supervisor", 1, "s", "Sita"),
            (2, "district", 2, "d", state.district_name.as_str()),
            (2, "district", 3, "e", "East"),
        ] {
            let (name, parent_id) = (Some(name), (id > 1).then_some(1));
            let node = LocationNode { id, location_id, name, type_id, type_name, parent_id, ..LocationNode::default() };
            take(TreeRow::Location(node));
        }
        self.answer(state.observed_us)
    }
    async fn check(&self) -> Result<(), SourceError> {
        Ok(())
    }
}

#[async_trait]
impl BlobStore for FakeHq {
    async fn get(&self, _: &BlobReference) -> Result<Option<Bytes>, SourceError> {
        Ok(None)
    }
    async fn check(&self) -> Result<(), SourceError> {
        Ok(())
    }
}

#[async_trait]
impl UserDirectory for FakeHq {
    async fn locations(&self, _: &str, ids: &[String]) -> Result<HashMap<String, Option<String>>, SourceError> {
        let location = self.state.lock().unwrap().user_location.clone();
        self.answer(ids.iter().map(|id| (id.clone(), location.clone().filter(|_| id == "u"))).collect())
    }
    async fn check(&self) -> Result<(), SourceError> {
        Ok(())
    }
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
        let hq = Arc::new(FakeHq::default());
        let memory = MemoryQueue::new(MemoryQueueOptions { payload_size_max: 50_000, ..MemoryQueueOptions::default() });
        let rows = collect(&memory, Stream::Rows).await;
        let quarantine = collect(&memory, Stream::Quarantine).await;
        let queue = wrap(memory);
        let shutdown = CancellationToken::new();
        let enricher = tokio::spawn(run(Arc::clone(&queue), hq.ports(), options, shutdown.clone()));
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

//! Ingest over the in-process queue with a store that only remembers.
#![allow(clippy::unwrap_used, reason = "tests")]

mod buffer;
mod decode;
mod pause;
mod room;
mod trouble;
mod unexplained;

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, Int64Array, StringArray};
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use futures::future::join_all;
use lake_proto::queue::v1::{RowBatch, Tombstone};
use lake_shared::escaped_names;
use lake_shared::identity::Kind;
use lake_shared::queue::memory::{MemoryQueue, MemoryQueueOptions};
use lake_shared::queue::{Message, PublishError, Queue};
use lake_shared::wire;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::control::{IngestRequest, Paused};
use super::{IngestOptions, run};
use crate::maintenance::MaintenanceOptions;
use crate::metastore::sqlite::SqliteMetastore;
use crate::metastore::{Metastore, QuarantineFilter};
use crate::table_store::TableStore;
use crate::table_store::fake::FakeStore;

pub(super) fn payload(domain: &str, ids: &[&str], tombstones: &[&str]) -> RowBatch {
    let id = StringArray::from(ids.to_vec());
    let offset = Int64Array::from_iter_values(0..ids.len() as i64);
    let columns = [("/_id", Arc::new(id) as Arc<dyn Array>), ("+_lake_offset", Arc::new(offset))];
    let rows = RecordBatch::try_from_iter(columns).unwrap();
    let mut stream = StreamWriter::try_new(Vec::new(), rows.schema_ref()).unwrap();
    stream.write(&rows).unwrap();
    RowBatch {
        domain: domain.into(),
        kind: Kind::Case.to_proto() as i32,
        r#type: Some("person".into()),
        arrow_ipc: if ids.is_empty() { bytes::Bytes::new() } else { stream.into_inner().unwrap().into() },
        tombstones: tombstones.iter().map(|id| Tombstone { id: (*id).into(), ..Tombstone::default() }).collect(),
    }
}

pub(super) fn message(batch: &RowBatch) -> Message {
    let subject = escaped_names::rows_subject(&batch.domain.as_str().into(), Kind::Case, Some(&"person".into()));
    Message { subject, payload: wire::encode(batch), dedupe_id: uuid::Uuid::new_v4().to_string() }
}

pub(super) struct Running {
    pub(super) queue: Arc<MemoryQueue>,
    pub(super) requests: mpsc::Sender<IngestRequest>,
    pub(super) shutdown: CancellationToken,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

pub(super) fn start(store: &Arc<FakeStore>, options: IngestOptions) -> Running {
    let queue = MemoryQueue::new(MemoryQueueOptions::default());
    let shutdown = CancellationToken::new();
    let store = Arc::clone(store) as Arc<dyn TableStore>;
    let (requests, asked) = mpsc::channel(1);
    let task = tokio::spawn(run(
        Arc::clone(&queue) as Arc<dyn Queue>,
        store,
        options,
        Paused::default(),
        asked,
        Arc::default(),
        shutdown.clone(),
    ));
    Running { queue, requests, shutdown, task }
}

impl Running {
    /// In process, a publisher hears `Ok` when its message is acknowledged.
    pub(super) async fn publish(&self, batch: &RowBatch) -> Result<(), PublishError> {
        tokio::time::timeout(Duration::from_secs(30), self.queue.publish(message(batch))).await.unwrap()
    }

    pub(super) async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(30), self.task).await.unwrap().unwrap().unwrap();
    }
}

pub(super) fn quick() -> IngestOptions {
    IngestOptions { flush_age_ms: 5, ..IngestOptions::default() }
}

#[tokio::test]
async fn messages_are_gathered_and_acknowledged_after_the_commit() {
    let store = FakeStore::new();
    let options = IngestOptions { flush_rows_max: 6, flush_age_ms: 3_600_000, ..IngestOptions::default() };
    let running = start(&store, options);
    let batches = [payload("d", &["1", "2"], &[]), payload("d", &["3"], &["x"]), payload("d", &[], &["y", "z"])];
    for outcome in join_all(batches.iter().map(|batch| running.publish(batch))).await {
        outcome.unwrap();
    }
    assert_eq!(store.ids(), ["-x", "-y", "-z", "1", "2", "3"]);
    assert_eq!(store.applied(), 1, "one commit for all");
    running.stop().await;
}

#[tokio::test]
async fn a_lonely_row_is_committed_when_it_has_waited_long_enough() {
    let store = FakeStore::new();
    let running = start(&store, quick());
    running.publish(&payload("d", &["1"], &[])).await.unwrap();
    assert_eq!(store.ids(), ["1"]);
    running.stop().await;
}

#[tokio::test]
async fn spaces_are_committed_in_parallel_within_the_limit() {
    let store = FakeStore::gated();
    let running = start(&store, IngestOptions { commits_parallel_max: 2, ..quick() });
    let batches: Vec<_> = (0..12).map(|n| payload(&format!("d{}", n % 4), &[&n.to_string()], &[])).collect();
    let published = join_all(batches.iter().map(|batch| running.publish(batch)));
    let (outcomes, ()) = tokio::join!(published, async {
        while store.busy() < 2 {
            tokio::task::yield_now().await;
        }
        store.let_through(1_000);
    });
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!((store.ids().len(), store.parallel_most()), (12, 2));
    running.stop().await;
}

#[tokio::test]
async fn passing_trouble_is_waited_out() {
    let store = FakeStore::new();
    store.fail(2);
    let running = start(&store, quick());
    running.publish(&payload("d", &["1"], &["2"])).await.unwrap();
    assert_eq!(store.ids(), ["-2", "1"]);
    assert_eq!(store.applied(), 3);
    running.stop().await;
}

#[tokio::test]
async fn one_bad_row_goes_to_quarantine_and_the_rest_is_committed() {
    let store = FakeStore::new();
    let running = start(&store, quick());
    let metastore = Arc::new(SqliteMetastore::memory());
    metastore.migrate().await.unwrap();
    let sink = tokio::spawn(crate::quarantine::sink::run(
        Arc::clone(&running.queue) as Arc<dyn Queue>,
        Arc::clone(&metastore) as Arc<dyn Metastore>,
        MaintenanceOptions::default().quarantine_bounds(),
        running.shutdown.clone(),
    ));
    running.publish(&payload("d", &["1", "2", "bad", "3", "4", "5", "bad too"], &["6"])).await.unwrap();
    assert_eq!(store.ids(), ["-6", "1", "2", "3", "4", "5"]);
    let entries = metastore.quarantined(&QuarantineFilter::default(), 10, 0).await.unwrap();
    let mut ids: Vec<&str> = entries.iter().map(|entry| entry.entry.id.as_str()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["bad", "bad too"]);
    let bad = &entries.iter().find(|entry| entry.entry.id == "bad").unwrap();
    assert_eq!((bad.stage.as_str(), bad.entry.reason.as_str()), ("writer", "row_impossible"));
    assert_eq!((bad.entry.r#type.as_str(), bad.entry.lineage.as_ref().unwrap().offset), ("person", 2));
    assert!(String::from_utf8(bad.entry.payload.to_vec()).unwrap().contains("\"/_id\":\"bad\""));

    // A message that cannot be read is quarantined as a whole.
    let garbage = Message { payload: bytes::Bytes::from_static(b"garbage"), ..message(&payload("d", &["7"], &[])) };
    running.queue.publish(garbage).await.unwrap();
    let no_kind = RowBatch { kind: 99, ..payload("d", &["8"], &[]) };
    let no_type = RowBatch { r#type: None, ..payload("d", &["9"], &[]) };
    let no_rows = RowBatch { arrow_ipc: bytes::Bytes::from_static(b"no arrow"), ..payload("d", &[], &[]) };
    for batch in [no_kind, no_type, no_rows] {
        running.publish(&batch).await.unwrap();
    }
    let filter = QuarantineFilter { reason: Some("row_batch_malformed".into()), ..QuarantineFilter::default() };
    assert_eq!(metastore.quarantined_count(&filter).await.unwrap(), 4);
    running.stop().await;
    sink.await.unwrap();
}

#[tokio::test]
async fn rows_of_an_unusable_table_go_to_quarantine_and_the_rest_of_the_space_is_committed() {
    let store = FakeStore::new();
    let options = IngestOptions { flush_rows_max: 9, flush_age_ms: 3_600_000, ..IngestOptions::default() };
    let running = start(&store, options);
    let metastore = Arc::new(SqliteMetastore::memory());
    metastore.migrate().await.unwrap();
    let sink = tokio::spawn(crate::quarantine::sink::run(
        Arc::clone(&running.queue) as Arc<dyn Queue>,
        Arc::clone(&metastore) as Arc<dyn Metastore>,
        MaintenanceOptions::default().quarantine_bounds(),
        running.shutdown.clone(),
    ));
    let broken = |ids: &[&str], gone: &[&str]| RowBatch { r#type: Some("broken".into()), ..payload("d", ids, gone) };
    // One batch of all: rows of both types, one of them bad, and tombstones.
    let batches =
        [broken(&["1", "2"], &["x"]), payload("d", &["3", "bad", "4"], &["y"]), broken(&["5", "bad too"], &[])];
    for outcome in join_all(batches.iter().map(|batch| running.publish(batch))).await {
        outcome.unwrap();
    }
    assert_eq!(store.ids(), ["-x", "-y", "3", "4"]);
    let entries = metastore.quarantined(&QuarantineFilter::default(), 10, 0).await.unwrap();
    let mut found: Vec<(&str, &str, &str)> = entries
        .iter()
        .map(|entry| (entry.entry.id.as_str(), entry.entry.reason.as_str(), entry.entry.r#type.as_str()))
        .collect();
    found.sort_unstable();
    let unusable = |id| (id, "table_unusable", "broken");
    let wanted =
        [unusable("1"), unusable("2"), unusable("5"), ("bad", "row_impossible", "person"), unusable("bad too")];
    assert_eq!(found, wanted);
    // An entry holds what it takes to apply the row later.
    let one = &entries.iter().find(|entry| entry.entry.id == "2").unwrap();
    assert_eq!((one.stage.as_str(), one.entry.detail.as_str()), ("writer", "a column of a strange type"));
    assert_eq!((one.entry.domain.as_str(), one.entry.lineage.as_ref().unwrap().offset), ("d", 1));
    assert!(String::from_utf8(one.entry.payload.to_vec()).unwrap().contains("\"/_id\":\"2\""));
    running.stop().await;
    sink.await.unwrap();
}

#[tokio::test]
async fn shutdown_commits_what_is_held() {
    let store = FakeStore::new();
    let running = start(&store, IngestOptions { flush_age_ms: 3_600_000, ..IngestOptions::default() });
    let queue = Arc::clone(&running.queue);
    let published = tokio::spawn(async move { queue.publish(message(&payload("d", &["1"], &[]))).await });
    // The row is held when a second message behind it has been taken and quarantined; only then is the writer stopped.
    let queue = Arc::clone(&running.queue);
    tokio::spawn(async move { queue.publish(message(&RowBatch { kind: 99, ..payload("d", &["2"], &[]) })).await });
    let options = lake_shared::queue::ConsumerOptions {
        durable_name: "test".into(),
        in_flight_max: 1,
        acknowledge_within: Duration::from_secs(60),
    };
    let mut quarantine = running.queue.consumer(lake_shared::queue::Stream::Quarantine, options).await.unwrap();
    quarantine.next().await.unwrap().unwrap().receipt.acknowledge().await.unwrap();
    running.stop().await;
    published.await.unwrap().unwrap();
    assert_eq!(store.ids(), ["1"]);
}

#[tokio::test]
async fn memory_is_bounded() {
    let store = FakeStore::new();
    // Room for a single message: each is committed at once, although it is neither old nor large.
    let options = IngestOptions { held_bytes_max: 1, flush_age_ms: 3_600_000, ..IngestOptions::default() };
    let running = start(&store, options);
    let batches: Vec<_> = (0..5).map(|n| payload("d", &[&n.to_string()], &[])).collect();
    for outcome in join_all(batches.iter().map(|batch| running.publish(batch))).await {
        outcome.unwrap();
    }
    assert_eq!(store.applied(), 5);
    running.stop().await;
}

#[tokio::test]
async fn stopping_during_trouble_gives_the_rows_back() {
    let store = FakeStore::new();
    store.fail(usize::MAX);
    let running = start(&store, quick());
    let queue = Arc::clone(&running.queue);
    let published = tokio::spawn(async move { queue.publish(message(&payload("d", &["1"], &[]))).await });
    while store.applied() == 0 {
        tokio::task::yield_now().await;
    }
    let queue = Arc::clone(&running.queue);
    running.stop().await;
    assert!(!published.is_finished());
    // The next writer gets them.
    let next = FakeStore::new();
    let shutdown = CancellationToken::new();
    let (_requests, asked) = mpsc::channel(1);
    let task = tokio::spawn(run(
        queue,
        Arc::clone(&next) as Arc<dyn TableStore>,
        quick(),
        Paused::default(),
        asked,
        Arc::default(),
        shutdown.clone(),
    ));
    published.await.unwrap().unwrap();
    assert_eq!(next.ids(), ["1"]);
    shutdown.cancel();
    task.await.unwrap().unwrap();
}

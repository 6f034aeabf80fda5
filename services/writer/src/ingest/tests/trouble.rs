//! One space that cannot be committed, or one message that cannot be quarantined, does not stop the others.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use futures::future::join_all;
use lake_proto::queue::v1::{Quarantined, RowBatch};
use lake_shared::queue::{ConsumerOptions, Queue, Stream};
use lake_shared::wire;

use super::{message, payload, quick, start};
use crate::ingest::IngestOptions;
use crate::table_store::fake::FakeStore;

/// Messages of a space that cannot be committed, many more than the room has place for; then those of another space.
async fn one_space_fails(options: IngestOptions) {
    let store = FakeStore::new();
    store.failing.lock().unwrap().insert("stuck".into());
    let running = start(&store, options);
    let publishing = (0..300).map(|n| {
        let queue = std::sync::Arc::clone(&running.queue);
        async move { queue.publish(message(&payload("stuck", &[&format!("s{n:03}")], &[]))).await }
    });
    let stuck = tokio::spawn(join_all(publishing.collect::<Vec<_>>()));
    // Taken behind all of them.
    tokio::time::sleep(Duration::from_millis(50)).await;
    for n in 0..3 {
        running.publish(&payload("fine", &[&format!("f{n}")], &[])).await.unwrap();
    }
    assert_eq!(store.ids(), ["f0", "f1", "f2"]);
    assert!(!stuck.is_finished());

    // Nothing is lost.
    store.failing.lock().unwrap().clear();
    let outcomes = tokio::time::timeout(Duration::from_secs(60), stuck).await.unwrap().unwrap();
    assert!(outcomes.iter().all(Result::is_ok));
    let mut ids = store.ids();
    ids.dedup();
    assert_eq!(ids.len(), 303);
    running.stop().await;
}

#[tokio::test]
async fn a_space_that_cannot_be_committed_leaves_bytes_and_slots_to_the_others() {
    one_space_fails(IngestOptions { held_bytes_max: 100_000, commits_parallel_max: 1, ..quick() }).await;
}

#[tokio::test]
async fn a_space_that_cannot_be_committed_leaves_messages_to_the_others() {
    one_space_fails(IngestOptions { in_flight_max: 40, ..quick() }).await;
}

#[tokio::test]
async fn spaces_that_cannot_be_committed_leave_slots_to_the_others() {
    let store = FakeStore::new();
    let running = start(&store, IngestOptions { commits_parallel_max: 2, ..quick() });
    for n in 0..5 {
        let domain = format!("stuck{n}");
        store.failing.lock().unwrap().insert(domain.clone());
        let queue = std::sync::Arc::clone(&running.queue);
        tokio::spawn(async move { queue.publish(message(&payload(&domain, &["s"], &[]))).await });
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    running.publish(&payload("fine", &["f"], &[])).await.unwrap();
    assert_eq!(store.ids(), ["f"]);
    running.stop().await;
}

#[tokio::test]
async fn rows_of_too_many_types_go_to_quarantine_in_one_go_and_the_rest_is_committed() {
    let store = FakeStore::new();
    let options = IngestOptions { flush_rows_max: 202, flush_age_ms: 3_600_000, ..IngestOptions::default() };
    let running = start(&store, options);
    let surplus =
        |n: usize| RowBatch { r#type: Some(format!("surplus {n}")), ..payload("d", &[&format!("s{n}")], &[]) };
    let mut batches: Vec<RowBatch> = (0..200).map(surplus).collect();
    batches.push(payload("d", &["1"], &["x"]));
    let publishing = join_all(batches.iter().map(|batch| running.publish(batch)));
    let options =
        ConsumerOptions { durable_name: "test".into(), in_flight_max: 9, acknowledge_within: Duration::from_secs(60) };
    let mut quarantine = running.queue.consumer(Stream::Quarantine, options).await.unwrap();
    let emptying = async {
        for _ in 0..200 {
            let delivery = quarantine.next().await.unwrap().unwrap();
            let entry: Quarantined = wire::decode(&delivery.payload).unwrap();
            assert_eq!((entry.reason.as_str(), entry.r#type.starts_with("surplus ")), ("too_many_types", true));
            assert!(entry.detail.contains("tables.types_max"), "{}", entry.detail);
            delivery.receipt.acknowledge().await.unwrap();
        }
    };
    let (published, ()) = tokio::join!(publishing, emptying);
    assert!(published.iter().all(Result::is_ok));
    assert_eq!(store.ids(), ["-x", "1"]);
    assert_eq!(store.applied(), 2, "one try that is refused, and one without those types");
    running.stop().await;
}

#[tokio::test]
async fn a_malformed_message_that_waits_for_quarantine_is_quarantined_once() {
    let store = FakeStore::new();
    let running = start(&store, IngestOptions { acknowledge_within_seconds: 4, ..quick() });
    let queue = std::sync::Arc::clone(&running.queue);
    let malformed = RowBatch { kind: 99, ..payload("d", &["1"], &[]) };
    let published = tokio::spawn(async move { queue.publish(message(&malformed)).await });
    // The quarantine is not emptied for longer than the queue leaves a message with a consumer that says nothing.
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert!(!published.is_finished());
    let options =
        ConsumerOptions { durable_name: "test".into(), in_flight_max: 9, acknowledge_within: Duration::from_secs(60) };
    let mut quarantine = running.queue.consumer(Stream::Quarantine, options).await.unwrap();
    quarantine.next().await.unwrap().unwrap().receipt.acknowledge().await.unwrap();
    published.await.unwrap().unwrap();
    let another = tokio::time::timeout(Duration::from_millis(300), quarantine.next()).await;
    assert!(another.is_err(), "quarantined twice");
    running.stop().await;
}

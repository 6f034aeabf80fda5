//! Failures whose cause is not known: a panic, a value that a library refuses. The rows that bring them about are found, and nothing else is
//! put aside.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use futures::future::join_all;
use lake_proto::queue::v1::RowBatch;
use lake_shared::queue::Queue;
use tokio::task::JoinHandle;

use super::{Running, message, payload, quick, start};
use crate::ingest::IngestOptions;
use crate::maintenance::MaintenanceOptions;
use crate::metastore::sqlite::SqliteMetastore;
use crate::metastore::{Metastore, QuarantineFilter};
use crate::table_store::fake::FakeStore;

/// Stores what is quarantined.
async fn quarantine(running: &Running) -> (Arc<SqliteMetastore>, JoinHandle<()>) {
    let metastore = Arc::new(SqliteMetastore::memory());
    metastore.migrate().await.unwrap();
    let sink = tokio::spawn(crate::quarantine::sink::run(
        Arc::clone(&running.queue) as Arc<dyn Queue>,
        Arc::clone(&metastore) as Arc<dyn Metastore>,
        MaintenanceOptions::default().quarantine_bounds(),
        running.shutdown.clone(),
    ));
    (metastore, sink)
}

/// Ids and reasons of what was quarantined.
async fn quarantined(metastore: &SqliteMetastore) -> Vec<(String, String)> {
    let entries = metastore.quarantined(&QuarantineFilter::default(), 1_000, 0).await.unwrap();
    let mut found: Vec<_> = entries.into_iter().map(|stored| (stored.entry.id, stored.entry.reason)).collect();
    found.sort_unstable();
    found
}

#[tokio::test]
async fn a_row_at_which_the_store_panics_goes_to_quarantine_and_the_others_are_stored() {
    let store = FakeStore::new();
    let running = start(&store, quick());
    let (metastore, sink) = quarantine(&running).await;
    running.publish(&payload("d", &["1", "2", "panic", "3", "4"], &["5"])).await.unwrap();
    assert_eq!(store.ids(), ["-5", "1", "2", "3", "4"]);
    assert_eq!(quarantined(&metastore).await, [("panic".to_owned(), "row_fails".to_owned())]);
    // Alone, too; and the writer goes on.
    running.publish(&payload("d", &["panic again"], &[])).await.unwrap();
    running.publish(&payload("d", &["6"], &[])).await.unwrap();
    assert_eq!(quarantined(&metastore).await.len(), 2);
    running.stop().await;
    sink.await.unwrap();
}

/// As a metastore does that refuses whatever it is given: no row is the cause, so none is put aside.
#[tokio::test]
async fn where_every_row_fails_none_is_put_aside_and_the_space_waits() {
    let store = FakeStore::new();
    store.unexplained.lock().unwrap().insert("stuck".into());
    let running = start(&store, quick());
    let (metastore, sink) = quarantine(&running).await;
    let ids: Vec<String> = (0..40).map(|n| format!("s{n:02}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let queue = Arc::clone(&running.queue);
    let stuck = payload("stuck", &ids, &[]);
    let publishing = tokio::spawn(async move { queue.publish(message(&stuck)).await });
    running.publish(&payload("fine", &["f"], &[])).await.unwrap();
    assert_eq!(store.ids(), ["f"]);
    store.unexplained.lock().unwrap().clear();
    publishing.await.unwrap().unwrap();
    assert_eq!(store.ids().len(), 41);
    assert_eq!(quarantined(&metastore).await, []);
    running.stop().await;
    sink.await.unwrap();
}

#[tokio::test]
async fn where_all_rows_of_a_type_fail_they_are_put_aside_without_trying_each() {
    let store = FakeStore::new();
    store.unexplained.lock().unwrap().insert("strange".into());
    let options = IngestOptions { flush_rows_max: 60, flush_age_ms: 3_600_000, ..IngestOptions::default() };
    let running = start(&store, options);
    let (metastore, sink) = quarantine(&running).await;
    let ids = |letter: char| -> Vec<String> { (0..30).map(|n| format!("{letter}{n:02}")).collect() };
    let (strange, fine) = (ids('s'), ids('f'));
    let rows = |ids: &[String]| payload("d", &ids.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
    let batches = [RowBatch { r#type: Some("strange".into()), ..rows(&strange) }, rows(&fine)];
    for outcome in join_all(batches.iter().map(|batch| running.publish(batch))).await {
        outcome.unwrap();
    }
    assert_eq!(store.ids(), fine);
    let found = quarantined(&metastore).await;
    assert_eq!(found.iter().map(|(id, _)| id).collect::<Vec<_>>(), strange.iter().collect::<Vec<_>>());
    assert!(found.iter().all(|(_, reason)| reason == "row_fails"));
    running.stop().await;
    sink.await.unwrap();
}

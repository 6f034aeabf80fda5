//! What is paused is not committed, and nothing of it is lost.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use lake_shared::identity::{Kind, Space, TableKey};
use lake_shared::queue::{Backlog, Queue, Stream};
use tokio::sync::oneshot;

use super::{Running, message, payload, quick, start};
use crate::ingest::IngestOptions;
use crate::ingest::control::{IngestRequest, IngestStatus, PauseScope, Paused, PendingRows};
use crate::table_store::fake::FakeStore;

async fn ask<T>(running: &Running, request: impl FnOnce(oneshot::Sender<T>) -> IngestRequest) -> T {
    let (answer, answered) = oneshot::channel();
    running.requests.send(request(answer)).await.unwrap();
    tokio::time::timeout(Duration::from_secs(30), answered).await.unwrap().unwrap()
}

async fn pause(running: &Running, scope: PauseScope) {
    ask(running, |answer| IngestRequest::Pause(scope, answer)).await;
}

async fn resume(running: &Running, scope: PauseScope) {
    ask(running, |answer| IngestRequest::Resume(scope, answer)).await;
}

async fn status(running: &Running) -> IngestStatus {
    ask(running, IngestRequest::Status).await
}

fn space(domain: &str) -> Space {
    Space { domain: domain.into(), kind: Kind::Case }
}

/// Publishes a row without waiting for it.
fn publish(running: &Running, domain: &str, id: &str) -> tokio::task::JoinHandle<()> {
    let (queue, batch) = (Arc::clone(&running.queue), payload(domain, &[id], &["gone"]));
    tokio::spawn(async move { queue.publish(message(&batch)).await.unwrap() })
}

async fn until_rows_wait(running: &Running, rows: usize) {
    while status(running).await.rows_waiting != rows {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Waits until the queue holds what is meant.
async fn until_backlog(running: &Running, is_meant: impl Fn(Backlog) -> bool) {
    let waiting = async {
        while !running.queue.backlog(Stream::Rows).await.unwrap().is_some_and(&is_meant) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap();
}

#[tokio::test]
async fn while_everything_is_paused_nothing_is_taken_and_what_waited_goes_back() {
    let store = FakeStore::new();
    let running = start(&store, IngestOptions { flush_age_ms: 60_000, ..IngestOptions::default() });
    let first = publish(&running, "d", "1");
    until_rows_wait(&running, 2).await;
    pause(&running, PauseScope::Everything).await;
    let second = publish(&running, "e", "2");
    until_backlog(&running, |backlog| (backlog.messages, backlog.in_flight) == (2, 0)).await;
    let paused = Paused { everything: true, ..Paused::default() };
    assert_eq!(status(&running).await, IngestStatus { paused, ..IngestStatus::default() });
    assert!(store.ids().is_empty() && !first.is_finished() && !second.is_finished());

    resume(&running, PauseScope::Everything).await;
    first.await.unwrap();
    second.await.unwrap();
    assert_eq!(store.ids(), ["-gone", "-gone", "1", "2"]);
    assert_eq!(status(&running).await, IngestStatus::default());
    running.stop().await;
}

#[tokio::test]
async fn a_paused_space_does_not_stop_the_others() {
    let store = FakeStore::new();
    let running = start(&store, quick());
    pause(&running, PauseScope::Space(space("quiet"))).await;
    let quiet = publish(&running, "quiet", "1");
    until_backlog(&running, |backlog| backlog.redelivered == 1).await;
    publish(&running, "loud", "2").await.unwrap();
    assert_eq!(store.ids(), ["-gone", "2"]);
    // To resume everything ends also the pause of one space.
    assert!(!quiet.is_finished() && status(&running).await.paused.spaces.contains(&space("quiet")));
    resume(&running, PauseScope::Everything).await;
    quiet.await.unwrap();
    assert_eq!(store.ids(), ["-gone", "-gone", "1", "2"]);
    running.stop().await;
}

#[tokio::test]
async fn a_pause_is_answered_when_no_commit_runs_any_more() {
    let store = FakeStore::gated();
    let running = start(&store, quick());
    let committed = publish(&running, "d", "1");
    let pending = |domain: &str| {
        let table = TableKey { space: space(domain), document_type: "person".into() };
        ask(&running, |answer| IngestRequest::Pending(table, answer))
    };
    while !pending("d").await.committing {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    pause(&running, PauseScope::Space(space("e"))).await;
    let (answer, mut answered) = oneshot::channel();
    running.requests.send(IngestRequest::Pause(PauseScope::Space(space("d")), answer)).await.unwrap();
    // That another pause ends says nothing about this one.
    resume(&running, PauseScope::Space(space("e"))).await;
    assert!(answered.try_recv().is_err());
    assert_eq!(pending("d").await, PendingRows { committing: true, paused: true, ..PendingRows::default() });
    assert!(answered.try_recv().is_err(), "the commit still runs");
    store.let_through(1);
    answered.await.unwrap();
    committed.await.unwrap();
    assert_eq!(store.ids(), ["-gone", "1"]);
    running.stop().await;
}

#[tokio::test]
async fn rows_that_wait_are_counted_for_their_table() {
    let store = FakeStore::new();
    let running = start(&store, IngestOptions { flush_age_ms: 60_000, ..IngestOptions::default() });
    let publishing = publish(&running, "d", "1");
    until_rows_wait(&running, 2).await;
    for (document_type, rows) in [("person", 1), ("visit", 0)] {
        let table = TableKey { space: space("d"), document_type: document_type.into() };
        let pending = ask(&running, |answer| IngestRequest::Pending(table, answer)).await;
        assert_eq!(pending, PendingRows { rows, tombstones: 1, ..PendingRows::default() });
    }
    assert!(status(&running).await.bytes_held > 0);
    running.stop().await;
    publishing.await.unwrap();
}

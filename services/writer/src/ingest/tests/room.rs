//! A message is decoded when there is room for it, not before.
#![allow(clippy::unwrap_used, reason = "tests")]

use tokio::sync::oneshot;

use super::*;

/// Decompressed these ids take so many bytes; in the queue they are next to nothing.
const LARGE: usize = 60_000;

async fn held_bytes(running: &Running) -> usize {
    let (answer, answered) = oneshot::channel();
    running.requests.send(IngestRequest::Status(answer)).await.unwrap();
    answered.await.unwrap().bytes_held
}

#[tokio::test]
async fn a_message_waits_in_the_queue_until_what_it_decompresses_to_has_room() {
    let store = FakeStore::gated();
    let options = IngestOptions { held_bytes_max: 200_000, commits_parallel_max: 1, ..quick() };
    let running = start(&store, options.clone());
    let batches: Vec<RowBatch> =
        (0..8).map(|n| payload(&format!("d{n}"), &[&format!("{n}{}", "x".repeat(LARGE))], &[])).collect();
    assert!(message(&batches[0]).payload.len() < 2_000);
    let published = join_all(batches.iter().map(|batch| running.publish(batch)));
    let (outcomes, most) = tokio::join!(published, async {
        let mut most = 0;
        // One commit after the other; between them whatever may be decoded is.
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(2)).await;
            most = most.max(held_bytes(&running).await);
        }
        store.let_through(1_000);
        most
    });
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!(store.ids().len(), 8);
    assert!((LARGE..=options.held_bytes_max).contains(&most), "{most} bytes were held");
    running.stop().await;
}

#[tokio::test]
async fn a_message_larger_than_all_the_room_is_decoded_when_nothing_else_is_held() {
    let store = FakeStore::new();
    let running = start(&store, IngestOptions { held_bytes_max: 1_000, ..quick() });
    for n in 0..3 {
        running.publish(&payload("d", &[&format!("{n}{}", "x".repeat(LARGE))], &[])).await.unwrap();
    }
    assert_eq!(store.ids().len(), 3);
    running.stop().await;
}

//! From the quarantine stream into the metastore, where entries are listed. A message is acknowledged after its entry is stored. The metastore keeps
//! entries up to an age, a number and a size: a flood of bad records fills no disk, and takes the places of its own project first.

use std::sync::Arc;
use std::time::Duration;

use lake_proto::queue::v1::Quarantined;
use lake_shared::error_chain::Chain;
use lake_shared::quarantine::{QuarantineEntry, Reason, Stage};
use lake_shared::queue::{ConsumerOptions, Delivery, Queue, Stream};
use lake_shared::retry::Backoff;
use lake_shared::wire;
use tokio_util::sync::CancellationToken;

use crate::metastore::{Metastore, MetastoreError, QuarantineBounds};
use crate::metric_names;

/// Most entries that are handed out and not yet stored.
const IN_FLIGHT_MAX: usize = 64;

/// After this time without an acknowledgement the queue hands an entry out again.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_secs(60);

/// Entries after which the bounds are looked at again.
const LIMITED_EVERY_ENTRIES: u32 = 1_000;

/// The same by time, as entries grow old.
const LIMITED_EVERY: Duration = Duration::from_secs(3_600);

/// Stores entries, and keeps them within their bounds, until `shutdown` or until the queue is closed. Passing trouble is waited out.
pub async fn run(
    queue: Arc<dyn Queue>,
    metastore: Arc<dyn Metastore>,
    bounds: QuarantineBounds,
    shutdown: CancellationToken,
) {
    let options = ConsumerOptions {
        durable_name: "quarantine".into(),
        in_flight_max: IN_FLIGHT_MAX,
        acknowledge_within: ACKNOWLEDGE_WITHIN,
    };
    let mut backoff = Backoff::default();
    let mut consumer = loop {
        // Without a consumer the stream fills, and then the services wait with every record that they want to quarantine.
        match queue.consumer(Stream::Quarantine, options.clone()).await {
            Ok(consumer) => break consumer,
            Err(error) => tracing::warn!(%error, "quarantine stream cannot be read yet"),
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next_wait()) => {}
            () = shutdown.cancelled() => return,
        }
    };
    let mut due = tokio::time::interval(LIMITED_EVERY);
    let mut entries = 0;
    loop {
        if entries >= LIMITED_EVERY_ENTRIES {
            entries = 0;
            limit(metastore.as_ref(), &bounds).await;
        }
        let next = tokio::select! {
            next = consumer.next() => next,
            // What a consumer was about to hand out comes again.
            _ = due.tick() => {
                limit(metastore.as_ref(), &bounds).await;
                continue;
            }
            () = shutdown.cancelled() => return,
        };
        match next {
            None => return,
            Some(Ok(delivery)) => {
                store(metastore.as_ref(), delivery).await;
                entries += 1;
                backoff = Backoff::default();
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "quarantine stream cannot be read now");
                tokio::select! {
                    () = tokio::time::sleep(backoff.next_wait()) => {}
                    () = shutdown.cancelled() => return,
                }
            }
        }
    }
}

/// Removes what is beyond the bounds. A failure waits for the next time.
async fn limit(metastore: &dyn Metastore, bounds: &QuarantineBounds) {
    match metastore.limit_quarantine(bounds).await {
        Ok(0) => {}
        Ok(dropped) => {
            tracing::warn!(
                dropped,
                "old entries left the quarantine; see maintenance.quarantine_days, quarantine_entries_max and \
                 quarantine_payload_bytes_max"
            );
            metrics::counter!(metric_names::QUARANTINE_DROPPED_TOTAL).increment(dropped);
        }
        Err(error) => tracing::warn!(error = %Chain(&error), "quarantine cannot be kept within its bounds now"),
    }
}

/// The stage as a label: others may publish to the stream, and labels have few values.
fn label(stage: &str) -> &'static str {
    let stages = [Stage::Fetcher, Stage::Enricher, Stage::Writer];
    stages.into_iter().map(Stage::name).find(|name| *name == stage).unwrap_or("other")
}

async fn store(metastore: &dyn Metastore, delivery: Delivery) {
    let stage = delivery.subject.rsplit('.').next().unwrap_or_default().to_owned();
    let stored = match wire::decode::<Quarantined>(&delivery.payload) {
        Ok(entry) => metastore.quarantine(&stage, &entry).await,
        Err(error) => unreadable(metastore, &stage, &delivery, &error).await,
    };
    let answered = match stored {
        Ok(()) => {
            metrics::counter!(metric_names::QUARANTINE_STORED_TOTAL, "stage" => label(&stage)).increment(1);
            delivery.receipt.acknowledge().await
        }
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "quarantine entry cannot be stored now");
            delivery.receipt.retry(Duration::from_secs(1)).await
        }
    };
    if let Err(error) = answered {
        tracing::warn!(%error, "quarantine entry will come again");
    }
}

/// Stores a message that is no entry as it came.
async fn unreadable(
    metastore: &dyn Metastore,
    stage: &str,
    delivery: &Delivery,
    error: &wire::WireError,
) -> Result<(), MetastoreError> {
    let detail = format!("message {} on {}: {}", delivery.id, delivery.subject, Chain(error));
    let entry = QuarantineEntry::new(Stage::Writer, Reason::QuarantineEntryMalformed, detail)
        .payload(delivery.payload.clone())
        .into_message();
    // The stage is that of the subject: whose entry it was.
    metastore.quarantine(stage, &entry).await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use bytes::Bytes;
    use futures::stream::BoxStream;
    use lake_shared::queue::memory::{MemoryQueue, MemoryQueueOptions};
    use lake_shared::queue::{Broadcast, Consumer, Message, PublishError, QueueError};

    use super::*;
    use crate::metastore::QuarantineFilter;
    use crate::metastore::sqlite::SqliteMetastore;

    /// A queue that cannot be read at first, as while its servers elect a leader.
    struct Leaderless {
        queue: Arc<MemoryQueue>,
        tries_left: AtomicUsize,
    }

    #[async_trait]
    impl Queue for Leaderless {
        async fn publish(&self, message: Message) -> Result<(), PublishError> {
            self.queue.publish(message).await
        }

        async fn consumer(&self, stream: Stream, options: ConsumerOptions) -> Result<Box<dyn Consumer>, QueueError> {
            let less = |left: usize| left.checked_sub(1);
            if self.tries_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok() {
                return Err(QueueError { action: "read".into(), reason: "no leader".into() });
            }
            self.queue.consumer(stream, options).await
        }

        async fn broadcast(&self, subject: &str, payload: Bytes) -> Result<(), QueueError> {
            self.queue.broadcast(subject, payload).await
        }

        async fn listen(&self, pattern: &str) -> Result<BoxStream<'static, Broadcast>, QueueError> {
            self.queue.listen(pattern).await
        }

        fn payload_size_max(&self) -> usize {
            self.queue.payload_size_max()
        }

        async fn check(&self) -> Result<(), QueueError> {
            self.queue.check().await
        }
    }

    fn bounds(entries_max: i64) -> QuarantineBounds {
        QuarantineBounds { age_max_us: i64::MAX / 2, entries_max, payload_bytes_max: i64::MAX }
    }

    #[tokio::test]
    async fn a_flood_of_entries_stays_within_the_bounds() {
        let metastore = Arc::new(SqliteMetastore::memory());
        metastore.migrate().await.unwrap();
        let queue = MemoryQueue::new(MemoryQueueOptions::default());
        let shutdown = CancellationToken::new();
        let sink = tokio::spawn(run(queue.clone(), metastore.clone(), bounds(5), shutdown.clone()));
        let last = LIMITED_EVERY_ENTRIES + 1;
        for n in 1..=last {
            let entry = Quarantined {
                reason: "x".into(),
                id: n.to_string(),
                quarantined_us: i64::from(n),
                ..Quarantined::default()
            };
            let (subject, dedupe_id) = ("lake.quarantine.writer".into(), n.to_string());
            queue.publish(Message { subject, payload: wire::encode(&entry), dedupe_id }).await.unwrap();
        }
        let held = metastore.quarantined(&QuarantineFilter::default(), 100, 0).await.unwrap();
        let ids: Vec<u32> = held.iter().map(|record| record.entry.id.parse().unwrap()).collect();
        assert!(ids.len() <= 6 && ids.starts_with(&[last, last - 1, last - 2, last - 3]), "{ids:?}");
        shutdown.cancel();
        sink.await.unwrap();
    }

    #[test]
    fn labels_are_those_of_the_services() {
        assert_eq!(
            ["fetcher", "enricher", "writer", "x", ""].map(label),
            ["fetcher", "enricher", "writer", "other", "other"]
        );
    }

    #[tokio::test]
    async fn a_stream_that_cannot_be_read_at_the_start_is_read_later() {
        let metastore = Arc::new(SqliteMetastore::memory());
        metastore.migrate().await.unwrap();
        let queue = MemoryQueue::new(MemoryQueueOptions::default());
        let leaderless = Arc::new(Leaderless { queue: Arc::clone(&queue), tries_left: 3.into() });
        let shutdown = CancellationToken::new();
        let sink = tokio::spawn(run(leaderless, metastore.clone(), bounds(10), shutdown.clone()));
        let entry = Quarantined { reason: "x".into(), id: "1".into(), ..Quarantined::default() };
        let message = wire::encode(&entry);
        let message = Message { subject: "lake.quarantine.writer".into(), payload: message, dedupe_id: "1".into() };
        // Safe as soon as the sink has stored it.
        tokio::time::timeout(Duration::from_secs(60), queue.publish(message)).await.unwrap().unwrap();
        assert_eq!(metastore.quarantined_count(&QuarantineFilter::default()).await.unwrap(), 1);
        shutdown.cancel();
        sink.await.unwrap();
    }
}

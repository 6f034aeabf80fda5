//! From the quarantine stream into the metastore, where entries are listed and replayed. A message is acknowledged after its entry is stored.

use std::sync::Arc;
use std::time::Duration;

use lake_proto::queue::v1::Quarantined;
use lake_shared::error_chain::Chain;
use lake_shared::quarantine::{QuarantineEntry, Reason, Stage};
use lake_shared::queue::{ConsumerOptions, Delivery, Queue, Stream};
use lake_shared::retry::Backoff;
use lake_shared::wire;
use tokio_util::sync::CancellationToken;

use crate::metastore::{Metastore, MetastoreError};
use crate::metric_names;

/// Most entries that are handed out and not yet stored.
const IN_FLIGHT_MAX: usize = 64;

/// After this time without an acknowledgement the queue hands an entry out again.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_secs(60);

/// Stores entries until `shutdown` or until the queue is closed. Passing trouble is waited out.
pub async fn run(queue: Arc<dyn Queue>, metastore: Arc<dyn Metastore>, shutdown: CancellationToken) {
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
    loop {
        let next = tokio::select! {
            next = consumer.next() => next,
            () = shutdown.cancelled() => return,
        };
        match next {
            None => return,
            Some(Ok(delivery)) => {
                store(metastore.as_ref(), delivery).await;
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

async fn store(metastore: &dyn Metastore, delivery: Delivery) {
    let stage = delivery.subject.rsplit('.').next().unwrap_or_default().to_owned();
    let stored = match wire::decode::<Quarantined>(&delivery.payload) {
        Ok(entry) => metastore.quarantine(&stage, &entry).await,
        Err(error) => unreadable(metastore, &stage, &delivery, &error).await,
    };
    let answered = match stored {
        Ok(()) => {
            metrics::counter!(metric_names::QUARANTINE_STORED_TOTAL, "stage" => stage).increment(1);
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

    #[tokio::test]
    async fn a_stream_that_cannot_be_read_at_the_start_is_read_later() {
        let metastore = Arc::new(SqliteMetastore::memory());
        metastore.migrate().await.unwrap();
        let queue = MemoryQueue::new(MemoryQueueOptions::default());
        let leaderless = Arc::new(Leaderless { queue: Arc::clone(&queue), tries_left: 3.into() });
        let shutdown = CancellationToken::new();
        let sink = tokio::spawn(run(leaderless, metastore.clone(), shutdown.clone()));
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

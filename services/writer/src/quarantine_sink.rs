//! From the quarantine stream into the metastore, where entries are listed and replayed. Acknowledged after they are stored.

use std::sync::Arc;
use std::time::Duration;

use lake_proto::queue::v1::Quarantined;
use lake_shared::error_chain::Chain;
use lake_shared::queue::{ConsumerOptions, Delivery, Queue, Stream};
use lake_shared::retry::Backoff;
use lake_shared::wire;
use tokio_util::sync::CancellationToken;

use crate::metastore::{Metastore, MetastoreError};
use crate::telemetry;

/// Entries handed out at once.
const IN_FLIGHT_MAX: usize = 64;

/// How long the queue waits for an acknowledgement.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_secs(60);

/// Stores entries until `shutdown` or until the queue is closed. Passing trouble is waited out.
pub async fn run(
    queue: Arc<dyn Queue>,
    metastore: Arc<dyn Metastore>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let options = ConsumerOptions {
        durable_name: "quarantine".into(),
        in_flight_max: IN_FLIGHT_MAX,
        acknowledge_within: ACKNOWLEDGE_WITHIN,
    };
    let mut consumer = queue.consumer(Stream::Quarantine, options).await?;
    let mut backoff = Backoff::default();
    loop {
        let next = tokio::select! {
            next = consumer.next() => next,
            () = shutdown.cancelled() => return Ok(()),
        };
        match next {
            None => return Ok(()),
            Some(Ok(delivery)) => {
                store(metastore.as_ref(), delivery).await;
                backoff = Backoff::default();
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "quarantine stream cannot be read now");
                tokio::select! {
                    () = tokio::time::sleep(backoff.next_wait()) => {}
                    () = shutdown.cancelled() => return Ok(()),
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
            metrics::counter!(telemetry::QUARANTINE_STORED_TOTAL, "stage" => stage).increment(1);
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

/// What nobody can read is kept as it came.
async fn unreadable(
    metastore: &dyn Metastore,
    stage: &str,
    delivery: &Delivery,
    error: &wire::WireError,
) -> Result<(), MetastoreError> {
    let entry = Quarantined {
        reason: "quarantine_entry_malformed".into(),
        detail: format!("message {} on {}: {}", delivery.id, delivery.subject, Chain(error)),
        payload: delivery.payload.clone(),
        quarantined_us: chrono::Utc::now().timestamp_micros(),
        ..Quarantined::default()
    };
    metastore.quarantine(stage, &entry).await
}

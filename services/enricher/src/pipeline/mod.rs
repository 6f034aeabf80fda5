//! The enricher at work: takes records from the queue, asks HQ for locations and users, puts rows on the queue.
//!
//! Invariants: a message of records is acknowledged only after everything that came of it is safe; passing trouble is waited out,
//! with the message held, and never drops anything; one record that cannot be handled goes to quarantine and the others go on; at
//! shutdown nothing more is taken, and what is held is finished or handed back.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use lake_hq::source::Hq;
use lake_shared::queue::announcement::Activity;
use lake_shared::queue::{Consumer, ConsumerOptions, Delivery, Queue, Receipt, Stream, while_in_progress};
use lake_shared::retry::Backoff;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::delivery::{Enricher, MessageOutcome};
use crate::caches::Caches;
use crate::metric_names;
use crate::options::EnricherOptions;

pub mod delivery;
pub mod enrich;

/// All enrichers together are one consumer.
pub const DURABLE_NAME: &str = "enricher";

/// When a message is handed out again for whose domain HQ did not answer.
const LATER: Duration = Duration::from_secs(5);

/// Runs until `shutdown`, or until the queue is closed.
///
/// # Errors
/// Where the options are not valid; the error names the key.
pub async fn run(
    queue: Arc<dyn Queue>,
    hq: Hq,
    options: EnricherOptions,
    activity: Arc<Activity>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    options.validate().map_err(anyhow::Error::msg).context("configuration")?;
    let caches = Arc::new(Caches::new(&hq, &options));
    let (says_listening, listening) = oneshot::channel();
    let (listener_queue, listener_caches) = (Arc::clone(&queue), Arc::clone(&caches));
    let _listener = AbortOnDropHandle::new(tokio::spawn(async move {
        let says = move || {
            // The receiver is gone at shutdown only.
            let _ = says_listening.send(());
        };
        listener_caches.keep_current(&*listener_queue, says).await;
    }));
    // Nothing is remembered before changes of it can be heard.
    if shutdown.run_until_cancelled(listening).await.is_none() {
        return Ok(());
    }
    let Some(consumer) = consumer(&*queue, &options, &shutdown).await else { return Ok(()) };
    let enricher = Arc::new(Enricher::new(queue, caches, options, activity, shutdown));
    pull(enricher, consumer).await;
    Ok(())
}

async fn consumer(
    queue: &dyn Queue,
    options: &EnricherOptions,
    shutdown: &CancellationToken,
) -> Option<Box<dyn Consumer>> {
    let mut backoff = Backoff::default();
    loop {
        let consumer_options = ConsumerOptions {
            durable_name: DURABLE_NAME.into(),
            in_flight_max: options.in_flight_max,
            acknowledge_within: options.acknowledge_within(),
        };
        match queue.consumer(Stream::Records, consumer_options).await {
            Ok(consumer) => return Some(consumer),
            Err(error) => tracing::warn!(%error, "cannot read records yet"),
        }
        shutdown.run_until_cancelled(tokio::time::sleep(backoff.next_wait())).await?;
    }
}

/// Takes messages while there is room for them; then waits for those that are held.
async fn pull(enricher: Arc<Enricher>, mut consumer: Box<dyn Consumer>) {
    let held_bytes_max = enricher.options.held_bytes_max.min(Semaphore::MAX_PERMITS);
    let room = Arc::new(Semaphore::new(held_bytes_max));
    let mut held = JoinSet::new();
    let mut backoff = Backoff::default();
    tell_held(&enricher, &room);
    loop {
        while let Some(ended) = held.try_join_next() {
            note_end(ended);
        }
        let next = enricher.shutdown.run_until_cancelled(consumer.next()).await;
        let delivery = match next.flatten() {
            None => break,
            Some(Ok(delivery)) => delivery,
            Some(Err(error)) => {
                tracing::warn!(%error, "no records for a moment");
                enricher.shutdown.run_until_cancelled(tokio::time::sleep(backoff.next_wait())).await;
                continue;
            }
        };
        backoff = Backoff::default();
        // A message larger than all the room is taken when it is alone.
        let size = u32::try_from(delivery.payload.len().clamp(1, held_bytes_max)).unwrap_or(u32::MAX);
        let wait = enricher.shutdown.run_until_cancelled(Arc::clone(&room).acquire_many_owned(size));
        match while_in_progress(&*delivery.receipt, enricher.options.acknowledge_within(), wait).await {
            Some(Ok(permit)) => {
                tell_held(&enricher, &room);
                held.spawn(handle(Arc::clone(&enricher), delivery, permit));
            }
            _ => give_back(delivery.receipt, Duration::ZERO).await,
        }
    }
    tracing::info!(held = held.len(), "no more records are taken; finishing those that are held");
    while let Some(ended) = held.join_next().await {
        note_end(ended);
    }
}

fn note_end(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a message was not finished; it will be handed out again");
    }
}

async fn handle(enricher: Arc<Enricher>, delivery: Delivery, permit: OwnedSemaphorePermit) {
    let in_flight = metrics::gauge!(metric_names::IN_FLIGHT);
    in_flight.increment(1);
    let Delivery { subject, payload, id, attempts, receipt } = delivery;
    if attempts > 1 {
        tracing::debug!(subject, id, attempts, "records are handed out again");
    }
    let work = enricher.work(&subject, &payload, &id);
    match while_in_progress(&*receipt, enricher.options.acknowledge_within(), work).await {
        MessageOutcome::Safe => {
            if let Err(error) = receipt.acknowledge().await {
                tracing::warn!(%error, subject, id, "records cannot be acknowledged; they will come again, which does no harm");
            }
        }
        MessageOutcome::Stopped => give_back(receipt, Duration::ZERO).await,
        MessageOutcome::Later => give_back(receipt, LATER).await,
    }
    in_flight.decrement(1);
    let room = Arc::clone(permit.semaphore());
    drop(permit);
    tell_held(&enricher, &room);
}

/// Says how much of the room is taken.
fn tell_held(enricher: &Enricher, room: &Semaphore) {
    let most = enricher.options.held_bytes_max.min(Semaphore::MAX_PERMITS);
    enricher.activity.holds(most.saturating_sub(room.available_permits()), most);
}

async fn give_back(receipt: Box<dyn Receipt>, after: Duration) {
    if let Err(error) = receipt.retry(after).await {
        tracing::debug!(%error, "records cannot be handed back; they will come again after the acknowledgement time-out");
    }
}

#[cfg(test)]
mod tests;

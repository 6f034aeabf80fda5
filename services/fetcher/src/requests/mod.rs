//! What the lake itself asks for: a backfill, a replay, what a comparison with HQ has found, what was restored.
//!
//! The ids are read as those of HQ's messages are, behind them ([`behind_live`]), and are acknowledged when everything that came of them is safe on
//! the queue. Doing it twice changes nothing: each reading gives the current state, and the writer keeps the newest.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lake_proto::queue::v1::change_request::What;
use lake_proto::queue::v1::{ChangeCause, ChangeRequest};
use lake_shared::byte_budget::ByteBudget;
use lake_shared::error_chain::Chain;
use lake_shared::identity::{Domain, Kind};
use lake_shared::quarantine::{self, QuarantineEntry, Reason, Stage};
use lake_shared::queue::{Consumer, ConsumerOptions, Delivery, Queue, Stream, while_in_progress};
use lake_shared::retry::Backoff;
use lake_shared::wire;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::domain_pace::DomainPace;
use crate::fetcher::{Fetcher, Stopping, unless_stopping};

mod behind_live;
mod compare;
mod ids;
mod scan;
mod scope;

/// All fetchers together are one consumer.
const DURABLE_NAME: &str = "fetcher";
/// Most messages that are handed out and not acknowledged, over all fetchers.
const IN_FLIGHT_MAX: usize = 256;
/// After which time a message that a dead fetcher held is handed out again.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_secs(10);
/// Bytes of memory for messages in work. One that needs more is handled alone.
const HELD_BYTES_MAX: usize = 16 << 20;

/// Reads what the lake asks for.
pub(crate) struct RequestReader {
    fetcher: Arc<Fetcher>,
    pace: Arc<DomainPace>,
    /// Memory for messages in work.
    room: ByteBudget,
    shutdown: CancellationToken,
}

/// Who asks, and for which documents.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    pub(crate) domain: Domain,
    pub(crate) kind: Kind,
    pub(crate) cause: ChangeCause,
}

impl Asker {
    /// Value of a metric's label.
    fn cause_name(&self) -> &'static str {
        match self.cause {
            ChangeCause::Unspecified => "unknown",
            ChangeCause::Backfill => "backfill",
            ChangeCause::Replay => "replay",
            ChangeCause::Reconcile => "reconcile",
            ChangeCause::Restore => "restore",
        }
    }
}

/// Runs until `shutdown`, or until the queue is closed; then finishes or hands back what is in work.
pub(crate) async fn run(fetcher: Arc<Fetcher>, pace: Arc<DomainPace>, shutdown: CancellationToken) {
    let Some(mut consumer) = consumer(&*fetcher.queue, &shutdown).await else { return };
    let permits = Arc::new(Semaphore::new(fetcher.options.requests_in_flight_max.max(1)));
    let room = ByteBudget::new(HELD_BYTES_MAX);
    let reader = Arc::new(RequestReader { fetcher, pace, room, shutdown: shutdown.clone() });
    let _answering = AbortOnDropHandle::new(tokio::spawn(scope::answer(Arc::clone(&reader))));
    let (mut in_work, mut backoff) = (JoinSet::new(), Backoff::default());
    loop {
        while in_work.try_join_next().is_some() {}
        // Nothing is taken that would have to wait here.
        let permit = shutdown.run_until_cancelled(Arc::clone(&permits).acquire_owned()).await;
        let Some(Ok(permit)) = permit else { break };
        let delivery = match shutdown.run_until_cancelled(consumer.next()).await.flatten() {
            None => break,
            Some(Ok(delivery)) => delivery,
            Some(Err(error)) => {
                tracing::warn!(%error, "what the lake asks for cannot be read for a moment");
                shutdown.run_until_cancelled(tokio::time::sleep(backoff.next_wait())).await;
                continue;
            }
        };
        backoff = Backoff::default();
        in_work.spawn(handle(Arc::clone(&reader), delivery, permit));
    }
    while in_work.join_next().await.is_some() {}
}

async fn consumer(queue: &dyn Queue, shutdown: &CancellationToken) -> Option<Box<dyn Consumer>> {
    let mut backoff = Backoff::default();
    loop {
        let options = ConsumerOptions {
            durable_name: DURABLE_NAME.into(),
            in_flight_max: IN_FLIGHT_MAX,
            acknowledge_within: ACKNOWLEDGE_WITHIN,
        };
        match queue.consumer(Stream::Changes, options).await {
            Ok(consumer) => return Some(consumer),
            Err(error) => tracing::warn!(%error, "what the lake asks for cannot be read yet"),
        }
        shutdown.run_until_cancelled(tokio::time::sleep(backoff.next_wait())).await?;
    }
}

async fn handle(reader: Arc<RequestReader>, delivery: Delivery, _permit: OwnedSemaphorePermit) {
    let Delivery { subject, payload, id, receipt, .. } = delivery;
    let answered = match while_in_progress(&*receipt, ACKNOWLEDGE_WITHIN, reader.work(&subject, payload)).await {
        Ok(()) => receipt.acknowledge().await,
        Err(Stopping) => receipt.retry(Duration::ZERO).await,
    };
    if let Err(error) = answered {
        tracing::debug!(%error, subject, id, "a request is handed out again, which does no harm");
    }
}

impl RequestReader {
    async fn work(&self, subject: &str, payload: Bytes) -> Result<(), Stopping> {
        // Before it is decompressed: what it says of its size is all that is known. Ids made of it are held beside it.
        let size = wire::decoded_size(&payload).saturating_mul(3);
        let _room = unless_stopping(self.room.reserve(size), &self.shutdown).await?;
        let request = match wire::decode::<ChangeRequest>(&payload) {
            Ok(request) => request,
            Err(error) => {
                let reason = Chain(&error).to_string();
                return self.refuse(subject, payload, &reason).await;
            }
        };
        let Some(kind) = Kind::from_proto(request.kind) else {
            return self.refuse(subject, payload, &format!("kind {} is not known", request.kind)).await;
        };
        let cause = request.cause();
        let asker = Asker { domain: Domain::from(request.domain.as_str()), kind, cause };
        match request.what {
            // What is scanned is reported, taken or not.
            Some(What::Scan(scan)) => self.scan(&asker, &request.operation_id, scan).await,
            // And what is compared is answered.
            Some(What::Compare(compare)) => self.compare(&asker, compare).await,
            _ if !self.fetcher.take.domain(asker.domain.as_str()) => {
                tracing::info!(domain = %asker.domain, "the lake asks for documents of a domain that is not taken; they are left out");
                Ok(())
            }
            Some(What::Ids(ids)) => self.fetch_ids(&asker, ids).await,
            None => self.refuse(subject, payload, "it asks for nothing that this version knows").await,
        }
    }

    /// Puts a message aside that cannot be understood.
    async fn refuse(&self, subject: &str, payload: Bytes, why: &str) -> Result<(), Stopping> {
        let detail = format!("message on {subject}: {why}");
        let entry = QuarantineEntry::new(Stage::Fetcher, Reason::ChangeRequestMalformed, detail).payload(payload);
        Ok(quarantine::publish(&*self.fetcher.queue, entry, &self.shutdown).await?)
    }
}

#[cfg(test)]
mod tests;

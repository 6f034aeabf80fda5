//! From change messages to records on the queue.
//!
//! A message is reported done only when everything that came of it is safe on the queue. Batches overlap; their order does not matter, as
//! each reads the current state and the writer keeps the newest. Records beyond their domain's share are read later than the rest of their
//! batch; see [`crate::domain_pace`].

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use lake_hq::change_meta::ChangeMeta;
use lake_proto::queue::v1::Lineage;
use lake_shared::identity::Kind;
use lake_shared::quarantine::{DocumentIdentity, QuarantineEntry, Reason, Stage};
use lake_shared::{escaped_names, panics, quarantine};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::change_feed::{ChangeFeed, FeedMessage, Position};
use crate::coalesce::{CoalescedChanges, coalesce};
use crate::domain_pace::{Admitted, ByKind, DomainChange, DomainPace};
use crate::fetch::portions::LeftAlone;
pub use crate::fetcher::Fetcher;
use crate::fetcher::{Stopping, unless_stopping};
use crate::metric_names;
use crate::options::FetchOptions;
use crate::requests;

/// A batch of messages is not added to when it has so many bytes. HQ's are smaller; nobody holds others to that.
const MESSAGES_BYTES_MAX: usize = 4 << 20;

/// Runs until `shutdown` or until the feed closes; then finishes the batches in flight and reports them to the feed.
///
/// # Errors
/// None at present: trouble with HQ and the queue is waited out.
pub async fn run(feed: Arc<dyn ChangeFeed>, fetcher: Arc<Fetcher>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut in_flight = JoinSet::new();
    let pace = Arc::new(DomainPace::new(&fetcher.options));
    let (watching, stopped) = (Arc::clone(&fetcher), shutdown.clone());
    let _type_watch = AbortOnDropHandle::new(tokio::spawn(async move { watching.watch_location_types(stopped).await }));
    // It ends with the feed too.
    let ended = shutdown.child_token();
    let requests =
        AbortOnDropHandle::new(tokio::spawn(requests::run(Arc::clone(&fetcher), Arc::clone(&pace), ended.clone())));
    loop {
        while in_flight.try_join_next().is_some() {}
        let gathered = tokio::select! {
            gathered = gather(&*feed, &fetcher.options) => gathered,
            () = shutdown.cancelled() => None,
        };
        let Some(messages) = gathered else { break };
        let permit = tokio::select! {
            permit = pace.batch_permit() => permit,
            () = shutdown.cancelled() => None,
        };
        let Some(permit) = permit else { break };
        let (feed, fetcher, pace, shutdown) =
            (Arc::clone(&feed), Arc::clone(&fetcher), Arc::clone(&pace), shutdown.clone());
        in_flight.spawn(async move {
            let positions: Vec<Position> = messages.iter().map(|message| message.position.clone()).collect();
            let started = Instant::now();
            match fetcher.handle_isolated(messages, &pace, permit, &shutdown).await {
                Ok(()) => feed.done(&positions),
                Err(Stopping) => {
                    tracing::info!(messages = positions.len(), "stopping; a batch is left for the next fetcher")
                }
            }
            metrics::histogram!(metric_names::BATCH_SECONDS).record(started.elapsed());
        });
    }
    ended.cancel();
    while in_flight.join_next().await.is_some() {}
    if let Err(error) = requests.await {
        tracing::error!(%error, "what the lake asks for was not read to its end; it is handed out again");
    }
    feed.close().await;
    Ok(())
}

/// Waits for a first message, then a little for more. `None` when the feed is closed.
async fn gather(feed: &dyn ChangeFeed, options: &FetchOptions) -> Option<Vec<FeedMessage>> {
    let size = |message: &FeedMessage| message.payload.as_ref().map_or(0, Bytes::len);
    let mut messages = vec![feed.next().await?];
    let mut bytes: usize = messages.iter().map(size).sum();
    let deadline = tokio::time::Instant::now() + Duration::from_millis(options.linger_ms);
    while messages.len() < options.max_records && bytes < MESSAGES_BYTES_MAX {
        match tokio::time::timeout_at(deadline, feed.next()).await {
            Ok(Some(message)) => {
                bytes += size(&message);
                messages.push(message);
            }
            Ok(None) | Err(_) => break,
        }
    }
    Some(messages)
}

impl Fetcher {
    /// Handles a batch. Should that panic, which is a bug, the batch is halved down to the message that causes it, which goes to quarantine.
    async fn handle_isolated(
        &self,
        messages: Vec<FeedMessage>,
        pace: &DomainPace,
        permit: OwnedSemaphorePermit,
        shutdown: &CancellationToken,
    ) -> Result<(), Stopping> {
        let (mut open, mut permit) = (vec![messages], Some(permit));
        while let Some(mut messages) = open.pop() {
            let permit = match permit.take() {
                Some(permit) => permit,
                None => unless_stopping(pace.batch_permit(), shutdown).await?.ok_or(Stopping)?,
            };
            let handling = AssertUnwindSafe(self.handle(messages.clone(), pace, permit, shutdown));
            match handling.catch_unwind().await.map_err(|panic| panics::text(&*panic).to_owned()) {
                Ok(handled) => handled?,
                Err(panic) if messages.len() > 1 => {
                    tracing::error!(
                        messages = messages.len(),
                        panic,
                        "bug: a batch makes the fetcher fail; it is halved"
                    );
                    let half = messages.split_off(messages.len() / 2);
                    open.extend([half, messages]);
                }
                Err(panic) => {
                    for message in messages {
                        quarantine::publish(&*self.queue, failed(message, &panic), shutdown).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads and publishes everything that a batch of messages asks for.
    async fn handle(
        &self,
        messages: Vec<FeedMessage>,
        pace: &DomainPace,
        permit: OwnedSemaphorePermit,
        shutdown: &CancellationToken,
    ) -> Result<(), Stopping> {
        for message in &messages {
            metrics::counter!(metric_names::MESSAGES_TOTAL, "topic" => message.position.topic.to_string()).increment(1);
        }
        let coalesced = coalesce(&messages, &self.take);
        drop(messages);
        for (reason, count) in &coalesced.skipped {
            metrics::counter!(metric_names::MESSAGES_SKIPPED_TOTAL, "reason" => *reason).increment(*count);
        }
        // The caches are told first, so that they have forgotten the old state when the records arrive.
        self.invalidate(&coalesced, shutdown).await?;
        let CoalescedChanges { changes, quarantined, .. } = coalesced;
        for entry in quarantined {
            quarantine::publish(&*self.queue, entry, shutdown).await?;
        }
        let Admitted { now, later } = pace.admit(changes);
        let alone = self.fetch_all(now, shutdown).await?;
        let waiting = later.values().map(Vec::len).sum::<usize>() + alone.len();
        if waiting == 0 {
            return Ok(());
        }
        let _room = unless_stopping(pace.room(waiting), shutdown).await?;
        drop(permit);
        let _waiting = WaitingRecordsGauge::of(waiting);
        let domains = later.into_iter().map(|(domain, rest)| self.fetch_at_pace(domain, rest, pace, shutdown));
        futures::future::try_join(self.fetch_alone(alone, shutdown), futures::future::try_join_all(domains)).await?;
        Ok(())
    }

    /// Reads changes of several kinds at the same time. What has to be read alone is left.
    async fn fetch_all(&self, changes: ByKind, shutdown: &CancellationToken) -> Result<LeftAlone, Stopping> {
        let reading = changes.into_iter().map(|(kind, changes)| self.fetch(kind, changes, shutdown));
        let mut left = LeftAlone::default();
        futures::future::try_join_all(reading).await?.into_iter().for_each(|of_kind| left.extend(of_kind));
        Ok(left)
    }

    /// Reads the changes of a domain that exceed its share, one portion whenever its pace allows it.
    async fn fetch_at_pace(
        &self,
        domain: String,
        mut rest: Vec<DomainChange>,
        pace: &DomainPace,
        shutdown: &CancellationToken,
    ) -> Result<(), Stopping> {
        while let Some((portion, wait)) = pace.next_portion(&domain, &mut rest) {
            unless_stopping(tokio::time::sleep(wait), shutdown).await?;
            let permit = unless_stopping(pace.late_permit(), shutdown).await?;
            let alone = self.fetch_all(portion, shutdown).await?;
            drop(permit);
            self.fetch_alone(alone, shutdown).await?;
        }
        Ok(())
    }

    async fn invalidate(&self, coalesced: &CoalescedChanges, shutdown: &CancellationToken) -> Result<(), Stopping> {
        for (domain, users) in &coalesced.users {
            let domain =
                if domain.is_empty() { escaped_names::UNKNOWN.to_owned() } else { escaped_names::token(domain) };
            self.broadcast(format!("lake.invalidate.user.{domain}"), users.iter().cloned().collect(), shutdown).await?;
        }
        Ok(())
    }
}

/// The quarantine's entry of a message that makes the fetcher fail.
fn failed(message: FeedMessage, panic: &str) -> QuarantineEntry {
    let FeedMessage { position, payload } = message;
    let payload = payload.unwrap_or_default();
    let lineage = Lineage {
        topic: position.topic.to_string(),
        partition: position.partition,
        offset: position.offset,
        ..Lineage::default()
    };
    // Reading the message may be what fails.
    let meta = std::panic::catch_unwind(AssertUnwindSafe(|| ChangeMeta::parse(&payload).ok()))
        .ok()
        .flatten()
        .unwrap_or_default();
    let document = DocumentIdentity {
        domain: meta.domain.unwrap_or_default(),
        kind: Kind::of_topic(&position.topic),
        document_type: String::new(),
        id: meta.document_id,
    };
    let place = format!("{}[{}]@{}", lineage.topic, lineage.partition, lineage.offset);
    let detail = format!("message at {place} about {:?}: {panic}", document.id);
    QuarantineEntry::new(Stage::Fetcher, Reason::FetcherFailed, detail)
        .document(document)
        .lineage(Some(lineage))
        .payload(payload)
}

/// Counts records that wait for their domain's pace in the gauge, until it is dropped.
struct WaitingRecordsGauge(f64);

impl WaitingRecordsGauge {
    fn of(records: usize) -> Self {
        metrics::gauge!(metric_names::WAITING_RECORDS).increment(records as f64);
        Self(records as f64)
    }
}

impl Drop for WaitingRecordsGauge {
    fn drop(&mut self) {
        metrics::gauge!(metric_names::WAITING_RECORDS).decrement(self.0);
    }
}

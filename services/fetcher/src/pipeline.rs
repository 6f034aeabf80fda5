//! From change messages to records on the queue.
//!
//! A message is reported done only when everything that came of it is safe on the queue. Batches overlap; their order does not matter, as
//! each reads the current state and the writer keeps the newest. Records beyond their domain's share are read later than the rest of their
//! batch; see [`crate::domain_pace`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use lake_hq::documents::case::CaseOptions;
use lake_hq::source::{Hq, SourceError};
use lake_proto::queue::v1::Invalidation;
use lake_shared::identity::Domain;
use lake_shared::queue::{PublishError, Queue};
use lake_shared::retry::Backoff;
use lake_shared::{names, quarantine, wire};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::allow_list::TakeConfig;
use crate::change_feed::{ChangeFeed, FeedMessage, Position};
use crate::coalesce::{CoalescedChanges, coalesce};
use crate::domain_pace::{Admitted, ByKind, DomainChange, DomainPace};
use crate::metric_names;
use crate::options::FetchOptions;

/// Everything that a fetcher needs: where it reads, where it publishes, and its options.
pub struct Fetcher {
    /// HQ, from which documents are read.
    pub hq: Hq,
    /// The queue on which they are published.
    pub queue: Arc<dyn Queue>,
    /// Domains, case types and forms that are taken into the lake.
    pub take: TakeConfig,
    /// Parts of a case's document that are left out.
    pub case_options: CaseOptions,
    /// Sizes of batches and pace of domains.
    pub options: FetchOptions,
}

/// Why a batch was not finished: the process is stopping. Its messages will be handed out again.
#[derive(Debug)]
pub(crate) struct Stopping;

impl From<PublishError> for Stopping {
    fn from(_: PublishError) -> Self {
        Self
    }
}

/// Runs until `shutdown` or until the feed closes; then finishes the batches in flight and reports them to the feed.
///
/// # Errors
/// None at present: trouble with HQ and the queue is waited out.
pub async fn run(feed: Arc<dyn ChangeFeed>, fetcher: Arc<Fetcher>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut in_flight = JoinSet::new();
    let pace = Arc::new(DomainPace::new(&fetcher.options));
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
            match fetcher.handle(messages, &pace, permit, &shutdown).await {
                Ok(()) => feed.done(&positions),
                Err(Stopping) => {
                    tracing::info!(messages = positions.len(), "stopping; a batch is left for the next fetcher")
                }
            }
            metrics::histogram!(metric_names::BATCH_SECONDS).record(started.elapsed());
        });
    }
    while in_flight.join_next().await.is_some() {}
    feed.close().await;
    Ok(())
}

/// Waits for a first message, then a little for more. `None` when the feed is closed.
async fn gather(feed: &dyn ChangeFeed, options: &FetchOptions) -> Option<Vec<FeedMessage>> {
    let mut messages = vec![feed.next().await?];
    let deadline = tokio::time::Instant::now() + Duration::from_millis(options.linger_ms);
    while messages.len() < options.max_records {
        match tokio::time::timeout_at(deadline, feed.next()).await {
            Ok(Some(message)) => messages.push(message),
            Ok(None) | Err(_) => break,
        }
    }
    Some(messages)
}

impl Fetcher {
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
        self.fetch_all(now, shutdown).await?;
        if later.is_empty() {
            return Ok(());
        }
        let waiting: usize = later.values().map(Vec::len).sum();
        let _room = unless_stopping(pace.room(waiting), shutdown).await?;
        drop(permit);
        let _waiting = WaitingRecordsGauge::of(waiting);
        let domains = later.into_iter().map(|(domain, rest)| self.fetch_at_pace(domain, rest, pace, shutdown));
        futures::future::try_join_all(domains).await?;
        Ok(())
    }

    async fn fetch_all(&self, changes: ByKind, shutdown: &CancellationToken) -> Result<(), Stopping> {
        let reading = changes.into_iter().map(|(kind, changes)| self.fetch(kind, changes, shutdown));
        futures::future::try_join_all(reading).await?;
        Ok(())
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
            let _permit = unless_stopping(pace.late_permit(), shutdown).await?;
            self.fetch_all(portion, shutdown).await?;
        }
        Ok(())
    }

    async fn invalidate(&self, coalesced: &CoalescedChanges, shutdown: &CancellationToken) -> Result<(), Stopping> {
        for (domain, users) in &coalesced.users {
            let domain = if domain.is_empty() { names::UNKNOWN.to_owned() } else { names::token(domain) };
            self.broadcast(format!("lake.invalidate.user.{domain}"), users.iter().cloned().collect(), shutdown).await?;
        }
        Ok(())
    }

    /// Tells the caches that locations of a domain have changed.
    pub(crate) async fn invalidate_locations(
        &self,
        domain: &Domain,
        ids: Vec<String>,
        shutdown: &CancellationToken,
    ) -> Result<(), Stopping> {
        self.broadcast(format!("lake.invalidate.location.{}", names::token(domain.as_str())), ids, shutdown).await
    }

    async fn broadcast(&self, subject: String, ids: Vec<String>, shutdown: &CancellationToken) -> Result<(), Stopping> {
        let payload = wire::encode(&Invalidation { ids });
        let mut backoff = Backoff::default();
        while let Err(error) = self.queue.broadcast(&subject, payload.clone()).await {
            tracing::warn!(%error, subject, "caches cannot be told of a change now");
            pause(&mut backoff, shutdown).await?;
        }
        Ok(())
    }

    /// Reads from HQ until it answers. Trouble that an operator has to mend is logged as an error and waited out as well: nothing is dropped.
    pub(crate) async fn until_answered<T, F>(
        &self,
        shutdown: &CancellationToken,
        mut read: impl FnMut() -> F,
    ) -> Result<T, Stopping>
    where
        F: Future<Output = Result<T, SourceError>>,
    {
        let mut backoff = Backoff::default();
        loop {
            match read().await {
                Ok(answer) => return Ok(answer),
                Err(error @ SourceError::Unavailable { .. }) => {
                    tracing::warn!(%error, "HQ cannot be read; trying again")
                }
                Err(error @ SourceError::Refused { .. }) => {
                    tracing::error!(%error, "HQ refuses to be read; an operator has to act, until then records wait")
                }
            }
            pause(&mut backoff, shutdown).await?;
        }
    }
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

async fn unless_stopping<T>(what: impl Future<Output = T>, shutdown: &CancellationToken) -> Result<T, Stopping> {
    tokio::select! {
        outcome = what => Ok(outcome),
        () = shutdown.cancelled() => Err(Stopping),
    }
}

async fn pause(backoff: &mut Backoff, shutdown: &CancellationToken) -> Result<(), Stopping> {
    tokio::select! {
        () = tokio::time::sleep(backoff.next_wait()) => Ok(()),
        () = shutdown.cancelled() => Err(Stopping),
    }
}

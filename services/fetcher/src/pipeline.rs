//! From change messages to records on the queue.
//!
//! A message is reported done only when everything that came of it is safe on the queue. Batches overlap; their order does not matter, as
//! each reads the current state and the writer keeps the newest. Records beyond their domain's share are read later than the rest of their
//! batch; see [`crate::domain_pace`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use lake_shared::{escaped_names, quarantine};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::change_feed::{ChangeFeed, FeedMessage, Position};
use crate::coalesce::{CoalescedChanges, coalesce};
use crate::domain_pace::{Admitted, ByKind, DomainChange, DomainPace};
pub use crate::fetcher::Fetcher;
use crate::fetcher::{Stopping, unless_stopping};
use crate::metric_names;
use crate::options::FetchOptions;

/// Runs until `shutdown` or until the feed closes; then finishes the batches in flight and reports them to the feed.
///
/// # Errors
/// None at present: trouble with HQ and the queue is waited out.
pub async fn run(feed: Arc<dyn ChangeFeed>, fetcher: Arc<Fetcher>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut in_flight = JoinSet::new();
    let pace = Arc::new(DomainPace::new(&fetcher.options));
    let (watching, stopped) = (Arc::clone(&fetcher), shutdown.clone());
    let _type_watch = AbortOnDropHandle::new(tokio::spawn(async move { watching.watch_location_types(stopped).await }));
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
            let domain =
                if domain.is_empty() { escaped_names::UNKNOWN.to_owned() } else { escaped_names::token(domain) };
            self.broadcast(format!("lake.invalidate.user.{domain}"), users.iter().cloned().collect(), shutdown).await?;
        }
        Ok(())
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

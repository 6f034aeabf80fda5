//! What every step of the fetcher works with: HQ, the queue, the options, and waiting for both until the process stops.

use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use lake_hq::documents::case::CaseOptions;
use lake_hq::pace::Pace;
use lake_hq::source::{Hindrance, Hq, SourceError};
use lake_hq::xml_watch::XmlWatch;
use lake_proto::queue::v1::{Announcement, Invalidation, SourcePace};
use lake_shared::byte_budget::ByteBudget;
use lake_shared::identity::Domain;
use lake_shared::queue::announcement::Activity;
use lake_shared::queue::{PublishError, Queue};
use lake_shared::retry::Backoff;
use lake_shared::{escaped_names, wire};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::allow_list::TakeConfig;
use crate::fetcher::hard_ids::HardIds;
use crate::options::FetchOptions;

mod hard_ids;

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
    /// How many forms are without XML.
    pub xml_watch: Arc<XmlWatch>,
    /// Ids that HQ cannot be asked for together with others.
    pub(crate) hard_ids: Mutex<HardIds>,
    /// Permit to read such ids.
    pub(crate) alone: Semaphore,
    /// Memory for rows of HQ's tables, until what was made of them is published.
    pub(crate) rows_budget: ByteBudget,
    /// Memory for XML of forms, and for what is made of it until it is published. Apart from the other, as rows are held while it is waited for.
    pub(crate) xml_budget: ByteBudget,
    /// What it tells of its work.
    pub(crate) activity: Activity,
}

/// Why a batch was not finished: the process is stopping. Its messages will be handed out again.
#[derive(Debug)]
pub(crate) struct Stopping;

/// Why a portion of a batch was not fetched.
#[derive(Debug)]
pub(crate) enum NotFetched {
    Stopping,
    /// HQ cannot answer about all of its ids.
    AskLess(Unanswered),
}

/// Why HQ does not answer about some ids.
#[derive(Debug)]
pub(crate) struct Unanswered {
    pub(crate) hindrance: Hindrance,
    pub(crate) detail: String,
}

fn told_pace(pace: Pace, now: SystemTime) -> SourcePace {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let since_us = |held_back_for| i64::try_from(now.saturating_sub(held_back_for).as_micros()).unwrap_or(i64::MAX);
    SourcePace {
        source: pace.source.to_owned(),
        at_once: pace.at_once as u64,
        at_once_max: pace.at_once_max as u64,
        in_flight: pace.in_flight as u64,
        held_back_since_us: pace.held_back_for.map(since_us),
    }
}

impl From<Stopping> for NotFetched {
    fn from(Stopping: Stopping) -> Self {
        Self::Stopping
    }
}

impl From<PublishError> for Stopping {
    fn from(_: PublishError) -> Self {
        Self
    }
}

impl Fetcher {
    /// A fetcher from an HQ to a queue, both of them connected.
    pub fn new(
        hq: Hq,
        queue: Arc<dyn Queue>,
        take: TakeConfig,
        case_options: CaseOptions,
        options: FetchOptions,
    ) -> Self {
        let half = options.held_bytes_max / 2;
        let (rows_budget, xml_budget) = (ByteBudget::new(half), ByteBudget::new(half));
        Self {
            hq,
            queue,
            take,
            case_options,
            options,
            xml_watch: Arc::default(),
            hard_ids: Mutex::default(),
            alone: Semaphore::new(1),
            rows_budget,
            xml_budget,
            activity: Activity::default(),
        }
    }

    /// What it announces of its work: records that it passed on, bytes that it holds, and how much it asks of HQ at once.
    pub(crate) fn announcement(&self, now: SystemTime) -> Announcement {
        let budgets = [&self.rows_budget, &self.xml_budget];
        let held = budgets.iter().map(|budget| budget.held()).sum();
        self.activity.holds(held, budgets.iter().map(|budget| budget.bytes_max()).sum());
        let paces = [self.hq.database.pace(), self.hq.blobs.pace()].into_iter().flatten();
        Announcement { paces: paces.map(|pace| told_pace(pace, now)).collect(), ..self.activity.announcement() }
    }

    /// Tells the caches that locations of a domain have changed.
    pub(crate) async fn invalidate_locations(
        &self,
        domain: &Domain,
        ids: Vec<String>,
        shutdown: &CancellationToken,
    ) -> Result<(), Stopping> {
        self.broadcast(format!("lake.invalidate.location.{}", escaped_names::token(domain.as_str())), ids, shutdown)
            .await
    }

    /// Broadcasts an invalidation, trying again until the queue takes it.
    pub(crate) async fn broadcast(
        &self,
        subject: String,
        ids: Vec<String>,
        shutdown: &CancellationToken,
    ) -> Result<(), Stopping> {
        let payload = wire::encode(&Invalidation { ids });
        let mut backoff = Backoff::default();
        while let Err(error) = self.queue.broadcast(&subject, payload.clone()).await {
            tracing::warn!(%error, subject, "caches cannot be told of a change now");
            pause(&mut backoff, shutdown).await?;
        }
        Ok(())
    }

    /// Reads from HQ until it answers, or says that it cannot answer about so much. Trouble that an operator has to mend is logged as an error
    /// and waited out as well: nothing is dropped.
    pub(crate) async fn until_answered<T, F>(
        &self,
        shutdown: &CancellationToken,
        mut read: impl FnMut() -> F,
    ) -> Result<T, NotFetched>
    where
        F: Future<Output = Result<T, SourceError>>,
    {
        let mut backoff = Backoff::default();
        loop {
            match read().await {
                Ok(answer) => return Ok(answer),
                Err(ref error @ SourceError::AskLess { hindrance, .. }) => {
                    return Err(NotFetched::AskLess(Unanswered { hindrance, detail: error.to_string() }));
                }
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

/// Waits for `what`, unless the process stops first.
pub(crate) async fn unless_stopping<T>(
    what: impl Future<Output = T>,
    shutdown: &CancellationToken,
) -> Result<T, Stopping> {
    tokio::select! {
        outcome = what => Ok(outcome),
        () = shutdown.cancelled() => Err(Stopping),
    }
}

/// Waits for the next try, unless the process stops first.
pub(crate) async fn pause(backoff: &mut Backoff, shutdown: &CancellationToken) -> Result<(), Stopping> {
    tokio::select! {
        () = tokio::time::sleep(backoff.next_wait()) => Ok(()),
        () = shutdown.cancelled() => Err(Stopping),
    }
}

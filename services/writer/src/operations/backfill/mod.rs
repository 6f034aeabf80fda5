//! Backfills: fills a space with what HQ has and Kafka does not remember.
//!
//! Only fetchers can read HQ, so a backfill is a conversation. It asks them which databases there are ([`questions`]); each is a *part*. Of each part
//! it asks for one stretch after the other, by messages on `lake.changes`; the report that a stretch was read ([`reports`]) says where
//! the next one begins. Where each part stands is in the metastore, and nowhere else: whoever is killed, the next holder of the lease goes on
//! there. A stretch that is read twice changes nothing, as the writer keeps the latest reading of each id, and counts once.
//!
//! It rests, or ends early, by asking for nothing more.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lake_shared::error_chain::Chain;
use lake_shared::queue::Queue;
use lake_shared::retry::Backoff;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::asking::{AskedPart, Asker};
use self::rate::Rate;
use crate::consent::Consent;
use crate::metastore::backfills::{BackfillPart, BackfillProgress, Wish};
use crate::metastore::steering::{OperationEnd, OperationRecord, OperationState};
use crate::metastore::{Metastore, MetastoreError};
use crate::metric_names;
use crate::operations::Operations;
use crate::pipeline_watch::PipelineWatch;

mod asking;
pub(crate) mod offers;
mod options;
pub(super) mod questions;
pub(super) mod rate;
pub(crate) mod reports;
pub(crate) mod scope;

pub use self::options::BackfillOptions;
use self::scope::BackfillScope;

/// Time between two looks for new backfills.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Most backfills at the same time; each asks for several parts at once.
const AT_ONCE: usize = 2;
/// Time between two looks at what was read.
const READ_EVERY: Duration = Duration::from_millis(100);
/// How often a backfill says how far it is, and hears whether it is to rest or to end.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);
/// Most parts that are asked for at the same time.
const PARTS_AT_ONCE: usize = 8;
/// Looks for new backfills between two looks at what is taken.
const TAKEN_EVERY_ROUNDS: u32 = 5;

/// Figures of what a backfill did, by name.
type Figures = BTreeMap<String, u64>;

/// How a backfill ended.
enum End {
    Succeeded(Figures),
    /// It was only planned.
    Planned(Figures),
    Cancelled(Figures),
    Failed(String),
    /// It rests, or the next holder of the lease goes on.
    Left,
}

/// What backfills are done with.
#[derive(Clone)]
pub(crate) struct BackfillTools {
    pub(crate) operations: Arc<Operations>,
    pub(crate) metastore: Arc<dyn Metastore>,
    pub(crate) queue: Arc<dyn Queue>,
    pub(crate) pipeline: PipelineWatch,
    pub(crate) options: BackfillOptions,
    pub(crate) shutdown: CancellationToken,
}

/// Works on backfills until `shutdown`; the next holder of the lease goes on with them.
pub(crate) async fn run(tools: BackfillTools) {
    let mut running = JoinSet::new();
    let mut round = 0_u32;
    loop {
        while running.len() < AT_ONCE {
            match tools.metastore.begin_backfill().await {
                Ok(Some(begun)) => drop(running.spawn(work(tools.clone(), begun))),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "backfills cannot be looked for now");
                    break;
                }
            }
        }
        metrics::gauge!(metric_names::BACKFILLS_RUNNING).set(running.len() as f64);
        if round.is_multiple_of(TAKEN_EVERY_ROUNDS) {
            offers::note_taken(&*tools.metastore, &tools.pipeline.present(Instant::now())).await;
        }
        round = round.wrapping_add(1);
        tokio::select! {
            () = tools.shutdown.cancelled() => break,
            () = tokio::time::sleep(LOOK_EVERY) => {}
            Some(ended) = running.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a backfill panicked; the next holder of the lease goes on with it");
                }
            }
        }
    }
    running.shutdown().await;
    metrics::gauge!(metric_names::BACKFILLS_RUNNING).set(0.0);
}

async fn work(tools: BackfillTools, begun: OperationRecord) {
    let OperationRecord { id, asked, attempts, .. } = &begun;
    tracing::info!(operation = %id, target = %asked.target, asked_by = asked.asked_by, attempts, "backfill begun");
    let end = match BackfillScope::of_details(&asked.details) {
        Ok(scope) => {
            let filling = Filling { tools: &tools, begun: &begun, scope: Arc::new(scope) };
            match asked.consent {
                Consent::DryRun => filling.plan().await,
                Consent::Given | Consent::ToPlan(_) => filling.fill().await,
            }
        }
        Err(reason) => End::Failed(format!("what is to be filled cannot be read: {reason}")),
    };
    let (state, reason, figures) = match end {
        End::Succeeded(figures) => (OperationState::Succeeded, String::new(), figures),
        End::Planned(figures) => {
            (OperationState::Succeeded, "it was only planned: nothing was asked for".to_owned(), figures)
        }
        End::Cancelled(figures) => (OperationState::Cancelled, String::new(), figures),
        End::Failed(reason) => (OperationState::Failed, reason, Figures::new()),
        End::Left => return,
    };
    tracing::info!(operation = %id, target = %asked.target, state = state.code(), reason, ?figures, "backfill ended");
    let result = serde_json::to_string(&figures).unwrap_or_else(|_| "{}".into());
    let end = OperationEnd { state, reason, result, plan: String::new() };
    insist(|| tools.metastore.end_operation(id, &end)).await;
}

/// Repeats a call until the metastore answers. `None`: the lease is lost.
pub(super) async fn insist<T, Call>(mut call: impl FnMut() -> Call) -> Option<T>
where
    Call: Future<Output = Result<T, MetastoreError>>,
{
    let mut backoff = Backoff::default();
    loop {
        match call().await {
            Ok(answer) => return Some(answer),
            Err(error) if error.is_lease_lost() => return None,
            Err(error) => tracing::warn!(error = %Chain(&error), "an operation waits for the metastore"),
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

/// One backfill at work.
struct Filling<'f> {
    tools: &'f BackfillTools,
    begun: &'f OperationRecord,
    scope: Arc<BackfillScope>,
}

impl Filling<'_> {
    /// Finds out how much there is.
    async fn plan(&self) -> End {
        let space = &self.begun.asked.target.space;
        if !self.scope.ids.is_empty() {
            return match self.tools.operations.present(space, &self.scope.ids).await {
                Ok(present) => End::Planned(Figures::from([
                    ("ids".into(), self.scope.ids.len() as u64),
                    ("ids_in_lake".into(), present.len() as u64),
                ])),
                Err(error) => End::Failed(Chain(&error).to_string()),
            };
        }
        match questions::parts(&*self.tools.queue, space, &self.scope).await {
            Ok(Some(parts)) => {
                let mut figures = Figures::new();
                for part in parts {
                    let estimate = part.estimate.unsigned_abs();
                    figures.insert(format!("documents_in_{}", part.part), estimate);
                    *figures.entry("documents".into()).or_default() += estimate;
                }
                End::Planned(figures)
            }
            Ok(None) => End::Failed("no fetcher says how much there is; is one running, and does HQ answer it?".into()),
            Err(refused) => End::Failed(refused),
        }
    }

    /// Asks for one stretch after the other until all parts are read.
    async fn fill(&self) -> End {
        let (mut asked, mut asking) = (HashMap::<String, AskedPart>::new(), JoinSet::new());
        let (mut rate, mut beat_at) = (Rate::default(), Instant::now());
        let asker = Asker::new(self.tools, self.begun, Arc::clone(&self.scope));
        if let Err(end) = self.ensure_parts().await {
            return end;
        }
        loop {
            let Some(parts) = insist(|| self.tools.metastore.backfill_parts(&self.begun.id)).await else {
                return End::Left;
            };
            if let Some(part) = parts.iter().find(|part| !part.refused.is_empty()) {
                return End::Failed(format!("{}: {}", part.part, part.refused));
            }
            let progress = progress_of(&parts, &mut rate);
            let is_done = parts.iter().all(|part| part.finished);
            if is_done || beat_at.elapsed() >= HEARTBEAT_EVERY {
                beat_at = Instant::now();
                match self.beat(&progress).await {
                    Some(Wish::GoOn) => {}
                    Some(Wish::End) if !is_done => return End::Cancelled(figures_of(&parts)),
                    Some(Wish::Rest) if !is_done => {
                        if self.rest().await {
                            return End::Left;
                        }
                    }
                    Some(Wish::Rest | Wish::End) => {}
                    None => return End::Left,
                }
            }
            if is_done {
                return End::Succeeded(figures_of(&parts));
            }
            let open = parts.into_iter().filter(|part| !part.finished).take(PARTS_AT_ONCE);
            for part in open {
                if !AskedPart::is_to_be_asked(asked.get(&part.part), &part, Instant::now()) {
                    continue;
                }
                asked.insert(part.part.clone(), AskedPart::of(&part, Instant::now()));
                asking.spawn(asker.clone().ask(part));
            }
            while let Some(answered) = asking.try_join_next() {
                // A part that could not be asked for is asked for again soon.
                if let Ok(Err(part)) = answered
                    && let Some(asked) = asked.get_mut(&part)
                {
                    asked.again_soon(Instant::now());
                }
            }
            tokio::time::sleep(READ_EVERY).await;
        }
    }

    /// Finds out which parts there are, unless that is known.
    async fn ensure_parts(&self) -> Result<(), End> {
        let (id, tools) = (&self.begun.id, self.tools);
        loop {
            let known = insist(|| tools.metastore.backfill_parts(id)).await.ok_or(End::Left)?;
            if !known.is_empty() {
                return Ok(());
            }
            let found = if self.scope.ids.is_empty() {
                questions::parts(&*tools.queue, &self.begun.asked.target.space, &self.scope)
                    .await
                    .map_err(End::Failed)?
            } else {
                Some(self.scope.id_parts())
            };
            if let Some(parts) = found {
                insist(|| tools.metastore.keep_backfill_parts(id, &parts)).await.ok_or(End::Left)?;
                continue;
            }
            tracing::info!(operation = %id, "no fetcher says how much there is to be filled; it is asked again");
            match self.beat(&BackfillProgress::default()).await {
                Some(Wish::GoOn) => {}
                Some(Wish::End) => return Err(End::Cancelled(Figures::new())),
                Some(Wish::Rest) => {
                    if self.rest().await {
                        return Err(End::Left);
                    }
                }
                None => return Err(End::Left),
            }
        }
    }

    /// Tells how far it is. `None`: the lease is lost.
    async fn beat(&self, progress: &BackfillProgress) -> Option<Wish> {
        insist(|| self.tools.metastore.backfill_goes_on(&self.begun.id, progress)).await
    }

    /// Whether it rests from now on.
    async fn rest(&self) -> bool {
        let rests = insist(|| self.tools.metastore.rest_backfill(&self.begun.id)).await;
        tracing::info!(operation = %self.begun.id, "backfill rests until it is resumed");
        rests.unwrap_or(true)
    }
}

fn progress_of(parts: &[BackfillPart], rate: &mut Rate) -> BackfillProgress {
    let done = parts.iter().map(|part| part.documents).sum();
    // An estimate that turns out too low has been reached at least.
    let total = |part: &BackfillPart| if part.finished { part.documents } else { part.estimate.max(part.documents) };
    let per_second = rate.at(Instant::now(), done);
    BackfillProgress { done, total: Some(parts.iter().map(total).sum()), per_second }
}

fn figures_of(parts: &[BackfillPart]) -> Figures {
    let documents: i64 = parts.iter().map(|part| part.documents).sum();
    Figures::from([("documents".into(), documents.unsigned_abs()), ("parts".into(), parts.len() as u64)])
}

#[cfg(test)]
mod tests;

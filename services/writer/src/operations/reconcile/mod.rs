//! Compares a space with HQ, and heals what differs where that is asked for.
//!
//! Neither side's documents travel. Ids are put into buckets; fetchers have HQ's databases sum up, for each bucket, what changes with every save
//! of its documents ([`lake_shared::comparison`]), and the engine sums up the rows in the same way ([`compared`]). Where the sums of a bucket differ, and only
//! there, ids are compared. What differs then is looked at a second time after a while, in HQ's primaries and in whatever table it is: changes that
//! were on their way have arrived by then.
//!
//! To heal is to have fetchers read the ids again, as they read those of HQ's messages. Nothing else changes anything, so whoever is killed,
//! the next holder of the lease begins a comparison anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lake_shared::error_chain::Chain;
use lake_shared::queue::Queue;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::compared::Comparing;
use self::scope::ReconcileScope;
use crate::metastore::Metastore;
use crate::metastore::comparisons::{Difference, DifferenceClass};
use crate::metastore::steering::{OperationEnd, OperationRecord, OperationState};
use crate::metric_names;
use crate::operations::Operations;
use crate::operations::backfill::insist;

mod beats;
mod compared;
mod differences;
mod options;
mod portions;
mod questions;
pub(crate) mod scope;

pub use self::options::ReconcileOptions;

/// Time between two looks for new comparisons.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Most comparisons at the same time: each reads all keys of a space.
const AT_ONCE: usize = 1;

/// Figures of what a comparison has found and done, by name.
type Figures = BTreeMap<String, u64>;

/// How a comparison ended.
#[derive(Debug)]
enum End {
    Succeeded(Found),
    Cancelled(Figures),
    Failed(String),
    /// The next holder of the lease begins it anew.
    Left,
}

/// What a comparison has found.
#[derive(Debug, Default)]
struct Found {
    /// Documents of HQ, and rows of the lake, that were compared.
    documents_in_hq: u64,
    documents_in_lake: u64,
    buckets: u64,
    /// Buckets whose sums differed.
    buckets_differing: u64,
    /// Of these, buckets that were not looked at, as enough was found.
    buckets_left: u64,
    differences: Vec<Difference>,
    /// Documents that fetchers were asked to read again.
    healed: u64,
}

impl Found {
    fn figures(&self) -> Figures {
        let mut figures = Figures::from([
            ("documents_in_hq".into(), self.documents_in_hq),
            ("documents_in_lake".into(), self.documents_in_lake),
            ("buckets".into(), self.buckets),
            ("buckets_differing".into(), self.buckets_differing),
            ("buckets_left".into(), self.buckets_left),
            ("differences".into(), self.differences.len() as u64),
            ("read_again".into(), self.healed),
        ]);
        for class in DifferenceClass::ALL {
            let count = self.differences.iter().filter(|of| of.class == class).count();
            figures.insert(class.code().into(), count as u64);
        }
        figures
    }

    /// What there is to be said of it.
    fn reason(&self, heals: bool) -> String {
        let mut reason = match (self.differences.len(), heals) {
            (0, _) => String::new(),
            (count, true) => format!(
                "{count} documents differ; they are read from HQ again: compare again to see that they are healed"
            ),
            (count, false) => format!(
                "{count} documents differ; nothing was changed: ask for it with heal to have them read from HQ again"
            ),
        };
        if self.buckets_left > 0 {
            reason += &format!("; {} buckets that differ were not looked at: heal these first", self.buckets_left);
        }
        reason
    }
}

/// What comparisons are made with.
#[derive(Clone)]
pub(crate) struct ReconcileTools {
    pub(crate) operations: Arc<Operations>,
    pub(crate) metastore: Arc<dyn Metastore>,
    pub(crate) queue: Arc<dyn Queue>,
    pub(crate) options: ReconcileOptions,
    pub(crate) shutdown: CancellationToken,
}

/// Works on comparisons until `shutdown`; the next holder of the lease begins those anew that are not done by then.
pub(crate) async fn run(tools: ReconcileTools) {
    let mut running = JoinSet::new();
    loop {
        while running.len() < AT_ONCE {
            match tools.metastore.begin_reconcile().await {
                Ok(Some(begun)) => drop(running.spawn(work(tools.clone(), begun))),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "comparisons with HQ cannot be looked for now");
                    break;
                }
            }
        }
        metrics::gauge!(metric_names::RECONCILES_RUNNING).set(running.len() as f64);
        tokio::select! {
            () = tools.shutdown.cancelled() => break,
            () = tokio::time::sleep(LOOK_EVERY) => {}
            Some(ended) = running.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a comparison with HQ panicked; the next holder of the lease begins it anew");
                }
            }
        }
    }
    running.shutdown().await;
    metrics::gauge!(metric_names::RECONCILES_RUNNING).set(0.0);
}

async fn work(tools: ReconcileTools, begun: OperationRecord) {
    let OperationRecord { id, asked, attempts, .. } = &begun;
    let kind = asked.target.space.kind.name();
    tracing::info!(operation = %id, target = %asked.target, asked_by = asked.asked_by, attempts, "comparison with HQ begun");
    let (end, heals) = match ReconcileScope::of_details(&asked.details) {
        Ok(scope) => {
            let (Ok(end) | Err(end)) = Comparing::new(&tools, &begun, &scope).compare().await;
            (end, scope.heal)
        }
        Err(reason) => (End::Failed(format!("what is to be compared cannot be read: {reason}")), false),
    };
    let (state, reason, figures) = match end {
        End::Succeeded(found) => {
            for of in &found.differences {
                metrics::counter!(metric_names::DIFFERENCES_TOTAL, "kind" => kind, "class" => of.class.code())
                    .increment(1);
            }
            (OperationState::Succeeded, found.reason(heals), found.figures())
        }
        End::Cancelled(figures) => (OperationState::Cancelled, String::new(), figures),
        End::Failed(reason) => (OperationState::Failed, reason, Figures::new()),
        End::Left => return,
    };
    tracing::info!(operation = %id, target = %asked.target, state = state.code(), reason, ?figures, "comparison with HQ ended");
    let result = serde_json::to_string(&figures).unwrap_or_else(|_| "{}".into());
    let end = OperationEnd { state, reason, result, plan: String::new() };
    insist(|| tools.metastore.end_operation(id, &end)).await;
}

#[cfg(test)]
mod tests;

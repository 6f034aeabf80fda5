//! Operations on the quarantine: its records read again, or its entries given up.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::runner::{End, Figures, Worker};
use crate::consent::Consent;
use crate::handle_error::HandleError;
use crate::metastore::QuarantineFilter;
use crate::metastore::steering::OperationRecord;
use crate::quarantine::replay::{QuarantineError, Selected};

/// Shortest time between two looks whether records have been read.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long they are waited for. What comes later is released as well, after the operation has ended.
const WAITED_FOR: Duration = Duration::from_secs(600);

impl From<QuarantineError> for HandleError {
    fn from(error: QuarantineError) -> Self {
        match error {
            QuarantineError::Metastore(error) => Self::Metastore(error),
            QuarantineError::Closed => Self::Stopping,
            stale @ QuarantineError::Stale(_) => Self::Quarantine(Box::new(stale)),
        }
    }
}

impl Worker {
    /// Has records read again, and waits for what comes of it.
    pub(super) async fn replay(&self, begun: &OperationRecord, filter: &QuarantineFilter) -> End {
        let (id, consent) = (begun.id.as_str(), &begun.asked.consent);
        // A writer that ended in the middle of it had kept to the plan: some of its entries have left since.
        let goes_on = begun.attempts > 1 && *consent != Consent::DryRun;
        let consent = if goes_on { &Consent::Given } else { consent };
        let quarantine = self.operations.quarantine();
        let asking = || async { quarantine.replay(filter, consent, id).await.map_err(HandleError::from) };
        let selected = match self.beside_heartbeats(id, 0, asking).await {
            Ok(selected) => selected,
            Err(end) => return end,
        };
        if !selected.done {
            return planned(&selected, replay_figures(&selected, &Outcome::default()));
        }
        let mut outcome = Outcome { waiting: selected.asked.clone(), ..Outcome::default() };
        let began = Instant::now();
        loop {
            let look = Instant::now();
            let swept = self.beside_heartbeats(id, outcome.released, || async {
                quarantine.sweep(0).await.map_err(HandleError::from)
            });
            match swept.await {
                Ok(swept) => {
                    let are_mine = |of: &BTreeSet<String>| of.intersection(&selected.asked).cloned().collect();
                    outcome.released += swept.released.intersection(&selected.asked).count() as u64;
                    (outcome.waiting, outcome.failed_again) = (are_mine(&swept.waiting), are_mine(&swept.failed_again));
                }
                Err(end) => return end,
            }
            let total = Some(i64::try_from(selected.asked.len()).unwrap_or(i64::MAX));
            let is_to_end = self.is_to_end_of(id, outcome.released + outcome.failed_again.len() as u64, total).await;
            let figures = replay_figures(&selected, &outcome);
            if outcome.waiting.is_empty() || began.elapsed() >= WAITED_FOR {
                let reason = outcome.told(&selected);
                return End::Told { reason, figures, plan: selected.plan };
            }
            if is_to_end {
                return End::Cancelled(figures);
            }
            // Not more than a part of the time is spent on looking.
            tokio::time::sleep(LOOK_EVERY.max(4 * look.elapsed())).await;
        }
    }

    /// Removes entries.
    pub(super) async fn discard(&self, begun: &OperationRecord, filter: &QuarantineFilter) -> End {
        let (id, consent) = (begun.id.as_str(), &begun.asked.consent);
        let quarantine = self.operations.quarantine();
        let discarding =
            || async { quarantine.discard(filter, consent, begun.attempts > 1).await.map_err(HandleError::from) };
        let selected = self.beside_heartbeats(id, 0, discarding).await;
        let figures = |selected: &Selected| {
            Figures::from([("entries", selected.entries), ("bytes", selected.bytes), ("done", selected.done.into())])
        };
        match selected {
            Ok(selected) if selected.done => {
                let figures = figures(&selected);
                End::Told { reason: String::new(), figures, plan: selected.plan }
            }
            Ok(selected) => {
                let figures = figures(&selected);
                planned(&selected, figures)
            }
            Err(end) => end,
        }
    }
}

/// What came of the records that were asked for.
#[derive(Default)]
struct Outcome {
    released: u64,
    waiting: BTreeSet<String>,
    failed_again: BTreeSet<String>,
}

impl Outcome {
    /// In words, where there is something to be done.
    fn told(&self, selected: &Selected) -> String {
        let parts = [
            (self.failed_again.len() as u64, "failed again: see what is said of them with `lakectl quarantine get`"),
            (
                self.waiting.len() as u64,
                "were not read within ten minutes: is a fetcher running, and is their project taken? They are released when they are read",
            ),
            (selected.refused, "cannot be read again: `lakectl quarantine get` says why"),
        ];
        let parts = parts.into_iter().filter(|(count, _)| *count > 0);
        parts.map(|(count, told)| format!("{count} {told}")).collect::<Vec<_>>().join("; ")
    }
}

fn replay_figures(selected: &Selected, outcome: &Outcome) -> Figures {
    Figures::from([
        ("entries", selected.entries),
        ("records", selected.records),
        ("replaced", selected.replaced),
        ("refused", selected.refused),
        ("released", outcome.released),
        ("failed_again", outcome.failed_again.len() as u64),
        ("waiting", outcome.waiting.len() as u64),
        ("done", selected.done.into()),
    ])
}

fn planned(selected: &Selected, figures: Figures) -> End {
    End::Told { reason: "it was only planned: nothing was changed".into(), figures, plan: selected.plan.clone() }
}

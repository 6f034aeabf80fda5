//! Committing what was gathered of a space, and answering its messages.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use futures::{FutureExt, TryStreamExt, stream};
use lake_shared::error_chain::Chain;
use lake_shared::identity::{DocumentType, Space, TableKey};
use lake_shared::panics;
use lake_shared::quarantine::{self, QuarantineEntry, Reason};
use lake_shared::queue::announcement::Activity;
use lake_shared::queue::{Queue, Receipt};
use lake_shared::retry::{Backoff, milliseconds};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::bisect;
use super::buffer::{GivenBack, SLOW_AFTER};
use super::message::{self, BufferedMessage};
use crate::metric_names;
use crate::table_store::{SpaceBatch, StoreError, TableStore};

/// What commits of all spaces work with.
#[derive(Clone)]
pub(super) struct Flush {
    pub(super) queue: Arc<dyn Queue>,
    pub(super) store: Arc<dyn TableStore>,
    pub(super) shutdown: CancellationToken,
    pub(super) progress_every: Duration,
    /// What the writer tells of its work.
    pub(super) activity: Arc<Activity>,
}

/// How a commit ended.
pub(super) enum FlushOutcome {
    /// Every message is answered: committed and acknowledged, or, as the process stops, given back to the queue.
    Answered,
    /// The store refused all tries. The messages, to be tried again.
    Failed(Vec<BufferedMessage>),
}

/// Why not everything could be committed.
enum Unfinished {
    /// The process stops; the messages go back to the queue.
    Stopped,
    /// The store refused all tries.
    Failed,
}

/// Tries of a commit that has not failed before. Most trouble is over after less than a second.
pub(super) const TRIES_AT_FIRST: u32 = 4;
/// Tries of one that has.
pub(super) const TRIES_LATER: u32 = 1;

/// As many equal failures for an unknown cause are no coincidence; each time the space is loaded anew.
const EQUAL_FAILURES: u32 = 3;

/// Most rows of a batch that are found one by one to be the cause of such failures. If more of them fail while others can be applied, it is
/// their table; if none can be applied, it is no row at all, and the space waits.
const BLAMED_MAX: usize = 8;

/// Most rows of one commit that are being published to the quarantine at the same time.
const QUARANTINED_AT_ONCE: usize = 32;

/// How the store answered a batch, passing trouble aside.
enum StoreAnswer {
    Applied,
    BadRows(String),
    /// The same failure as many times as were asked for.
    Unexplained(String),
    UnusableTable(TableKey, String),
    TooManyTypes(HashSet<DocumentType>, String),
}

impl Flush {
    /// Commits messages of a space and acknowledges them; gives them back to the queue when the process stops first. Passing trouble is waited
    /// out for as many tries, not longer, so that a space that cannot be committed takes no slot from the others.
    pub(super) async fn commit(&self, space: &Space, mut messages: Vec<BufferedMessage>, tries: u32) -> FlushOutcome {
        let rows: usize = messages.iter().map(|message| message.rows).sum();
        let outcome = {
            let mut work = std::pin::pin!(self.apply(message::merged(space, &messages), tries));
            loop {
                tokio::select! {
                    outcome = &mut work => break outcome,
                    () = tokio::time::sleep(self.progress_every) => {
                        message::in_progress(&mut messages, self.progress_every).await;
                    }
                }
            }
        };
        let count = messages.len();
        let answers = match outcome {
            Ok(()) => {
                self.activity.passed(rows);
                tracing::debug!(%space, rows, messages = count, "space committed");
                join_all(messages.into_iter().map(|message| message.receipt.acknowledge())).await
            }
            Err(Unfinished::Stopped) => {
                tracing::warn!(%space, rows, messages = count, "stopping; the rows will be delivered again");
                join_all(messages.into_iter().map(|message| message.receipt.retry(Duration::ZERO))).await
            }
            Err(Unfinished::Failed) => return FlushOutcome::Failed(messages),
        };
        for error in answers.into_iter().filter_map(Result::err) {
            tracing::warn!(%space, %error, "message will come again");
        }
        FlushOutcome::Answered
    }

    /// Quarantines a message that cannot be understood, and acknowledges it.
    pub(super) async fn quarantine_message(&self, entry: QuarantineEntry, receipt: Box<dyn Receipt>) {
        let published = {
            let publishing = quarantine::publish(self.queue.as_ref(), entry, &self.shutdown);
            let mut publishing = std::pin::pin!(publishing);
            loop {
                tokio::select! {
                    published = &mut publishing => break published,
                    () = tokio::time::sleep(self.progress_every) => {
                        // Without this the queue would hand it out again, to be quarantined once more.
                        if let Err(error) = receipt.in_progress().await {
                            tracing::debug!(%error, "queue cannot be told of progress; the message may come twice");
                        }
                    }
                }
            }
        };
        let answered = match published {
            Ok(()) => receipt.acknowledge().await,
            Err(error) => {
                tracing::warn!(%error, "message cannot be quarantined now");
                receipt.retry(Duration::from_secs(1)).await
            }
        };
        if let Err(error) = answered {
            tracing::warn!(%error, "message will come again");
        }
    }

    /// Applies a batch; where the store refuses it, or fails for an unknown cause each time, its halves, down to the single row that goes to
    /// quarantine. Where it refuses a table, all rows for that table go there and the rest is applied. Quarantine comes last: a batch that
    /// fails is applied again as a whole, and its bad rows would be quarantined each time.
    async fn apply(&self, batch: SpaceBatch, tries: u32) -> Result<(), Unfinished> {
        let rows = batch.len();
        let mut parts = vec![batch];
        let mut refused: Vec<(SpaceBatch, Reason, String)> = Vec::new();
        let (mut is_any_applied, mut blamed) = (false, 0);
        while let Some(part) = parts.pop() {
            if part.is_empty() {
                continue;
            }
            let asked_thrice = part.len() == rows || part.len() == 1;
            match self.apply_until_answered(&part, tries, if asked_thrice { EQUAL_FAILURES } else { 1 }).await? {
                StoreAnswer::Applied => is_any_applied = true,
                StoreAnswer::BadRows(_) | StoreAnswer::Unexplained(_) if part.len() > 1 => {
                    parts.extend(bisect::halves(&part));
                }
                StoreAnswer::BadRows(detail) => refused.push((part, Reason::RowImpossible, detail)),
                StoreAnswer::Unexplained(detail) => {
                    blamed += 1;
                    if blamed > BLAMED_MAX && !is_any_applied {
                        tracing::error!(space = %part.space, detail, "whatever row is applied fails: report this as a fault of the lake");
                        return Err(Unfinished::Failed);
                    }
                    if blamed > BLAMED_MAX {
                        let of_type = bisect::take_type_of(&part, &mut parts);
                        refused.extend(of_type.into_iter().map(|row| (row, Reason::RowFails, detail.clone())));
                    }
                    refused.push((part, Reason::RowFails, detail));
                }
                StoreAnswer::UnusableTable(table, detail) => {
                    let types = HashSet::from([table.document_type.clone()]);
                    let (rows, rest) = bisect::split_off_types(part, &types);
                    parts.push(rest);
                    tracing::warn!(%table, rows = rows.len(), "rows for a table that cannot be used go to quarantine");
                    refused.extend(rows.into_iter().map(|row| (row, Reason::TableUnusable, detail.clone())));
                }
                StoreAnswer::TooManyTypes(types, detail) => {
                    let (rows, rest) = bisect::split_off_types(part, &types);
                    tracing::warn!(space = %rest.space, types = types.len(), rows = rows.len(), "rows of too many types go to quarantine");
                    parts.push(rest);
                    refused.extend(rows.into_iter().map(|row| (row, Reason::TooManyTypes, detail.clone())));
                }
            }
        }
        let entries = refused.into_iter().map(|(row, reason, detail)| Ok(bisect::entry(&row, reason, detail)));
        let putting = stream::iter(entries.collect::<Vec<_>>());
        putting.try_for_each_concurrent(QUARANTINED_AT_ONCE, |entry| self.quarantine_row(entry)).await
    }

    async fn quarantine_row(&self, entry: QuarantineEntry) -> Result<(), Unfinished> {
        let put = quarantine::publish(self.queue.as_ref(), entry, &self.shutdown).await;
        put.map_err(|error| {
            tracing::warn!(%error, "row cannot be quarantined now");
            Unfinished::Stopped
        })
    }

    /// Applies a batch, waiting out passing trouble for a few tries. So many equal failures for an unknown cause are an answer as well.
    async fn apply_until_answered(
        &self,
        batch: &SpaceBatch,
        tries: u32,
        equal_failures_max: u32,
    ) -> Result<StoreAnswer, Unfinished> {
        let (mut backoff, started, mut failures) = (Backoff::default(), Instant::now(), 0);
        let (mut unexplained, mut equal) = (String::new(), 0);
        loop {
            let applied = AssertUnwindSafe(self.store.apply(batch.clone())).catch_unwind().await;
            let applied = applied.unwrap_or_else(|panic| {
                let source = format!("the store panicked: {}", panics::text(panic.as_ref())).into();
                Err(StoreError::Unexplained { space: batch.space.clone(), source })
            });
            let error = match applied {
                Ok(_) => return Ok(StoreAnswer::Applied),
                Err(StoreError::BadRows { reason, .. }) => return Ok(StoreAnswer::BadRows(reason)),
                Err(error @ StoreError::Unexplained { .. }) => {
                    let detail = Chain(&error).to_string();
                    equal = if detail == unexplained { equal + 1 } else { 1 };
                    unexplained = detail;
                    if equal >= equal_failures_max && !self.shutdown.is_cancelled() {
                        return Ok(StoreAnswer::Unexplained(unexplained));
                    }
                    error
                }
                Err(StoreError::UnusableTable { table, reason })
                    if batch.upserts.iter().any(|rows| rows.document_type == table.document_type) =>
                {
                    return Ok(StoreAnswer::UnusableTable(table, reason));
                }
                Err(StoreError::TooManyTypes { space, types_max, refused })
                    if batch.upserts.iter().any(|rows| refused.contains(&rows.document_type)) =>
                {
                    let detail = format!("{space} has {types_max} types, which is all that tables.types_max allows");
                    return Ok(StoreAnswer::TooManyTypes(refused.into_iter().collect(), detail));
                }
                Err(error) => error,
            };
            if self.shutdown.is_cancelled() {
                return Err(Unfinished::Stopped);
            }
            failures += 1;
            metrics::counter!(metric_names::FLUSH_RETRIES_TOTAL).increment(1);
            // Passing trouble must not take the time of other spaces; what is counted for an answer has its own number of tries.
            let tries_max = if unexplained.is_empty() { tries } else { tries.max(equal_failures_max) };
            if failures >= tries_max || started.elapsed() >= SLOW_AFTER {
                tracing::warn!(error = %Chain(&error), "commit failed");
                return Err(Unfinished::Failed);
            }
            let wait = backoff.next_wait();
            tracing::warn!(error = %Chain(&error), wait_ms = milliseconds(wait), "commit failed");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.shutdown.cancelled() => {}
            }
        }
    }
}

/// Gives messages back to the queue, which hands them out again after a while.
pub(super) async fn give_back(given_back: GivenBack) {
    let GivenBack { space, messages, after, cause } = given_back;
    let (count, after_ms) = (messages.len(), milliseconds(after));
    tracing::debug!(%space, messages = count, after_ms, cause, "rows go back to the queue");
    // The memory of the rows is released before the queue is told.
    let receipts: Vec<Box<dyn Receipt>> = messages.into_iter().map(|message| message.receipt).collect();
    let answers = join_all(receipts.into_iter().map(|receipt| receipt.retry(after))).await;
    for error in answers.into_iter().filter_map(Result::err) {
        tracing::debug!(%error, "queue cannot be told when the message is to come again");
    }
}

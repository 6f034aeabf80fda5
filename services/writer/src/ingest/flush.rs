//! Committing what was gathered of a space, and answering its messages.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use futures::{TryStreamExt, stream};
use lake_shared::error_chain::Chain;
use lake_shared::identity::{Space, TableKey};
use lake_shared::quarantine::{self, QuarantineEntry, Reason};
use lake_shared::queue::{Queue, Receipt};
use lake_shared::retry::{Backoff, milliseconds};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::held::{GivenBack, SLOW_AFTER};
use super::message::{self, HeldMessage};
use super::narrow;
use crate::metric_names;
use crate::table_store::{SpaceBatch, StoreError, TableStore};

/// What a commit needs.
#[derive(Clone)]
pub(super) struct Flush {
    pub(super) queue: Arc<dyn Queue>,
    pub(super) store: Arc<dyn TableStore>,
    pub(super) shutdown: CancellationToken,
    pub(super) progress_every: Duration,
}

/// How a commit ended.
pub(super) enum Outcome {
    /// Everything is committed and acknowledged; or the process stops, and everything was given back to the queue.
    Answered,
    /// Trouble did not pass soon. The messages, to be tried again.
    Failed(Vec<HeldMessage>),
}

/// Why not everything could be committed.
enum Unfinished {
    /// The process stops.
    Stopped,
    /// Trouble did not pass soon.
    Failed,
}

/// Tries of a commit that has not failed before. Most trouble is over after less than a second.
pub(super) const TRIES_AT_FIRST: u32 = 4;
/// Tries of one that has.
pub(super) const TRIES_LATER: u32 = 1;

/// Rows on their way to quarantine at once.
const PUT_ASIDE_AT_ONCE: usize = 32;

/// What the store says to a batch in the end.
enum Answer {
    Applied,
    BadRows(String),
    UnusableTable(TableKey, String),
}

impl Flush {
    /// Commits messages of a space and acknowledges them; gives them back to the queue when the process stops first. Trouble is waited
    /// out for as many tries, not longer, so that a space that cannot be committed takes no slot from the others.
    pub(super) async fn commit(&self, space: &Space, messages: Vec<HeldMessage>, tries: u32) -> Outcome {
        let rows: usize = messages.iter().map(|message| message.rows).sum();
        let outcome = {
            let mut work = std::pin::pin!(self.apply(message::merged(space, &messages), tries));
            loop {
                tokio::select! {
                    outcome = &mut work => break outcome,
                    () = tokio::time::sleep(self.progress_every) => {
                        message::in_progress(&messages).await;
                    }
                }
            }
        };
        let count = messages.len();
        let answers = match outcome {
            Ok(()) => {
                tracing::debug!(%space, rows, messages = count, "space committed");
                join_all(messages.into_iter().map(|message| message.receipt.acknowledge())).await
            }
            Err(Unfinished::Stopped) => {
                tracing::warn!(%space, rows, messages = count, "stopping; the rows will be delivered again");
                join_all(messages.into_iter().map(|message| message.receipt.retry(Duration::ZERO))).await
            }
            Err(Unfinished::Failed) => return Outcome::Failed(messages),
        };
        for error in answers.into_iter().filter_map(Result::err) {
            tracing::warn!(%space, %error, "message will come again");
        }
        Outcome::Answered
    }

    /// Puts a message aside that cannot be understood.
    pub(super) async fn put_aside(&self, entry: QuarantineEntry, receipt: Box<dyn Receipt>) {
        let published = {
            let publishing = quarantine::publish(self.queue.as_ref(), entry, &self.shutdown);
            let mut publishing = std::pin::pin!(publishing);
            loop {
                tokio::select! {
                    published = &mut publishing => break published,
                    () = tokio::time::sleep(self.progress_every) => {
                        // Without this the queue would hand it out again, to be put aside once more.
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
                tracing::warn!(%error, "message cannot be put aside now");
                receipt.retry(Duration::from_secs(1)).await
            }
        };
        if let Err(error) = answered {
            tracing::warn!(%error, "message will come again");
        }
    }

    /// Applies a batch; where the store refuses it, its halves, down to the single row that goes to quarantine. Where it refuses a table,
    /// all rows for that table go there and the rest is applied. Quarantine comes last: a batch that fails is applied again as a whole,
    /// and its bad rows would be put aside each time.
    async fn apply(&self, batch: SpaceBatch, tries: u32) -> Result<(), Unfinished> {
        let mut parts = vec![batch];
        let mut refused: Vec<(SpaceBatch, Reason, String)> = Vec::new();
        while let Some(part) = parts.pop() {
            if part.is_empty() {
                continue;
            }
            match self.apply_until_answered(&part, tries).await? {
                Answer::Applied => {}
                Answer::BadRows(_) if part.len() > 1 => parts.extend(narrow::halves(&part)),
                Answer::BadRows(detail) => refused.push((part, Reason::RowImpossible, detail)),
                Answer::UnusableTable(table, detail) => {
                    let (rows, rest) = narrow::parted(part, &table.document_type);
                    parts.push(rest);
                    tracing::warn!(%table, rows = rows.len(), "rows for a table that cannot be used go to quarantine");
                    refused.extend(rows.into_iter().map(|row| (row, Reason::TableUnusable, detail.clone())));
                }
            }
        }
        let entries = refused.into_iter().map(|(row, reason, detail)| Ok(narrow::entry(&row, reason, detail)));
        let putting = stream::iter(entries.collect::<Vec<_>>());
        putting.try_for_each_concurrent(PUT_ASIDE_AT_ONCE, |entry| self.quarantine(entry)).await
    }

    async fn quarantine(&self, entry: QuarantineEntry) -> Result<(), Unfinished> {
        let put = quarantine::publish(self.queue.as_ref(), entry, &self.shutdown).await;
        put.map_err(|error| {
            tracing::warn!(%error, "row cannot be put aside now");
            Unfinished::Stopped
        })
    }

    /// Applies a batch, waiting out passing trouble for a few tries.
    async fn apply_until_answered(&self, batch: &SpaceBatch, tries: u32) -> Result<Answer, Unfinished> {
        let (mut backoff, started, mut failures) = (Backoff::default(), Instant::now(), 0);
        loop {
            let error = match self.store.apply(batch.clone()).await {
                Ok(_) => return Ok(Answer::Applied),
                Err(StoreError::BadRows { reason, .. }) => return Ok(Answer::BadRows(reason)),
                Err(StoreError::UnusableTable { table, reason })
                    if batch.upserts.iter().any(|rows| rows.document_type == table.document_type) =>
                {
                    return Ok(Answer::UnusableTable(table, reason));
                }
                Err(error) => error,
            };
            if self.shutdown.is_cancelled() {
                return Err(Unfinished::Stopped);
            }
            failures += 1;
            metrics::counter!(metric_names::FLUSH_RETRIES_TOTAL).increment(1);
            if failures >= tries || started.elapsed() >= SLOW_AFTER {
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
    let GivenBack { space, messages, after } = given_back;
    tracing::debug!(%space, messages = messages.len(), after_ms = milliseconds(after), "memory is short; rows go back");
    // What they hold is let go of before the queue is told.
    let receipts: Vec<Box<dyn Receipt>> = messages.into_iter().map(|message| message.receipt).collect();
    let answers = join_all(receipts.into_iter().map(|receipt| receipt.retry(after))).await;
    for error in answers.into_iter().filter_map(Result::err) {
        tracing::debug!(%error, "queue cannot be told when the message is to come again");
    }
}

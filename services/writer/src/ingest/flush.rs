//! Committing what was gathered of a space, and answering its messages.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use futures::{TryStreamExt, stream};
use lake_proto::queue::v1::Quarantined;
use lake_shared::error_chain::Chain;
use lake_shared::identity::{Space, TableKey};
use lake_shared::quarantine::{self, Stage};
use lake_shared::queue::{Queue, Receipt};
use lake_shared::retry::{Backoff, milliseconds};
use tokio_util::sync::CancellationToken;

use super::held::Waiting;
use super::narrow;
use crate::table_store::{SpaceBatch, StoreError, TableStore};
use crate::telemetry;

/// What a commit needs.
#[derive(Clone)]
pub(super) struct Flush {
    pub(super) queue: Arc<dyn Queue>,
    pub(super) store: Arc<dyn TableStore>,
    pub(super) shutdown: CancellationToken,
    pub(super) progress_every: Duration,
}

/// The process stops before everything could be committed.
struct Stopped;

/// Why a row is in quarantine: the store does not take it, whatever else comes with it.
const ROW_IMPOSSIBLE: &str = "row_impossible";
/// The same: its table can take no rows until somebody repairs it.
const TABLE_UNUSABLE: &str = "table_unusable";

/// Rows on their way to quarantine at once.
const PUT_ASIDE_AT_ONCE: usize = 32;

/// What the store says to a batch in the end.
enum Answer {
    Applied,
    BadRows(String),
    UnusableTable(TableKey, String),
}

impl Flush {
    /// Commits a space and acknowledges its messages; gives them back to the queue when the process stops first.
    pub(super) async fn commit(&self, space: &Space, waiting: Waiting) {
        let rows = waiting.rows;
        let receipts = waiting.receipts;
        let outcome = {
            let mut work = std::pin::pin!(self.apply(waiting.batch));
            loop {
                tokio::select! {
                    outcome = &mut work => break outcome,
                    () = tokio::time::sleep(self.progress_every) => in_progress(&receipts).await,
                }
            }
        };
        let answers = match outcome {
            Ok(()) => {
                tracing::debug!(%space, rows, messages = receipts.len(), "space committed");
                join_all(receipts.into_iter().map(|receipt| receipt.acknowledge())).await
            }
            Err(Stopped) => {
                tracing::warn!(%space, rows, messages = receipts.len(), "stopping; the rows will be delivered again");
                join_all(receipts.into_iter().map(|receipt| receipt.retry(Duration::ZERO))).await
            }
        };
        for error in answers.into_iter().filter_map(Result::err) {
            tracing::warn!(%space, %error, "message will come again");
        }
    }

    /// Puts a message aside that cannot be understood.
    pub(super) async fn put_aside(&self, entry: Quarantined, receipt: Box<dyn Receipt>) {
        let answered = match quarantine::publish(self.queue.as_ref(), Stage::Writer, entry, &self.shutdown).await {
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
    /// all rows for that table go there and the rest is applied.
    async fn apply(&self, batch: SpaceBatch) -> Result<(), Stopped> {
        let mut parts = vec![batch];
        while let Some(part) = parts.pop() {
            if part.is_empty() {
                continue;
            }
            match self.apply_until_answered(&part).await? {
                Answer::Applied => {}
                Answer::BadRows(_) if part.len() > 1 => parts.extend(narrow::halves(&part)),
                Answer::BadRows(detail) => self.quarantine(narrow::entry(&part, ROW_IMPOSSIBLE, detail)).await?,
                Answer::UnusableTable(table, detail) => {
                    let (rows, rest) = narrow::parted(part, &table.document_type);
                    parts.push(rest);
                    tracing::warn!(%table, rows = rows.len(), "rows for a table that cannot be used go to quarantine");
                    let entries = rows.iter().map(|row| Ok(narrow::entry(row, TABLE_UNUSABLE, detail.clone())));
                    let putting = stream::iter(entries.collect::<Vec<_>>());
                    putting.try_for_each_concurrent(PUT_ASIDE_AT_ONCE, |entry| self.quarantine(entry)).await?;
                }
            }
        }
        Ok(())
    }

    async fn quarantine(&self, entry: Quarantined) -> Result<(), Stopped> {
        let put = quarantine::publish(self.queue.as_ref(), Stage::Writer, entry, &self.shutdown).await;
        put.map_err(|error| {
            tracing::warn!(%error, "row cannot be put aside now");
            Stopped
        })
    }

    /// Applies a batch, waiting out passing trouble.
    async fn apply_until_answered(&self, batch: &SpaceBatch) -> Result<Answer, Stopped> {
        let mut backoff = Backoff::default();
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
                return Err(Stopped);
            }
            let wait = backoff.next_wait();
            metrics::counter!(telemetry::FLUSH_RETRIES_TOTAL).increment(1);
            tracing::warn!(error = %Chain(&error), wait_ms = milliseconds(wait), "commit failed");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.shutdown.cancelled() => {}
            }
        }
    }
}

async fn in_progress(receipts: &[Box<dyn Receipt>]) {
    for receipt in receipts {
        if let Err(error) = receipt.in_progress().await {
            tracing::debug!(%error, "queue cannot be told of progress; the message may come twice");
            return;
        }
    }
}

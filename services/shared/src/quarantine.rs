//! Where a record goes that cannot be handled: `lake.quarantine.<stage>`, from there into the metastore, where it is
//! listed and can be replayed. One bad record stops nothing.

use lake_proto::queue::v1::Quarantined;
use tokio_util::sync::CancellationToken;

use crate::names;
use crate::queue::{Message, PublishError, Queue};
use crate::retry::{Backoff, milliseconds};
use crate::wire;

/// Metric: entries published, labels `stage` and `reason`.
pub const QUARANTINED_TOTAL: &str = "lake_quarantined_total";

/// Longest detail, in bytes.
const DETAIL_SIZE_MAX: usize = 4_096;

/// Who put the entry aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Reading HQ.
    Fetcher,
    /// Flattening.
    Enricher,
    /// Committing.
    Writer,
}

impl Stage {
    /// Last token of the subject and value of the metric's label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fetcher => "fetcher",
            Self::Enricher => "enricher",
            Self::Writer => "writer",
        }
    }
}

/// Puts an entry into quarantine and waits, with back-off, until it is safe there. `Closed` only when `shutdown` comes first.
/// A payload that is too large for the queue is cut.
pub async fn publish(
    queue: &dyn Queue,
    stage: Stage,
    mut entry: Quarantined,
    shutdown: &CancellationToken,
) -> Result<(), PublishError> {
    let size_max = queue.payload_size_max() / 2;
    if entry.payload.len() > size_max {
        entry.payload.truncate(size_max);
    }
    if entry.detail.len() > DETAIL_SIZE_MAX {
        let end = (0..=DETAIL_SIZE_MAX).rev().find(|&at| entry.detail.is_char_boundary(at)).unwrap_or(0);
        entry.detail.truncate(end);
    }
    tracing::warn!(
        stage = stage.name(),
        reason = entry.reason,
        domain = entry.domain,
        id = entry.id,
        detail = entry.detail,
        "quarantined"
    );
    metrics::counter!(QUARANTINED_TOTAL, "stage" => stage.name(), "reason" => entry.reason.clone()).increment(1);
    let payload = wire::encode(&entry);
    let dedupe_id = format!("quarantine-{}", uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, &payload));
    let message = Message { subject: format!("lake.quarantine.{}", names::token(stage.name())), payload, dedupe_id };
    publish_until_safe(queue, message, shutdown).await
}

/// Queues a message, trying again with back-off while the queue has passing trouble. Returns [`PublishError::TooLarge`] at once and
/// [`PublishError::Closed`] when the queue or the process ends.
pub async fn publish_until_safe(
    queue: &dyn Queue,
    message: Message,
    shutdown: &CancellationToken,
) -> Result<(), PublishError> {
    let mut backoff = Backoff::default();
    loop {
        match queue.publish(message.clone()).await {
            Err(error @ PublishError::Unavailable { .. }) => {
                let wait = backoff.next_wait();
                tracing::warn!(%error, wait_ms = milliseconds(wait), "queue does not take a message");
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = shutdown.cancelled() => return Err(PublishError::Closed),
                }
            }
            other => return other,
        }
    }
}

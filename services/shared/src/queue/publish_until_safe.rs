//! Publishing that waits until the queue takes the message.

use tokio_util::sync::CancellationToken;

use super::{Message, PublishError, Queue};
use crate::retry::{Backoff, milliseconds};

/// Queues a message, trying again with back-off while the queue has passing trouble.
///
/// # Errors
/// [`PublishError::TooLarge`] at once; [`PublishError::Closed`] when the queue is closed or `shutdown` comes first.
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

//! Broadcasts: plain messages that no stream keeps.

use std::ops::ControlFlow;

use async_nats::Subscriber;
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use super::connection::{Connection, Status};
use crate::queue::{Broadcast, QueueError, naming};

struct Listener {
    subscriber: Subscriber,
    connection: Connection,
    /// State of the connection when the last broadcast was handed over.
    seen: Status,
}

/// Subscribes to broadcasts; when this returns, the server has the subscription.
pub(super) async fn listen(
    connection: &Connection,
    pattern: &str,
) -> Result<BoxStream<'static, Broadcast>, QueueError> {
    naming::check_pattern(pattern)?;
    let fail = |reason: String| QueueError { action: format!("listen to {pattern}"), reason };
    // Taken before, so that a connection that is lost in between counts as something missed.
    let seen = *connection.status.borrow();
    let subscriber = connection.client.subscribe(pattern.to_owned()).await.map_err(|error| fail(error.to_string()))?;
    connection.round_trip().await?;
    let listener = Listener { subscriber, connection: connection.clone(), seen };
    Ok(stream::unfold(listener, |mut listener| async move { listener.next().await.map(|heard| (heard, listener)) })
        .boxed())
}

impl Listener {
    async fn next(&mut self) -> Option<Broadcast> {
        loop {
            if let ControlFlow::Break(heard) = self.step().await {
                return heard;
            }
        }
    }

    async fn step(&mut self) -> ControlFlow<Option<Broadcast>> {
        let status = *self.connection.status.borrow_and_update();
        let missed = (status.connects, status.overflows) != (self.seen.connects, self.seen.overflows);
        if missed && status.connected {
            // Only now is the subscription in force again: a listener that reads its state anew after this misses nothing.
            let closed = self.connection.closed.clone();
            let answered = match closed.run_until_cancelled(self.connection.round_trip()).await {
                None => return ControlFlow::Break(None),
                Some(answered) => answered.is_ok(),
            };
            if answered {
                self.seen = status;
                return ControlFlow::Break(Some(Broadcast::MaybeMissed));
            }
            // No answer: the server is starting, or away again. What was sent meanwhile is heard first.
            tokio::time::sleep(RETRY_PAUSE).await;
            return ControlFlow::Continue(());
        }
        tokio::select! {
            biased;
            () = self.connection.closed.cancelled() => ControlFlow::Break(None),
            changed = self.connection.status.changed() => match changed {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(None),
            },
            message = self.subscriber.next() => ControlFlow::Break(message.map(|message| {
                Broadcast::Message { subject: message.subject.to_string(), payload: message.payload }
            })),
        }
    }
}

/// Between asking a server that does not answer yet.
const RETRY_PAUSE: std::time::Duration = std::time::Duration::from_millis(200);

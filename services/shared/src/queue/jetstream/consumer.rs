//! A durable consumer as its caller sees it, and the answers to what it hands out.

use std::time::Duration;

use async_nats::Message as NatsMessage;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::{AckKind, Message as JetStreamMessage};
use async_nats::{Client, Subject};
use async_trait::async_trait;
use tokio::time::{Instant, sleep_until, timeout};

use super::connection::Connection;
use super::durable::{Durable, Refusal};
use super::pull::{Pull, Window};
use super::streams::Trouble;
use crate::queue::{Consumer, ConsumerOptions, Delivery, QueueError, Receipt, Stream, naming};
use crate::retry::Backoff;

/// A consumer that makes itself anew after whatever happens to the server.
pub(super) struct JetStreamConsumer {
    connection: Connection,
    durable: Durable,
    pull: Option<Pull>,
    window: Window,
    backoff: Backoff,
    /// After trouble: not before then, however often the caller asks.
    not_before: Option<Instant>,
}

impl JetStreamConsumer {
    pub(super) async fn open(
        connection: Connection,
        stream: Stream,
        options: ConsumerOptions,
    ) -> Result<Self, QueueError> {
        naming::check_group(stream, &options)?;
        let window = Window::new(options.in_flight_max, options.acknowledge_within);
        let (backoff, not_before) = (new_backoff(), None);
        let durable = Durable { stream, options };
        let mut consumer = Self { connection, durable, pull: None, window, backoff, not_before };
        consumer.pull = Some(consumer.make_pull().await?);
        consumer.connection.kept.consumer(&consumer.durable);
        Ok(consumer)
    }

    fn error(&self, reason: String) -> QueueError {
        let action = format!("read {} as {}", self.durable.stream.name(), self.durable.name());
        QueueError { action, reason }
    }

    async fn make_pull(&self) -> Result<Pull, QueueError> {
        let Durable { stream, options: ConsumerOptions { durable_name, acknowledge_within, .. } } = &self.durable;
        let made = async {
            self.connection.connected().await;
            self.ensure().await?;
            let pull = Pull::open(&self.connection, *stream, durable_name, *acknowledge_within).await;
            pull.map_err(|reason| self.error(reason))
        };
        let limit = self.connection.config.request_timeout() * 3;
        timeout(limit, made).await.unwrap_or_else(|_| Err(self.error("no answer in time".into())))
    }

    /// Creates the consumer on the server, and the stream if that is gone too; both may be there already.
    async fn ensure(&self) -> Result<(), QueueError> {
        let context = &self.connection.context;
        match self.durable.ensure(context).await {
            Err(Refusal { code: Some(ErrorCode::STREAM_NOT_FOUND), .. }) => {
                self.connection.prepare(self.durable.stream).await.map_err(Trouble::into_error)?;
                self.durable.ensure(context).await.map_err(|refusal| refusal.error)
            }
            created => created.map_err(|refusal| refusal.error),
        }
    }

    fn delivery(&self, message: NatsMessage) -> Result<Delivery, QueueError> {
        let reply = message.reply.clone().ok_or_else(|| self.error("a message came without a reply subject".into()))?;
        let message = JetStreamMessage { message, context: self.connection.context.clone() };
        let (id, attempts) = match message.info() {
            Ok(info) => (info.stream_sequence.to_string(), u64::try_from(info.delivered).unwrap_or(1)),
            Err(error) => {
                return Err(self.error(format!("a message has a reply subject that cannot be parsed ({error})")));
            }
        };
        let receipt = JetStreamReceipt {
            client: self.connection.client.clone(),
            reply,
            stream: self.durable.stream,
            id: id.clone(),
            send_within: self.connection.config.request_timeout(),
            answered: false,
        };
        let NatsMessage { subject, payload, .. } = message.message;
        Ok(Delivery { subject: subject.to_string(), payload, id, attempts, receipt: Box::new(receipt) })
    }

    async fn try_next(&mut self) -> Result<Delivery, QueueError> {
        if let Some(at) = self.not_before {
            sleep_until(at).await;
            self.not_before = None;
        }
        self.window.wanted(Instant::now());
        if self.pull.is_none() {
            self.pull = Some(self.make_pull().await?);
        }
        let Some(pull) = self.pull.as_mut() else { return Err(self.error("it is closed".into())) };
        let message = match pull.next(self.window.size()).await {
            Ok(message) => message,
            Err(reason) => return Err(self.error(reason)),
        };
        self.backoff = new_backoff();
        self.window.handed_out(Instant::now());
        self.delivery(message)
    }
}

/// Short at first, since most trouble is a restart.
fn new_backoff() -> Backoff {
    Backoff::new(Duration::from_millis(100), Duration::from_secs(5))
}

#[async_trait]
impl Consumer for JetStreamConsumer {
    async fn next(&mut self) -> Option<Result<Delivery, QueueError>> {
        let closed = self.connection.closed.clone();
        let next = closed.run_until_cancelled(self.try_next()).await?;
        if next.is_err() {
            self.connection.kept.doubt();
            self.pull = None;
            self.not_before = Some(Instant::now() + self.backoff.next_wait());
        }
        Some(next)
    }
}

/// Dropping it without an answer asks the server to hand the message out again.
struct JetStreamReceipt {
    client: Client,
    reply: Subject,
    stream: Stream,
    id: String,
    send_within: Duration,
    answered: bool,
}

impl JetStreamReceipt {
    async fn answer(&self, what: &str, kind: AckKind) -> Result<(), QueueError> {
        let sent = timeout(self.send_within, self.client.publish(self.reply.clone(), kind.into())).await;
        let reason = match sent {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no connection in time".to_owned(),
        };
        Err(QueueError { action: format!("{what} message {} of {}", self.id, self.stream.name()), reason })
    }
}

#[async_trait]
impl Receipt for JetStreamReceipt {
    async fn acknowledge(mut self: Box<Self>) -> Result<(), QueueError> {
        self.answer("acknowledge", AckKind::Ack).await?;
        self.answered = true;
        Ok(())
    }

    async fn retry(mut self: Box<Self>, after: Duration) -> Result<(), QueueError> {
        let after = (!after.is_zero()).then_some(after);
        self.answer("give back", AckKind::Nak(after)).await?;
        self.answered = true;
        Ok(())
    }

    async fn in_progress(&self) -> Result<(), QueueError> {
        self.answer("keep", AckKind::Progress).await
    }
}

impl Drop for JetStreamReceipt {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        // Without a runtime the process is ending; the time-out hands the message out again.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (client, reply) = (self.client.clone(), self.reply.clone());
            runtime.spawn(async move { client.publish(reply, AckKind::Nak(None).into()).await });
        }
    }
}

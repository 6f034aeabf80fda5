//! A durable consumer as its caller sees it, and the answers to what it hands out.

use std::time::Duration;

use async_nats::Message as NatsMessage;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::pull::Config;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy};
use async_nats::jetstream::stream::ConsumerErrorKind;
use async_nats::jetstream::{AckKind, Message as JetStreamMessage};
use async_nats::{Client, Subject};
use async_trait::async_trait;
use tokio::time::{Instant, sleep_until, timeout};

use super::connection::Connection;
use super::pull::{Pull, Window};
use super::streams::Trouble;
use crate::error_chain::Chain;
use crate::queue::{Consumer, ConsumerOptions, Delivery, QueueError, Receipt, Stream, naming};
use crate::retry::Backoff;

/// A consumer that makes itself anew after whatever happens to the server.
pub(super) struct JetStreamConsumer {
    connection: Connection,
    stream: Stream,
    options: ConsumerOptions,
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
        let mut consumer = Self { connection, stream, options, pull: None, window, backoff, not_before };
        consumer.pull = Some(consumer.make_pull().await?);
        Ok(consumer)
    }

    fn error(&self, reason: String) -> QueueError {
        let action = format!("read {} as {}", self.stream.name(), self.options.durable_name);
        QueueError { action, reason }
    }

    async fn make_pull(&self) -> Result<Pull, QueueError> {
        let ConsumerOptions { durable_name, acknowledge_within, .. } = &self.options;
        let made = async {
            self.connection.connected().await;
            self.ensure().await?;
            let pull = Pull::open(&self.connection, self.stream, durable_name, *acknowledge_within).await;
            pull.map_err(|reason| self.error(reason))
        };
        let limit = self.connection.config.request_timeout() * 3;
        timeout(limit, made).await.unwrap_or_else(|_| Err(self.error("no answer in time".into())))
    }

    /// Creates the consumer on the server, and the stream if that is gone too; both may be there already.
    async fn ensure(&self) -> Result<(), QueueError> {
        match self.create().await {
            Err((Some(ErrorCode::STREAM_NOT_FOUND), _)) => {
                self.connection.prepare(self.stream).await.map_err(Trouble::into_error)?;
                self.create().await.map_err(|(_, error)| error)
            }
            created => created.map_err(|(_, error)| error),
        }
    }

    async fn create(&self) -> Result<(), (Option<ErrorCode>, QueueError)> {
        let name = &self.options.durable_name;
        let fail = |reason: String| QueueError { action: naming::group_action(self.stream, name), reason };
        let wanted = Config {
            durable_name: Some(name.clone()),
            name: Some(name.clone()),
            deliver_policy: DeliverPolicy::All,
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.options.acknowledge_within,
            max_deliver: -1,
            max_ack_pending: i64::try_from(self.options.in_flight_max).unwrap_or(i64::MAX),
            ..Config::default()
        };
        let created = self.connection.context.create_consumer_on_stream(wanted.clone(), self.stream.name()).await;
        let made = created.map_err(|error| match error.kind() {
            ConsumerErrorKind::JetStream(answer) if is_second_group(answer.error_code()) => {
                let reason = "another consumer reads the stream already; a work queue has one name of readers";
                (Some(answer.error_code()), fail(reason.into()))
            }
            ConsumerErrorKind::JetStream(answer) => (Some(answer.error_code()), fail(answer.to_string())),
            _ => (None, fail(Chain(&error).to_string())),
        })?;
        let made = &made.cached_info().config;
        // Servers ignore settings that they do not know, so what they have set is compared.
        let as_wanted = made.ack_policy == wanted.ack_policy
            && made.ack_wait == wanted.ack_wait
            && made.max_ack_pending == wanted.max_ack_pending
            && made.max_deliver <= 0
            && made.filter_subject.is_empty();
        if as_wanted {
            return Ok(());
        }
        Err((None, fail("the server took its configuration differently; delete the consumer and start again".into())))
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
            stream: self.stream,
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

fn is_second_group(code: ErrorCode) -> bool {
    code == ErrorCode::CONSUMER_WQ_MULTIPLE_UNFILTERED || code == ErrorCode::CONSUMER_WQ_CONSUMER_NOT_UNIQUE
}

#[async_trait]
impl Consumer for JetStreamConsumer {
    async fn next(&mut self) -> Option<Result<Delivery, QueueError>> {
        let closed = self.connection.closed.clone();
        let next = closed.run_until_cancelled(self.try_next()).await?;
        if next.is_err() {
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

//! A durable consumer as its caller sees it, and the answers to what it hands out.

use std::time::Duration;

use async_nats::Message as NatsMessage;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::{AckKind, Context, Message as JetStreamMessage};
use async_nats::{Client, Subject};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::{Instant, sleep_until, timeout};

use super::connection::Connection;
use super::durable::{Durable, Refusal};
use super::parts::{self, Assembled, Assembly, PartList};
use super::pull::{Pull, Window};
use super::streams::Trouble;
use crate::queue::{Consumer, ConsumerOptions, Delivery, QueueError, Receipt, Stream, naming};
use crate::retry::Backoff;

/// As often a message is handed out whose parts are not there before that is final: a server that has just joined may not have them yet.
const GONE_ATTEMPTS: u64 = 4;
/// When a message comes again whose parts cannot be read now.
const PARTS_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// A consumer that makes itself anew after whatever happens to the server.
pub(super) struct JetStreamConsumer {
    connection: Connection,
    durable: Durable,
    pull: Option<Pull>,
    /// The message whose parts are being read.
    assembling: Option<(Arrived, Assembly<JetStreamReceipt>)>,
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
        let mut consumer = Self { connection, durable, pull: None, assembling: None, window, backoff, not_before };
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

    fn arrived(&self, message: &NatsMessage) -> Result<(Arrived, JetStreamReceipt), QueueError> {
        let reply = message.reply.clone().ok_or_else(|| self.error("a message came without a reply subject".into()))?;
        let message = JetStreamMessage { message: message.clone(), context: self.connection.context.clone() };
        let (sequence, attempts) = match message.info() {
            Ok(info) => (info.stream_sequence, u64::try_from(info.delivered).unwrap_or(1)),
            Err(error) => {
                return Err(self.error(format!("a message has a reply subject that cannot be parsed ({error})")));
            }
        };
        let parts = PartList::of(self.durable.stream, message.headers.as_ref());
        let receipt = JetStreamReceipt {
            client: self.connection.client.clone(),
            reply,
            stream: self.durable.stream,
            sequence,
            parts: parts.map(|list| (self.connection.context.clone(), list)),
            send_within: self.connection.config.request_timeout(),
            answered: false,
        };
        Ok((Arrived { subject: message.subject.to_string(), sequence, attempts }, receipt))
    }

    async fn try_next(&mut self) -> Result<Delivery, QueueError> {
        if let Some(at) = self.not_before {
            sleep_until(at).await;
            self.not_before = None;
        }
        self.window.wanted(Instant::now());
        let delivery = loop {
            if let Some(delivery) = self.assemble().await? {
                break delivery;
            }
            if self.pull.is_none() {
                self.pull = Some(self.make_pull().await?);
            }
            let Some(pull) = self.pull.as_mut() else { return Err(self.error("it is closed".into())) };
            let message = match pull.next(self.window.size()).await {
                Ok(message) => message,
                Err(reason) => return Err(self.error(reason)),
            };
            self.backoff = new_backoff();
            let (arrived, receipt) = self.arrived(&message)?;
            match &receipt.parts {
                None => break arrived.delivery(message.payload, receipt),
                Some((_, list)) => {
                    let within = self.durable.options.acknowledge_within;
                    self.assembling = Some((arrived, Assembly::new(list.clone(), receipt, within)));
                }
            }
        };
        self.window.handed_out(Instant::now());
        Ok(delivery)
    }

    /// Reads on with the message in parts, if there is one; `None` where it is not to be handed out now. Cancel safe.
    async fn assemble(&mut self) -> Result<Option<Delivery>, QueueError> {
        let Some((arrived, assembly)) = &mut self.assembling else { return Ok(None) };
        let mut read = assembly.read(&self.connection).await;
        let is_final = read == Ok(Assembled::Gone) && arrived.attempts >= GONE_ATTEMPTS;
        if is_final {
            // Another consumer may have acknowledged it in the last moment.
            match parts::is_queued(&self.connection, self.durable.stream, arrived.sequence).await {
                Ok(true) => {}
                Ok(false) => read = Ok(Assembled::Stale),
                Err(reason) => read = Err(reason),
            }
        }
        let Some((arrived, assembly)) = self.assembling.take() else { return Ok(None) };
        let reason = match read {
            Ok(Assembled::Whole(payload)) => return Ok(Some(arrived.delivery(payload, assembly.receipt))),
            // Dropped without an answer, it is given back.
            Ok(Assembled::Stale) => return Ok(None),
            Ok(Assembled::Gone) if is_final => {
                let text = format!("the parts of this message are gone: {}", assembly.list());
                tracing::error!(
                    stream = self.durable.stream.name(),
                    subject = arrived.subject,
                    "{text}; somebody deleted them, or the server lost power. It goes to quarantine as malformed: have HQ publish the records \
                     of that time again"
                );
                return Ok(Some(arrived.delivery(text.into(), assembly.receipt)));
            }
            Ok(Assembled::Gone) => None,
            Err(reason) => Some(self.error(reason)),
        };
        // Where it does not arrive, the message comes again after the time-out.
        let _ = Box::new(assembly.receipt).retry(PARTS_AGAIN_AFTER).await;
        reason.map_or(Ok(None), Err)
    }
}

/// A message that the server has handed out, without its payload.
struct Arrived {
    subject: String,
    sequence: u64,
    attempts: u64,
}

impl Arrived {
    fn delivery(self, payload: Bytes, receipt: JetStreamReceipt) -> Delivery {
        let Self { subject, sequence, attempts } = self;
        Delivery { subject, payload, id: sequence.to_string(), attempts, receipt: Box::new(receipt) }
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
    sequence: u64,
    /// The parts of the payload, to be dropped with the message.
    parts: Option<(Context, PartList)>,
    send_within: Duration,
    answered: bool,
}

impl JetStreamReceipt {
    async fn answer(&self, what: &str, kind: AckKind) -> Result<(), QueueError> {
        let sent = timeout(self.send_within, self.client.publish(self.reply.clone(), kind.into())).await;
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.error(what, error.to_string())),
            Err(_) => Err(self.error(what, "no connection in time".into())),
        }
    }

    /// Waits until the server says that the message will not come again.
    async fn acknowledge_confirmed(&self) -> Result<(), QueueError> {
        let confirmed = timeout(self.send_within, self.client.request(self.reply.clone(), AckKind::Ack.into())).await;
        match confirmed {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.error("acknowledge", error.to_string())),
            Err(_) => Err(self.error("acknowledge", "not confirmed in time".into())),
        }
    }

    fn error(&self, what: &str, reason: String) -> QueueError {
        QueueError { action: format!("{what} message {} of {}", self.sequence, self.stream.name()), reason }
    }
}

#[async_trait]
impl Receipt for JetStreamReceipt {
    async fn acknowledge(mut self: Box<Self>) -> Result<(), QueueError> {
        let Some((context, list)) = &self.parts else {
            self.answer("acknowledge", AckKind::Ack).await?;
            self.answered = true;
            return Ok(());
        };
        self.acknowledge_confirmed().await?;
        let (context, list) = (context.clone(), list.clone());
        self.answered = true;
        parts::drop_parts(&context, &list).await;
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

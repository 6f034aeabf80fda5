//! The connection to the servers: waiting for them at start, and knowing when it was away.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::{AccountErrorKind, ContextBuilder};
use async_nats::jetstream::stream::State;
use async_nats::{Client, ConnectError, ConnectErrorKind, Event};
use futures::TryFutureExt;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::config::JetStreamConfig;
use super::kept::Kept;
use super::server_stream::ServerStream;
use super::streams::{self, Prepared, Trouble};
use crate::error_chain::Chain;
use crate::queue::QueueError;
use crate::retry::Backoff;
use crate::tls;

/// Broadcasts that wait for one listener before some are dropped; far more than a consumer ever asks for.
const SUBSCRIPTION_CAPACITY: usize = 8_192;
/// Messages on their way to a server, over all publishers.
const PUBLISHES_MAX: usize = 4_096;

/// State of the connection, and how often it was made and overflowed so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) connected: bool,
    /// How often a connection was made.
    pub(super) connects: u64,
    /// How often something was dropped because a subscription was full.
    pub(super) overflows: u64,
}

/// The connection, shared by the queue and its consumers and listeners.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) context: Context,
    pub(super) config: JetStreamConfig,
    pub(super) status: watch::Receiver<Status>,
    pub(super) closed: CancellationToken,
    pub(super) kept: Kept,
}

impl Connection {
    /// Connects and prepares the streams; waits for a server that is not there yet.
    pub(super) async fn open(config: JetStreamConfig) -> Result<Self, QueueError> {
        let servers = config.servers_shown();
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));
        let mut attempt = 0_u32;
        loop {
            attempt = attempt.saturating_add(1);
            let reason = match Self::try_open(&config).await {
                Ok(connection) => {
                    tracing::info!(servers, attempt, "queue is connected");
                    return Ok(connection);
                }
                Err(Trouble::Lasting(error)) => return Err(error),
                Err(Trouble::Passing(error)) => error.reason,
            };
            if config.connect_attempts_max.is_some_and(|attempts_max| attempt >= attempts_max) {
                let reason =
                    format!("{reason}; gave up after {attempt} attempts, start the server or correct queue.servers");
                return Err(QueueError { action: format!("connect to {servers}"), reason });
            }
            let wait = backoff.next_wait();
            tracing::warn!(
                servers,
                attempt,
                reason,
                wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
                "queue is not ready, trying again: start nats-server with JetStream (-js) there or correct queue.servers"
            );
            tokio::time::sleep(wait).await;
        }
    }

    async fn try_open(config: &JetStreamConfig) -> Result<Self, Trouble> {
        let addresses = config.addresses().map_err(Trouble::Lasting)?;
        let (sender, mut status) = watch::channel(Status::default());
        tls::choose_cryptography();
        let options = config.login().await.and_then(|options| config.encrypted(options));
        let options = options
            .map_err(Trouble::Lasting)?
            .name("commcare-lake")
            .connection_timeout(config.connect_timeout())
            .request_timeout(Some(config.request_timeout()))
            // Two pings without an answer end a connection whose other side is gone without a word.
            .ping_interval(Duration::from_secs(5))
            .subscription_capacity(SUBSCRIPTION_CAPACITY)
            .max_reconnects(None)
            .reconnect_delay_callback(reconnect_delay)
            .event_callback(move |event| {
                sender.send_if_modified(|status| note(status, &event));
                std::future::ready(())
            });
        let client = options.connect(addresses).await.map_err(|error| connect_trouble(config, &error))?;
        // The first connection is an event too; later ones are those that may have missed something.
        let noted = status.wait_for(|status| status.connects > 0).map_ok(|_| ());
        if !matches!(timeout(config.connect_timeout(), noted).await, Ok(Ok(()))) {
            let reason = "the connection was lost at once".into();
            return Err(Trouble::Passing(QueueError { action: "connect".into(), reason }));
        }
        let context = ContextBuilder::new()
            .timeout(config.request_timeout())
            .max_ack_inflight(PUBLISHES_MAX)
            .backpressure_on_inflight(true)
            .build(client.clone());
        let (config, closed, kept) = (config.clone(), CancellationToken::new(), Kept::default());
        let connection = Self { client, context, config, status, closed, kept };
        for stream in ServerStream::ALL {
            connection.prepare(stream).await?;
        }
        Ok(connection)
    }

    /// Makes sure that a stream is there and is as configured.
    pub(super) async fn prepare(&self, stream: impl Into<ServerStream>) -> Result<Prepared, Trouble> {
        streams::prepare(&self.context, &self.config, stream.into()).await
    }

    /// Waits for a connection: what is sent without one would pile up.
    pub(super) async fn connected(&self) {
        let mut status = self.status.clone();
        // An error means that the client is gone; the next request will say so.
        let _ = status.wait_for(|status| status.connected).await;
    }

    /// One request to the server and back, whatever it says: everything sent before, such as a subscription, is in force then.
    pub(super) async fn round_trip(&self) -> Result<(), QueueError> {
        let asked = timeout(self.config.request_timeout(), self.context.query_account()).await;
        match asked.map_err(|_| AccountErrorKind::TimedOut).map(|answer| answer.map_err(|error| error.kind())) {
            Ok(Err(AccountErrorKind::TimedOut)) | Err(_) => {
                Err(QueueError { action: "reach the server".into(), reason: "no answer in time".into() })
            }
            _ => Ok(()),
        }
    }

    /// The state of a stream; an error where it is not there.
    pub(super) async fn look_up(&self, stream: impl Into<ServerStream>) -> Result<State, QueueError> {
        let stream = stream.into();
        let action = format!("ask for the state of {}", stream.name());
        let asked = timeout(self.config.request_timeout(), self.context.get_stream(stream.name())).await;
        match asked {
            Ok(Ok(found)) => Ok(found.cached_info().state.clone()),
            Ok(Err(error)) => Err(QueueError { action, reason: Chain(&error).to_string() }),
            Err(_) => Err(QueueError { action, reason: "no answer in time".into() }),
        }
    }
}

/// Grows to 2 s: a server that was restarted is found again soon, one that is away is not flooded.
fn reconnect_delay(attempts: usize) -> Duration {
    let doublings = u32::try_from(attempts).unwrap_or(u32::MAX).min(6);
    Duration::from_millis(if attempts <= 1 { 0 } else { 30 << doublings }).min(Duration::from_secs(2))
}

fn note(status: &mut Status, event: &Event) -> bool {
    match event {
        Event::Connected => (status.connected, status.connects) = (true, status.connects + 1),
        Event::Disconnected | Event::Closed => status.connected = false,
        Event::SlowConsumer(_) => status.overflows += 1,
        _ => return false,
    }
    true
}

fn connect_trouble(config: &JetStreamConfig, error: &ConnectError) -> Trouble {
    let action = format!("connect to {}", config.servers_shown());
    match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            let reason =
                "the server refuses the login; check user, password, token or credentials_file of queue".into();
            Trouble::Lasting(QueueError { action, reason })
        }
        // The addresses hold no login any more, so the error can be shown.
        ConnectErrorKind::ServerParse => Trouble::Lasting(QueueError { action, reason: Chain(error).to_string() }),
        _ => Trouble::Passing(QueueError { action, reason: Chain(error).to_string() }),
    }
}

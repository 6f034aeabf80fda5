//! Looks again and again whether streams and consumers on the servers are as they must be: people and power cuts change them.
//!
//! What is gone is made anew, what was changed is set back, a consumer that stands where its stream is not is made anew so that nothing is
//! skipped. What cannot be mended in this way ends the service with a line that says what to do.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::Info as ConsumerInfo;
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{Config, Info};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::abandoned_parts::{AbandonedParts, StreamState};
use super::connection::Connection;
use super::durable::{Difference, Durable, Standing, is_second_group};
use super::server_stream::ServerStream;
use super::streams::{Done, Trouble};
use crate::error_chain::Chain;
use crate::queue::{QueueError, Stream};

/// Counter: streams and consumers that were gone, changed or at a wrong place, and were mended; labels `stream`, `what`.
pub const REPAIRS_TOTAL: &str = "lake_queue_repairs_total";

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Shortest time after which the same settings are set back again.
const SET_BACK_EVERY: Duration = Duration::from_secs(60);
/// Shortest time between two looks when there is a reason to look.
const LOOK_PAUSE: Duration = Duration::from_millis(250);

/// Keeps streams and consumers until `shutdown`.
pub(super) async fn keep(connection: &Connection, shutdown: CancellationToken) -> Result<(), QueueError> {
    count_from_zero();
    let (streams, passed_over, set_back_at, parts) = Default::default();
    let mut keeper = Keeper { connection, streams, passed_over, set_back_at, parts };
    let looking = async {
        loop {
            keeper.look().await?;
            tokio::select! {
                () = sleep(LOOK_EVERY) => {}
                () = connection.kept.doubted() => sleep(LOOK_PAUSE).await,
            }
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        failed = looking => failed,
    }
}

struct Keeper<'a> {
    connection: &'a Connection,
    /// The streams as they were at the last look.
    streams: HashMap<ServerStream, Info>,
    /// Messages that a consumer had passed over at the last look.
    passed_over: HashMap<Stream, u64>,
    /// When settings were set back, of a stream or of its consumer.
    set_back_at: HashMap<(ServerStream, &'static str), Instant>,
    /// Parts that wait for the message that names them.
    parts: HashMap<Stream, AbandonedParts>,
}

impl Keeper<'_> {
    /// An error is one that an operator must mend.
    async fn look(&mut self) -> Result<(), QueueError> {
        self.connection.connected().await;
        for stream in ServerStream::ALL {
            match self.look_at(stream).await {
                Ok(()) => {}
                Err(Trouble::Lasting(error)) => return Err(error),
                Err(Trouble::Passing(error)) => {
                    tracing::debug!(%error, "the queue cannot be looked at now; will be tried again");
                }
            }
        }
        Ok(())
    }

    async fn look_at(&mut self, stream: ServerStream) -> Result<(), Trouble> {
        let now = Instant::now();
        let Some(found) = self.info(stream).await? else { return self.make_anew(stream).await };
        let seen = self.streams.get(&stream);
        if let Some(seen) = seen {
            tell_losses(stream, seen, &found);
        }
        let state = StreamState::of(&found);
        if seen.is_some_and(|seen| seen.config == found.config) {
            self.streams.insert(stream, found);
        } else if self.may_set_back((stream, "stream")) {
            self.set_back(stream).await?;
        }
        match stream {
            ServerStream::Messages(stream) => match self.connection.kept.consumer_of(stream) {
                Some(durable) => self.look_at_consumer(&durable).await,
                None => Ok(()),
            },
            // One service is enough: the one that reads them.
            ServerStream::Parts(stream) if self.connection.kept.consumer_of(stream).is_some() => {
                self.look_at_parts(stream, &state, now).await
            }
            ServerStream::Parts(_) => Ok(()),
        }
    }

    /// Drops parts that no message names or will name.
    async fn look_at_parts(&mut self, stream: Stream, parts: &StreamState, now: Instant) -> Result<(), Trouble> {
        let Some(messages) = self.info(stream.into()).await? else { return Ok(()) };
        let after = self.connection.config.parts_abandoned_after();
        let watch = self.parts.entry(stream).or_default();
        let Some(last) = watch.look(parts, &StreamState::of(&messages), now, after) else { return Ok(()) };
        let name = ServerStream::Parts(stream).name();
        let trouble = |reason: String| {
            Trouble::Passing(QueueError { action: format!("drop parts up to {last} of {name}"), reason })
        };
        let found = self.connection.context.get_stream_no_info(name).await;
        let found = found.map_err(|error| trouble(Chain(&error).to_string()))?;
        let dropped = found.purge().sequence(last + 1).await.map_err(|error| trouble(Chain(&error).to_string()))?;
        tracing::info!(
            stream = name,
            parts = dropped.purged,
            "parts were dropped that no message names: a service ended while it stored them, and has published their record again"
        );
        Ok(())
    }

    async fn make_anew(&mut self, stream: ServerStream) -> Result<(), Trouble> {
        let prepared = self.connection.prepare(stream).await?;
        let lost = self.streams.remove(&stream).map_or(0, |seen| seen.state.messages);
        tracing::error!(
            stream = stream.name(),
            lost,
            "a stream was deleted on the server; it is made anew. What was in it is lost: have HQ publish the records of that time again"
        );
        repaired(stream, "stream_made_anew");
        self.remember(stream, prepared.config).await
    }

    /// Services that are configured differently would set back each other's settings all the time.
    fn may_set_back(&self, what: (ServerStream, &'static str)) -> bool {
        self.set_back_at.get(&what).is_none_or(|at| at.elapsed() >= SET_BACK_EVERY)
    }

    async fn set_back(&mut self, stream: ServerStream) -> Result<(), Trouble> {
        let prepared = self.connection.prepare(stream).await?;
        if prepared.done != Done::Nothing {
            self.set_back_at.insert((stream, "stream"), Instant::now());
            tracing::warn!(
                stream = stream.name(),
                "a stream was changed on the server; its settings are set back. If this repeats, services of this lake are configured \
                 differently"
            );
            repaired(stream, "stream_set_back");
        }
        self.remember(stream, prepared.config).await
    }

    /// Remembers a stream as it was left, so that what the server refused to set back is not tried at each look.
    async fn remember(&mut self, stream: ServerStream, config: Config) -> Result<(), Trouble> {
        if let Some(mut found) = self.info(stream).await? {
            // Another program may have changed it in between, which the next look is to see.
            found.config = config;
            self.streams.insert(stream, found);
        }
        Ok(())
    }

    async fn info(&self, stream: ServerStream) -> Result<Option<Info>, Trouble> {
        let trouble =
            |reason: String| Trouble::Passing(QueueError { action: format!("look at {}", stream.name()), reason });
        let limit = self.connection.config.request_timeout();
        match timeout(limit, self.connection.context.get_stream(stream.name())).await {
            Ok(Ok(found)) => Ok(Some(found.cached_info().clone())),
            Ok(Err(error)) => match error.kind() {
                GetStreamErrorKind::JetStream(answer) if answer.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
                _ => Err(trouble(Chain(&error).to_string())),
            },
            Err(_) => Err(trouble("no answer in time".into())),
        }
    }

    async fn look_at_consumer(&mut self, durable: &Durable) -> Result<(), Trouble> {
        let (context, stream) = (&self.connection.context, ServerStream::from(durable.stream));
        let (name, consumer) = (stream.name(), durable.name());
        let Some(found) = durable.look_up(context).await.map_err(Trouble::Passing)? else {
            set(self.connection, durable, None).await?;
            tracing::warn!(stream = name, consumer, "a consumer was deleted on the server; it is made anew");
            repaired(stream, "consumer_made_anew");
            return Ok(());
        };
        if let Some(difference) = durable.difference(&found.config) {
            if !difference.passes_over && !self.may_set_back((stream, "consumer")) {
                return Ok(());
            }
            set(self.connection, durable, Some((&found, difference))).await?;
            self.set_back_at.insert((stream, "consumer"), Instant::now());
            tracing::warn!(
                stream = name,
                consumer,
                difference = difference.what,
                "a consumer was changed on the server; it is set back. If this repeats, services of this lake are configured differently"
            );
            repaired(stream, "consumer_set_back");
            return Ok(());
        }
        if found.paused {
            replace(self.connection, durable, &found).await?;
            tracing::warn!(
                stream = name,
                consumer,
                "a consumer was paused on the server; it is made anew. Stop the service to pause it"
            );
            repaired(stream, "consumer_made_anew");
            return Ok(());
        }
        self.look_at_standing(durable, &found).await
    }

    /// Makes a consumer anew that would not hand out what its stream holds.
    async fn look_at_standing(&mut self, durable: &Durable, found: &ConsumerInfo) -> Result<(), Trouble> {
        let stream = durable.stream;
        // Read after the consumer, which may have gone on meanwhile.
        let Some(info) = self.info(stream.into()).await? else { return Ok(()) };
        let standing = Standing::of(found, &info.state);
        let before = self.passed_over.remove(&stream);
        let passed_over = standing.passed_over();
        if !standing.is_ahead() && (passed_over.is_none() || passed_over != before) {
            // One that is still there at the next look was not just about to be deleted.
            self.passed_over.extend(passed_over.map(|first| (stream, first)));
            return Ok(());
        }
        if durable.replace(&self.connection.context, found).await.map_err(Trouble::Passing)? {
            tracing::error!(
                stream = stream.name(),
                consumer = durable.name(),
                handed_out = standing.handed_out,
                acknowledged = standing.acknowledged,
                first = standing.first,
                last = standing.last,
                "a consumer stands beyond its stream, as after a power cut of the server; it is made anew and hands out what the stream \
                 holds. What the stream has lost must be published by HQ again"
            );
            repaired(stream.into(), "consumer_moved_back");
        }
        Ok(())
    }
}

/// Creates a consumer or sets it back; one that has passed over messages, or cannot be set back, is replaced.
async fn set(
    connection: &Connection,
    durable: &Durable,
    seen: Option<(&ConsumerInfo, Difference)>,
) -> Result<(), Trouble> {
    if let Some((seen, Difference { passes_over: true, .. })) = seen {
        return replace(connection, durable, seen).await;
    }
    let Err(refusal) = durable.create(&connection.context).await else { return Ok(()) };
    match (refusal.code, seen) {
        (Some(code), _) if is_second_group(code) => Err(Trouble::Lasting(refusal.error)),
        (Some(ErrorCode::STREAM_NOT_FOUND), _) | (_, None) => Err(Trouble::Passing(refusal.error)),
        (_, Some((seen, _))) => replace(connection, durable, seen).await,
    }
}

async fn replace(connection: &Connection, durable: &Durable, seen: &ConsumerInfo) -> Result<(), Trouble> {
    durable.replace(&connection.context, seen).await.map(drop).map_err(Trouble::Passing)
}

/// Says that a stream holds less than it did, although nobody has taken it out.
fn tell_losses(stream: ServerStream, seen: &Info, found: &Info) {
    let made_anew = found.created != seen.created && seen.state.messages > 0;
    let went_back = found.created == seen.created && found.state.last_sequence < seen.state.last_sequence;
    if made_anew || went_back {
        tracing::error!(
            stream = stream.name(),
            messages_before = seen.state.messages,
            last_before = seen.state.last_sequence,
            last = found.state.last_sequence,
            made_anew,
            "a stream has lost messages on the server: it was deleted, or the server lost power; have HQ publish the records of that time again"
        );
        repaired(stream, "messages_lost");
    }
}

fn repaired(stream: ServerStream, what: &'static str) {
    metrics::counter!(REPAIRS_TOTAL, "stream" => stream.name(), "what" => what).increment(1);
}

/// An alert on growth would not see the first repair of a counter that appears with it.
fn count_from_zero() {
    for stream in ServerStream::ALL {
        for what in ["stream_made_anew", "messages_lost"] {
            metrics::counter!(REPAIRS_TOTAL, "stream" => stream.name(), "what" => what).increment(0);
        }
    }
}

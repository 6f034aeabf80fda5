//! What waits on a stream.

use async_nats::jetstream::Context;
use futures::TryStreamExt;

use crate::error_chain::Chain;
use crate::queue::{Backlog, Stream};

/// Asks the server for the state of a stream and of its consumer.
///
/// # Errors
/// Why the server does not say it.
pub(super) async fn of(context: &Context, stream: Stream) -> Result<Backlog, String> {
    let found = context.get_stream(stream.name()).await.map_err(|error| Chain(&error).to_string())?;
    let (state, config) = (&found.cached_info().state, &found.cached_info().config);
    let oldest_us = state.first_timestamp.unix_timestamp_nanos() / 1_000;
    let mut backlog = Backlog {
        messages: state.messages,
        bytes: state.bytes,
        published_total: state.last_sequence,
        // A stream without a bound says -1.
        bytes_max: u64::try_from(config.max_bytes).ok().filter(|bytes| *bytes > 0),
        oldest_us: (state.messages > 0).then(|| i64::try_from(oldest_us).unwrap_or_default()),
        ..Backlog::default()
    };
    // A stream has one; between two names of it there may be none, or two for a moment.
    let (mut consumers, mut is_read) = (found.consumers(), false);
    while let Some(consumer) = consumers.try_next().await.map_err(|error| Chain(&error).to_string())? {
        is_read = true;
        backlog.undelivered += consumer.num_pending;
        backlog.in_flight += consumer.num_ack_pending as u64;
        backlog.redelivered += consumer.num_redelivered as u64;
        let in_flight_max = u64::try_from(consumer.config.max_ack_pending).ok().filter(|most| *most > 0);
        backlog.in_flight_max = backlog.in_flight_max.max(in_flight_max);
    }
    if !is_read {
        backlog.undelivered = backlog.messages;
    }
    Ok(backlog)
}

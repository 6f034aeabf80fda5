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
    let state = &found.cached_info().state;
    let mut backlog = Backlog {
        messages: state.messages,
        bytes: state.bytes,
        published_total: state.last_sequence,
        ..Backlog::default()
    };
    // A stream has one; between two names of it there may be none, or two for a moment.
    let (mut consumers, mut is_read) = (found.consumers(), false);
    while let Some(consumer) = consumers.try_next().await.map_err(|error| Chain(&error).to_string())? {
        is_read = true;
        backlog.undelivered += consumer.num_pending;
        backlog.in_flight += consumer.num_ack_pending as u64;
        backlog.redelivered += consumer.num_redelivered as u64;
    }
    if !is_read {
        backlog.undelivered = backlog.messages;
    }
    Ok(backlog)
}

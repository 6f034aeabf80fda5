//! Creating the streams, and keeping them as configured.
//!
//! Several services start at once and do this side by side: creating what another one has just created is no trouble. What
//! the server says it has is compared with what was asked, because servers ignore what they do not know.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::{CreateStreamError, CreateStreamErrorKind, GetStreamError, GetStreamErrorKind};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{Error, ErrorCode};

use super::config::JetStreamConfig;
use super::server_stream::ServerStream;
use crate::error_chain::Chain;
use crate::queue::{QueueError, Stream};

/// Rounds of looking and creating; another service can win each but the first few.
const ROUNDS_MAX: usize = 5;

/// Why something did not work, and whether it is worth trying again.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The server is away, starting or busy.
    Passing(QueueError),
    /// An operator must change the configuration or the server.
    Lasting(QueueError),
}

impl Trouble {
    pub(super) fn into_error(self) -> QueueError {
        match self {
            Self::Passing(error) | Self::Lasting(error) => error,
        }
    }
}

/// What had to be done to a stream, and how it is now.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    pub(super) done: Done,
    pub(super) config: Config,
}

/// What had to be done to a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// Nothing, or nothing that the server agreed to.
    Nothing,
    Created,
    Updated,
}

/// Makes sure that a stream is there and is as configured.
pub(super) async fn prepare(
    context: &Context,
    config: &JetStreamConfig,
    stream: ServerStream,
) -> Result<Prepared, Trouble> {
    let wanted = wanted(config, stream);
    for _ in 0..ROUNDS_MAX {
        let found = match context.get_stream(stream.name()).await {
            Ok(found) => Some(found.cached_info().config.clone()),
            Err(error) => match get_error(&error) {
                Some(answer) if answer.error_code() == ErrorCode::STREAM_NOT_FOUND => None,
                answer => return Err(trouble("look up", stream, answer, &Chain(&error).to_string())),
            },
        };
        let Some(found) = found else {
            match context.create_stream(wanted.clone()).await {
                Ok(created) => {
                    let config = created.cached_info().config.clone();
                    verify(stream, &wanted, &config)?;
                    return Ok(Prepared { done: Done::Created, config });
                }
                // Another service was faster, perhaps with another configuration: look again.
                Err(error) if code(&error) == Some(ErrorCode::STREAM_NAME_EXIST) => continue,
                Err(error) => {
                    return Err(trouble("create", stream, create_error(&error), &Chain(&error).to_string()));
                }
            }
        };
        if let Some(difference) = essential_difference(&wanted, &found) {
            let reason = format!("it exists with another {difference}; drain it, delete it and start again");
            return Err(Trouble::Lasting(QueueError { action: format!("use stream {}", stream.name()), reason }));
        }
        if limits(&found) == limits(&wanted) && has_reading(&wanted, &found) {
            return Ok(Prepared { done: Done::Nothing, config: found });
        }
        return update(context, stream, &wanted, found).await;
    }
    let reason = "it disappears again and again; another service seems to delete it".into();
    Err(Trouble::Passing(QueueError { action: format!("create stream {}", stream.name()), reason }))
}

fn wanted(config: &JetStreamConfig, stream: ServerStream) -> Config {
    let bytes_max = match stream {
        ServerStream::Messages(Stream::Records | Stream::Rows) => config.stream_size_bytes_max,
        ServerStream::Messages(Stream::Quarantine) => config.quarantine_size_bytes_max,
        ServerStream::Messages(Stream::Changes | Stream::Reports) => config.changes_size_bytes_max,
        ServerStream::Parts(_) => config.parts_size_bytes_max,
    };
    let are_parts = matches!(stream, ServerStream::Parts(_));
    Config {
        name: stream.name().to_owned(),
        subjects: vec![stream.subjects().to_owned()],
        // Parts are read by their names and dropped by their reader.
        retention: if are_parts { RetentionPolicy::Limits } else { RetentionPolicy::WorkQueue },
        allow_direct: are_parts,
        // A full stream refuses new messages; the default would drop the oldest.
        discard: DiscardPolicy::New,
        storage: StorageType::File,
        max_bytes: i64::try_from(bytes_max).unwrap_or(i64::MAX),
        max_messages: -1,
        max_messages_per_subject: -1,
        max_message_size: -1,
        max_age: Duration::ZERO,
        num_replicas: config.replicas.max(1),
        duplicate_window: Duration::from_secs(config.dedupe_window_seconds.max(1)),
        ..Config::default()
    }
}

/// What the promises of the queue rest on; the server does not change these on a stream that is there.
fn essential_difference(wanted: &Config, found: &Config) -> Option<&'static str> {
    if found.retention != wanted.retention {
        Some("retention (a work queue for messages, limits for parts)")
    } else if found.storage != wanted.storage {
        Some("storage (file is needed)")
    } else if found.sealed {
        Some("state (sealed: it takes no messages)")
    } else {
        None
    }
}

type Limits<'a> = (&'a [String], [bool; 2], [i64; 3], i32, Duration, Duration, usize);

fn limits(config: &Config) -> Limits<'_> {
    // Servers say 0 or -1 for "no limit".
    let unlimited = |limit: i64| if limit <= 0 { -1 } else { limit };
    let counts = [config.max_bytes, config.max_messages, config.max_messages_per_subject].map(unlimited);
    let answers = [config.discard == DiscardPolicy::New, config.no_ack];
    let message_size_max = if config.max_message_size <= 0 { -1 } else { config.max_message_size };
    let (age, window) = (config.max_age, config.duplicate_window);
    (&config.subjects, answers, counts, message_size_max, age, window, config.num_replicas)
}

/// Whether the stream can be read in the way that is wanted.
fn has_reading(wanted: &Config, found: &Config) -> bool {
    found.allow_direct || !wanted.allow_direct
}

/// Checks that the server has set what was asked for: servers ignore settings that they do not know.
fn verify(stream: ServerStream, wanted: &Config, made: &Config) -> Result<(), Trouble> {
    if limits(made) == limits(wanted) && has_reading(wanted, made) && essential_difference(wanted, made).is_none() {
        return Ok(());
    }
    let reason = "the server took the configuration differently; use nats-server 2.10 or newer".into();
    Err(Trouble::Lasting(QueueError { action: format!("create stream {}", stream.name()), reason }))
}

/// Sets our limits on a stream that is there and keeps the rest, such as its placement.
async fn update(context: &Context, stream: ServerStream, wanted: &Config, found: Config) -> Result<Prepared, Trouble> {
    let merged = Config {
        subjects: wanted.subjects.clone(),
        discard: wanted.discard,
        no_ack: wanted.no_ack,
        max_bytes: wanted.max_bytes,
        max_messages: wanted.max_messages,
        max_messages_per_subject: wanted.max_messages_per_subject,
        max_message_size: wanted.max_message_size,
        max_age: wanted.max_age,
        num_replicas: wanted.num_replicas,
        duplicate_window: wanted.duplicate_window,
        allow_direct: wanted.allow_direct || found.allow_direct,
        ..found.clone()
    };
    match context.update_stream(&merged).await {
        Ok(updated) => {
            verify(stream, wanted, &updated.config)?;
            Ok(Prepared { done: Done::Updated, config: updated.config })
        }
        Err(error) => match trouble("update", stream, create_error(&error), &Chain(&error).to_string()) {
            // Another size or number of copies is no reason to stand still; losing messages would be.
            Trouble::Lasting(error) if loses_nothing(&found) => {
                tracing::warn!(stream = stream.name(), reason = error.reason, "stream keeps its old limits");
                Ok(Prepared { done: Done::Nothing, config: found })
            }
            trouble => Err(trouble),
        },
    }
}

fn loses_nothing(found: &Config) -> bool {
    found.discard == DiscardPolicy::New && found.max_age.is_zero()
}

fn trouble(what: &str, stream: ServerStream, answer: Option<Error>, reason: &str) -> Trouble {
    let action = format!("{what} stream {}", stream.name());
    let Some(answer) = answer else { return Trouble::Passing(QueueError { action, reason: reason.to_owned() }) };
    let (advice, lasting) = match answer.error_code() {
        ErrorCode::STORAGE_RESOURCES_EXCEEDED => (
            "; give the server a larger file store or lower queue.stream_size_bytes_max and queue.parts_size_bytes_max",
            true,
        ),
        ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED => ("; set queue.replicas to 1 or use a cluster", true),
        // While a cluster forms it has no peers yet.
        ErrorCode::CLUSTER_NO_PEERS => ("", false),
        ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
            ("; start the server with JetStream", false)
        }
        _ => ("", (400..500).contains(&answer.code())),
    };
    let error = QueueError { action, reason: format!("{reason}{advice}") };
    if lasting { Trouble::Lasting(error) } else { Trouble::Passing(error) }
}

fn get_error(error: &GetStreamError) -> Option<Error> {
    match error.kind() {
        GetStreamErrorKind::JetStream(answer) => Some(answer),
        _ => None,
    }
}

fn create_error(error: &CreateStreamError) -> Option<Error> {
    match error.kind() {
        CreateStreamErrorKind::JetStream(answer) => Some(answer),
        _ => None,
    }
}

fn code(error: &CreateStreamError) -> Option<ErrorCode> {
    create_error(error).map(|answer| answer.error_code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_that_break_a_promise_are_seen() {
        let wanted = wanted(&JetStreamConfig::default(), Stream::Rows.into());
        assert_eq!((essential_difference(&wanted, &wanted), limits(&wanted)), (None, limits(&wanted.clone())));
        for foreign in [
            Config { retention: RetentionPolicy::Limits, ..wanted.clone() },
            Config { storage: StorageType::Memory, ..wanted.clone() },
            Config { sealed: true, ..wanted.clone() },
        ] {
            assert!(essential_difference(&wanted, &foreign).is_some(), "{foreign:?}");
        }
        for changed in [
            Config { no_ack: true, ..wanted.clone() },
            Config { discard: DiscardPolicy::Old, ..wanted.clone() },
            Config { max_age: Duration::from_secs(60), ..wanted.clone() },
            Config { subjects: vec!["lake.rows.demo.>".into()], ..wanted.clone() },
            Config { max_messages_per_subject: 1, ..wanted.clone() },
        ] {
            assert_ne!(limits(&changed), limits(&wanted), "{changed:?}");
        }
    }
}

//! A durable consumer on the server: how it must be, whether it is so, and whether it stands where its stream is.

use async_nats::jetstream::consumer::pull::Config;
use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy, Info, ReplayPolicy};
use async_nats::jetstream::stream::{ConsumerError, ConsumerErrorKind, State};
use async_nats::jetstream::{Context, ErrorCode};

use crate::error_chain::Chain;
use crate::queue::{ConsumerOptions, QueueError, Stream, naming};

/// A consumer as its reader wants it.
#[derive(Clone, Debug)]
pub(super) struct Durable {
    pub(super) stream: Stream,
    pub(super) options: ConsumerOptions,
}

/// Why something cannot be done with a consumer.
#[derive(Debug)]
pub(super) struct Refusal {
    /// What the server answered; `None` where it did not answer.
    pub(super) code: Option<ErrorCode>,
    pub(super) error: QueueError,
}

/// A setting that is not as it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Difference {
    pub(super) what: &'static str,
    /// Whether messages may have been passed over because of it: they do not come when it is set back, but when the consumer is made anew.
    pub(super) passes_over: bool,
}

impl Durable {
    pub(super) fn name(&self) -> &str {
        &self.options.durable_name
    }

    fn wanted(&self) -> Config {
        Config {
            durable_name: Some(self.options.durable_name.clone()),
            name: Some(self.options.durable_name.clone()),
            deliver_policy: DeliverPolicy::All,
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.options.acknowledge_within,
            max_deliver: -1,
            max_ack_pending: i64::try_from(self.options.in_flight_max).unwrap_or(i64::MAX),
            ..Config::default()
        }
    }

    /// Makes sure that the consumer is there and is as wanted, and has not passed over messages because it was not.
    pub(super) async fn ensure(&self, context: &Context) -> Result<(), Refusal> {
        let no_answer = |error| Refusal { code: None, error };
        let found = self.look_up(context).await.map_err(no_answer)?;
        let changed = found.and_then(|found| self.difference(&found.config).map(|difference| (found, difference)));
        match changed {
            Some((found, Difference { what, passes_over: true })) => {
                let (stream, consumer) = (self.stream.name(), self.name());
                tracing::warn!(
                    stream,
                    consumer,
                    difference = what,
                    "a consumer was changed on the server; it is made anew"
                );
                self.replace(context, &found).await.map(drop).map_err(no_answer)
            }
            _ => self.create(context).await,
        }
    }

    /// Creates the consumer on the server, or sets it back to what is wanted.
    pub(super) async fn create(&self, context: &Context) -> Result<(), Refusal> {
        let created = context.create_consumer_on_stream(self.wanted(), self.stream.name()).await;
        let made = created.map_err(|error| self.refusal(&error))?;
        // Servers ignore settings that they do not know, so what they have set is compared.
        match self.difference(&made.cached_info().config) {
            None => Ok(()),
            Some(Difference { what, .. }) => {
                let reason = format!("the server took another {what}; delete the consumer and start again");
                Err(Refusal { code: None, error: self.error(reason) })
            }
        }
    }

    /// What the server knows of the consumer; `None` where there is none.
    pub(super) async fn look_up(&self, context: &Context) -> Result<Option<Info>, QueueError> {
        match context.get_consumer_from_stream::<Config, _, _>(self.name(), self.stream.name()).await {
            Ok(found) => Ok(Some(found.cached_info().clone())),
            Err(error) => match self.refusal(&error) {
                Refusal { code: Some(ErrorCode::CONSUMER_NOT_FOUND | ErrorCode::STREAM_NOT_FOUND), .. } => Ok(None),
                refusal => Err(refusal.error),
            },
        }
    }

    /// Deletes the consumer and makes it anew: it hands out everything that is in its stream. Left alone if it was made anew since it was
    /// looked at; tells whether that was so.
    pub(super) async fn replace(&self, context: &Context, seen: &Info) -> Result<bool, QueueError> {
        match self.look_up(context).await? {
            Some(now) if now.created != seen.created => return Ok(false),
            Some(_) => {
                let deleted = context.delete_consumer_from_stream(self.name(), self.stream.name()).await;
                deleted.map_err(|error| self.refusal(&error).error)?;
            }
            None => {}
        }
        self.create(context).await.map_err(|refusal| refusal.error)?;
        Ok(true)
    }

    /// The first setting that is not as it must be, those that pass over messages before the others.
    pub(super) fn difference(&self, found: &consumer::Config) -> Option<Difference> {
        let wanted = self.wanted();
        let passing_over = [
            (found.deliver_subject.is_some(), "way of delivery (pull is needed)"),
            (found.ack_policy != wanted.ack_policy, "way of acknowledging"),
            (found.max_deliver > 0, "limit of deliveries"),
            (!found.filter_subject.is_empty() || !found.filter_subjects.is_empty(), "filter of subjects"),
            (found.headers_only, "content (headers only)"),
            (found.replay_policy != ReplayPolicy::Instant || found.rate_limit > 0, "pace"),
            (found.max_batch > 0 || found.max_bytes > 0 || !found.max_expires.is_zero(), "limit of requests"),
            (!found.priority_groups.is_empty(), "division into groups"),
        ];
        let holding_up = [
            (found.ack_wait != wanted.ack_wait || !found.backoff.is_empty(), "time to acknowledge"),
            (found.max_ack_pending != wanted.max_ack_pending, "limit of unacknowledged messages"),
        ];
        let differing = |(differs, what): (bool, &'static str)| differs.then_some(what);
        let passes_over = passing_over.into_iter().find_map(differing).map(|what| (what, true));
        let first = passes_over.or_else(|| holding_up.into_iter().find_map(differing).map(|what| (what, false)));
        first.map(|(what, passes_over)| Difference { what, passes_over })
    }

    fn refusal(&self, error: &ConsumerError) -> Refusal {
        match error.kind() {
            ConsumerErrorKind::JetStream(answer) if is_second_group(answer.error_code()) => {
                let reason = "another consumer reads the stream already; a work queue has one name of readers";
                Refusal { code: Some(answer.error_code()), error: self.error(reason.into()) }
            }
            ConsumerErrorKind::JetStream(answer) => {
                Refusal { code: Some(answer.error_code()), error: self.error(answer.to_string()) }
            }
            _ => Refusal { code: None, error: self.error(Chain(error).to_string()) },
        }
    }

    fn error(&self, reason: String) -> QueueError {
        QueueError { action: naming::group_action(self.stream, self.name()), reason }
    }
}

pub(super) fn is_second_group(code: ErrorCode) -> bool {
    code == ErrorCode::CONSUMER_WQ_MULTIPLE_UNFILTERED || code == ErrorCode::CONSUMER_WQ_CONSUMER_NOT_UNIQUE
}

/// Where a consumer stands in its stream, by sequence numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// The last message that was handed out.
    pub(super) handed_out: u64,
    /// The message up to which all are acknowledged.
    pub(super) acknowledged: u64,
    /// The first message of the stream.
    pub(super) first: u64,
    /// The last message that the stream ever took.
    pub(super) last: u64,
    /// Messages in the stream.
    pub(super) messages: u64,
}

impl Standing {
    /// `state` must have been read after `info`: then a sound consumer is never ahead of it.
    pub(super) fn of(info: &Info, state: &State) -> Self {
        Self {
            handed_out: info.delivered.stream_sequence,
            acknowledged: info.ack_floor.stream_sequence,
            first: state.first_sequence,
            last: state.last_sequence,
            messages: state.messages,
        }
    }

    /// Whether the consumer waits for messages after some that the stream has not taken yet: those would never be handed out.
    pub(super) fn is_ahead(self) -> bool {
        self.handed_out.max(self.acknowledged) > self.last
    }

    /// The first message, where the consumer takes it for acknowledged. A work queue deletes such messages, in a moment; one that stays was
    /// put there after the stream had gone back behind the consumer, and is never handed out.
    pub(super) fn passed_over(self) -> Option<u64> {
        (self.messages > 0 && self.first <= self.acknowledged).then_some(self.first)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SOUND: Standing = Standing { handed_out: 120, acknowledged: 100, first: 101, last: 150, messages: 50 };

    #[test]
    fn a_consumer_beyond_its_stream_is_seen() {
        assert!(!SOUND.is_ahead());
        assert!(!Standing { handed_out: 150, acknowledged: 150, first: 151, messages: 0, ..SOUND }.is_ahead());
        assert!(Standing { handed_out: 151, ..SOUND }.is_ahead());
        assert!(Standing { handed_out: 1_000, acknowledged: 1_000, first: 1, last: 0, messages: 0 }.is_ahead());
    }

    #[test]
    fn messages_behind_a_consumer_are_seen() {
        assert_eq!(SOUND.passed_over(), None);
        assert_eq!(Standing { acknowledged: 101, ..SOUND }.passed_over(), Some(101));
        assert_eq!(Standing { acknowledged: 101, messages: 0, ..SOUND }.passed_over(), None);
    }

    #[test]
    fn settings_that_would_lose_or_hold_up_messages_are_seen() {
        let options = ConsumerOptions {
            durable_name: "writer".into(),
            in_flight_max: 10,
            acknowledge_within: Duration::from_secs(5),
        };
        let durable = Durable { stream: Stream::Rows, options };
        let sound = consumer::Config {
            ack_policy: AckPolicy::Explicit,
            ack_wait: Duration::from_secs(5),
            max_deliver: -1,
            max_ack_pending: 10,
            ..consumer::Config::default()
        };
        assert_eq!(durable.difference(&sound), None);
        for changed in [
            consumer::Config { max_deliver: 3, ..sound.clone() },
            consumer::Config { filter_subject: "lake.rows.demo.>".into(), ..sound.clone() },
            consumer::Config { filter_subjects: vec!["lake.rows.demo.>".into()], ..sound.clone() },
            consumer::Config { headers_only: true, ..sound.clone() },
            consumer::Config { max_ack_pending: 1, ..sound.clone() },
            consumer::Config { backoff: vec![Duration::from_secs(1)], ..sound.clone() },
            consumer::Config { ack_policy: AckPolicy::None, ..sound.clone() },
            consumer::Config { max_batch: 1, ..sound.clone() },
        ] {
            assert!(durable.difference(&changed).is_some(), "{changed:?}");
        }
        let both = consumer::Config { max_ack_pending: 1, max_deliver: 3, ..sound.clone() };
        assert!(durable.difference(&both).is_some_and(|difference| difference.passes_over));
        let slow = consumer::Config { max_ack_pending: 1, ..sound };
        assert!(durable.difference(&slow).is_some_and(|difference| !difference.passes_over));
    }
}

//! Which parts belong to no message any more, because their publisher was killed before it could queue the message that names them. No clock and
//! no server here: both are handed in.
//!
//! A part is old when it lies there for so long that its publisher has either queued the message that names it or given up. When all messages that
//! were queued until then have left their queue, the part is named by none: nobody will ever read it. Only sequence numbers and the time on this machine
//! are compared, so it does not matter how far the servers' clocks are from ours, nor how long a message waits for its consumer.

use std::time::Duration;

use async_nats::jetstream::stream::Info;
use tokio::time::Instant;

/// How a stream stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StreamState {
    /// Which stream it is: another value when it was deleted and made anew. Microseconds since 1970.
    pub(super) created_us: i128,
    /// Number of the first message in it.
    pub(super) first: u64,
    /// Number of the last message that it ever took.
    pub(super) last: u64,
    /// Messages in it.
    pub(super) messages: u64,
}

impl StreamState {
    pub(super) fn of(info: &Info) -> Self {
        Self {
            created_us: info.created.unix_timestamp_nanos() / 1_000,
            first: info.state.first_sequence,
            last: info.state.last_sequence,
            messages: info.state.messages,
        }
    }
}

/// Follows the parts of one queue from look to look.
#[derive(Debug, Default)]
pub(super) struct AbandonedParts {
    watched: Option<Watched>,
}

#[derive(Debug)]
struct Watched {
    created_us: i128,
    /// The parts that are watched: those up to this number.
    last_part: u64,
    since: Instant,
    /// Once they are old: the last message that can name one of them.
    last_message: Option<u64>,
}

impl AbandonedParts {
    /// Looks at the parts, and at the messages of their queue; `now` is the time before either was asked for. Answers the number up to which parts
    /// are to be dropped.
    pub(super) fn look(
        &mut self,
        parts: &StreamState,
        messages: &StreamState,
        now: Instant,
        abandoned_after: Duration,
    ) -> Option<u64> {
        // Made anew, or gone back after a power cut: the numbers are those of other parts.
        self.watched.take_if(|watched| watched.created_us != parts.created_us || watched.last_part > parts.last);
        if parts.messages == 0 || self.watched.as_ref().is_some_and(|watched| watched.last_part < parts.first) {
            self.watched = None;
        }
        if parts.messages == 0 {
            return None;
        }
        let watched = self.watched.get_or_insert(Watched {
            created_us: parts.created_us,
            last_part: parts.last,
            since: now,
            last_message: None,
        });
        if now.saturating_duration_since(watched.since) < abandoned_after {
            return None;
        }
        let last_message = *watched.last_message.get_or_insert(messages.last);
        if messages.messages > 0 && messages.first <= last_message {
            return None;
        }
        self.watched.take().map(|watched| watched.last_part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(900);

    fn state(first: u64, last: u64) -> StreamState {
        StreamState { created_us: 1, first, last, messages: last + 1 - first }
    }

    #[tokio::test]
    async fn parts_are_dropped_when_they_are_old_and_no_message_can_name_them() {
        let (began, mut parts) = (Instant::now(), AbandonedParts::default());
        let at = |seconds| began + Duration::from_secs(seconds);
        assert_eq!(parts.look(&state(1, 5), &state(1, 0), at(0), AFTER), None);
        // Later ones are not dropped with them.
        assert_eq!(parts.look(&state(1, 9), &state(1, 0), at(899), AFTER), None);
        assert_eq!(parts.look(&state(1, 9), &state(1, 0), at(900), AFTER), Some(5));
        assert_eq!(parts.look(&state(6, 9), &state(1, 0), at(901), AFTER), None);
        assert_eq!(parts.look(&state(6, 9), &state(1, 0), at(1_801), AFTER), Some(9));
    }

    #[tokio::test]
    async fn a_message_may_wait_for_any_time() {
        let (began, mut parts) = (Instant::now(), AbandonedParts::default());
        let at = |seconds| began + Duration::from_secs(seconds);
        assert_eq!(parts.look(&state(1, 5), &state(7, 7), at(0), AFTER), None);
        // It was queued while the parts were not old yet.
        for day in 1..30 {
            assert_eq!(parts.look(&state(1, 5), &state(8, 8 + day), at(day * 86_400), AFTER), None);
        }
        // What was queued after the parts were old need not leave: here up to 9.
        assert_eq!(parts.look(&state(1, 5), &state(9, 60), at(40 * 86_400), AFTER), None);
        assert_eq!(parts.look(&state(1, 5), &state(10, 60), at(40 * 86_400), AFTER), Some(5));
    }

    #[tokio::test]
    async fn numbers_of_another_stream_are_not_taken_for_those_of_this_one() {
        let (began, mut parts) = (Instant::now(), AbandonedParts::default());
        let at = |seconds| began + Duration::from_secs(seconds);
        assert_eq!(parts.look(&state(1, 50), &state(1, 0), at(0), AFTER), None);
        // After a power cut.
        assert_eq!(parts.look(&state(1, 40), &state(1, 0), at(1_000), AFTER), None);
        assert_eq!(parts.look(&state(1, 60), &state(1, 0), at(1_899), AFTER), None);
        let anew = StreamState { created_us: 2, ..state(1, 60) };
        assert_eq!(parts.look(&anew, &state(1, 0), at(3_000), AFTER), None);
        assert_eq!(parts.look(&anew, &state(1, 0), at(3_900), AFTER), Some(60));
        // What was read and dropped meanwhile needs no dropping.
        assert_eq!(parts.look(&state(61, 70), &state(1, 0), at(4_000), AFTER), None);
        assert_eq!(parts.look(&state(71, 80), &state(1, 0), at(5_000), AFTER), None);
        assert_eq!(parts.look(&state(81, 80), &state(1, 0), at(5_100), AFTER), None);
        assert_eq!(parts.look(&state(81, 90), &state(1, 0), at(9_000), AFTER), None);
    }
}

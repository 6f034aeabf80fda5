//! What waits for its commit, per space, which space is due, and what goes back to the queue when memory gets short.
//!
//! A space that cannot be committed must not stop the others. It is tried again for ever, but its tries take no more than half of the
//! slots, and once half of the room is taken it keeps no more than a few messages. The rest goes back to the queue for a while: that
//! loses nothing, and order does not matter. No waiting here; the time is handed in.

use std::collections::HashMap;
use std::time::Duration;

pub(super) use lake_shared::identity::Space;
use lake_shared::retry::Backoff;
use tokio::time::Instant;

use super::IngestOptions;
use super::message::{self, HeldMessage};

/// So long after its start a commit is slow, and its space may be in the way of others.
pub(super) const SLOW_AFTER: Duration = Duration::from_secs(30);
/// The cause of a commit that failed before.
pub(super) const RETRY: &str = "retry";

/// Time between two tries of a space that cannot be committed.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(10);
/// Messages that such a space keeps when memory is short, to find out when it can be committed again,
const PROBE_MESSAGES_MAX: usize = 16;
/// and the part of the room they may take.
const PROBE_SHARE: usize = 64;
/// The part of the room for all such spaces together, for a slow one, and for malformed messages.
const SHARE: usize = 4;
/// Bounds of the time for which the queue keeps what is given back. Within them it is as long as the trouble has lasted: short trouble
/// is over soon, and in long trouble messages must not go round and round.
const BACK_FOR_MIN: Duration = Duration::from_secs(2);
const BACK_FOR_MAX: Duration = Duration::from_secs(300);

/// Messages and the bytes they take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Load {
    messages: usize,
    bytes: usize,
}

impl Load {
    fn of(messages: &[HeldMessage]) -> Self {
        Self { messages: messages.len(), bytes: messages.iter().map(|message| message.bytes).sum() }
    }

    /// The room for everything.
    fn room(options: &IngestOptions) -> Self {
        Self { messages: options.in_flight_max, bytes: options.held_bytes_max }
    }

    /// One part of so many, never nothing.
    fn part(self, parts: usize) -> Self {
        Self { messages: (self.messages / parts).max(1), bytes: (self.bytes / parts).max(1) }
    }

    fn plus(self, other: Self) -> Self {
        Self { messages: self.messages + other.messages, bytes: self.bytes + other.bytes }
    }

    fn minus(self, other: Self) -> Self {
        Self { messages: self.messages.saturating_sub(other.messages), bytes: self.bytes.saturating_sub(other.bytes) }
    }

    fn min(self, other: Self) -> Self {
        Self { messages: self.messages.min(other.messages), bytes: self.bytes.min(other.bytes) }
    }

    /// Whether this takes all of a room.
    fn fills(self, room: Self) -> bool {
        self.messages >= room.messages || self.bytes >= room.bytes
    }
}

/// Messages of one space.
struct Waiting {
    messages: Vec<HeldMessage>,
    /// Rows and tombstones.
    rows: usize,
    bytes: usize,
    since: Instant,
}

impl Waiting {
    fn of(messages: Vec<HeldMessage>, since: Instant) -> Self {
        let rows = messages.iter().map(|message| message.rows).sum();
        Self { rows, bytes: Load::of(&messages).bytes, messages, since }
    }
}

/// A commit that runs.
struct Committing {
    load: Load,
    since: Instant,
    /// It failed before.
    retry: bool,
}

/// A space whose commits fail.
struct Trouble {
    since: Instant,
    next_try: Instant,
    backoff: Backoff,
}

/// Messages that the queue is to keep for a while.
pub(super) struct GivenBack {
    pub(super) space: Space,
    pub(super) messages: Vec<HeldMessage>,
    pub(super) after: Duration,
}

/// Everything that waits or is being committed or put aside.
#[derive(Default)]
pub(super) struct Held {
    waiting: HashMap<Space, Waiting>,
    committing: HashMap<Space, Committing>,
    /// Spaces that failed and have not been committed since.
    trouble: HashMap<Space, Trouble>,
    /// Malformed messages on their way to quarantine.
    aside: Load,
    /// All together.
    load: Load,
}

impl Held {
    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Bytes waiting, being committed and being put aside.
    pub(super) fn bytes(&self) -> usize {
        self.load.bytes
    }

    /// Rows and tombstones waiting.
    pub(super) fn rows(&self) -> usize {
        self.waiting.values().map(|waiting| waiting.rows).sum()
    }

    /// Whether nothing more may be taken from the queue.
    pub(super) fn is_full(&self, options: &IngestOptions) -> bool {
        self.load.fills(Load::room(options))
    }

    /// Whether so much is held that spaces in trouble must make room.
    fn is_tight(&self, options: &IngestOptions) -> bool {
        self.load.fills(Load::room(options).part(2))
    }

    /// Adds a message.
    pub(super) fn add(&mut self, message: HeldMessage, now: Instant) {
        self.load = self.load.plus(Load { messages: 1, bytes: message.bytes });
        let space = message.batch.space.clone();
        let waiting = self.waiting.entry(space).or_insert_with(|| Waiting::of(Vec::new(), now));
        waiting.rows += message.rows;
        waiting.bytes += message.bytes;
        waiting.messages.push(message);
    }

    /// Takes room for a malformed message; `false` if there is none, because others cannot be put aside either.
    pub(super) fn put_aside(&mut self, bytes: usize, options: &IngestOptions) -> bool {
        let message = Load { messages: 1, bytes };
        if self.is_tight(options) && self.aside.fills(Load::room(options).part(SHARE)) {
            return false;
        }
        self.aside = self.aside.plus(message);
        self.load = self.load.plus(message);
        true
    }

    /// Gives the room of a malformed message back.
    pub(super) fn aside_ended(&mut self, bytes: usize) {
        let message = Load { messages: 1, bytes };
        self.aside = self.aside.minus(message);
        self.load = self.load.minus(message);
    }

    /// The spaces that wait and are not being committed.
    fn free(&self) -> impl Iterator<Item = (&Space, &Waiting)> {
        self.waiting.iter().filter(move |(space, _)| !self.committing.contains_key(*space))
    }

    /// Whether one more commit may run.
    fn has_slot(&self, options: &IngestOptions) -> bool {
        self.committing.len() < options.commits_parallel_max.max(1)
    }

    /// Whether one more commit that failed before may run.
    fn has_retry_slot(&self, options: &IngestOptions) -> bool {
        let retries = self.committing.values().filter(|commit| commit.retry).count();
        retries < (options.commits_parallel_max / 2).max(1)
    }

    /// The space to commit now and why, if one may be. When memory is short it is the largest one; when everything must go, any.
    pub(super) fn due(&self, now: Instant, options: &IngestOptions, everything: bool) -> Option<(Space, &'static str)> {
        if !self.has_slot(options) {
            return None;
        }
        let (age, retries) = (Duration::from_millis(options.flush_age_ms), self.has_retry_slot(options));
        let cause = |space: &Space, waiting: &Waiting| match self.trouble.get(space) {
            _ if everything => Some((waiting.since, "shutdown")),
            Some(trouble) => (retries && trouble.next_try <= now).then_some((trouble.next_try, RETRY)),
            None if waiting.rows >= options.flush_rows_max => Some((waiting.since, "rows")),
            None if waiting.bytes >= options.flush_bytes_max => Some((waiting.since, "bytes")),
            None if now.saturating_duration_since(waiting.since) >= age => Some((waiting.since, "age")),
            None => None,
        };
        let due = self.free().filter_map(|(space, waiting)| cause(space, waiting).map(|cause| (space, cause)));
        let due = due.min_by_key(|(_, (since, _))| *since).map(|(space, (_, cause))| (space.clone(), cause));
        if due.is_some() || !self.is_full(options) {
            return due;
        }
        let healthy = self.free().filter(|(space, _)| !self.trouble.contains_key(*space));
        healthy.max_by_key(|(_, waiting)| waiting.bytes).map(|(space, _)| (space.clone(), "memory"))
    }

    /// When a space is due although nothing happens.
    pub(super) fn next_due(&self, options: &IngestOptions) -> Option<Instant> {
        if !self.has_slot(options) {
            return None;
        }
        let (age, retries) = (Duration::from_millis(options.flush_age_ms), self.has_retry_slot(options));
        let times = self.free().filter_map(|(space, waiting)| match self.trouble.get(space) {
            Some(trouble) => retries.then_some(trouble.next_try),
            None => Some(waiting.since + age),
        });
        times.min()
    }

    /// Takes the messages of a space out to be committed.
    pub(super) fn take(&mut self, space: &Space, now: Instant) -> Vec<HeldMessage> {
        let messages = self.waiting.remove(space).map(|waiting| waiting.messages).unwrap_or_default();
        let retry = self.trouble.contains_key(space);
        self.committing.insert(space.clone(), Committing { load: Load::of(&messages), since: now, retry });
        messages
    }

    /// A commit has ended and its messages are answered. Whether it had failed before.
    pub(super) fn committed(&mut self, space: &Space) -> bool {
        if let Some(commit) = self.committing.remove(space) {
            self.load = self.load.minus(commit.load);
        }
        self.trouble.remove(space).is_some()
    }

    /// A commit has failed; its messages wait for the next try. Whether that is new.
    pub(super) fn failed(&mut self, space: &Space, mut messages: Vec<HeldMessage>, now: Instant) -> bool {
        let since = self.committing.remove(space).map_or(now, |commit| commit.since);
        let is_new = !self.trouble.contains_key(space);
        let trouble = self.trouble.entry(space.clone()).or_insert_with(|| Trouble {
            since,
            next_try: now,
            backoff: Backoff::new(RETRY_FIRST, RETRY_LONGEST),
        });
        trouble.next_try = now + trouble.backoff.next_wait();
        messages.extend(self.waiting.remove(space).into_iter().flat_map(|waiting| waiting.messages));
        if !messages.is_empty() {
            self.waiting.insert(space.clone(), Waiting::of(messages, since));
        }
        is_new
    }

    /// What must go back to the queue, so that spaces that can be committed find room. Nothing while there is plenty for everyone.
    pub(super) fn excess(&mut self, now: Instant, options: &IngestOptions) -> Vec<GivenBack> {
        if !self.is_tight(options) {
            return Vec::new();
        }
        let share = Load::room(options).part(SHARE);
        let probe = Load { messages: PROBE_MESSAGES_MAX, ..Load::room(options).part(PROBE_SHARE) };
        let mut given_back = Vec::new();
        // Whoever is tried soonest keeps its messages first; after the try it is the last, so that each has its turn.
        let troubled = self.trouble.iter().filter(|(space, _)| self.waiting.contains_key(*space));
        let mut troubled: Vec<(Instant, Space, Instant)> =
            troubled.map(|(space, trouble)| (trouble.next_try, space.clone(), trouble.since)).collect();
        troubled.sort();
        let mut left = share;
        for (_, space, since) in troubled {
            let (kept, excess) = self.cut(space, left.min(probe), now, since);
            left = left.minus(kept);
            given_back.extend(excess);
        }
        let slow = self.committing.iter().filter(|(space, commit)| {
            let lasts = now.saturating_duration_since(commit.since);
            lasts >= SLOW_AFTER && !self.trouble.contains_key(*space)
        });
        let slow: Vec<(Space, Instant, Load)> =
            slow.map(|(space, commit)| (space.clone(), commit.since, share.minus(commit.load))).collect();
        for (space, since, limit) in slow {
            let (_, excess) = self.cut(space, limit, now, since);
            given_back.extend(excess);
        }
        given_back
    }

    /// Takes out what waits of a space beyond the limit. One message fits under any limit but nothing.
    fn cut(&mut self, space: Space, limit: Load, now: Instant, since: Instant) -> (Load, Option<GivenBack>) {
        let Some(waiting) = self.waiting.get_mut(&space) else { return (Load::default(), None) };
        let keep = fitting(&waiting.messages, limit);
        let excess = waiting.messages.split_off(keep);
        let kept = Load::of(&waiting.messages);
        if excess.is_empty() {
            return (kept, None);
        }
        waiting.bytes = kept.bytes;
        waiting.rows = waiting.messages.iter().map(|message| message.rows).sum();
        if waiting.messages.is_empty() {
            self.waiting.remove(&space);
        }
        self.load = self.load.minus(Load::of(&excess));
        let after = now.saturating_duration_since(since).clamp(BACK_FOR_MIN, BACK_FOR_MAX);
        (kept, Some(GivenBack { space, messages: excess, after }))
    }

    /// Tells the queue that the waiting messages are being worked on.
    pub(super) async fn in_progress(&self) {
        for waiting in self.waiting.values() {
            if !message::in_progress(&waiting.messages).await {
                return;
            }
        }
    }
}

/// How many of the messages, from the first on, are within the limit.
fn fitting(messages: &[HeldMessage], limit: Load) -> usize {
    if limit.bytes == 0 {
        return 0;
    }
    let mut bytes = 0;
    let fits = |message: &&HeldMessage| {
        let is_first = bytes == 0;
        bytes += message.bytes;
        is_first || bytes <= limit.bytes
    };
    messages.iter().take(limit.messages).take_while(fits).count()
}

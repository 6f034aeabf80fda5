//! What waits for its commit, per space, which space is due, and what goes back to the queue when memory gets short.
//!
//! A space that cannot be committed must not stop the others. It is tried again for ever, but its tries take no more than half of the
//! commits that may run at the same time, and once half of the room is taken it keeps no more than a few messages. The rest goes back to the
//! queue for a while: that loses nothing, and order does not matter. Nothing here waits; the time is handed in.

use std::collections::HashMap;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use lake_shared::identity::{Space, TableKey};
use lake_shared::retry::Backoff;
use tokio::time::Instant;

use super::IngestOptions;
use super::control::{IngestStatus, PauseScope, Paused, PendingRows};
use super::message::{self, BufferedMessage};

/// A commit that has run for longer is slow: what waits of its space must not take the room of others.
pub(super) const SLOW_AFTER: Duration = Duration::from_secs(30);
/// The cause of a commit whose space failed before.
pub(super) const RETRY: &str = "retry";

/// Shortest and longest time between two tries of a space that cannot be committed.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(10);
/// Most messages that such a space keeps when memory is short, to find out when it can be committed again.
const PROBE_MESSAGES_MAX: usize = 16;
/// Those messages may take one such part of the room.
const PROBE_SHARE: usize = 64;
/// One such part of the room is for all spaces that cannot be committed together, one for a slow space, and one for malformed messages.
const SHARE: usize = 4;
/// Bounds of the time for which the queue keeps what is given back. Within them it is as long as the space has been failing: short trouble
/// is over soon, and in long trouble messages must not be delivered and given back all the time.
const BACK_FOR_MIN: Duration = Duration::from_secs(2);
const BACK_FOR_MAX: Duration = Duration::from_secs(300);
/// The same for what is given back because it is paused: short after the pause began, as ingest goes on so much later after it ends.
const PAUSED_BACK_FOR_MAX: Duration = Duration::from_secs(30);

/// Messages that were handed out more often than this may be what killed the processes that held them.
const ATTEMPTS_MAX: u64 = 3;
/// For so long after its start a process takes that into account: later it has shown that it lives, and the messages were given back.
const SUSPICIOUS_FOR: Duration = Duration::from_secs(120);

/// A number of messages and the bytes that they take in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct BufferSize {
    messages: usize,
    bytes: usize,
}

impl BufferSize {
    fn of(messages: &[BufferedMessage]) -> Self {
        Self { messages: messages.len(), bytes: messages.iter().map(|message| message.bytes).sum() }
    }

    /// The room that there is, by configuration.
    fn room(options: &IngestOptions) -> Self {
        Self { messages: options.in_flight_max, bytes: options.held_bytes_max }
    }

    /// One of so many equal parts; at least one message and one byte.
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

    /// Whether this takes all of a room, by number or by bytes.
    fn fills(self, room: Self) -> bool {
        self.messages >= room.messages || self.bytes >= room.bytes
    }
}

/// Messages of one space that wait for their commit.
struct BufferedSpace {
    messages: Vec<BufferedMessage>,
    /// Number of rows and tombstones in the messages.
    rows: usize,
    /// Bytes of the messages in memory.
    bytes: usize,
    /// When the oldest of the messages came.
    since: Instant,
}

impl BufferedSpace {
    fn of(messages: Vec<BufferedMessage>, since: Instant) -> Self {
        let rows = messages.iter().map(|message| message.rows).sum();
        Self { rows, bytes: BufferSize::of(&messages).bytes, messages, since }
    }
}

/// A commit that is under way.
struct RunningCommit {
    size: BufferSize,
    since: Instant,
    /// The space failed before.
    retry: bool,
}

/// A space whose commits fail.
struct FailingSpace {
    since: Instant,
    next_try: Instant,
    backoff: Backoff,
}

/// Messages that go back to the queue.
pub(super) struct GivenBack {
    pub(super) space: Space,
    pub(super) messages: Vec<BufferedMessage>,
    /// How long the queue is to keep them.
    pub(super) after: Duration,
    /// Why they go back, for the log.
    pub(super) cause: &'static str,
}

/// The messages that ingest has taken from the queue and not answered.
#[derive(Default)]
pub(super) struct IngestBuffer {
    waiting: HashMap<Space, BufferedSpace>,
    committing: HashMap<Space, RunningCommit>,
    /// Spaces that failed and have not been committed since.
    failing: HashMap<Space, FailingSpace>,
    /// Malformed messages on their way to quarantine.
    quarantining: BufferSize,
    /// All messages that are not answered: waiting, being committed, on their way to quarantine.
    size: BufferSize,
    /// Bytes that a message wants for which there is no room yet.
    wanted: usize,
    /// Until then messages that were handed out often are committed alone.
    suspicious_until: Option<Instant>,
}

impl IngestBuffer {
    /// A buffer of a process that has just started, perhaps because the one before was killed by what a message holds.
    pub(super) fn of_new_process(now: Instant) -> Self {
        Self { suspicious_until: Some(now + SUSPICIOUS_FOR), ..Self::default() }
    }

    /// Whether no message waits for its commit.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Bytes of the messages that wait, are being committed or are on their way to quarantine.
    pub(super) fn bytes(&self) -> usize {
        self.size.bytes
    }

    /// Rows and tombstones that wait for their commit.
    pub(super) fn rows(&self) -> usize {
        self.waiting.values().map(|waiting| waiting.rows).sum()
    }

    pub(super) fn status(&self, paused: &Paused) -> IngestStatus {
        IngestStatus {
            paused: paused.clone(),
            rows_waiting: self.rows(),
            bytes_held: self.bytes(),
            failing: self.failing.keys().cloned().collect(),
        }
    }

    /// What is held for a table.
    pub(super) fn pending(&self, table: &TableKey) -> PendingRows {
        let messages = self.waiting.get(&table.space).map_or(&[][..], |waiting| &waiting.messages);
        let upserts = messages.iter().flat_map(|message| &message.batch.upserts);
        let of_table = upserts.filter(|rows| rows.document_type == table.document_type);
        PendingRows {
            rows: of_table.flat_map(|rows| &rows.rows).map(RecordBatch::num_rows).sum(),
            tombstones: messages.iter().map(|message| message.batch.tombstones.len()).sum(),
            committing: self.committing.contains_key(&table.space),
            paused: false,
        }
    }

    /// Whether a commit of the scope is under way.
    pub(super) fn is_committing(&self, scope: &PauseScope) -> bool {
        self.committing.keys().any(|space| scope.covers(space))
    }

    /// Takes out what waits of spaces that are paused, to be given back. `lasts`: for how long they have been paused.
    pub(super) fn take_paused(&mut self, paused: &Paused, lasts: Duration) -> Vec<GivenBack> {
        let after = lasts.clamp(BACK_FOR_MIN, PAUSED_BACK_FOR_MAX);
        let spaces: Vec<Space> = self.waiting.keys().filter(|space| paused.contains(space)).cloned().collect();
        let taken = spaces.into_iter().filter_map(|space| {
            let messages = self.waiting.remove(&space)?.messages;
            self.size = self.size.minus(BufferSize::of(&messages));
            Some(GivenBack { space, messages, after, cause: "paused" })
        });
        taken.collect()
    }

    /// Whether nothing more may be taken from the queue.
    pub(super) fn is_full(&self, options: &IngestOptions) -> bool {
        self.wanted > 0 || self.size.fills(BufferSize::room(options))
    }

    /// Whether so much is held that failing spaces must make room.
    fn is_tight(&self, options: &IngestOptions) -> bool {
        self.wanted > 0 || self.size.fills(BufferSize::room(options).part(2))
    }

    /// Whether a message may be decoded that takes so many bytes; if not, what is held makes room for it. Spaces that cannot be committed keep
    /// up to three quarters of the room, so no message waits for more than the rest.
    pub(super) fn has_room_for(&mut self, bytes: usize, options: &IngestOptions) -> bool {
        let room = BufferSize::room(options);
        let wanted = bytes.min(room.part(SHARE).bytes);
        let fits = self.size.messages == 0 || self.size.bytes.saturating_add(wanted) <= room.bytes;
        self.wanted = if fits { 0 } else { wanted };
        fits
    }

    /// The message that waited for room is not to be decoded any more.
    pub(super) fn wants_no_room(&mut self) {
        self.wanted = 0;
    }

    /// Adds a message to those of its space.
    pub(super) fn add(&mut self, message: BufferedMessage, now: Instant) {
        self.size = self.size.plus(BufferSize { messages: 1, bytes: message.bytes });
        let space = message.batch.space.clone();
        let waiting = self.waiting.entry(space).or_insert_with(|| BufferedSpace::of(Vec::new(), now));
        waiting.rows += message.rows;
        waiting.bytes += message.bytes;
        waiting.messages.push(message);
    }

    /// Takes room for a malformed message; `false` if there is none, because many others cannot be quarantined either.
    pub(super) fn start_quarantine(&mut self, bytes: usize, options: &IngestOptions) -> bool {
        let message = BufferSize { messages: 1, bytes };
        if self.is_tight(options) && self.quarantining.fills(BufferSize::room(options).part(SHARE)) {
            return false;
        }
        self.quarantining = self.quarantining.plus(message);
        self.size = self.size.plus(message);
        true
    }

    /// Gives the room of a malformed message back.
    pub(super) fn end_quarantine(&mut self, bytes: usize) {
        let message = BufferSize { messages: 1, bytes };
        self.quarantining = self.quarantining.minus(message);
        self.size = self.size.minus(message);
    }

    /// The spaces that wait and are not being committed.
    fn free(&self) -> impl Iterator<Item = (&Space, &BufferedSpace)> {
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
        let cause = |space: &Space, waiting: &BufferedSpace| match self.failing.get(space) {
            _ if everything => Some((waiting.since, "shutdown")),
            Some(failing) => (retries && failing.next_try <= now).then_some((failing.next_try, RETRY)),
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
        let healthy = self.free().filter(|(space, _)| !self.failing.contains_key(*space));
        healthy.max_by_key(|(_, waiting)| waiting.bytes).map(|(space, _)| (space.clone(), "memory"))
    }

    /// When a space is due although nothing happens.
    pub(super) fn next_due(&self, options: &IngestOptions) -> Option<Instant> {
        if !self.has_slot(options) {
            return None;
        }
        let (age, retries) = (Duration::from_millis(options.flush_age_ms), self.has_retry_slot(options));
        let times = self.free().filter_map(|(space, waiting)| match self.failing.get(space) {
            Some(failing) => retries.then_some(failing.next_try),
            None => Some(waiting.since + age),
        });
        times.min()
    }

    /// Takes the messages of a space out to be committed.
    pub(super) fn take(&mut self, space: &Space, now: Instant) -> Vec<BufferedMessage> {
        let (mut messages, since) =
            self.waiting.remove(space).map_or_else(|| (Vec::new(), now), |waiting| (waiting.messages, waiting.since));
        if self.suspicious_until.is_some_and(|until| now < until) {
            let later = take_suspects(&mut messages);
            if !later.is_empty() {
                self.waiting.insert(space.clone(), BufferedSpace::of(later, since));
            }
        }
        let retry = self.failing.contains_key(space);
        self.committing.insert(space.clone(), RunningCommit { size: BufferSize::of(&messages), since: now, retry });
        messages
    }

    /// A commit has ended and its messages are answered. Whether it had failed before.
    pub(super) fn committed(&mut self, space: &Space) -> bool {
        if let Some(commit) = self.committing.remove(space) {
            self.size = self.size.minus(commit.size);
        }
        self.failing.remove(space).is_some()
    }

    /// A commit has failed; its messages wait for the next try. Whether that is new.
    pub(super) fn failed(&mut self, space: &Space, mut messages: Vec<BufferedMessage>, now: Instant) -> bool {
        let since = self.committing.remove(space).map_or(now, |commit| commit.since);
        let is_new = !self.failing.contains_key(space);
        let failing = self.failing.entry(space.clone()).or_insert_with(|| FailingSpace {
            since,
            next_try: now,
            backoff: Backoff::new(RETRY_FIRST, RETRY_LONGEST),
        });
        failing.next_try = now + failing.backoff.next_wait();
        messages.extend(self.waiting.remove(space).into_iter().flat_map(|waiting| waiting.messages));
        if !messages.is_empty() {
            self.waiting.insert(space.clone(), BufferedSpace::of(messages, since));
        }
        is_new
    }

    /// What must go back to the queue, so that spaces that can be committed find room. Nothing while less than half of the room is taken.
    pub(super) fn excess(&mut self, now: Instant, options: &IngestOptions) -> Vec<GivenBack> {
        if !self.is_tight(options) {
            return Vec::new();
        }
        let share = BufferSize::room(options).part(SHARE);
        let probe = BufferSize { messages: PROBE_MESSAGES_MAX, ..BufferSize::room(options).part(PROBE_SHARE) };
        let mut given_back = Vec::new();
        // The space that is tried soonest keeps its messages first; after the try it is the last, so that each has its turn.
        let failing = self.failing.iter().filter(|(space, _)| self.waiting.contains_key(*space));
        let mut failing: Vec<(Instant, Space, Instant)> =
            failing.map(|(space, failing)| (failing.next_try, space.clone(), failing.since)).collect();
        failing.sort();
        let mut left = share;
        for (_, space, since) in failing {
            let (kept, excess) = self.cut(space, left.min(probe), now, since);
            left = left.minus(kept);
            given_back.extend(excess);
        }
        let slow = self.committing.iter().filter(|(space, commit)| {
            let lasts = now.saturating_duration_since(commit.since);
            lasts >= SLOW_AFTER && !self.failing.contains_key(*space)
        });
        let slow: Vec<(Space, Instant, BufferSize)> =
            slow.map(|(space, commit)| (space.clone(), commit.since, share.minus(commit.size))).collect();
        for (space, since, limit) in slow {
            let (_, excess) = self.cut(space, limit, now, since);
            given_back.extend(excess);
        }
        given_back
    }

    /// Takes out what waits of a space beyond the limit. One message fits under any limit but nothing.
    fn cut(
        &mut self,
        space: Space,
        limit: BufferSize,
        now: Instant,
        since: Instant,
    ) -> (BufferSize, Option<GivenBack>) {
        let Some(waiting) = self.waiting.get_mut(&space) else { return (BufferSize::default(), None) };
        let keep = fitting(&waiting.messages, limit);
        let excess = waiting.messages.split_off(keep);
        let kept = BufferSize::of(&waiting.messages);
        if excess.is_empty() {
            return (kept, None);
        }
        waiting.bytes = kept.bytes;
        waiting.rows = waiting.messages.iter().map(|message| message.rows).sum();
        if waiting.messages.is_empty() {
            self.waiting.remove(&space);
        }
        self.size = self.size.minus(BufferSize::of(&excess));
        let after = now.saturating_duration_since(since).clamp(BACK_FOR_MIN, BACK_FOR_MAX);
        (kept, Some(GivenBack { space, messages: excess, after, cause: "memory" }))
    }

    /// Tells the queue that the waiting messages are being worked on.
    pub(super) async fn in_progress(&mut self, silent_for: Duration) {
        for waiting in self.waiting.values_mut() {
            if !message::in_progress(&mut waiting.messages, silent_for).await {
                return;
            }
        }
    }
}

/// How many of the messages, from the first on, are within the limit.
fn fitting(messages: &[BufferedMessage], limit: BufferSize) -> usize {
    if limit.bytes == 0 {
        return 0;
    }
    let mut bytes = 0;
    let fits = |message: &&BufferedMessage| {
        let is_first = bytes == 0;
        bytes += message.bytes;
        is_first || bytes <= limit.bytes
    };
    messages.iter().take(limit.messages).take_while(fits).count()
}

/// Leaves what is committed first: the messages that are above suspicion, else the one that was handed out least. Takes out the others: should
/// one of them end the process again, nothing else of the space waits for it.
fn take_suspects(messages: &mut Vec<BufferedMessage>) -> Vec<BufferedMessage> {
    let (first, mut suspects): (Vec<_>, Vec<_>) =
        std::mem::take(messages).into_iter().partition(|message| message.attempts <= ATTEMPTS_MAX);
    *messages = first;
    if messages.is_empty() {
        let least = suspects.iter().enumerate().min_by_key(|(_, message)| message.attempts).map(|(at, _)| at);
        messages.extend(least.map(|at| suspects.swap_remove(at)));
    }
    suspects
}

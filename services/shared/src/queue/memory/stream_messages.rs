//! The messages of one stream that is held in memory, and every decision about them. No waiting and no clock here: the time
//! is handed in.
//!
//! Invariants: each held message is in exactly one [`DeliveryState`]; `in_flight` is the number of those handed out; `timers` has
//! one entry for each message that is delayed or handed out; a message leaves only by being acknowledged.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::queue::{Backlog, ConsumerOptions, Message};

/// How far the delivery of a message has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeliveryState {
    /// It can be handed out.
    Ready,
    /// It can be handed out from this moment on.
    Delayed(Instant),
    /// A consumer has it; at this moment it becomes ready again.
    HandedOut(Instant),
}

/// A message from its publication to its acknowledgement.
struct StoredMessage<R> {
    subject: String,
    payload: Bytes,
    dedupe_id: String,
    attempts: u64,
    state: DeliveryState,
    held_since: Instant,
    /// The publishers that wait for the acknowledgement.
    waiting: Vec<oneshot::Sender<()>>,
    /// The room that it takes up, given back with it.
    _room: R,
}

/// What is known of a dedupe id.
#[derive(Clone, Copy)]
enum Known {
    /// Number of the message, which is not acknowledged yet.
    Message(u64),
    Acknowledged,
}

/// What a publisher is told about a dedupe id.
pub(super) enum Submission {
    /// No message with it came within the window: this one is to be held.
    New,
    /// A message with it was acknowledged within the window.
    Acknowledged,
    /// A message with it is held; this resolves when that one is acknowledged.
    Pending(oneshot::Receiver<()>),
}

/// A message on its way to a consumer.
#[derive(Debug)]
pub(super) struct HandedOut {
    pub(super) id: u64,
    pub(super) subject: String,
    pub(super) payload: Bytes,
    pub(super) attempts: u64,
}

/// All messages of one stream; `R` is the room that one takes up.
pub(super) struct StreamMessages<R> {
    messages: HashMap<u64, StoredMessage<R>>,
    ready: VecDeque<u64>,
    timers: BTreeSet<(Instant, u64)>,
    in_flight: usize,
    last_id: u64,
    group: Option<ConsumerOptions>,
    known: HashMap<String, Known>,
    acknowledged: VecDeque<(Instant, String)>,
    dedupe_window: Duration,
}

impl<R> StreamMessages<R> {
    pub(super) fn new(dedupe_window: Duration) -> Self {
        Self {
            messages: HashMap::new(),
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            in_flight: 0,
            last_id: 0,
            group: None,
            known: HashMap::new(),
            acknowledged: VecDeque::new(),
            dedupe_window,
        }
    }

    /// Sets the group that reads. The error is the name of the group that reads already: a work queue has one.
    pub(super) fn join(&mut self, options: ConsumerOptions) -> Result<(), String> {
        if let Some(group) = self.group.as_ref().filter(|group| group.durable_name != options.durable_name) {
            return Err(group.durable_name.clone());
        }
        self.group = Some(options);
        Ok(())
    }

    /// What waits.
    pub(super) fn backlog(&self, now: Instant, clock_us: i64) -> Backlog {
        let held = || self.messages.values();
        let oldest = held().map(|stored| stored.held_since).min();
        let age_us = |since| i64::try_from(now.saturating_duration_since(since).as_micros()).unwrap_or(i64::MAX);
        Backlog {
            messages: self.messages.len() as u64,
            bytes: held().map(|stored| stored.payload.len() as u64).sum(),
            undelivered: held().filter(|stored| stored.attempts == 0).count() as u64,
            in_flight: self.in_flight as u64,
            redelivered: held().filter(|stored| stored.attempts > 1).count() as u64,
            published_total: self.last_id,
            bytes_max: None,
            oldest_us: oldest.map(|since| clock_us.saturating_sub(age_us(since))),
            in_flight_max: self.group.as_ref().map(|group| group.in_flight_max as u64),
        }
    }

    /// Looks up a dedupe id.
    pub(super) fn find(&mut self, now: Instant, dedupe_id: &str) -> Submission {
        self.forget_old(now);
        match self.known.get(dedupe_id) {
            None => Submission::New,
            Some(Known::Acknowledged) => Submission::Acknowledged,
            Some(Known::Message(id)) => match self.messages.get_mut(id) {
                None => Submission::New,
                Some(stored) => {
                    // Publishers that were cancelled would pile up otherwise.
                    stored.waiting.retain(|waiting| !waiting.is_closed());
                    let (sender, receiver) = oneshot::channel();
                    stored.waiting.push(sender);
                    Submission::Pending(receiver)
                }
            },
        }
    }

    /// Takes a message; the receiver hears of its acknowledgement, or of the end of the queue by an error.
    pub(super) fn hold(&mut self, message: Message, room: R) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.last_id += 1;
        self.known.insert(message.dedupe_id.clone(), Known::Message(self.last_id));
        self.messages.insert(
            self.last_id,
            StoredMessage {
                subject: message.subject,
                payload: message.payload,
                dedupe_id: message.dedupe_id,
                attempts: 0,
                state: DeliveryState::Ready,
                held_since: Instant::now(),
                waiting: vec![sender],
                _room: room,
            },
        );
        self.ready.push_back(self.last_id);
        receiver
    }

    /// The next message, if there is one and the group may hold one more.
    pub(super) fn hand_out(&mut self, now: Instant) -> Option<HandedOut> {
        self.expire(now);
        let group = self.group.as_ref()?;
        if self.in_flight >= group.in_flight_max {
            return None;
        }
        let until = now + group.acknowledge_within;
        // Ids of messages that were acknowledged late, after their time-out, are left in `ready`: skip them.
        let (id, stored) = loop {
            let id = self.ready.pop_front()?;
            if let Some(stored) = self.messages.get_mut(&id).filter(|stored| stored.state == DeliveryState::Ready) {
                break (id, stored);
            }
        };
        stored.attempts += 1;
        stored.state = DeliveryState::HandedOut(until);
        self.timers.insert((until, id));
        self.in_flight += 1;
        Some(HandedOut {
            id,
            subject: stored.subject.clone(),
            payload: stored.payload.clone(),
            attempts: stored.attempts,
        })
    }

    /// When the next message becomes ready by itself.
    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// The message is done with; `false` if it was not held any more. A late acknowledgement counts too.
    pub(super) fn acknowledge(&mut self, now: Instant, id: u64) -> bool {
        self.forget_old(now);
        let Some(stored) = self.messages.remove(&id) else { return false };
        self.leave(id, stored.state);
        self.known.insert(stored.dedupe_id.clone(), Known::Acknowledged);
        self.acknowledged.push_back((now + self.dedupe_window, stored.dedupe_id));
        for waiting in stored.waiting {
            // A publisher that does not wait any more does not mind.
            let _ = waiting.send(());
        }
        true
    }

    /// Back to be handed out again, at once or later. Nothing happens if it is not with that consumer any more.
    pub(super) fn give_back(&mut self, now: Instant, id: u64, attempt: u64, after: Duration) {
        let Some(state) = self.state_of(id, attempt) else { return };
        self.leave(id, state);
        if after.is_zero() {
            self.put(id, DeliveryState::Ready);
            self.ready.push_back(id);
        } else {
            self.put(id, DeliveryState::Delayed(now + after));
            self.timers.insert((now + after, id));
        }
    }

    /// Starts the acknowledgement time-out anew; `false` if the message is not with that consumer any more.
    pub(super) fn extend(&mut self, now: Instant, id: u64, attempt: u64) -> bool {
        self.expire(now);
        let (Some(state), Some(group)) = (self.state_of(id, attempt), self.group.as_ref()) else { return false };
        let until = now + group.acknowledge_within;
        self.leave(id, state);
        self.put(id, DeliveryState::HandedOut(until));
        self.timers.insert((until, id));
        self.in_flight += 1;
        true
    }

    /// Lets go of everything; publishers see their receivers fail.
    pub(super) fn clear(&mut self) {
        self.messages.clear();
        self.ready.clear();
        self.timers.clear();
        self.known.clear();
        self.acknowledged.clear();
        self.in_flight = 0;
    }

    fn state_of(&self, id: u64, attempt: u64) -> Option<DeliveryState> {
        let stored = self.messages.get(&id).filter(|stored| stored.attempts == attempt)?;
        matches!(stored.state, DeliveryState::HandedOut(_)).then_some(stored.state)
    }

    fn put(&mut self, id: u64, state: DeliveryState) {
        if let Some(stored) = self.messages.get_mut(&id) {
            stored.state = state;
        }
    }

    fn leave(&mut self, id: u64, state: DeliveryState) {
        match state {
            DeliveryState::Ready => {}
            DeliveryState::Delayed(at) => {
                self.timers.remove(&(at, id));
            }
            DeliveryState::HandedOut(until) => {
                self.timers.remove(&(until, id));
                self.in_flight -= 1;
            }
        }
    }

    /// Everything whose time has come is ready again.
    fn expire(&mut self, now: Instant) {
        while let Some((_, id)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            let state = self.messages.get(&id).map(|stored| stored.state);
            self.timers.pop_first();
            if matches!(state, Some(DeliveryState::HandedOut(_))) {
                self.in_flight -= 1;
            }
            self.put(id, DeliveryState::Ready);
            self.ready.push_back(id);
        }
    }

    fn forget_old(&mut self, now: Instant) {
        while self.acknowledged.front().is_some_and(|(until, _)| *until <= now) {
            if let Some((_, dedupe_id)) = self.acknowledged.pop_front()
                && matches!(self.known.get(&dedupe_id), Some(Known::Acknowledged))
            {
                self.known.remove(&dedupe_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn held(in_flight_max: usize) -> StreamMessages<()> {
        let mut held = StreamMessages::new(10 * SECOND);
        let options = ConsumerOptions { durable_name: "group".into(), in_flight_max, acknowledge_within: 5 * SECOND };
        held.join(options).unwrap();
        held
    }

    fn message(dedupe_id: &str) -> Message {
        Message { subject: "lake.rows.a".into(), payload: Bytes::from_static(b"x"), dedupe_id: dedupe_id.into() }
    }

    #[test]
    fn late_answers_do_no_harm() {
        let (mut held, start) = (held(10), Instant::now());
        let mut published = held.hold(message("one"), ());
        let first = held.hand_out(start).unwrap();
        let late = start + 6 * SECOND;
        let second = held.hand_out(late).unwrap();
        assert_eq!((second.id, second.attempts), (first.id, 2));
        // The first holder gives it back although the second has it now.
        held.give_back(late, first.id, first.attempts, Duration::ZERO);
        assert!(held.hand_out(late).is_none());
        assert!(!held.extend(late, first.id, first.attempts));
        // Its acknowledgement counts: everything that came of the message is durable.
        assert!(held.acknowledge(late, first.id));
        assert!(published.try_recv().is_ok());
        held.give_back(late, second.id, second.attempts, Duration::ZERO);
        assert!(held.hand_out(late + 60 * SECOND).is_none());
        assert_eq!(held.in_flight, 0);
        assert!(held.timers.is_empty());
    }

    #[test]
    fn an_acknowledged_message_that_was_ready_again_is_not_handed_out() {
        let (mut held, start) = (held(10), Instant::now());
        let _published = held.hold(message("one"), ());
        let first = held.hand_out(start).unwrap();
        held.give_back(start, first.id, first.attempts, Duration::ZERO);
        assert!(held.acknowledge(start, first.id));
        assert!(held.hand_out(start).is_none());
        assert_eq!(held.in_flight, 0);
    }

    #[test]
    fn ids_are_forgotten_after_the_window() {
        let (mut held, start) = (held(1), Instant::now());
        let _published = held.hold(message("one"), ());
        assert!(matches!(held.find(start, "one"), Submission::Pending(_)));
        let id = held.hand_out(start).unwrap().id;
        assert!(held.acknowledge(start, id));
        assert!(matches!(held.find(start + 9 * SECOND, "one"), Submission::Acknowledged));
        assert!(matches!(held.find(start + 10 * SECOND, "one"), Submission::New));
        assert!(held.known.is_empty());
    }

    #[test]
    fn a_delayed_message_leaves_its_place_to_another() {
        let (mut held, start) = (held(1), Instant::now());
        let _one = held.hold(message("one"), ());
        let _two = held.hold(message("two"), ());
        let first = held.hand_out(start).unwrap();
        assert!(held.hand_out(start).is_none());
        held.give_back(start, first.id, first.attempts, 3 * SECOND);
        let second = held.hand_out(start).unwrap();
        assert_ne!(first.id, second.id);
        assert!(held.acknowledge(start, second.id));
        assert_eq!(held.next_timer(), Some(start + 3 * SECOND));
        assert!(held.hand_out(start + 2 * SECOND).is_none());
        assert_eq!(held.hand_out(start + 3 * SECOND).unwrap().id, first.id);
    }
}

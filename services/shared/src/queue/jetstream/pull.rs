//! Asking a durable consumer for messages, and what the server answers.
//!
//! A request asks for some messages, stays open for a while and is answered by messages and by status lines; while nothing
//! comes, the server sends heartbeats, so a dead connection is noticed. Messages that are asked for ahead wait here, and
//! their acknowledgement time-out runs: the window follows the pace of the caller, and what waited for too long is left to
//! the server, which hands it out again. What waits is bounded by bytes, too: each request says how many it may bring.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::{Message, StatusCode, Subscriber};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use tokio::time::{Instant, timeout_at};

use super::connection::Connection;
use crate::queue::Stream;

/// How long a request stays open.
const REQUEST_OPEN: Duration = Duration::from_secs(30);
/// How often the server says that it is there while no message comes.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// This long without any sign, and the request is given up.
const SILENCE_MAX: Duration = Duration::from_secs(9);
/// Most messages that are asked for ahead.
const WINDOW_MAX: usize = 64;
/// A request may bring so many bytes, or the largest message where that is more: the server would never send one that does not fit.
const REQUEST_BYTES_LEAST: usize = 4 << 20;
/// Requests that may be open, or waiting to be handed out, at the same time: one is under way while the messages of others are worked on.
const REQUESTS_AHEAD: usize = 3;
/// Bytes of a message besides its payload, subjects and headers: more than there are.
const ENVELOPE_BYTES: usize = 64 << 10;

/// How many messages to ask for ahead.
pub(super) struct Window {
    max: usize,
    /// What the messages that wait here may take together.
    share: Duration,
    /// How long the caller takes for one message, on average.
    pace: Duration,
    handed_out_at: Option<Instant>,
}

impl Window {
    pub(super) fn new(in_flight_max: usize, acknowledge_within: Duration) -> Self {
        let share = acknowledge_within / 4;
        // With little in flight, one consumer must not keep from others what its caller does not work on.
        Self { max: (in_flight_max / 16).clamp(1, WINDOW_MAX), share, pace: share, handed_out_at: None }
    }

    /// The caller wants a message.
    pub(super) fn wanted(&mut self, now: Instant) {
        if let Some(since) = self.handed_out_at.take() {
            self.pace = (self.pace * 3 + now.saturating_duration_since(since)) / 4;
        }
    }

    pub(super) fn handed_out(&mut self, now: Instant) {
        self.handed_out_at = Some(now);
    }

    pub(super) fn size(&self) -> usize {
        let fitting = self.share.as_nanos().checked_div(self.pace.as_nanos()).unwrap_or(u128::MAX);
        usize::try_from(fitting).unwrap_or(usize::MAX).clamp(1, self.max)
    }
}

/// Meaning of a message from the server.
#[derive(Debug, PartialEq, Eq)]
enum PullReply {
    Message,
    /// The server is alive and has no message.
    Heartbeat,
    /// A request ended with this many messages and bytes not sent; `None` if it does not say.
    Ended {
        messages: Option<usize>,
        bytes: Option<usize>,
    },
    /// The consumer cannot be read any more in this way.
    Lost(String),
}

/// What the server says when a request ends in good order, besides that its time is over.
const ENDINGS: [&str; 2] = ["Batch Completed", "Message Size Exceeds MaxBytes"];

/// Bytes to ask for after a request of so many has ended with so many left: more where not even one message has fitted, which is from a time when the server
/// took larger ones.
fn request_bytes_after(request_bytes: usize, left: Option<usize>, ending: &str) -> usize {
    let is_too_small = ending == ENDINGS[1] && left == Some(request_bytes);
    if is_too_small { request_bytes.saturating_mul(2) } else { request_bytes }
}

fn pull_reply(message: &Message) -> PullReply {
    let description = message.description.clone().unwrap_or_default();
    match message.status {
        None | Some(StatusCode::OK) => PullReply::Message,
        Some(StatusCode::IDLE_HEARTBEAT) => PullReply::Heartbeat,
        Some(StatusCode::NO_RESPONDERS) => PullReply::Lost("the consumer does not exist or JetStream is away".into()),
        Some(StatusCode::REQUEST_TERMINATED) if !ENDINGS.contains(&description.as_str()) => {
            PullReply::Lost(description)
        }
        Some(StatusCode::TIMEOUT | StatusCode::NOT_FOUND | StatusCode::REQUEST_TERMINATED) => {
            let left = |name: &str| message.headers.as_ref()?.get(name)?.as_str().parse().ok();
            PullReply::Ended { messages: left("Nats-Pending-Messages"), bytes: left("Nats-Pending-Bytes") }
        }
        Some(status) => PullReply::Lost(format!("{status} {description}")),
    }
}

/// Open requests to one durable consumer.
pub(super) struct Pull {
    /// `None` once the messages were put back.
    subscriber: Option<Subscriber>,
    connection: Connection,
    request_subject: String,
    inbox: String,
    /// Messages that open requests may still bring.
    asked: usize,
    /// Bytes that they may still bring, about.
    asked_bytes: usize,
    /// Bytes that a request asks for.
    request_bytes: usize,
    /// Messages, each with the earliest moment at which it can have come.
    waiting: VecDeque<(Instant, Message)>,
    emptied_at: Instant,
    heard_at: Instant,
    connects: u64,
    fresh_for: Duration,
}

impl Pull {
    pub(super) async fn open(
        connection: &Connection,
        stream: Stream,
        durable_name: &str,
        acknowledge_within: Duration,
    ) -> Result<Self, String> {
        let connects = connection.status.borrow().connects;
        let inbox = connection.client.new_inbox();
        let subscriber = connection.client.subscribe(inbox.clone()).await.map_err(|error| error.to_string())?;
        let now = Instant::now();
        Ok(Self {
            subscriber: Some(subscriber),
            connection: connection.clone(),
            request_subject: format!("$JS.API.CONSUMER.MSG.NEXT.{}.{durable_name}", stream.name()),
            inbox,
            asked: 0,
            asked_bytes: 0,
            request_bytes: request_bytes(connection.client.server_info().max_payload),
            waiting: VecDeque::new(),
            emptied_at: now,
            heard_at: now,
            connects,
            fresh_for: acknowledge_within * 3 / 4,
        })
    }

    /// Waits for a message. An error means that this pull is of no use any more. Cancel safe.
    pub(super) async fn next(&mut self, window: usize) -> Result<Message, String> {
        loop {
            self.take_arrived()?;
            // Before counting what is here: a message that is left must be asked for again.
            self.leave_stale();
            let status = *self.connection.status.borrow();
            if status.connects != self.connects {
                // A server that was restarted has forgotten the requests.
                (self.connects, self.asked, self.asked_bytes) = (status.connects, 0, 0);
                self.request_bytes = request_bytes(self.connection.client.server_info().max_payload);
            }
            let ahead = self.asked + self.waiting.len();
            if status.connected && ahead <= window / 2 && self.has_room() {
                self.ask(window - ahead).await?;
            }
            if let Some((_, message)) = self.waiting.pop_front() {
                return Ok(message);
            }
            self.wait(status.connected).await?;
        }
    }

    /// Waits for any sign of the server, or a change of the connection; not long, so that it stays known since when what
    /// comes after a cut-off wait can have been here.
    async fn wait(&mut self, connected: bool) -> Result<(), String> {
        let Some(subscriber) = self.subscriber.as_mut() else { return Err("it is closed".into()) };
        let silent_at = self.heard_at + SILENCE_MAX;
        let until = silent_at.min(self.emptied_at + self.fresh_for / 4);
        tokio::select! {
            biased;
            heard = timeout_at(until, subscriber.next()) => match heard {
                Ok(Some(message)) => {
                    self.emptied_at = Instant::now();
                    self.take(message)
                }
                Ok(None) => Err("the subscription ended".into()),
                Err(_) if connected && Instant::now() >= silent_at => {
                    Err(format!("nothing was heard of the server for {} s", SILENCE_MAX.as_secs()))
                }
                Err(_) => Ok(()),
            },
            changed = self.connection.status.changed() => {
                self.heard_at = Instant::now();
                changed.map_err(|_| "the connection is closed".into())
            }
        }
    }

    /// Whether what waits and what was asked for leaves room for one more request.
    fn has_room(&self) -> bool {
        let waiting: usize = self.waiting.iter().map(|(_, message)| message.length).sum();
        waiting + self.asked_bytes <= (REQUESTS_AHEAD - 1) * self.request_bytes
    }

    async fn ask(&mut self, count: usize) -> Result<(), String> {
        let count = count.max(1);
        let request = serde_json::json!({
            "batch": count,
            "max_bytes": self.request_bytes,
            "expires": u64::try_from(REQUEST_OPEN.as_nanos()).unwrap_or(u64::MAX),
            "idle_heartbeat": u64::try_from(HEARTBEAT.as_nanos()).unwrap_or(u64::MAX),
        });
        let (subject, inbox) = (self.request_subject.clone(), self.inbox.clone());
        let sent = self.connection.client.publish_with_reply(subject, inbox, Bytes::from(request.to_string())).await;
        sent.map_err(|error| error.to_string())?;
        if self.asked == 0 {
            // Without an open request the server has had no reason to say anything.
            self.heard_at = Instant::now();
        }
        self.asked += count;
        self.asked_bytes += self.request_bytes;
        Ok(())
    }

    /// Takes what has come without waiting.
    fn take_arrived(&mut self) -> Result<(), String> {
        while let Some(arrived) = self.subscriber.as_mut().and_then(|subscriber| subscriber.next().now_or_never()) {
            self.take(arrived.ok_or("the subscription ended")?)?;
        }
        self.emptied_at = Instant::now();
        Ok(())
    }

    fn take(&mut self, message: Message) -> Result<(), String> {
        self.heard_at = Instant::now();
        let ending = message.status.and(message.description.clone()).unwrap_or_default();
        match pull_reply(&message) {
            PullReply::Message => {
                self.asked = self.asked.saturating_sub(1);
                self.asked_bytes = self.asked_bytes.saturating_sub(message.length);
                self.waiting.push_back((self.emptied_at, message));
            }
            PullReply::Heartbeat => {}
            PullReply::Ended { messages, bytes } => {
                self.request_bytes = request_bytes_after(self.request_bytes, bytes, &ending);
                self.asked = self.asked.saturating_sub(messages.unwrap_or(self.asked));
                self.asked_bytes = self.asked_bytes.saturating_sub(bytes.unwrap_or(self.asked_bytes));
            }
            PullReply::Lost(reason) => return Err(reason),
        }
        if self.asked == 0 {
            // A request that brought all its messages ends without a word.
            self.asked_bytes = 0;
        }
        Ok(())
    }

    /// Leaves messages whose time-out is near to the server, which hands them out again.
    fn leave_stale(&mut self) {
        let fresh_for = self.fresh_for;
        self.waiting.retain(|(since, _)| since.elapsed() < fresh_for);
    }
}

/// Bytes that a request asks for, where the largest payload has so many.
fn request_bytes(payload_size_max: usize) -> usize {
    payload_size_max.saturating_add(ENVELOPE_BYTES).max(REQUEST_BYTES_LEAST)
}

impl Drop for Pull {
    /// Gives back what was not handed out, so that another consumer gets it before the time-out. Now and then one does not come back in this
    /// way, presumably one that the server is just delivering when the subscription ends: it comes again after the time-out.
    fn drop(&mut self) {
        let (Some(mut subscriber), Ok(runtime)) = (self.subscriber.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let mut waiting: Vec<Message> = self.waiting.drain(..).map(|(_, message)| message).collect();
        let client = self.connection.client.clone();
        runtime.spawn(async move {
            let deadline = Instant::now() + SILENCE_MAX;
            // After this the server sends nothing more, and what it has sent still comes.
            if subscriber.drain().await.is_ok() {
                while let Ok(Some(message)) = timeout_at(deadline, subscriber.next()).await {
                    if pull_reply(&message) == PullReply::Message {
                        waiting.push(message);
                    }
                }
            }
            for reply in waiting.into_iter().filter_map(|message| message.reply) {
                // If this does not arrive, the time-out hands the message out again.
                if client.publish(reply, AckKind::Nak(None).into()).await.is_err() {
                    return;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn status(code: u16, description: &str, left: Option<&str>) -> Message {
        let headers = left.map(|left| {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-Pending-Messages", left);
            headers
        });
        Message {
            subject: "inbox".into(),
            reply: None,
            payload: Bytes::new(),
            headers,
            status: Some(StatusCode::from_u16(code).unwrap()),
            description: Some(description.to_owned()),
            length: 0,
        }
    }

    #[test]
    fn status_lines_are_understood() {
        assert_eq!(pull_reply(&status(100, "Idle Heartbeat", None)), PullReply::Heartbeat);
        let ended = |messages| PullReply::Ended { messages, bytes: None };
        assert_eq!(pull_reply(&status(408, "Request Timeout", Some("7"))), ended(Some(7)));
        assert_eq!(pull_reply(&status(409, "Batch Completed", None)), ended(None));
        assert_eq!(pull_reply(&status(409, "Message Size Exceeds MaxBytes", Some("3"))), ended(Some(3)));
        assert!(
            matches!(pull_reply(&status(409, "Consumer Deleted", None)), PullReply::Lost(reason) if reason == "Consumer Deleted")
        );
        assert!(matches!(pull_reply(&status(503, "", None)), PullReply::Lost(_)));
        assert!(matches!(pull_reply(&status(400, "Bad Request", None)), PullReply::Lost(_)));
    }

    #[test]
    fn a_message_that_fits_into_no_request_is_asked_for_with_more_bytes() {
        assert_eq!(request_bytes(1 << 20), REQUEST_BYTES_LEAST);
        assert_eq!(request_bytes(8 << 20), (8 << 20) + ENVELOPE_BYTES);
        assert_eq!(request_bytes_after(100, Some(100), "Message Size Exceeds MaxBytes"), 200);
        assert_eq!(request_bytes_after(100, Some(99), "Message Size Exceeds MaxBytes"), 100);
        assert_eq!(request_bytes_after(100, Some(100), "Request Timeout"), 100);
    }

    #[test]
    fn the_window_follows_the_pace_of_the_caller() {
        let mut now = Instant::now();
        let mut window = Window::new(1_000, Duration::from_secs(40));
        assert_eq!(window.size(), 1);
        let mut run = |window: &mut Window, each: Duration| {
            for _ in 0..60 {
                window.wanted(now);
                window.handed_out(now);
                now += each;
            }
            window.size()
        };
        assert_eq!(run(&mut window, Duration::from_millis(1)), 62);
        assert_eq!(run(&mut window, Duration::from_secs(1)), 10);
        assert_eq!(run(&mut window, Duration::from_secs(30)), 1);
        assert_eq!(Window::new(4, Duration::from_secs(1)).size(), 1);
    }
}

//! Asking a durable consumer for messages, and what the server answers.
//!
//! A request asks for some messages, stays open for a while and is answered by messages and by status lines; while nothing
//! comes, the server sends heartbeats, so a dead connection is noticed. Messages that are asked for ahead wait here, and
//! their acknowledgement time-out runs: the window follows the pace of the caller, and what waited for too long is left to
//! the server, which hands it out again.

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
    /// A request ended with this many messages not sent; `None` if it does not say.
    Ended(Option<usize>),
    /// The consumer cannot be read any more in this way.
    Lost(String),
}

fn pull_reply(message: &Message) -> PullReply {
    let description = message.description.clone().unwrap_or_default();
    match message.status {
        None | Some(StatusCode::OK) => PullReply::Message,
        Some(StatusCode::IDLE_HEARTBEAT) => PullReply::Heartbeat,
        Some(StatusCode::NO_RESPONDERS) => PullReply::Lost("the consumer does not exist or JetStream is away".into()),
        Some(StatusCode::REQUEST_TERMINATED) if description != "Batch Completed" => PullReply::Lost(description),
        Some(StatusCode::TIMEOUT | StatusCode::NOT_FOUND | StatusCode::REQUEST_TERMINATED) => {
            let left = message.headers.as_ref().and_then(|headers| headers.get("Nats-Pending-Messages"));
            PullReply::Ended(left.and_then(|left| left.as_str().parse().ok()))
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
                (self.connects, self.asked) = (status.connects, 0);
            }
            let ahead = self.asked + self.waiting.len();
            if status.connected && ahead <= window / 2 {
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

    async fn ask(&mut self, count: usize) -> Result<(), String> {
        let count = count.max(1);
        let request = serde_json::json!({
            "batch": count,
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
        match pull_reply(&message) {
            PullReply::Message => {
                self.asked = self.asked.saturating_sub(1);
                self.waiting.push_back((self.emptied_at, message));
            }
            PullReply::Heartbeat => {}
            PullReply::Ended(left) => self.asked = self.asked.saturating_sub(left.unwrap_or(self.asked)),
            PullReply::Lost(reason) => return Err(reason),
        }
        Ok(())
    }

    /// Leaves messages whose time-out is near to the server, which hands them out again.
    fn leave_stale(&mut self) {
        let fresh_for = self.fresh_for;
        self.waiting.retain(|(since, _)| since.elapsed() < fresh_for);
    }
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
        assert_eq!(pull_reply(&status(408, "Request Timeout", Some("7"))), PullReply::Ended(Some(7)));
        assert_eq!(pull_reply(&status(409, "Batch Completed", None)), PullReply::Ended(None));
        assert!(
            matches!(pull_reply(&status(409, "Consumer Deleted", None)), PullReply::Lost(reason) if reason == "Consumer Deleted")
        );
        assert!(matches!(pull_reply(&status(503, "", None)), PullReply::Lost(_)));
        assert!(matches!(pull_reply(&status(400, "Bad Request", None)), PullReply::Lost(_)));
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

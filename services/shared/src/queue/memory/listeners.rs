//! The listeners to broadcasts in this process. A slow listener never holds up a sender: a broadcast that does not fit into its inbox
//! is dropped, and [`Broadcast::MaybeMissed`] takes its place.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::Notify;

use crate::queue::{Broadcast, naming};

struct Listener {
    pattern: String,
    heard: Mutex<Inbox>,
    changed: Notify,
}

#[derive(Default)]
struct Inbox {
    items: VecDeque<Broadcast>,
    closed: bool,
}

impl Listener {
    fn tell(&self, length_max: usize, item: Broadcast) {
        let mut inbox = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if inbox.items.len() < length_max {
            inbox.items.push_back(item);
        } else if inbox.items.back() != Some(&Broadcast::MaybeMissed) {
            inbox.items.push_back(Broadcast::MaybeMissed);
        }
        drop(inbox);
        self.changed.notify_one();
    }

    fn close(&self) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.changed.notify_one();
    }

    /// `None` when closed and all was heard. A listener has one reader, so one stored wake-up is enough.
    async fn next(&self) -> Option<Broadcast> {
        loop {
            {
                let mut inbox = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(item) = inbox.items.pop_front() {
                    return Some(item);
                }
                if inbox.closed {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }
}

#[derive(Default)]
struct Registry {
    listeners: Vec<Weak<Listener>>,
    closed: bool,
}

/// All listeners of a queue.
pub(super) struct Listeners {
    registry: Mutex<Registry>,
    length_max: usize,
}

impl Listeners {
    /// `length_max`: most broadcasts that wait for one listener.
    pub(super) fn new(length_max: usize) -> Self {
        Self { registry: Mutex::default(), length_max: length_max.max(1) }
    }

    pub(super) fn listen(&self, pattern: &str) -> BoxStream<'static, Broadcast> {
        let listener =
            Arc::new(Listener { pattern: pattern.to_owned(), heard: Mutex::default(), changed: Notify::new() });
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        if registry.closed {
            listener.close();
        }
        registry.listeners.retain(|listener| listener.strong_count() > 0);
        registry.listeners.push(Arc::downgrade(&listener));
        stream::unfold(listener, |listener| async move { listener.next().await.map(|heard| (heard, listener)) }).boxed()
    }

    pub(super) fn broadcast(&self, subject: &str, payload: &Bytes) {
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        for listener in registry.listeners.iter().filter_map(Weak::upgrade) {
            if naming::matches(&listener.pattern, subject) {
                let item = Broadcast::Message { subject: subject.to_owned(), payload: payload.clone() };
                listener.tell(self.length_max, item);
            }
        }
    }

    /// Ends all streams once what they hold is heard.
    pub(super) fn close(&self) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.closed = true;
        for listener in registry.listeners.drain(..).filter_map(|listener| listener.upgrade()) {
            listener.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_listener_hears_that_it_missed_something() {
        let listeners = Listeners::new(2);
        let mut slow = listeners.listen("a.>");
        for number in 0..5_u8 {
            listeners.broadcast("a.b", &Bytes::copy_from_slice(&[number]));
        }
        let told =
            |number: u8| Broadcast::Message { subject: "a.b".into(), payload: Bytes::copy_from_slice(&[number]) };
        assert_eq!(slow.next().await, Some(told(0)));
        assert_eq!(slow.next().await, Some(told(1)));
        assert_eq!(slow.next().await, Some(Broadcast::MaybeMissed));
        listeners.broadcast("a.c", &Bytes::new());
        listeners.close();
        assert_eq!(slow.next().await, Some(Broadcast::Message { subject: "a.c".into(), payload: Bytes::new() }));
        assert_eq!(slow.next().await, None);
        assert_eq!(listeners.listen(">").next().await, None);
    }
}

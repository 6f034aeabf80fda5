//! A member of a consumer group. Its client is destroyed in a thread of its own, as that may never end.
//!
//! librdkafka can wait for itself for ever while a consumer closes, as when partitions are assigned at that moment
//! (<https://github.com/confluentinc/librdkafka/issues/4884>, <https://github.com/fede1024/rust-rdkafka/issues/509>). A runtime whose thread
//! is held by that would not end either. The thread is left behind instead, and the brokers take the member out of its group when they have not
//! heard of it for a while.

#![allow(clippy::disallowed_methods, reason = "what waits here is a thread of its own, or has an end")]

use std::ops::Deref;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context;

/// How long the group is waited for when the member leaves it. It takes milliseconds when all is well.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);

/// A consumer, `C`. Dropping it leaves the group, which takes five seconds at most.
pub(super) struct GroupMember<C> {
    // They are dropped in this order: with the first, the thread has the client alone; with the second, it is told; the third waits for it.
    client: Arc<C>,
    _released: Sender<()>,
    _leaving: Leaving,
}

impl<C: Send + Sync + 'static> GroupMember<C> {
    /// Keeps a consumer.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn new(client: C) -> anyhow::Result<Self> {
        let client = Arc::new(client);
        let ((released, release), (tell_left, left)) = (channel::<()>(), channel::<()>());
        let kept = Arc::clone(&client);
        thread::Builder::new()
            .name("kafka-group".into())
            .spawn(move || {
                // Nothing is ever sent: it ends when the member is dropped.
                let _ = release.recv();
                drop(kept);
                drop(tell_left);
            })
            .context("start the thread that leaves Kafka's consumer group")?;
        Ok(Self { client, _released: released, _leaving: Leaving(Mutex::new(left)) })
    }
}

impl<C> Deref for GroupMember<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.client
    }
}

/// Waits, when it is dropped, until the thread has destroyed the client.
struct Leaving(Mutex<Receiver<()>>);

impl Drop for Leaving {
    fn drop(&mut self) {
        let left = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        if left.recv_timeout(LEAVE_WITHIN) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!(
                seconds = LEAVE_WITHIN.as_secs(),
                "Kafka's client does not leave its group; the brokers give its partitions to others when session.timeout.ms has passed"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::time::Instant;

    use super::*;

    /// A client that takes so long to be destroyed.
    struct Slow(Duration, Sender<()>);

    impl Drop for Slow {
        fn drop(&mut self) {
            thread::sleep(self.0);
            let _ = self.1.send(());
        }
    }

    #[test]
    fn a_client_is_destroyed_before_its_member_is_gone() {
        let (gone, is_gone) = channel();
        let member = GroupMember::new(Slow(Duration::from_millis(200), gone)).unwrap();
        assert!(is_gone.try_recv().is_err());
        drop(member);
        is_gone.try_recv().unwrap();
    }

    #[test]
    fn a_client_that_cannot_be_destroyed_holds_up_nobody() {
        let (gone, is_gone) = channel();
        let member = GroupMember::new(Slow(Duration::from_secs(600), gone)).unwrap();
        let began = Instant::now();
        drop(member);
        assert!(began.elapsed() >= LEAVE_WITHIN && is_gone.try_recv().is_err());
    }
}

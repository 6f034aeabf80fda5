//! Waiting for what happens in the background, interrupting it, and doing something beside it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::Notify;

/// How long something that happens in the background may take.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(2);

/// Waits until a condition holds that sends no notification.
///
/// # Panics
/// When it does not hold within a minute; `what` names it.
pub async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited in vain for {what}"));
}

/// Polls a future so many times, then drops it: a crash at an arbitrary point. Its output is `None` for a future that was dropped.
#[derive(Debug)]
pub struct Interrupted<F> {
    /// What is polled.
    pub future: Pin<Box<F>>,
    /// Polls until it is dropped.
    pub polls_left: u32,
}

impl<F: Future> Future for Interrupted<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.polls_left == 0 {
            return Poll::Ready(None);
        }
        self.polls_left -= 1;
        self.future.as_mut().poll(context).map(Some)
    }
}

/// Does `work` beside `background`, beginning with the next notification of `writing`, or when `background` has ended without one.
pub async fn beside<T>(writing: &Notify, background: impl Future, work: impl Future<Output = T>) -> T {
    let ended = Notify::new();
    // Discards a notification from before.
    let _ = writing.notified().now_or_never();
    let in_background = async {
        background.await;
        ended.notify_one();
    };
    let working = async {
        tokio::select! {
            () = writing.notified() => {}
            () = ended.notified() => {}
        }
        work.await
    };
    tokio::join!(in_background, working).1
}

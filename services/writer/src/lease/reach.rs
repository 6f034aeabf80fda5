//! Whether this process reaches what a writer needs beside the metastore: the queue and the store.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use lake_shared::telemetry::Check;

use crate::boot_clock::BootInstant;

/// Longest time that a check may take.
const CHECK_WITHIN: Duration = Duration::from_secs(5);

/// For so long an answer is believed by those who stand by.
const BELIEVED_FOR: Duration = Duration::from_secs(5);

/// The servers that a writer needs, and what was seen of them last.
#[derive(Clone)]
pub struct Reach {
    checks: Arc<[Check]>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    asked: Option<BootInstant>,
    /// Since when one of them has been missing, and which one it was last.
    missing: Option<(BootInstant, String)>,
}

impl Reach {
    /// What these checks tell.
    pub fn new(checks: Vec<Check>) -> Self {
        Self { checks: checks.into(), seen: Arc::default() }
    }

    /// Asks all of them, and keeps in mind what is missing.
    pub(super) async fn look(&self) {
        let asked = BootInstant::now();
        let asking = self.checks.iter().map(|check| async move {
            match tokio::time::timeout(CHECK_WITHIN, (check.ask)()).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("{}: {error}", check.name)),
                Err(_) => Some(format!("{}: no answer", check.name)),
            }
        });
        let missing = join_all(asking).await.into_iter().flatten().next();
        let mut seen = self.locked();
        let since = seen.missing.take().map_or(asked, |(since, _)| since);
        *seen = Seen { asked: Some(asked), missing: missing.map(|what| (since, what)) };
    }

    /// What is missing now, as far as it was seen lately; `None`: nothing.
    pub(super) async fn missing(&self) -> Option<String> {
        let is_known = self.locked().asked.is_some_and(|asked| asked.elapsed() < BELIEVED_FOR);
        if !is_known {
            self.look().await;
        }
        self.locked().missing.as_ref().map(|(_, what)| what.clone())
    }

    /// What has been missing for so long; `None`: nothing has.
    pub(super) fn missing_for(&self, time: Duration) -> Option<String> {
        let seen = self.locked();
        seen.missing.as_ref().filter(|(since, _)| since.elapsed() >= time).map(|(_, what)| what.clone())
    }

    fn locked(&self) -> MutexGuard<'_, Seen> {
        // It is replaced as a whole.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[tokio::test]
    async fn what_is_missing_is_told_until_it_is_there_again() {
        let is_there = Arc::new(AtomicBool::new(true));
        let asked = Arc::clone(&is_there);
        let store = Check::new("store", move || {
            let answer = if asked.load(Ordering::SeqCst) { Ok(()) } else { Err("connection refused".to_owned()) };
            async move { answer }
        });
        let reach = Reach::new(vec![Check::new("queue", || async { Ok(()) }), store]);
        assert_eq!(reach.missing().await, None);
        is_there.store(false, Ordering::SeqCst);
        assert_eq!(reach.missing().await, None, "what was seen a moment ago is believed");
        reach.look().await;
        reach.look().await;
        assert_eq!(reach.missing().await.as_deref(), Some("store: connection refused"));
        assert_eq!(reach.missing_for(Duration::from_secs(3_600)), None);
        assert!(reach.missing_for(Duration::ZERO).is_some());
        is_there.store(true, Ordering::SeqCst);
        reach.look().await;
        assert_eq!((reach.missing().await, reach.missing_for(Duration::ZERO)), (None, None));
    }
}

//! Waiting for a condition, with a deadline; tests never sleep for a guessed time.

use std::time::{Duration, Instant};

use anyhow::bail;

const PAUSE: Duration = Duration::from_millis(25);

/// Asks `condition` again and again until it holds.
///
/// An error of `condition` counts as "not yet", since a part may be on its way up; the last one is named when time runs out.
///
/// # Errors
/// When `condition` did not hold within `deadline`: `what`, the time waited, and the last error if there was one.
pub async fn wait_until(
    what: &str,
    deadline: Duration,
    mut condition: impl AsyncFnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut tries = 0_u32;
    loop {
        tries += 1;
        let left = deadline.saturating_sub(started.elapsed());
        // One hanging try must not outlive the deadline either.
        let came_of_it = match tokio::time::timeout(left.max(PAUSE), condition()).await {
            Ok(Ok(true)) => return Ok(()),
            Ok(Ok(false)) => "it did not hold yet".to_owned(),
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "it did not come back".to_owned(),
        };
        if started.elapsed() >= deadline {
            let seconds = started.elapsed().as_secs_f32();
            bail!("waited {seconds:.1} s in vain until {what} ({tries} tries); the last one: {came_of_it}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The same for code without a runtime: polls until `condition` says `Some`, or gives `None` when time runs out.
pub(super) fn poll<T>(deadline: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = condition() {
            return Some(found);
        }
        if started.elapsed() >= deadline {
            return None;
        }
        std::thread::sleep(PAUSE);
    }
}

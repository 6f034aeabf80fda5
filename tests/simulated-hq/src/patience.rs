//! Waiting for parts that are still starting, or are away for a moment.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{Instant, sleep};
use tracing::warn;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Tries again, with growing pauses, until it succeeds or `patience` is over. Zero patience means a single try.
///
/// # Errors
///
/// The last failure.
pub async fn persist<T>(what: &str, patience: Duration, mut attempt: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + patience;
    let mut pause = FIRST_PAUSE;
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) if Instant::now() + pause >= deadline => {
                return Err(error).with_context(|| format!("{what} (tried for {} s)", patience.as_secs()));
            }
            Err(error) => warn!(error = format!("{error:#}"), "cannot {what} now; will be tried again"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use anyhow::bail;

    use super::*;

    #[tokio::test]
    async fn failures_are_repeated_while_patience_lasts() {
        let mut tries = 0;
        let outcome = persist("count", Duration::from_secs(60), async || {
            tries += 1;
            if tries < 3 { bail!("not yet") } else { Ok(tries) }
        });
        assert_eq!(outcome.await.unwrap(), 3);

        let mut tries = 0;
        let outcome = persist("count", Duration::ZERO, async || -> Result<()> {
            tries += 1;
            bail!("never")
        });
        assert!(outcome.await.is_err());
        assert_eq!(tries, 1);
    }
}

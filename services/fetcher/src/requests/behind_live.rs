//! What the lake asks for is read behind HQ's own messages.
//!
//! A portion begins when no batch of messages waits for those in flight, and takes from its domain's share only what the messages leave. Where
//! messages never leave anything, a portion begins all the same after [`PATIENCE`]: it would never end otherwise.

use std::time::{Duration, Instant};

use lake_shared::identity::Domain;
use tokio_util::sync::CancellationToken;

use crate::domain_pace::DomainPace;
use crate::fetcher::{Stopping, unless_stopping};
use crate::metric_names;

/// How long messages go first at the most.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Waits until no batch of messages waits, or for a while.
pub(super) async fn idle(pace: &DomainPace, shutdown: &CancellationToken) -> Result<(), Stopping> {
    let began = Instant::now();
    while !pace.is_idle() && began.elapsed() < PATIENCE {
        unless_stopping(tokio::time::sleep(LOOK_EVERY), shutdown).await?;
    }
    Ok(())
}

/// Waits for the turn of a portion of at most `wanted` records of a domain; so many of them may be read, one at least.
pub(super) async fn turn(
    pace: &DomainPace,
    domain: &Domain,
    wanted: usize,
    shutdown: &CancellationToken,
) -> Result<usize, Stopping> {
    let began = Instant::now();
    idle(pace, shutdown).await?;
    let spared = loop {
        match pace.spare(domain.as_str(), wanted) {
            0 => unless_stopping(tokio::time::sleep(LOOK_EVERY), shutdown).await?,
            spared => break spared,
        }
    };
    metrics::histogram!(metric_names::REQUEST_WAIT_SECONDS).record(began.elapsed());
    Ok(spared)
}

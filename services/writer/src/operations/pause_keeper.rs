//! Holds ingest to the pauses that are kept in the metastore ([`crate::metastore::steering`]), in the writer that holds the lease.

use std::sync::Arc;
use std::time::Duration;

use lake_shared::error_chain::Chain;
use lake_shared::retry::Backoff;
use tokio_util::sync::CancellationToken;

use crate::handle_error::HandleError;
use crate::ingest::control::{PauseScope, Paused};
use crate::metastore::Metastore;
use crate::metastore::steering::PauseRecord;
use crate::operations::Operations;

/// Time between two looks at the pauses.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long commits of a scope are waited for before the other pauses have their turn.
const AT_REST_WITHIN: Duration = Duration::from_secs(10);

/// What is paused when a writer takes the lease: ingest begins with it. Waits for a metastore that does not answer; `None`: `shutdown` came before.
pub(crate) async fn at_start(metastore: &dyn Metastore, shutdown: &CancellationToken) -> Option<Paused> {
    let mut backoff = Backoff::default();
    loop {
        match metastore.pauses().await {
            Ok(pauses) => return Some(paused_by(&pauses)),
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the pauses cannot be read now; nothing is taken from the queue before");
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return None,
            () = tokio::time::sleep(backoff.next_wait()) => {}
        }
    }
}

fn paused_by(pauses: &[PauseRecord]) -> Paused {
    let mut paused = Paused::default();
    for pause in pauses {
        paused.pause(&scope_of(pause));
    }
    paused
}

fn scope_of(pause: &PauseRecord) -> PauseScope {
    pause.space.clone().map_or(PauseScope::Everything, PauseScope::Space)
}

/// Has ingest pause and resume as the metastore says, until `shutdown`, and says there what is in force.
pub(crate) async fn run(
    operations: Arc<Operations>,
    metastore: Arc<dyn Metastore>,
    mut held_to: Paused,
    shutdown: CancellationToken,
) {
    loop {
        match metastore.pauses().await {
            Ok(pauses) => match follow(&operations, &*metastore, &mut held_to, &pauses).await {
                Ok(()) => {}
                Err(HandleError::Stopping) => return,
                Err(error) => tracing::warn!(error = %Chain(&error), "pauses cannot be followed now"),
            },
            Err(error) => tracing::warn!(error = %Chain(&error), "the pauses cannot be read now"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

async fn follow(
    operations: &Operations,
    metastore: &dyn Metastore,
    held_to: &mut Paused,
    pauses: &[PauseRecord],
) -> Result<(), HandleError> {
    let wanted = paused_by(pauses);
    if wanted != *held_to {
        // Resuming everything ends the pauses of single spaces as well, so these are asked for again below.
        if held_to.everything && !wanted.everything {
            operations.resume(PauseScope::Everything).await?;
            *held_to = Paused::default();
        }
        let lifted: Vec<_> = held_to.spaces.difference(&wanted.spaces).cloned().collect();
        for space in lifted {
            operations.resume(PauseScope::Space(space.clone())).await?;
            held_to.spaces.remove(&space);
        }
    }
    for pause in pauses {
        if pause.in_force_us.is_some() && is_held_to(held_to, pause) {
            continue;
        }
        let scope = scope_of(pause);
        held_to.pause(&scope);
        // Nothing new is committed from now on; what is being committed may take longer, and the pause may be ended meanwhile.
        if let Ok(at_rest) = tokio::time::timeout(AT_REST_WITHIN, operations.pause(scope)).await {
            at_rest?;
            metastore.pause_in_force(pause.space.as_ref()).await.map_err(HandleError::Metastore)?;
        }
    }
    Ok(())
}

fn is_held_to(held_to: &Paused, pause: &PauseRecord) -> bool {
    pause.space.as_ref().map_or(held_to.everything, |space| held_to.spaces.contains(space))
}

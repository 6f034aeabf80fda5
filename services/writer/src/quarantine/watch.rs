//! Looks from time to time at the quarantine: entries whose records were asked for by an operation that has ended are released when the records come.

use std::sync::Arc;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use lake_shared::error_chain::Chain;
use tokio_util::sync::CancellationToken;

use super::replay::Quarantine;
use crate::metastore::{Metastore, QuarantineFilter};
use crate::metric_names;

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// How long after it was asked for a record is waited for.
const WAITED_FOR: TimeDelta = TimeDelta::days(1);

/// Looks until `shutdown`. What fails is tried again by the next look.
pub(crate) async fn run(quarantine: Arc<Quarantine>, metastore: Arc<dyn Metastore>, shutdown: CancellationToken) {
    loop {
        match metastore.quarantined_count(&QuarantineFilter::default()).await {
            Ok(entries) => metrics::gauge!(metric_names::QUARANTINE_ENTRIES).set(entries as f64),
            Err(error) => tracing::warn!(error = %Chain(&error), "the quarantine cannot be counted now"),
        }
        if let Err(error) = quarantine.sweep((Utc::now() - WAITED_FOR).timestamp_micros()).await {
            tracing::warn!(error = %Chain(&error), "the quarantine cannot be looked at now");
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

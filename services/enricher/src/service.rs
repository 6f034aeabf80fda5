//! The enricher put together, for its own process and for the lake in one process.

use std::sync::Arc;

use lake_hq::source::Hq;
use lake_shared::quarantine::{self, Stage};
use lake_shared::queue::announcement::Activity;
use lake_shared::queue::{Queue, announcement};
use lake_shared::telemetry::Check;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::metric_names;
use crate::options::EnricherOptions;
use crate::pipeline;

/// An enricher that is ready to run.
pub struct EnricherService {
    hq: Hq,
    queue: Arc<dyn Queue>,
    options: EnricherOptions,
}

impl EnricherService {
    /// An enricher that asks an HQ and works from and to a queue, both of them connected.
    pub fn build(hq: Hq, queue: Arc<dyn Queue>, options: EnricherOptions) -> Self {
        quarantine::count_from_zero(Stage::Enricher);
        metrics::counter!(metric_names::TREES_DROPPED_TOTAL).increment(0);
        for reason in ["unavailable", "refused", "ask_less"] {
            metrics::counter!(metric_names::SOURCE_RETRIES_TOTAL, "reason" => reason).increment(0);
        }
        Self { hq, queue, options }
    }

    /// What `/ready` asks of the enricher: its queue, and HQ as far as it reads there.
    pub fn checks(&self) -> Vec<Check> {
        let Hq { database, users, .. } = self.hq.clone();
        vec![
            Check::queue(Arc::clone(&self.queue)),
            Check::new("hq database", move || {
                let database = Arc::clone(&database);
                async move { database.check().await.map_err(|error| error.to_string()) }
            }),
            Check::new("hq users", move || {
                let users = Arc::clone(&users);
                async move { users.check().await.map_err(|error| error.to_string()) }
            }),
        ]
    }

    /// Enriches until `shutdown` or until the queue is closed; then finishes or gives back what it holds.
    ///
    /// # Errors
    ///
    /// The options cannot be used.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let activity = Arc::new(Activity::default());
        let told = Arc::clone(&activity);
        let tells = move || told.announcement();
        let announcing = announcement::run(Arc::clone(&self.queue), "enricher", tells, shutdown.clone());
        let _announcing = AbortOnDropHandle::new(tokio::spawn(announcing));
        pipeline::run(self.queue, self.hq, self.options, activity, shutdown).await
    }
}

//! Observes the stages while a writer runs, and decides when it is asked.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use lake_shared::queue::{Queue, Stream};
use tokio_util::sync::CancellationToken;

use super::decision::{EVERY, StageHistory};
use super::observation::Seen;
use crate::metric_names;
use crate::pipeline_watch::PipelineWatch;

/// What can be scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Fetcher,
    Enricher,
}

impl Stage {
    const ALL: [Self; 2] = [Self::Fetcher, Self::Enricher];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Fetcher => "fetcher",
            Self::Enricher => "enricher",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.name() == name)
    }
}

#[derive(Debug, Default)]
struct Histories {
    fetchers: StageHistory,
    enrichers: StageHistory,
}

/// A clock: the time since a fixed moment.
pub(super) type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// Observes the stages, and decides.
#[derive(Clone)]
pub(crate) struct Scaler {
    histories: Arc<Mutex<Histories>>,
    clock: Clock,
}

impl Scaler {
    /// One that has seen nothing yet.
    pub(crate) fn new() -> Self {
        let began = Instant::now();
        Self::with_clock(Arc::new(move || began.elapsed()))
    }

    pub(super) fn with_clock(clock: Clock) -> Self {
        Self { histories: Arc::default(), clock }
    }

    /// Observes until `shutdown`.
    pub(crate) async fn run(self, queue: Arc<dyn Queue>, pipeline: PipelineWatch, shutdown: CancellationToken) {
        let mut rounds = tokio::time::interval(EVERY);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while shutdown.run_until_cancelled(rounds.tick()).await.is_some() {
            let backlog = async |stream| queue.backlog(stream).await.ok().flatten();
            let asked = async { tokio::join!(backlog(Stream::Records), backlog(Stream::Rows)) };
            let Some((records, rows)) = shutdown.run_until_cancelled(asked).await else { return };
            let (now, clock) = (Instant::now(), SystemTime::now());
            let since = clock.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            self.observe(&Seen {
                at: (self.clock)(),
                clock_us: i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
                present: &pipeline.present(now),
                partitions: &pipeline.partitions(now, clock),
                records,
                rows,
            });
        }
    }

    pub(super) fn observe(&self, seen: &Seen<'_>) {
        let mut histories = self.locked();
        histories.fetchers.observe(seen.fetchers());
        histories.enrichers.observe(seen.enrichers());
    }

    /// How many replicas a stage should have, if it may be so far behind. `None`: nothing is known yet.
    pub(super) fn wanted(&self, stage: Stage, target_seconds: f64) -> Option<u32> {
        let now = (self.clock)();
        let mut histories = self.locked();
        let history = match stage {
            Stage::Fetcher => &mut histories.fetchers,
            Stage::Enricher => &mut histories.enrichers,
        };
        let wanted = history.wanted(now, target_seconds)?;
        let push_back = history.push_back();
        drop(histories);
        metrics::gauge!(metric_names::SCALING_REPLICAS, "stage" => stage.name()).set(f64::from(wanted));
        tracing::debug!(stage = stage.name(), wanted, ?push_back, "KEDA asks for replicas");
        Some(wanted)
    }

    fn locked(&self) -> MutexGuard<'_, Histories> {
        // A panic elsewhere cannot leave an observation half written.
        self.histories.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Figures of the last hour, for the small charts of the page.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use lake_shared::queue::{Queue, Stream};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::pipeline_watch::PipelineWatch;

/// Time between two samples.
const EVERY: Duration = Duration::from_secs(5);

/// Samples that are kept: an hour.
const KEPT: usize = 720;

/// What was seen at one moment. What was not known is absent.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Sample {
    /// When, microseconds since 1970.
    at_us: i64,
    /// Messages of HQ's change feed that were not read yet.
    pub(super) lag: Option<i64>,
    /// How old the oldest of them can be, seconds.
    pub(super) lag_seconds: Option<f64>,
    /// Messages that wait on the streams of records and rows.
    pub(super) queued: Option<u64>,
    /// Messages that were ever put on the stream of records.
    records_total: Option<u64>,
    /// The same of rows.
    rows_total: Option<u64>,
}

/// The samples, oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Arc<Mutex<VecDeque<Sample>>>);

impl Samples {
    /// All that are kept.
    pub(super) fn all(&self) -> Vec<Sample> {
        self.locked().iter().copied().collect()
    }

    fn keep(&self, sample: Sample) {
        let mut kept = self.locked();
        while kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back(sample);
    }

    fn locked(&self) -> MutexGuard<'_, VecDeque<Sample>> {
        // A panic elsewhere cannot leave a sample half written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes samples until `shutdown`.
    pub(crate) async fn run(self, queue: Arc<dyn Queue>, pipeline: PipelineWatch, shutdown: CancellationToken) {
        let mut rounds = tokio::time::interval(EVERY);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while shutdown.run_until_cancelled(rounds.tick()).await.is_some() {
            let taken = shutdown.run_until_cancelled(take(&*queue, &pipeline, SystemTime::now())).await;
            taken.into_iter().for_each(|sample| self.keep(sample));
        }
    }
}

async fn take(queue: &dyn Queue, pipeline: &PipelineWatch, now: SystemTime) -> Sample {
    let backlog = async |stream| queue.backlog(stream).await.ok().flatten();
    let (records, rows) = tokio::join!(backlog(Stream::Records), backlog(Stream::Rows));
    let lag = pipeline.lag(Instant::now(), now);
    Sample {
        at_us: i64::try_from(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros()).unwrap_or(0),
        lag: lag.messages,
        lag_seconds: lag.seconds,
        queued: records.zip(rows).map(|(records, rows)| records.messages + rows.messages),
        records_total: records.map(|records| records.published_total),
        rows_total: rows.map(|rows| rows.published_total),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_is_kept() {
        let samples = Samples::default();
        for at_us in 0..KEPT as i64 + 3 {
            samples.keep(Sample { at_us, ..Sample::default() });
        }
        let kept = samples.all();
        assert_eq!((kept.len(), kept.first().map(|sample| sample.at_us)), (KEPT, Some(3)));
    }
}

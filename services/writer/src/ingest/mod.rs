//! From the queue into the tables.
//!
//! Rows are gathered per space and committed when enough have come or the oldest has waited long enough. Different spaces are
//! committed in parallel, one space never overlaps with itself. A message is acknowledged after everything in it is committed (or
//! safe in quarantine); until then the queue is told that it is being worked on. What is held in memory is bounded: above the bound
//! nothing more is taken from the queue.

use std::sync::Arc;
use std::time::Duration;

use lake_shared::queue::{Consumer, ConsumerOptions, Delivery, Queue, QueueError, Stream};
use lake_shared::retry::{Backoff, milliseconds};
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, sleep_until};
use tokio_util::sync::CancellationToken;

use self::decode::Decoded;
use self::flush::Flush;
use self::held::Held;
use crate::table_store::TableStore;
use crate::telemetry;

mod decode;
mod flush;
mod held;
mod narrow;
#[cfg(test)]
mod tests;

/// When rows are committed; section `[ingest]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IngestOptions {
    /// Rows and tombstones of a space after which it is committed.
    pub flush_rows_max: usize,
    /// Bytes of a space, decoded, after which it is committed.
    pub flush_bytes_max: usize,
    /// Longest time a row waits before its space is committed, milliseconds.
    pub flush_age_ms: u64,
    /// Most spaces that are committed at once.
    pub commits_parallel_max: usize,
    /// Bytes of all spaces, waiting and being committed, above which nothing more is taken from the queue.
    pub held_bytes_max: usize,
    /// Most unacknowledged messages.
    pub in_flight_max: usize,
    /// How long the queue leaves a message with a writer that says nothing, seconds.
    pub acknowledge_within_seconds: u64,
}

impl Default for IngestOptions {
    /// 50,000 rows, 64 MiB, 1 s, 4 spaces, 256 MiB, 10,000 messages, 60 s.
    fn default() -> Self {
        Self {
            flush_rows_max: 50_000,
            flush_bytes_max: 64 << 20,
            flush_age_ms: 1_000,
            commits_parallel_max: 4,
            held_bytes_max: 256 << 20,
            in_flight_max: 10_000,
            acknowledge_within_seconds: 60,
        }
    }
}

impl IngestOptions {
    /// How often the queue is told that a message is being worked on: several times within its patience.
    fn progress_every(&self) -> Duration {
        Duration::from_secs(self.acknowledge_within_seconds.max(1)) / 4
    }
}

/// Name of the writers' consumer on the queue.
const DURABLE_NAME: &str = "writer";

/// Moves rows from the queue into the tables until `shutdown` (then what is held is committed first) or until the queue is closed.
/// Passing trouble is waited out; an error means that the queue refused the consumer or that a task panicked.
pub async fn run(
    queue: Arc<dyn Queue>,
    store: Arc<dyn TableStore>,
    options: IngestOptions,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let consumer_options = ConsumerOptions {
        durable_name: DURABLE_NAME.into(),
        in_flight_max: options.in_flight_max,
        acknowledge_within: Duration::from_secs(options.acknowledge_within_seconds.max(1)),
    };
    let consumer = queue.consumer(Stream::Rows, consumer_options).await?;
    let flush = Flush { queue, store, shutdown: shutdown.clone(), progress_every: options.progress_every() };
    let ingest = Ingest {
        held: Held::default(),
        jobs: JoinSet::new(),
        committing: 0,
        pause_until: None,
        backoff: Backoff::default(),
        stopping: false,
        flush,
        options,
    };
    ingest.run(consumer, &shutdown).await
}

/// What a job was.
enum Ended {
    /// A space was committed, or given back to the queue; so many bytes are free.
    Committed(held::Space, usize),
    /// A message was put aside.
    PutAside,
}

struct Ingest {
    held: Held,
    jobs: JoinSet<Ended>,
    committing: usize,
    pause_until: Option<Instant>,
    backoff: Backoff,
    stopping: bool,
    flush: Flush,
    options: IngestOptions,
}

impl Ingest {
    async fn run(mut self, mut consumer: Box<dyn Consumer>, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let mut progress = tokio::time::interval(self.options.progress_every());
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.start_due();
            if self.stopping && self.held.is_empty() && self.jobs.is_empty() {
                return Ok(());
            }
            let pulling =
                !self.stopping && self.pause_until.is_none() && self.held.bytes() < self.options.held_bytes_max;
            let wake = self.wake_at();
            tokio::select! {
                () = shutdown.cancelled(), if !self.stopping => self.stopping = true,
                Some(ended) = self.jobs.join_next(), if !self.jobs.is_empty() => self.note_end(ended?),
                next = consumer.next(), if pulling => self.took(next),
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                    self.pause_until = self.pause_until.filter(|until| *until > Instant::now());
                }
                _ = progress.tick() => self.held.in_progress().await,
            }
            metrics::gauge!(telemetry::HELD_BYTES).set(self.held.bytes() as f64);
            metrics::gauge!(telemetry::HELD_ROWS).set(self.held.rows() as f64);
        }
    }

    /// Starts the commits that are due, as many as may run at once.
    fn start_due(&mut self) {
        while self.committing < self.options.commits_parallel_max.max(1) {
            let Some((space, cause)) = self.held.due(Instant::now(), &self.options, self.stopping) else { return };
            metrics::counter!(telemetry::FLUSHES_TOTAL, "cause" => cause).increment(1);
            let waiting = self.held.take(&space);
            let bytes = waiting.bytes;
            let flush = self.flush.clone();
            self.committing += 1;
            self.jobs.spawn(async move {
                flush.commit(&space, waiting).await;
                Ended::Committed(space, bytes)
            });
        }
    }

    /// When something may be due although nothing happens.
    fn wake_at(&self) -> Option<Instant> {
        let room = self.committing < self.options.commits_parallel_max.max(1);
        let age = Duration::from_millis(self.options.flush_age_ms);
        let oldest = self.held.oldest().filter(|_| room).map(|since| since + age);
        [oldest, self.pause_until].into_iter().flatten().min()
    }

    fn note_end(&mut self, ended: Ended) {
        if let Ended::Committed(space, bytes) = ended {
            self.committing -= 1;
            self.held.committed(&space, bytes);
        }
    }

    fn took(&mut self, next: Option<Result<Delivery, QueueError>>) {
        match next {
            None => self.stopping = true,
            Some(Err(error)) => {
                let wait = self.backoff.next_wait();
                tracing::warn!(%error, wait_ms = milliseconds(wait), "rows cannot be read from the queue now");
                self.pause_until = Some(Instant::now() + wait);
            }
            Some(Ok(delivery)) => {
                self.backoff = Backoff::default();
                self.delivered(delivery);
            }
        }
    }

    fn delivered(&mut self, delivery: Delivery) {
        match decode::decode(&delivery) {
            Decoded::Rows(batch) => self.held.add(batch, delivery.receipt, Instant::now()),
            Decoded::Malformed(entry) => {
                let flush = self.flush.clone();
                self.jobs.spawn(async move {
                    flush.put_aside(*entry, delivery.receipt).await;
                    Ended::PutAside
                });
            }
        }
    }
}

//! From the queue into the tables.
//!
//! Rows are gathered per space and committed when enough have come or the oldest has waited long enough. Different spaces are
//! committed in parallel, one space never overlaps with itself. A message is acknowledged after everything in it is committed (or
//! safe in quarantine); until then the queue is told that it is being worked on. What is held in memory is bounded: above the bound
//! nothing more is taken from the queue. A space that cannot be committed is tried again for ever, and does not stop the others: see
//! `held.rs`.

use std::sync::Arc;
use std::time::Duration;

use lake_shared::quarantine::QuarantineEntry;
use lake_shared::queue::{Consumer, ConsumerOptions, Delivery, Queue, QueueError, Receipt, Stream};
use lake_shared::retry::{Backoff, milliseconds};
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, sleep_until};
use tokio_util::sync::CancellationToken;

use self::decode::Decoded;
use self::flush::{Flush, Outcome};
use self::held::Held;
use self::message::HeldMessage;
use crate::metric_names;
use crate::table_store::TableStore;

mod decode;
mod flush;
mod held;
mod message;
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
    /// Most unacknowledged messages that a writer holds.
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

/// How many times `in_flight_max` the queue may have unacknowledged. JetStream counts what was given back for a while too; with
/// `in_flight_max` alone the messages of a space that cannot be committed would use it up, and nothing else would be handed out.
const UNACKNOWLEDGED_SHARE: usize = 8;

/// When a malformed message comes again that cannot be put aside because too many are on their way to quarantine already.
const MALFORMED_AGAIN_AFTER: Duration = Duration::from_secs(30);

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
        in_flight_max: options.in_flight_max.saturating_mul(UNACKNOWLEDGED_SHARE),
        acknowledge_within: Duration::from_secs(options.acknowledge_within_seconds.max(1)),
    };
    let consumer = queue.consumer(Stream::Rows, consumer_options).await?;
    let flush = Flush { queue, store, shutdown: shutdown.clone(), progress_every: options.progress_every() };
    let ingest = Ingest {
        held: Held::default(),
        jobs: JoinSet::new(),
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
    /// A space was committed, or given back to the queue.
    Committed(held::Space),
    /// A space could not be committed; its messages.
    Failed(held::Space, Vec<HeldMessage>),
    /// A message was put aside; so many bytes are free.
    PutAside(usize),
    /// Messages are with the queue again.
    GivenBack,
}

struct Ingest {
    held: Held,
    jobs: JoinSet<Ended>,
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
            let pulling = !self.stopping && self.pause_until.is_none() && !self.held.is_full(&self.options);
            let wake = [self.held.next_due(&self.options), self.pause_until].into_iter().flatten().min();
            tokio::select! {
                () = shutdown.cancelled(), if !self.stopping => self.stopping = true,
                Some(ended) = self.jobs.join_next(), if !self.jobs.is_empty() => self.note_end(ended?),
                next = consumer.next(), if pulling => self.took(next),
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                    self.pause_until = self.pause_until.filter(|until| *until > Instant::now());
                }
                _ = progress.tick() => {
                    self.make_room();
                    self.held.in_progress().await;
                }
            }
            metrics::gauge!(metric_names::HELD_BYTES).set(self.held.bytes() as f64);
            metrics::gauge!(metric_names::HELD_ROWS).set(self.held.rows() as f64);
        }
    }

    /// Starts the commits that are due, as many as may run at once.
    fn start_due(&mut self) {
        let now = Instant::now();
        while let Some((space, cause)) = self.held.due(now, &self.options, self.stopping) {
            let tries = if cause == held::RETRY {
                flush::TRIES_LATER
            } else {
                metrics::counter!(metric_names::FLUSHES_TOTAL, "cause" => cause).increment(1);
                flush::TRIES_AT_FIRST
            };
            let messages = self.held.take(&space, now);
            let flush = self.flush.clone();
            self.jobs.spawn(async move {
                let outcome = flush.commit(&space, messages, tries).await;
                match outcome {
                    Outcome::Answered => Ended::Committed(space),
                    Outcome::Failed(messages) => Ended::Failed(space, messages),
                }
            });
        }
    }

    fn note_end(&mut self, ended: Ended) {
        match ended {
            Ended::Committed(space) => {
                if self.held.committed(&space) && !self.stopping {
                    tracing::info!(%space, "space is out of trouble");
                }
            }
            Ended::Failed(space, messages) => {
                if self.held.failed(&space, messages, Instant::now()) {
                    tracing::warn!(%space, "space cannot be committed; it is tried again until it can, the others go on");
                }
                self.make_room();
            }
            Ended::PutAside(bytes) => self.held.aside_ended(bytes),
            Ended::GivenBack => {}
        }
    }

    /// Gives back to the queue what is in the way of others.
    fn make_room(&mut self) {
        // At the end everything is tried once more, and what fails is given back at once.
        if self.stopping {
            return;
        }
        for given_back in self.held.excess(Instant::now(), &self.options) {
            self.jobs.spawn(async move {
                flush::give_back(given_back).await;
                Ended::GivenBack
            });
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
            Decoded::Rows(batch, bytes) => {
                self.held.add(HeldMessage::new(batch, bytes, delivery.receipt), Instant::now());
                self.make_room();
            }
            Decoded::Malformed(entry) => self.put_aside(*entry, delivery.receipt),
        }
    }

    fn put_aside(&mut self, entry: QuarantineEntry, receipt: Box<dyn Receipt>) {
        let bytes = message::bytes_aside(&entry);
        if self.held.put_aside(bytes, &self.options) {
            let flush = self.flush.clone();
            self.jobs.spawn(async move {
                flush.put_aside(entry, receipt).await;
                Ended::PutAside(bytes)
            });
        } else {
            self.jobs.spawn(async move {
                if let Err(error) = receipt.retry(MALFORMED_AGAIN_AFTER).await {
                    tracing::debug!(%error, "queue cannot be told when the message is to come again");
                }
                Ended::GivenBack
            });
        }
    }
}

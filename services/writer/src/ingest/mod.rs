//! From the queue into the tables.
//!
//! Rows are gathered per space and committed when enough have come or the oldest has waited long enough. Different spaces are
//! committed in parallel, one space never overlaps with itself. A message is acknowledged after everything in it is committed (or
//! safe in quarantine); until then the queue is told that it is being worked on. What is held in memory is bounded: above the bound
//! nothing more is taken from the queue, and a message is decoded only when there is room for what it says of its size. A space that
//! cannot be committed is tried again for ever, and does not stop the others: see `buffer.rs`. A running ingest can be asked what it
//! holds, and be paused: see [`control`].

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use lake_shared::identity::Space;
use lake_shared::panics;
use lake_shared::quarantine::QuarantineEntry;
use lake_shared::queue::announcement::Activity;
use lake_shared::queue::{Consumer, ConsumerOptions, Delivery, Queue, QueueError, Receipt, Stream};
use lake_shared::retry::{Backoff, milliseconds};
use lake_shared::wire;
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, sleep_until};
use tokio_util::sync::CancellationToken;

use self::buffer::{GivenBack, IngestBuffer};
use self::control::{IngestRequest, PauseScope, Paused, PendingRows};
use self::decode::Decoded;
pub(crate) use self::decode::ids_of;
use self::flush::{Flush, FlushOutcome};
use self::message::BufferedMessage;
use crate::metric_names;
use crate::table_store::TableStore;

mod bisect;
mod buffer;
pub mod control;
mod decode;
mod flush;
mod message;
#[cfg(test)]
mod tests;

/// When rows are committed; section `[ingest]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IngestOptions {
    /// Rows and tombstones of a space from which on it is committed.
    pub flush_rows_max: usize,
    /// Bytes of a space, decoded, from which on it is committed.
    pub flush_bytes_max: usize,
    /// Longest time that a row waits before its space is committed, milliseconds.
    pub flush_age_ms: u64,
    /// Most spaces that are committed at the same time.
    pub commits_parallel_max: usize,
    /// Bytes of all spaces, waiting and being committed, above which nothing more is taken from the queue.
    pub held_bytes_max: usize,
    /// Most messages that the writer holds at the same time, unacknowledged.
    pub in_flight_max: usize,
    /// Seconds after which the queue hands a message out again if the writer says nothing about it.
    pub acknowledge_within_seconds: u64,
}

impl Default for IngestOptions {
    /// 50,000 rows, 64 MiB, 1 s, 4 spaces, 256 MiB, 10,000 messages, 10 s.
    fn default() -> Self {
        Self {
            flush_rows_max: 50_000,
            flush_bytes_max: 64 << 20,
            flush_age_ms: 1_000,
            commits_parallel_max: 4,
            held_bytes_max: 256 << 20,
            in_flight_max: 10_000,
            acknowledge_within_seconds: 10,
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

/// A message takes about so many times what it has decompressed while it is decoded: the stream of its rows, and the rows.
const SIZE_IN_WORK: usize = 2;

/// When a malformed message comes again that cannot be quarantined now, as too many others are on their way to quarantine.
const MALFORMED_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// Moves rows from the queue into the tables until `shutdown` (then what is held is committed first) or until the queue is closed, and
/// answers requests meanwhile. `paused`: what is paused from the beginning; `activity`: what it tells of its work. Passing trouble with the queue, the store or the metastore is waited out.
///
/// # Errors
///
/// The queue refused the consumer, or a task panicked.
pub async fn run(
    queue: Arc<dyn Queue>,
    store: Arc<dyn TableStore>,
    options: IngestOptions,
    paused: Paused,
    requests: mpsc::Receiver<IngestRequest>,
    activity: Arc<Activity>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let consumer_options = ConsumerOptions {
        durable_name: DURABLE_NAME.into(),
        in_flight_max: options.in_flight_max.saturating_mul(UNACKNOWLEDGED_SHARE),
        acknowledge_within: Duration::from_secs(options.acknowledge_within_seconds.max(1)),
    };
    let consumer = queue.consumer(Stream::Rows, consumer_options).await?;
    let progress_every = options.progress_every();
    let flush = Flush { queue, store, shutdown: shutdown.clone(), progress_every, activity };
    let ingest = Ingest {
        buffer: IngestBuffer::of_new_process(Instant::now()),
        undecoded: None,
        jobs: JoinSet::new(),
        paused_at: (paused != Paused::default()).then(Instant::now),
        paused,
        pausing: Vec::new(),
        read_again_at: None,
        backoff: Backoff::default(),
        stopping: false,
        flush,
        options,
    };
    ingest.run(consumer, requests, &shutdown).await
}

/// What became of a job.
enum FinishedJob {
    /// A space was committed, or given back to the queue.
    Committed(Space),
    /// A space could not be committed; its messages.
    Failed(Space, Vec<BufferedMessage>),
    /// A malformed message was quarantined or given back; so many bytes are free.
    Quarantined(usize),
    /// Messages were given back to the queue.
    GivenBack,
}

struct Ingest {
    buffer: IngestBuffer,
    /// A message that was taken from the queue and for which there was no room yet.
    undecoded: Option<Delivery>,
    jobs: JoinSet<FinishedJob>,
    paused: Paused,
    /// When something was paused last.
    paused_at: Option<Instant>,
    /// Pauses that are answered when no commit of their scope runs any more.
    pausing: Vec<(PauseScope, oneshot::Sender<()>)>,
    /// The queue could not be read, and is left alone until then.
    read_again_at: Option<Instant>,
    backoff: Backoff,
    stopping: bool,
    flush: Flush,
    options: IngestOptions,
}

impl Ingest {
    async fn run(
        mut self,
        mut consumer: Box<dyn Consumer>,
        mut requests: mpsc::Receiver<IngestRequest>,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<()> {
        let mut progress = tokio::time::interval(self.options.progress_every());
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.decode_waiting();
            self.give_back_paused();
            self.start_due();
            self.answer_pauses();
            if self.stopping && self.buffer.is_empty() && self.jobs.is_empty() {
                return Ok(());
            }
            let may_read = !self.stopping && !self.paused.everything && self.read_again_at.is_none();
            let pulling = may_read && self.undecoded.is_none() && !self.buffer.is_full(&self.options);
            let wake = [self.buffer.next_due(&self.options), self.read_again_at].into_iter().flatten().min();
            tokio::select! {
                () = shutdown.cancelled(), if !self.stopping => self.stopping = true,
                Some(ended) = self.jobs.join_next(), if !self.jobs.is_empty() => self.note_end(ended?),
                next = consumer.next(), if pulling => self.took(next),
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                    self.read_again_at = self.read_again_at.filter(|until| *until > Instant::now());
                }
                Some(request) = requests.recv() => self.answer(request),
                _ = progress.tick() => {
                    self.make_room();
                    if let Some(delivery) = &self.undecoded
                        && let Err(error) = delivery.receipt.in_progress().await
                    {
                        tracing::debug!(%error, "queue cannot be told of progress; the message may come twice");
                    }
                    self.buffer.in_progress(self.options.progress_every()).await;
                }
            }
            metrics::gauge!(metric_names::HELD_BYTES).set(self.buffer.bytes() as f64);
            self.flush.activity.holds(self.buffer.bytes(), self.options.held_bytes_max);
            metrics::gauge!(metric_names::HELD_ROWS).set(self.buffer.rows() as f64);
        }
    }

    /// Starts the commits that are due, as many as may run at once.
    fn start_due(&mut self) {
        let now = Instant::now();
        while let Some((space, cause)) = self.buffer.due(now, &self.options, self.stopping) {
            let tries = if cause == buffer::RETRY {
                flush::TRIES_LATER
            } else {
                metrics::counter!(metric_names::FLUSHES_TOTAL, "cause" => cause).increment(1);
                flush::TRIES_AT_FIRST
            };
            let messages = self.buffer.take(&space, now);
            let flush = self.flush.clone();
            self.jobs.spawn(async move {
                match AssertUnwindSafe(flush.commit(&space, messages, tries)).catch_unwind().await {
                    Ok(FlushOutcome::Answered) => FinishedJob::Committed(space),
                    Ok(FlushOutcome::Failed(messages)) => FinishedJob::Failed(space, messages),
                    // The queue hands the messages out again when nothing was said of them for long enough.
                    Err(panic) => {
                        tracing::error!(%space, panic = panics::text(panic.as_ref()), "a commit panicked; report this as a fault of the lake");
                        FinishedJob::Failed(space, Vec::new())
                    }
                }
            });
        }
    }

    fn note_end(&mut self, ended: FinishedJob) {
        match ended {
            FinishedJob::Committed(space) => {
                if self.buffer.committed(&space) && !self.stopping {
                    tracing::info!(%space, "space can be committed again");
                }
            }
            FinishedJob::Failed(space, messages) => {
                if self.buffer.failed(&space, messages, Instant::now()) {
                    tracing::warn!(%space, "space cannot be committed; it is tried again until it can, the others go on");
                }
                self.make_room();
            }
            FinishedJob::Quarantined(bytes) => self.buffer.end_quarantine(bytes),
            FinishedJob::GivenBack => {}
        }
    }

    /// Gives back to the queue what takes the room that other spaces need.
    fn make_room(&mut self) {
        // At the end everything is tried once more, and what fails is given back at once.
        if self.stopping {
            return;
        }
        let excess = self.buffer.excess(Instant::now(), &self.options);
        self.give_back(excess);
    }

    /// Gives back to the queue what waits of spaces that are paused.
    fn give_back_paused(&mut self) {
        let lasts = self.paused_at.map_or(Duration::ZERO, |at| at.elapsed());
        let paused = self.buffer.take_paused(&self.paused, lasts);
        self.give_back(paused);
    }

    fn give_back(&mut self, messages: Vec<GivenBack>) {
        for given_back in messages {
            self.jobs.spawn(async move {
                flush::give_back(given_back).await;
                FinishedJob::GivenBack
            });
        }
    }

    fn took(&mut self, next: Option<Result<Delivery, QueueError>>) {
        match next {
            None => self.stopping = true,
            Some(Err(error)) => {
                let wait = self.backoff.next_wait();
                tracing::warn!(%error, wait_ms = milliseconds(wait), "rows cannot be read from the queue now");
                self.read_again_at = Some(Instant::now() + wait);
            }
            Some(Ok(delivery)) => {
                self.backoff = Backoff::default();
                self.delivered(delivery);
            }
        }
    }

    /// Decodes the message that waits for room, if there is room now. At the end it goes back to the queue.
    fn decode_waiting(&mut self) {
        let Some(delivery) = self.undecoded.take() else { return };
        if self.stopping {
            self.buffer.wants_no_room();
            return self.retry(delivery.receipt, Duration::ZERO);
        }
        self.delivered(delivery);
    }

    fn delivered(&mut self, delivery: Delivery) {
        let bytes = wire::decoded_size(&delivery.payload).saturating_mul(SIZE_IN_WORK);
        if !self.buffer.has_room_for(bytes, &self.options) {
            self.make_room();
            self.undecoded = Some(delivery);
            return;
        }
        match decode::decode(&delivery) {
            Decoded::Rows(batch, bytes) => {
                let message = BufferedMessage::new(batch, bytes, delivery.receipt).with_attempts(delivery.attempts);
                self.buffer.add(message, Instant::now());
                self.make_room();
            }
            Decoded::Malformed(entry) => self.quarantine(*entry, delivery.receipt),
        }
    }

    fn answer(&mut self, request: IngestRequest) {
        // Whether the answer is still waited for makes no difference to what was asked.
        match request {
            IngestRequest::Status(answer) => {
                let _ = answer.send(self.buffer.status(&self.paused));
            }
            IngestRequest::Pending(table, answer) => {
                let paused = self.paused.contains(&table.space);
                let _ = answer.send(PendingRows { paused, ..self.buffer.pending(&table) });
            }
            IngestRequest::Pause(scope, answer) => {
                tracing::info!(?scope, "ingest paused; rows stay in the queue");
                self.paused.pause(&scope);
                self.paused_at = Some(Instant::now());
                self.pausing.push((scope, answer));
            }
            IngestRequest::Resume(scope, answer) => {
                tracing::info!(?scope, "ingest resumed");
                self.paused.resume(&scope);
                let pausing = std::mem::take(&mut self.pausing);
                let (paused, lifted): (Vec<_>, Vec<_>) =
                    pausing.into_iter().partition(|(scope, _)| self.paused.covers(scope));
                self.pausing = paused;
                for (_, lifted) in lifted {
                    let _ = lifted.send(());
                }
                let _ = answer.send(());
            }
        }
    }

    /// Answers the pauses whose commits have all ended.
    fn answer_pauses(&mut self) {
        let pausing = std::mem::take(&mut self.pausing);
        let (quiet, waiting): (Vec<_>, Vec<_>) =
            pausing.into_iter().partition(|(scope, _)| !self.buffer.is_committing(scope));
        self.pausing = waiting;
        for (_, answer) in quiet {
            let _ = answer.send(());
        }
    }

    fn quarantine(&mut self, entry: QuarantineEntry, receipt: Box<dyn Receipt>) {
        let bytes = message::quarantine_bytes(&entry);
        if self.buffer.start_quarantine(bytes, &self.options) {
            let flush = self.flush.clone();
            self.jobs.spawn(async move {
                flush.quarantine_message(entry, receipt).await;
                FinishedJob::Quarantined(bytes)
            });
        } else {
            self.retry(receipt, MALFORMED_AGAIN_AFTER);
        }
    }

    /// Has the queue hand a message out again.
    fn retry(&mut self, receipt: Box<dyn Receipt>, after: Duration) {
        self.jobs.spawn(async move {
            if let Err(error) = receipt.retry(after).await {
                tracing::debug!(%error, "queue cannot be told when the message is to come again");
            }
            FinishedJob::GivenBack
        });
    }
}

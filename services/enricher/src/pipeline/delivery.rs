//! One message of records, from its bytes to rows that are safe.

use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use lake_hq::source::SourceError;
use lake_proto::queue::v1::RecordBatch;
use lake_shared::byte_budget::ByteBudget;
use lake_shared::error_chain::Chain;
use lake_shared::identity::{Domain, Kind};
use lake_shared::quarantine::{self, QuarantineEntry, Reason, Stage};
use lake_shared::queue::announcement::Activity;
use lake_shared::queue::{PublishError, Queue, publish_until_safe};
use lake_shared::retry::Backoff;
use lake_shared::{panics, wire};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::enrich::{self, EnrichmentContext, ParsedBatch, Question, RowMessages};
use crate::caches::Caches;
use crate::metric_names;
use crate::options::EnricherOptions;
use crate::rows::message::PayloadSizes;

/// How often a location tree is read again that is older than the records of a message. Clocks of databases can go back (after a
/// failover); then a tree that was read just now has to do.
const OLD_TREE_TRIES_MAX: u32 = 6;

/// How long a worker's place is held while HQ is asked for users. The question goes on after that, and the answer is waited for without the place.
const USERS_WITHIN: Duration = Duration::from_millis(250);

/// A message takes about so many times what it has decompressed while it is made into rows: as it is, its documents as values, the columns of its rows, these
/// encoded and in their message.
const SIZE_IN_WORK: usize = 6;

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageOutcome {
    /// Everything that came of it is safe: acknowledge it.
    Safe,
    /// The process or the queue is stopping: hand it back.
    Stopped,
    /// HQ does not answer about its domain, and there is no room to wait for that: hand it back, for a while.
    Later,
}

/// Turns messages of records into messages of rows; shared by all messages in work.
pub struct Enricher {
    queue: Arc<dyn Queue>,
    caches: Arc<Caches>,
    pub(super) options: Arc<EnricherOptions>,
    pub(super) shutdown: CancellationToken,
    /// Permits to hold parsed documents; as many as `workers`.
    workers: Semaphore,
    /// Memory for messages that are made into rows. A worker holds some of it for one message at a time.
    work_budget: ByteBudget,
    /// Compressed bytes of messages that wait for HQ without a permit.
    waiting_bytes: AtomicUsize,
    /// What it tells of its work.
    pub(super) activity: Arc<Activity>,
}

/// Why there are no messages of rows.
enum NotMade {
    /// The process or the queue is stopping.
    Stopped,
    /// HQ does not answer about the domain, and so many messages wait for it already that others would have no room.
    NoRoomToWait,
}

/// What came of a part of a message.
enum Tried {
    Made(RowMessages),
    /// A bug: the records make the enricher fail. These are the halves to try.
    Failed {
        halves: [Range<usize>; 2],
        detail: String,
    },
}

/// What came of records in a worker's place.
enum Enriched {
    Made(RowMessages),
    /// HQ has to be asked first.
    Unasked(Question),
}

/// Bytes of messages that wait for HQ, counted until it is dropped.
struct WaitingBytes<'c> {
    all: &'c AtomicUsize,
    own: usize,
    /// Those that waited before.
    before: usize,
}

impl<'c> WaitingBytes<'c> {
    fn add(all: &'c AtomicUsize, own: usize) -> Self {
        Self { all, own, before: all.fetch_add(own, Ordering::AcqRel) }
    }
}

impl Drop for WaitingBytes<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(self.own, Ordering::AcqRel);
    }
}

impl Enricher {
    /// An enricher that publishes to `queue`. The options must have passed [`EnricherOptions::validate`].
    pub fn new(
        queue: Arc<dyn Queue>,
        caches: Arc<Caches>,
        options: EnricherOptions,
        activity: Arc<Activity>,
        shutdown: CancellationToken,
    ) -> Self {
        let workers = Semaphore::new(options.workers.min(Semaphore::MAX_PERMITS));
        let (work_budget, waiting_bytes) = (ByteBudget::new(options.work_bytes_max), AtomicUsize::new(0));
        let options = Arc::new(options);
        Self { queue, caches, options, shutdown, workers, work_budget, waiting_bytes, activity }
    }

    /// Handles one message. `id` is the same each time it is handed out.
    pub async fn work(&self, subject: &str, payload: &Bytes, id: &str) -> MessageOutcome {
        let mut sizes = PayloadSizes::of(&*self.queue);
        loop {
            let row_messages = match self.row_messages(subject, payload, id, sizes).await {
                Ok(row_messages) => row_messages,
                Err(NotMade::Stopped) => return MessageOutcome::Stopped,
                Err(NotMade::NoRoomToWait) => return MessageOutcome::Later,
            };
            match self.publish(row_messages).await {
                Ok(()) => return MessageOutcome::Safe,
                Err(PublishError::TooLarge { size, size_max: now_max, .. }) => {
                    // The queue's limit was lowered. Each try has smaller messages, down to single rows.
                    let size_max = if now_max < size { now_max } else { size / 2 };
                    sizes = sizes.lowered_to(size_max);
                    tracing::warn!(subject, size_max, "queue takes smaller messages than before; splitting again");
                }
                Err(PublishError::Closed | PublishError::Unavailable { .. }) => return MessageOutcome::Stopped,
            }
        }
    }

    /// The messages that come of one message of records. Where making them fails, which is a bug, the message is halved down to the record that
    /// causes it, which goes to quarantine.
    async fn row_messages(
        &self,
        subject: &str,
        payload: &Bytes,
        id: &str,
        sizes: PayloadSizes,
    ) -> Result<RowMessages, NotMade> {
        let began = Instant::now();
        let mut row_messages = RowMessages::default();
        let whole = 0..usize::MAX;
        let mut parts = vec![whole];
        while let Some(part) = parts.pop() {
            match self.part(subject, payload, part, id, sizes).await? {
                Tried::Made(made) => row_messages.extend(made),
                Tried::Failed { halves, detail } => {
                    tracing::error!(
                        subject,
                        id,
                        detail,
                        "bug: records make the enricher fail; looking for the one that does"
                    );
                    parts.extend(halves);
                }
            }
        }
        metrics::histogram!(metric_names::ENRICH_SECONDS).record(began.elapsed());
        let bytes: usize = row_messages.messages.iter().map(|message| message.payload.len()).sum();
        metrics::counter!(metric_names::MESSAGE_BYTES_TOTAL).increment(bytes as u64);
        Ok(row_messages)
    }

    /// What comes of these records of a message. Where HQ has to be asked for locations, that is done without a worker's place, so that a domain
    /// about which HQ does not answer holds up no other; the documents are parsed again afterwards.
    async fn part(
        &self,
        subject: &str,
        payload: &Bytes,
        part: Range<usize>,
        id: &str,
        sizes: PayloadSizes,
    ) -> Result<Tried, NotMade> {
        let (mut context, mut failure) = (None, None);
        loop {
            let worker = self.workers.acquire().await.map_err(|_| NotMade::Stopped)?;
            // Before it is decompressed: what it says of its size is all that is known.
            let room = self.work_budget.reserve(wire::decoded_size(payload).saturating_mul(SIZE_IN_WORK)).await;
            let encoded = payload.clone();
            let decoded = blocking(move || wire::decode::<RecordBatch>(&encoded)).await;
            let mut batch = match decoded {
                Ok(Ok(batch)) => batch,
                Ok(Err(error)) => return Ok(Tried::Made(malformed(subject, payload, Chain(&error).to_string()))),
                Err(detail) => return Ok(Tried::Made(malformed(subject, payload, detail))),
            };
            let Some(kind) = Kind::from_proto(batch.kind) else {
                let detail = format!("kind {} is not known", batch.kind);
                return Ok(Tried::Made(malformed(subject, payload, detail)));
            };
            enrich::restrict(&mut batch, &part);
            let batch = Arc::new(batch);
            let enriched = match failure.take() {
                Some(detail) => Err(detail),
                None => caught(self.enrich(Arc::clone(&batch), kind, context.take(), id, sizes)).await.flatten(),
            };
            match enriched {
                Ok(Enriched::Made(row_messages)) => {
                    note_made(kind, &batch, &row_messages);
                    self.activity.passed(batch.records.len() + batch.tombstones.len());
                    return Ok(Tried::Made(row_messages));
                }
                Ok(Enriched::Unasked(question)) => {
                    drop((batch, worker, room));
                    match caught(self.context_of(&question, payload.len())).await {
                        Ok(found) => context = Some(found?),
                        Err(detail) => failure = Some(detail),
                    }
                }
                Err(detail) if batch.records.len() > 1 => {
                    return Ok(Tried::Failed { halves: enrich::halves(&part, batch.records.len()), detail });
                }
                Err(detail) => {
                    tracing::error!(
                        subject,
                        id,
                        detail,
                        "bug: a record makes the enricher fail; it goes to quarantine"
                    );
                    let refused = enrich::quarantine_all_records(&batch, kind, &detail, id, sizes);
                    return Ok(Tried::Made(
                        refused.unwrap_or_else(|error| malformed(subject, payload, error.to_string())),
                    ));
                }
            }
        }
    }

    /// Parses, enriches and encodes a batch, with the context that HQ gave for it or with what is at hand. The error describes a bug: a panic, or
    /// a batch that Arrow refuses.
    async fn enrich(
        &self,
        batch: Arc<RecordBatch>,
        kind: Kind,
        context: Option<EnrichmentContext>,
        id: &str,
        sizes: PayloadSizes,
    ) -> Result<Enriched, String> {
        let options = Arc::clone(&self.options);
        let parsed = blocking(move || enrich::parse(batch, kind, &options)).await?;
        let context = match context {
            None if parsed.has_rows() => match self.context_at_hand(&parsed).await {
                Some(context) => Some(context),
                None => return Ok(Enriched::Unasked(parsed.question())),
            },
            context => context,
        };
        let (options, id) = (Arc::clone(&self.options), id.to_owned());
        let row_messages = blocking(move || parsed.into_row_messages(context.as_ref(), &options, &id, sizes)).await?;
        row_messages.map(Enriched::Made).map_err(|error| error.to_string())
    }

    /// Locations that are cached, and users, for whom HQ may be asked, if it answers at once.
    async fn context_at_hand(&self, parsed: &ParsedBatch) -> Option<EnrichmentContext> {
        let locations = self.caches.trees.at_hand(&parsed.domain, parsed.tree_observed_us_min())?;
        let users = parsed.users();
        let asked = self.caches.users.locations(&parsed.domain, &users);
        match tokio::time::timeout(USERS_WITHIN, asked).await.ok()? {
            Ok(user_locations) => Some(EnrichmentContext { locations, user_locations }),
            Err(error) => {
                note_source_error(&parsed.domain, &error);
                None
            }
        }
    }

    /// Asks HQ for locations and users until there is an answer, or the process stops, or messages of `payload_size` bytes and others that wait for
    /// HQ take too much of the room for those that need not.
    async fn context_of(&self, question: &Question, payload_size: usize) -> Result<EnrichmentContext, NotMade> {
        let mut waiting = None;
        let mut backoff = Backoff::default();
        let mut old_tree_tries = 0;
        loop {
            match self.ask(question).await {
                Ok(found) => {
                    let wanted_us = question.tree_observed_us_min;
                    if found.locations.observed_us() >= wanted_us {
                        return Ok(found);
                    }
                    old_tree_tries += 1;
                    if old_tree_tries == OLD_TREE_TRIES_MAX {
                        let (domain, tree_us) = (&question.domain, found.locations.observed_us());
                        tracing::warn!(%domain, tree_us, wanted_us, "location tree stays older than its records; used all the same");
                        return Ok(found);
                    }
                }
                Err(error) => {
                    note_source_error(&question.domain, &error);
                    let waiting = waiting.get_or_insert_with(|| WaitingBytes::add(&self.waiting_bytes, payload_size));
                    if waiting.before > 0 && waiting.before + payload_size > self.options.held_bytes_max / 2 {
                        return Err(NotMade::NoRoomToWait);
                    }
                }
            }
            self.wait(backoff.next_wait()).await?;
        }
    }

    async fn ask(&self, question: &Question) -> Result<EnrichmentContext, SourceError> {
        let locations = self.caches.trees.domain_locations(&question.domain, question.tree_observed_us_min).await?;
        let users = question.users.iter().map(|(user_id, published_us)| (user_id.as_str(), *published_us)).collect();
        let user_locations = self.caches.users.locations(&question.domain, &users).await?;
        Ok(EnrichmentContext { locations, user_locations })
    }

    async fn wait(&self, time: Duration) -> Result<(), NotMade> {
        self.shutdown.run_until_cancelled(tokio::time::sleep(time)).await.ok_or(NotMade::Stopped)
    }

    /// Rows first: should their size limit have changed, nothing is quarantined twice.
    async fn publish(&self, row_messages: RowMessages) -> Result<(), PublishError> {
        let RowMessages { messages, quarantined, .. } = row_messages;
        // All at once: in process each waits for the commit of its rows.
        let queued = messages.into_iter().map(|message| publish_until_safe(&*self.queue, message, &self.shutdown));
        futures::future::try_join_all(queued).await?;
        futures::future::try_join_all(quarantined.into_iter().map(|entry| self.quarantine(entry))).await?;
        Ok(())
    }

    /// Quarantines one entry; without its payload where the entry does not fit otherwise.
    async fn quarantine(&self, entry: QuarantineEntry) -> Result<(), PublishError> {
        let without_payload = entry.clone().payload(Bytes::new());
        match quarantine::publish(&*self.queue, entry, &self.shutdown).await {
            // Reason, detail and id still fit.
            Err(PublishError::TooLarge { .. }) => {
                match quarantine::publish(&*self.queue, without_payload, &self.shutdown).await {
                    Err(error @ PublishError::TooLarge { .. }) => {
                        tracing::error!(%error, "a quarantine entry is lost; raise the queue's message size");
                        Ok(())
                    }
                    other => other,
                }
            }
            other => other,
        }
    }
}

/// Waits for work that may panic. The error says how it did.
async fn caught<T>(work: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(work)
        .catch_unwind()
        .await
        .map_err(|panic| format!("making rows failed: {}", panics::text(&*panic)))
}

/// Runs work that takes the processor for milliseconds. The error says how it panicked.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| format!("making rows failed: {error}"))
}

fn note_made(kind: Kind, batch: &RecordBatch, made: &RowMessages) {
    let (records, tombstones) = (batch.records.len() as u64, batch.tombstones.len() as u64);
    metrics::counter!(metric_names::RECORDS_TOTAL, "kind" => kind.name()).increment(records);
    metrics::counter!(metric_names::TOMBSTONES_TOTAL, "kind" => kind.name()).increment(tombstones);
    metrics::counter!(metric_names::MESSAGES_TOTAL, "kind" => kind.name()).increment(made.messages.len() as u64);
}

fn note_source_error(domain: &Domain, error: &SourceError) {
    let reason = match error {
        SourceError::Unavailable { .. } => {
            tracing::warn!(%domain, %error, "HQ cannot be asked; trying again");
            "unavailable"
        }
        SourceError::AskLess { .. } => {
            tracing::error!(%domain, %error, "HQ cannot answer about this domain; until it can, its records wait");
            "ask_less"
        }
        SourceError::Refused { .. } => {
            tracing::error!(%domain, %error, "HQ refuses to be read; an operator has to act, until then records wait");
            "refused"
        }
    };
    metrics::counter!(metric_names::SOURCE_RETRIES_TOTAL, "reason" => reason).increment(1);
}

/// Quarantines a whole message that cannot be decoded.
fn malformed(subject: &str, payload: &Bytes, detail: String) -> RowMessages {
    let detail = format!("message on {subject}: {detail}");
    let entry = QuarantineEntry::new(Stage::Enricher, Reason::RecordBatchMalformed, detail).payload(payload.clone());
    RowMessages { quarantined: vec![entry], ..RowMessages::default() }
}

//! One message of records, from its bytes to rows that are safe.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lake_hq::source::SourceError;
use lake_proto::queue::v1::RecordBatch;
use lake_shared::error_chain::Chain;
use lake_shared::identity::{Domain, Kind};
use lake_shared::quarantine::{self, QuarantineEntry, Reason, Stage};
use lake_shared::queue::{PublishError, Queue, publish_until_safe};
use lake_shared::retry::Backoff;
use lake_shared::wire;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::enrich::{self, EnrichmentContext, ParsedBatch, RowMessages};
use crate::caches::Caches;
use crate::metric_names;
use crate::options::EnricherOptions;

/// How often a location tree is read again that is older than the records of a message. Clocks of databases can go back (after a
/// failover); then a tree that was read just now has to do.
const OLD_TREE_TRIES_MAX: u32 = 6;

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageOutcome {
    /// Everything that came of it is safe: acknowledge it.
    Safe,
    /// The process or the queue is stopping: hand it back.
    Stopped,
}

/// Turns messages of records into messages of rows; shared by all messages in work.
pub struct Enricher {
    queue: Arc<dyn Queue>,
    caches: Arc<Caches>,
    pub(super) options: Arc<EnricherOptions>,
    pub(super) shutdown: CancellationToken,
    /// Permits to hold parsed documents; as many as `workers`.
    workers: Semaphore,
}

/// Nothing more can be done: the process or the queue is stopping.
struct Stopped;

impl Enricher {
    /// An enricher that publishes to `queue`. The options must have passed [`EnricherOptions::validate`].
    pub fn new(
        queue: Arc<dyn Queue>,
        caches: Arc<Caches>,
        options: EnricherOptions,
        shutdown: CancellationToken,
    ) -> Self {
        let workers = Semaphore::new(options.workers.min(Semaphore::MAX_PERMITS));
        Self { queue, caches, options: Arc::new(options), shutdown, workers }
    }

    /// Handles one message. `id` is the same each time it is handed out.
    pub async fn work(&self, subject: &str, payload: &Bytes, id: &str) -> MessageOutcome {
        let mut size_max = self.queue.payload_size_max();
        loop {
            let Ok(row_messages) = self.row_messages(subject, payload, id, size_max).await else {
                return MessageOutcome::Stopped;
            };
            match self.publish(row_messages).await {
                Ok(()) => return MessageOutcome::Safe,
                Err(PublishError::TooLarge { size, size_max: now_max, .. }) => {
                    // The queue's limit was lowered. Each try has smaller messages, down to single rows.
                    size_max = if now_max < size { now_max } else { size / 2 };
                    tracing::warn!(subject, size_max, "queue takes smaller messages than before; splitting again");
                }
                Err(PublishError::Closed | PublishError::Unavailable { .. }) => return MessageOutcome::Stopped,
            }
        }
    }

    /// The messages that come of one message of records.
    async fn row_messages(
        &self,
        subject: &str,
        payload: &Bytes,
        id: &str,
        size_max: usize,
    ) -> Result<RowMessages, Stopped> {
        let Ok(_worker) = self.workers.acquire().await else { return Err(Stopped) };
        let began = Instant::now();
        let encoded = payload.clone();
        let decoded = blocking(move || wire::decode::<RecordBatch>(&encoded)).await;
        let batch = match decoded {
            Ok(Ok(batch)) => Arc::new(batch),
            Ok(Err(error)) => return Ok(malformed(subject, payload, Chain(&error).to_string())),
            Err(detail) => return Ok(malformed(subject, payload, detail)),
        };
        let Some(kind) = Kind::from_proto(batch.kind) else {
            return Ok(malformed(subject, payload, format!("kind {} is not known", batch.kind)));
        };
        let (records, tombstones) = (batch.records.len() as u64, batch.tombstones.len() as u64);
        let row_messages = match self.enrich(Arc::clone(&batch), kind, id, size_max).await? {
            Ok(row_messages) => row_messages,
            Err(detail) => {
                tracing::error!(
                    subject,
                    id,
                    detail,
                    "bug: a message makes the enricher fail; its records go to quarantine"
                );
                enrich::quarantine_all_records(&batch, kind, &detail, id, size_max)
                    .unwrap_or_else(|error| malformed(subject, payload, error.to_string()))
            }
        };
        metrics::histogram!(metric_names::ENRICH_SECONDS).record(began.elapsed());
        metrics::counter!(metric_names::RECORDS_TOTAL, "kind" => kind.name()).increment(records);
        metrics::counter!(metric_names::TOMBSTONES_TOTAL, "kind" => kind.name()).increment(tombstones);
        metrics::counter!(metric_names::MESSAGES_TOTAL, "kind" => kind.name())
            .increment(row_messages.messages.len() as u64);
        let bytes: usize = row_messages.messages.iter().map(|message| message.payload.len()).sum();
        metrics::counter!(metric_names::MESSAGE_BYTES_TOTAL).increment(bytes as u64);
        Ok(row_messages)
    }

    /// Parses, enriches and encodes a batch. The inner error describes a bug: a panic, or a batch that Arrow refuses.
    async fn enrich(
        &self,
        batch: Arc<RecordBatch>,
        kind: Kind,
        id: &str,
        size_max: usize,
    ) -> Result<Result<RowMessages, String>, Stopped> {
        let options = Arc::clone(&self.options);
        let parsed = match blocking(move || enrich::parse(batch, kind, &options)).await {
            Ok(parsed) => parsed,
            Err(detail) => return Ok(Err(detail)),
        };
        let context = if parsed.has_rows() { Some(self.context_of(&parsed).await?) } else { None };
        let (options, id) = (Arc::clone(&self.options), id.to_owned());
        let row_messages = blocking(move || parsed.into_row_messages(context.as_ref(), &options, &id, size_max)).await;
        Ok(row_messages.and_then(|built| built.map_err(|error| error.to_string())))
    }

    /// Asks HQ for locations and users until there is an answer, or the process stops.
    async fn context_of(&self, parsed: &ParsedBatch) -> Result<EnrichmentContext, Stopped> {
        let mut backoff = Backoff::default();
        let mut old_tree_tries = 0;
        loop {
            match self.ask(parsed).await {
                Ok(found) => {
                    let wanted_us = parsed.tree_observed_us_min();
                    if found.locations.observed_us() >= wanted_us {
                        return Ok(found);
                    }
                    old_tree_tries += 1;
                    if old_tree_tries == OLD_TREE_TRIES_MAX {
                        let (domain, tree_us) = (&parsed.domain, found.locations.observed_us());
                        tracing::warn!(%domain, tree_us, wanted_us, "location tree stays older than its records; used all the same");
                        return Ok(found);
                    }
                }
                Err(error) => note_source_error(&parsed.domain, &error),
            }
            self.wait(backoff.next_wait()).await?;
        }
    }

    async fn ask(&self, parsed: &ParsedBatch) -> Result<EnrichmentContext, SourceError> {
        let locations = self.caches.trees.domain_locations(&parsed.domain, parsed.tree_observed_us_min()).await?;
        let user_locations = self.caches.users.locations(&parsed.domain, &parsed.users()).await?;
        Ok(EnrichmentContext { locations, user_locations })
    }

    async fn wait(&self, time: Duration) -> Result<(), Stopped> {
        self.shutdown.run_until_cancelled(tokio::time::sleep(time)).await.ok_or(Stopped)
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

/// Runs work that takes the processor for milliseconds. The error says how it panicked.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| format!("making rows failed: {error}"))
}

fn note_source_error(domain: &Domain, error: &SourceError) {
    let reason = match error {
        SourceError::Unavailable { .. } => {
            tracing::warn!(%domain, %error, "HQ cannot be asked; trying again");
            "unavailable"
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

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

use super::enrich::{self, Made, Opened, Surroundings};
use crate::caches::Caches;
use crate::metric_names;
use crate::options::EnricherOptions;

/// How often a location tree is read again that is older than the records of a message. Clocks of databases can go back (after a
/// failover); then a tree that was read just now has to do.
const OLD_TREE_TRIES_MAX: u32 = 6;

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything that came of it is safe: acknowledge it.
    Safe,
    /// The process or the queue is stopping: hand it back.
    Stopped,
}

/// What all messages need.
pub struct Enricher {
    queue: Arc<dyn Queue>,
    caches: Arc<Caches>,
    pub(super) options: Arc<EnricherOptions>,
    pub(super) shutdown: CancellationToken,
    /// Permits to hold parsed documents.
    workers: Semaphore,
}

/// Nothing more can be done: the process or the queue is stopping.
struct Stopped;

impl Enricher {
    /// Options must be valid.
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
    pub async fn work(&self, subject: &str, payload: &Bytes, id: &str) -> Outcome {
        let mut size_max = self.queue.payload_size_max();
        loop {
            let Ok(made) = self.make(subject, payload, id, size_max).await else { return Outcome::Stopped };
            match self.publish(made).await {
                Ok(()) => return Outcome::Safe,
                Err(PublishError::TooLarge { size, size_max: now_max, .. }) => {
                    // The queue's limit was lowered. Each try has smaller messages, down to single rows.
                    size_max = if now_max < size { now_max } else { size / 2 };
                    tracing::warn!(subject, size_max, "queue takes smaller messages than before; splitting again");
                }
                Err(PublishError::Closed | PublishError::Unavailable { .. }) => return Outcome::Stopped,
            }
        }
    }

    async fn make(&self, subject: &str, payload: &Bytes, id: &str, size_max: usize) -> Result<Made, Stopped> {
        let Ok(_worker) = self.workers.acquire().await else { return Err(Stopped) };
        let began = Instant::now();
        let encoded = payload.clone();
        let decoded = blocking(move || wire::decode::<RecordBatch>(&encoded)).await;
        let batch = match decoded {
            Ok(Ok(batch)) => Arc::new(batch),
            Ok(Err(error)) => return Ok(garbage(subject, payload, Chain(&error).to_string())),
            Err(detail) => return Ok(garbage(subject, payload, detail)),
        };
        let Some(kind) = Kind::from_proto(batch.kind) else {
            return Ok(garbage(subject, payload, format!("kind {} is not known", batch.kind)));
        };
        let (records, tombstones) = (batch.records.len() as u64, batch.tombstones.len() as u64);
        let made = match self.enrich(Arc::clone(&batch), kind, id, size_max).await? {
            Ok(made) => made,
            Err(detail) => {
                tracing::error!(
                    subject,
                    id,
                    detail,
                    "bug: a message makes the enricher fail; its records go to quarantine"
                );
                enrich::refuse_all(&batch, kind, &detail, id, size_max)
                    .unwrap_or_else(|error| garbage(subject, payload, error.to_string()))
            }
        };
        metrics::histogram!(metric_names::ENRICH_SECONDS).record(began.elapsed());
        metrics::counter!(metric_names::RECORDS_TOTAL, "kind" => kind.name()).increment(records);
        metrics::counter!(metric_names::TOMBSTONES_TOTAL, "kind" => kind.name()).increment(tombstones);
        metrics::counter!(metric_names::MESSAGES_TOTAL, "kind" => kind.name()).increment(made.messages.len() as u64);
        let bytes: usize = made.messages.iter().map(|message| message.payload.len()).sum();
        metrics::counter!(metric_names::MESSAGE_BYTES_TOTAL).increment(bytes as u64);
        Ok(made)
    }

    /// The inner error is a bug, told in words.
    async fn enrich(
        &self,
        batch: Arc<RecordBatch>,
        kind: Kind,
        id: &str,
        size_max: usize,
    ) -> Result<Result<Made, String>, Stopped> {
        let opening = Arc::clone(&self.options);
        let opened = match blocking(move || enrich::open(batch, kind, &opening)).await {
            Ok(opened) => opened,
            Err(detail) => return Ok(Err(detail)),
        };
        let surroundings = if opened.has_rows() { Some(self.surroundings(&opened).await?) } else { None };
        let (options, id) = (Arc::clone(&self.options), id.to_owned());
        let made = blocking(move || opened.make(surroundings.as_ref(), &options, &id, size_max)).await;
        Ok(made.and_then(|made| made.map_err(|error| error.to_string())))
    }

    /// Asks until there is an answer, or the process stops.
    async fn surroundings(&self, opened: &Opened) -> Result<Surroundings, Stopped> {
        let mut backoff = Backoff::default();
        let mut old_tree_tries = 0;
        loop {
            match self.ask(opened).await {
                Ok(found) => {
                    let wanted_us = opened.tree_observed_us_min();
                    if found.places.observed_us() >= wanted_us {
                        return Ok(found);
                    }
                    old_tree_tries += 1;
                    if old_tree_tries == OLD_TREE_TRIES_MAX {
                        let (domain, tree_us) = (&opened.domain, found.places.observed_us());
                        tracing::warn!(%domain, tree_us, wanted_us, "location tree stays older than its records; used all the same");
                        return Ok(found);
                    }
                }
                Err(error) => note_source_error(&opened.domain, &error),
            }
            self.wait(backoff.next_wait()).await?;
        }
    }

    async fn ask(&self, opened: &Opened) -> Result<Surroundings, SourceError> {
        let places = self.caches.trees.places(&opened.domain, opened.tree_observed_us_min()).await?;
        let user_locations = self.caches.users.locations(&opened.domain, &opened.users()).await?;
        Ok(Surroundings { places, user_locations })
    }

    async fn wait(&self, time: Duration) -> Result<(), Stopped> {
        self.shutdown.run_until_cancelled(tokio::time::sleep(time)).await.ok_or(Stopped)
    }

    /// Rows first: should their size limit have changed, nothing was put aside twice.
    async fn publish(&self, made: Made) -> Result<(), PublishError> {
        let Made { messages, refused, .. } = made;
        // All at once: in process each waits for the commit of its rows.
        let queued = messages.into_iter().map(|message| publish_until_safe(&*self.queue, message, &self.shutdown));
        futures::future::try_join_all(queued).await?;
        futures::future::try_join_all(refused.into_iter().map(|entry| self.put_aside(entry))).await?;
        Ok(())
    }

    async fn put_aside(&self, entry: QuarantineEntry) -> Result<(), PublishError> {
        let without_payload = entry.clone().payload(Bytes::new());
        match quarantine::publish(&*self.queue, entry, &self.shutdown).await {
            // That it was there, and which id it has, still fits.
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
            tracing::error!(%domain, %error, "HQ refuses; somebody has to act, until then records wait");
            "refused"
        }
    };
    metrics::counter!(metric_names::SOURCE_RETRIES_TOTAL, "reason" => reason).increment(1);
}

/// A message that is no message: all of it is put aside.
fn garbage(subject: &str, payload: &Bytes, detail: String) -> Made {
    let detail = format!("message on {subject}: {detail}");
    let entry = QuarantineEntry::new(Stage::Enricher, Reason::RecordBatchMalformed, detail).payload(payload.clone());
    Made { refused: vec![entry], ..Made::default() }
}

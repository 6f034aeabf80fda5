//! Records and tombstones onto the queue: grouped by subject, split by count and size.

use std::collections::BTreeMap;

use lake_proto::queue::v1::{Record, RecordBatch, Tombstone};
use lake_shared::identity::{DocumentType, Domain, Kind};
use lake_shared::quarantine::{self, DocumentIdentity, QuarantineEntry, Reason, Stage};
use lake_shared::queue::{Message, PublishError, Queue, publish_until_safe};
use lake_shared::{escaped_names, wire};
use prost::Message as _;
use tokio_util::sync::CancellationToken;

use crate::metric_names;

/// Documents usually become at least so many times smaller. Where they do not, a message turns out too large only after it was encoded, and is
/// halved and encoded again.
const COMPRESSION_USUAL: usize = 3;

/// The subject of a document or tombstone, by its parts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    /// Project space of the documents.
    pub domain: Domain,
    /// Kind of the documents.
    pub kind: Kind,
    /// Type of the documents; `None` for tombstones whose type is not known.
    pub document_type: Option<DocumentType>,
}

/// Records and tombstones on their way to the queue.
#[derive(Debug, Default)]
pub struct Outgoing {
    batches: BTreeMap<Destination, (Vec<Record>, Vec<Tombstone>)>,
    bytes: usize,
}

impl Outgoing {
    /// Bytes of all documents.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is nothing to publish.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Adds a document to those of its subject.
    pub fn record(&mut self, destination: Destination, record: Record) {
        metrics::counter!(metric_names::RECORDS_TOTAL, "kind" => destination.kind.name()).increment(1);
        self.bytes = self.bytes.saturating_add(record.document.len());
        self.batches.entry(destination).or_default().0.push(record);
    }

    /// Adds a tombstone to those of its subject.
    pub fn tombstone(&mut self, destination: Destination, tombstone: Tombstone) {
        metrics::counter!(
            metric_names::TOMBSTONES_TOTAL, "kind" => destination.kind.name(), "reason" => tombstone.reason.clone()
        )
        .increment(1);
        self.batches.entry(destination).or_default().1.push(tombstone);
    }

    /// The messages to publish: at most `records_max` entries each, and about `bytes_max` bytes of documents.
    fn into_batches(self, records_max: usize, bytes_max: usize) -> Vec<(Destination, RecordBatch)> {
        let mut batches = Vec::new();
        for (destination, (mut records, mut tombstones)) in self.batches {
            while !records.is_empty() || !tombstones.is_empty() {
                let rest = records.split_off(fitting(&records, records_max, bytes_max));
                let records_now = std::mem::replace(&mut records, rest);
                let room = records_max - records_now.len();
                let rest = tombstones.split_off(tombstones.len().min(room));
                let tombstones_now = std::mem::replace(&mut tombstones, rest);
                let batch = RecordBatch {
                    domain: destination.domain.as_str().to_owned(),
                    kind: destination.kind.to_proto().into(),
                    r#type: destination.document_type.as_ref().map(|name| name.as_str().to_owned()),
                    records: records_now,
                    tombstones: tombstones_now,
                };
                batches.push((destination.clone(), batch));
            }
        }
        batches
    }

    /// Publishes everything; returns when all of it is safe on the queue. A record that is too large for a message of its own goes to
    /// quarantine.
    ///
    /// # Errors
    /// [`PublishError::Closed`] when the queue is closed or `shutdown` comes first.
    pub async fn publish(
        self,
        queue: &dyn Queue,
        records_max: usize,
        shutdown: &CancellationToken,
    ) -> Result<(), PublishError> {
        let publishing = self
            .into_batches(records_max.max(1), queue.payload_size_max().saturating_mul(COMPRESSION_USUAL))
            .into_iter()
            .map(|(destination, batch)| publish_batch(queue, destination, batch, shutdown));
        futures::future::try_join_all(publishing).await.map(|_| ())
    }
}

/// How many of these records go into one message; one at least, where there is any.
fn fitting(records: &[Record], records_max: usize, bytes_max: usize) -> usize {
    let mut bytes = 0_usize;
    let fits = |record: &&Record| {
        bytes = bytes.saturating_add(record.document.len());
        bytes <= bytes_max
    };
    records.iter().take(records_max).take_while(fits).count().max(1).min(records.len())
}

/// Publishes one batch; halves it as long as it is too large.
async fn publish_batch(
    queue: &dyn Queue,
    destination: Destination,
    batch: RecordBatch,
    shutdown: &CancellationToken,
) -> Result<(), PublishError> {
    let subject =
        escaped_names::records_subject(&destination.domain, destination.kind, destination.document_type.as_ref());
    let mut open = vec![batch];
    while let Some(mut batch) = open.pop() {
        let message = Message {
            subject: subject.clone(),
            payload: wire::encode(&batch),
            dedupe_id: uuid::Uuid::new_v4().to_string(),
        };
        match publish_until_safe(queue, message, shutdown).await {
            Ok(()) => {}
            Err(PublishError::TooLarge { size, size_max, .. }) => {
                if let Some(half) = split(&mut batch) {
                    open.extend([batch, half]);
                } else {
                    quarantine_single(queue, &batch, size, size_max, shutdown).await?;
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Takes the second half out of a batch; `None` where it has a single entry.
fn split(batch: &mut RecordBatch) -> Option<RecordBatch> {
    let (records, tombstones) = (batch.records.len(), batch.tombstones.len());
    if records + tombstones < 2 {
        return None;
    }
    let mut half = RecordBatch { records: Vec::new(), tombstones: Vec::new(), ..batch.clone() };
    if records > 0 && tombstones > 0 {
        half.tombstones = std::mem::take(&mut batch.tombstones);
    } else {
        half.records = batch.records.split_off(records / 2);
        half.tombstones = batch.tombstones.split_off(tombstones / 2);
    }
    Some(half)
}

/// Quarantines the only entry of a batch: a record, or a tombstone.
async fn quarantine_single(
    queue: &dyn Queue,
    batch: &RecordBatch,
    size: usize,
    size_max: usize,
    shutdown: &CancellationToken,
) -> Result<(), PublishError> {
    let document = |id: &str| DocumentIdentity {
        domain: batch.domain.clone(),
        kind: Kind::from_proto(batch.kind),
        document_type: batch.r#type.clone().unwrap_or_default(),
        id: id.to_owned(),
    };
    for record in &batch.records {
        let detail = format!(
            "document of {} bytes ({size} bytes as a message) is larger than the {size_max} bytes the queue takes; \
             raise the queue's payload limit, then save the record in HQ again",
            record.encoded_len()
        );
        let entry = QuarantineEntry::new(Stage::Fetcher, Reason::RecordTooLarge, detail)
            .document(document(&record.id))
            .lineage(record.lineage.clone())
            .payload(record.document.clone());
        quarantine::publish(queue, entry, shutdown).await?;
    }
    for tombstone in &batch.tombstones {
        let detail = format!("tombstone needs a message of {size} bytes, the queue takes {size_max}");
        let entry = QuarantineEntry::new(Stage::Fetcher, Reason::TombstoneTooLarge, detail)
            .document(document(&tombstone.id))
            .lineage(tombstone.lineage.clone());
        quarantine::publish(queue, entry, shutdown).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use async_trait::async_trait;
    use bytes::Bytes;
    use futures::stream::BoxStream;
    use lake_proto::queue::v1::Quarantined;
    use lake_shared::queue::{Broadcast, Consumer, ConsumerOptions, QueueError, Stream};
    use lake_test_kit::recording_queue::RecordingQueue;

    use super::*;

    /// A queue that takes small messages only, apart from those of the quarantine.
    struct NarrowQueue(RecordingQueue);

    const NARROW: usize = 200;

    #[async_trait]
    impl Queue for NarrowQueue {
        async fn publish(&self, message: Message) -> Result<(), PublishError> {
            let size = message.payload.len();
            if size > NARROW && message.subject.starts_with("lake.records.") {
                return Err(PublishError::TooLarge { subject: message.subject, size, size_max: NARROW });
            }
            self.0.publish(message).await
        }
        async fn consumer(&self, stream: Stream, options: ConsumerOptions) -> Result<Box<dyn Consumer>, QueueError> {
            self.0.consumer(stream, options).await
        }
        async fn broadcast(&self, subject: &str, payload: Bytes) -> Result<(), QueueError> {
            self.0.broadcast(subject, payload).await
        }
        async fn listen(&self, pattern: &str) -> Result<BoxStream<'static, Broadcast>, QueueError> {
            self.0.listen(pattern).await
        }
        fn payload_size_max(&self) -> usize {
            self.0.payload_size_max()
        }
        async fn check(&self) -> Result<(), QueueError> {
            Ok(())
        }
    }

    /// Random enough not to be compressed to nothing.
    fn long_text(seed: &str) -> String {
        (0..40).map(|number| uuid::Uuid::new_v4().to_string() + seed + &number.to_string()).collect()
    }

    #[tokio::test]
    async fn what_is_too_large_for_a_message_is_in_quarantine_tombstones_too() {
        let (mut outgoing, queue) = (Outgoing::default(), NarrowQueue(RecordingQueue::default()));
        let long = long_text("t");
        outgoing.tombstone(destination(), Tombstone { id: long.clone(), ..Tombstone::default() });
        outgoing.tombstone(destination(), Tombstone { id: "short".into(), ..Tombstone::default() });
        let document = long_text("r").into();
        outgoing.record(destination(), Record { id: "large".into(), document, ..Record::default() });
        outgoing.publish(&queue, 100, &CancellationToken::new()).await.unwrap();
        let entries = queue.0.payloads("lake.quarantine.");
        let entries = entries.iter().map(|payload| wire::decode::<Quarantined>(payload).unwrap());
        let mut found: Vec<(String, String)> = entries.map(|entry| (entry.reason, entry.id)).collect();
        found.sort();
        assert_eq!(found, [("record_too_large".into(), "large".into()), ("tombstone_too_large".into(), long)]);
        assert_eq!(queue.0.payloads("lake.records.").len(), 1);
    }

    fn destination() -> Destination {
        Destination { domain: "d".into(), kind: Kind::Case, document_type: Some("t".into()) }
    }

    #[test]
    fn batches_hold_at_most_so_many_entries_and_lose_none() {
        let mut outgoing = Outgoing::default();
        for number in 0..7 {
            outgoing.record(destination(), Record { id: format!("r{number}"), ..Record::default() });
            outgoing.tombstone(destination(), Tombstone { id: format!("t{number}"), ..Tombstone::default() });
        }
        let batches = outgoing.into_batches(3, usize::MAX);
        let sizes: Vec<usize> = batches.iter().map(|(_, batch)| batch.records.len() + batch.tombstones.len()).collect();
        assert_eq!(sizes, [3, 3, 3, 3, 2]);
        let ids: std::collections::BTreeSet<&str> = batches
            .iter()
            .flat_map(|(_, batch)| {
                batch
                    .records
                    .iter()
                    .map(|record| &*record.id)
                    .chain(batch.tombstones.iter().map(|tombstone| &*tombstone.id))
            })
            .collect();
        assert_eq!(ids.len(), 14);
    }

    #[test]
    fn large_documents_go_into_more_messages() {
        let sizes = |bytes_max| {
            let mut outgoing = Outgoing::default();
            for size in [10, 10, 50, 10, 10] {
                outgoing.record(destination(), Record { document: vec![b'x'; size].into(), ..Record::default() });
            }
            outgoing.tombstone(destination(), Tombstone::default());
            let batches = outgoing.into_batches(100, bytes_max);
            batches.iter().map(|(_, batch)| batch.records.len() + batch.tombstones.len()).collect::<Vec<_>>()
        };
        assert_eq!(sizes(1_000), [6]);
        assert_eq!(sizes(60).iter().sum::<usize>(), 6);
        assert_eq!(sizes(1).iter().sum::<usize>(), 6);
        assert!(sizes(60).len() > 1 && sizes(1).len() == 5);
    }

    #[test]
    fn a_batch_is_halved_down_to_single_entries() {
        let mut batch = RecordBatch { records: vec![Record::default(); 5], ..RecordBatch::default() };
        let half = split(&mut batch).map(|half| half.records.len());
        assert_eq!((batch.records.len(), half), (2, Some(3)));
        let mut single = RecordBatch { tombstones: vec![Tombstone::default()], ..RecordBatch::default() };
        assert!(split(&mut single).is_none());
    }
}

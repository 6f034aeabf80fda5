//! Records and tombstones onto the queue: grouped by subject, split by count and size.

use std::collections::BTreeMap;

use lake_hq::documents::own_fields;
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

/// Most bytes of a message before it is compressed: what is made of it may be larger, and nobody unpacks more than twice as much.
const DECODED_BYTES_MAX: usize = wire::DECODED_SIZE_MAX / 2;

/// A message has no more bytes of documents than these, unless it has a single one: whoever decodes it needs several times as many.
const DOCUMENTS_BYTES_MAX: usize = 4 << 20;

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

    /// Records and tombstones.
    pub fn entries(&self) -> usize {
        self.batches.values().map(|(records, tombstones)| records.len() + tombstones.len()).sum()
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
    /// quarantine, and is published with HQ's own fields alone, as incomplete.
    ///
    /// # Errors
    /// [`PublishError::Closed`] when the queue is closed or `shutdown` comes first.
    pub async fn publish(
        self,
        queue: &dyn Queue,
        records_max: usize,
        shutdown: &CancellationToken,
    ) -> Result<(), PublishError> {
        let bytes_max = queue.message_size_max().saturating_mul(COMPRESSION_USUAL).min(DOCUMENTS_BYTES_MAX);
        let publishing = self
            .into_batches(records_max.max(1), bytes_max)
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

/// Publishes one batch; halves it as long as it does not travel in one piece.
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
        let (size, size_max) = (batch.encoded_len(), DECODED_BYTES_MAX);
        let published = if size > size_max {
            Err(PublishError::TooLarge { subject: subject.clone(), size, size_max })
        } else {
            let payload = wire::encode(&batch);
            if payload.len() > queue.message_size_max()
                && let Some(half) = split(&mut batch)
            {
                open.extend([batch, half]);
                continue;
            }
            let message = Message { subject: subject.clone(), payload, dedupe_id: uuid::Uuid::new_v4().to_string() };
            publish_until_safe(queue, message, shutdown).await
        };
        match published {
            Ok(()) => {}
            Err(PublishError::TooLarge { size, size_max, .. }) => {
                if let Some(half) = split(&mut batch) {
                    open.extend([batch, half]);
                } else if !is_cut(&batch) {
                    quarantine_single(queue, &batch, size, size_max, shutdown).await?;
                    open.extend(cut(batch));
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

/// Whether a batch holds a record that was cut already: even that is too large, and the quarantine is all that tells of it.
fn is_cut(batch: &RecordBatch) -> bool {
    batch.records.iter().any(|record| record.incomplete.as_deref() == Some(Reason::RecordTooLarge.code()))
}

/// The only record of a batch without everything that may be large, so that its row in the lake does not go on to look current.
fn cut(mut batch: RecordBatch) -> Option<RecordBatch> {
    let (kind, record) = (Kind::from_proto(batch.kind)?, batch.records.first_mut()?);
    record.document = serde_json::to_vec(&own_fields::of(kind, &record.document)).unwrap_or_default().into();
    record.incomplete = Some(Reason::RecordTooLarge.code().to_owned());
    Some(batch)
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
        let advice = match size_max {
            DECODED_BYTES_MAX => "no message may have more before it is compressed; make the record smaller in HQ",
            _ => "raise queue.payload_size_max, or drop large fields, then save the record in HQ again",
        };
        let detail = format!(
            "document of {} bytes ({size} bytes as a message) is larger than the {size_max} bytes a message may have; {advice}",
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
    use serde_json::{Value, json};

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
        // The short tombstone, and the record without what is large.
        assert_eq!(queue.0.payloads("lake.records.").len(), 2);
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

    #[tokio::test]
    async fn messages_that_compress_well_are_no_larger_for_it() {
        let queue = RecordingQueue::of_payload_size_max(8 << 20);
        let mut outgoing = Outgoing::default();
        for _ in 0..20 {
            outgoing.record(destination(), Record { document: vec![b'x'; 1 << 20].into(), ..Record::default() });
        }
        outgoing.publish(&queue, 1_000, &CancellationToken::new()).await.unwrap();
        let payloads = queue.payloads("lake.records.");
        assert_eq!(payloads.len(), 5);
        assert!(payloads.iter().all(|payload| wire::decoded_size(payload) < 5 << 20));
    }

    #[tokio::test]
    async fn a_record_that_nobody_could_decode_comes_without_its_properties() {
        let queue = RecordingQueue::of_payload_size_max(8 << 20);
        let mut outgoing = Outgoing::default();
        let document = json!({"_id": "huge", "text": "x".repeat(DECODED_BYTES_MAX)}).to_string().into();
        outgoing.record(destination(), Record { id: "huge".into(), document, ..Record::default() });
        outgoing.publish(&queue, 1_000, &CancellationToken::new()).await.unwrap();
        let payloads = queue.payloads("lake.records.");
        assert!(payloads.iter().all(|payload| wire::decoded_size(payload) < 1_000));
        let records: Vec<Record> =
            payloads.iter().flat_map(|payload| wire::decode::<RecordBatch>(payload).unwrap().records).collect();
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].incomplete.as_deref(), Some("record_too_large"));
    }

    #[test]
    fn a_batch_is_halved_down_to_single_entries() {
        let mut batch = RecordBatch { records: vec![Record::default(); 5], ..RecordBatch::default() };
        let half = split(&mut batch).map(|half| half.records.len());
        assert_eq!((batch.records.len(), half), (2, Some(3)));
        let mut single = RecordBatch { tombstones: vec![Tombstone::default()], ..RecordBatch::default() };
        assert!(split(&mut single).is_none());
    }

    /// Text that cannot be compressed.
    fn noise(length: usize) -> String {
        let digits = (0..).flat_map(|n: usize| escaped_names::fingerprint(&n.to_string()).into_bytes());
        digits.map(char::from).take(length).collect()
    }

    #[tokio::test]
    async fn only_a_record_that_is_alone_is_larger_than_one_piece() {
        let queue = RecordingQueue::of_sizes(5_000, 60_000);
        let mut outgoing = Outgoing::default();
        for (id, length) in [("a", 3_000), ("b", 12_000), ("large", 80_000), ("c", 2_000)] {
            let document = noise(length).into();
            outgoing.record(destination(), Record { id: id.into(), document, ..Record::default() });
        }
        outgoing.publish(&queue, 100, &CancellationToken::new()).await.unwrap();
        assert!(queue.payloads("lake.quarantine.").is_empty());
        let mut whole = Vec::new();
        for payload in queue.payloads("lake.records.") {
            let batch = wire::decode::<RecordBatch>(&payload).unwrap();
            assert!(payload.len() <= 5_000 || batch.records.len() == 1, "{} records", batch.records.len());
            whole.extend(batch.records.into_iter().map(|record| (record.id, record.document.len(), record.incomplete)));
        }
        whole.sort();
        let expected = [("a", 3_000), ("b", 12_000), ("c", 2_000), ("large", 80_000)];
        assert_eq!(whole, expected.map(|(id, length)| (id.to_owned(), length, None)));
    }

    #[tokio::test]
    async fn a_record_that_is_too_large_comes_without_its_properties_and_marked() {
        let queue = RecordingQueue::of_payload_size_max(20_000);
        let mut outgoing = Outgoing::default();
        let large = json!({"photo": noise(60_000), "_id": "large", "name": "Asha", "closed": false, "actions": []});
        let small = json!({"_id": "small", "photo": "x"});
        for document in [large, small.clone()] {
            let id = document["_id"].as_str().unwrap().to_owned();
            let record = Record { id, document: document.to_string().into(), ..Record::default() };
            outgoing.record(destination(), record);
        }
        // HQ's own fields alone are too large: nothing more can be done but to say so.
        let problem = json!({"_id": "hopeless", "name": noise(60_000)}).to_string().into();
        outgoing.record(destination(), Record { id: "hopeless".into(), document: problem, ..Record::default() });
        outgoing.publish(&queue, 100, &CancellationToken::new()).await.unwrap();
        let batches =
            queue.payloads("lake.records.").into_iter().map(|payload| wire::decode::<RecordBatch>(&payload).unwrap());
        let mut records: Vec<(String, Option<String>, Value)> = batches
            .flat_map(|batch| batch.records)
            .map(|record| (record.id, record.incomplete, serde_json::from_slice(&record.document).unwrap()))
            .collect();
        records.sort_by(|one, other| one.0.cmp(&other.0));
        let own = json!({"_id": "large", "name": "Asha", "closed": false});
        let expected =
            [("large".to_owned(), Some("record_too_large".to_owned()), own), ("small".to_owned(), None, small)];
        assert_eq!(records, expected);
        let quarantined = queue.payloads("lake.quarantine.").into_iter();
        let mut quarantined: Vec<(String, String)> = quarantined
            .map(|payload| wire::decode::<Quarantined>(&payload).unwrap())
            .map(|entry| (entry.id, entry.reason))
            .collect();
        quarantined.sort();
        assert_eq!(quarantined, ["hopeless", "large"].map(|id| (id.to_owned(), "record_too_large".to_owned())));
    }
}

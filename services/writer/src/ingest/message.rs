//! A message that waits for its commit: its rows, what they take in memory, and how it is answered.

use std::collections::HashMap;
use std::time::Duration;

use arrow::array::ArrayRef;
use arrow::record_batch::RecordBatch;
use lake_shared::identity::{DocumentType, Space};
use lake_shared::quarantine::QuarantineEntry;
use lake_shared::queue::Receipt;
use tokio::time::Instant;

use crate::table_store::SpaceBatch;

/// Bytes that a message takes beyond what is counted one by one. Without them, empty messages would not be bounded.
const MESSAGE_BYTES: usize = 256;
/// Bytes that a column of a message takes beyond its values: its field in the schema, and the structure of its array.
const COLUMN_BYTES: usize = 384;
/// Bytes that a tombstone takes beyond its texts.
const TOMBSTONE_BYTES: usize = 128;
/// Bytes that a malformed message takes beyond its payload.
const QUARANTINE_BYTES: usize = 1_024;

/// A message of one space, until it is answered.
pub(super) struct BufferedMessage {
    pub(super) batch: SpaceBatch,
    pub(super) receipt: Box<dyn Receipt>,
    /// Number of rows and tombstones in the batch.
    pub(super) rows: usize,
    /// Bytes that the message takes in memory, by [`bytes_of`].
    pub(super) bytes: usize,
    /// How often the queue has handed it out, this time included.
    pub(super) attempts: u64,
    /// When the queue was told last that it is being worked on, or handed it out.
    told: Instant,
}

impl BufferedMessage {
    /// A message with this batch; `bytes` is what [`bytes_of`] answers for the batch.
    pub(super) fn new(batch: SpaceBatch, bytes: usize, receipt: Box<dyn Receipt>) -> Self {
        Self { rows: batch.len(), batch, receipt, bytes, attempts: 1, told: Instant::now() }
    }

    /// The same, handed out for the so-manieth time.
    pub(super) fn with_attempts(self, attempts: u64) -> Self {
        Self { attempts, ..self }
    }
}

/// All rows and tombstones of the messages as one batch. The rows are shared with them, not copied.
pub(super) fn merged(space: &Space, messages: &[BufferedMessage]) -> SpaceBatch {
    let mut merged = SpaceBatch { space: space.clone(), upserts: Vec::new(), tombstones: Vec::new() };
    let mut places: HashMap<DocumentType, usize> = HashMap::new();
    for message in messages {
        for arrived in &message.batch.upserts {
            let place = *places.entry(arrived.document_type.clone()).or_insert(merged.upserts.len());
            match merged.upserts.get_mut(place) {
                Some(table) => table.rows.extend_from_slice(&arrived.rows),
                None => merged.upserts.push(arrived.clone()),
            }
        }
        merged.tombstones.extend_from_slice(&message.batch.tombstones);
    }
    merged
}

/// Tells the queue that messages are being worked on: those of which it has heard nothing for so long. `false` when it cannot be told now.
pub(super) async fn in_progress(messages: &mut [BufferedMessage], silent_for: Duration) -> bool {
    for message in messages.iter_mut().filter(|message| message.told.elapsed() >= silent_for) {
        if let Err(error) = message.receipt.in_progress().await {
            tracing::debug!(%error, "queue cannot be told of progress; the message may come twice");
            return false;
        }
        message.told = Instant::now();
    }
    true
}

/// Bytes that a message with this batch takes in memory.
pub(super) fn bytes_of(batch: &SpaceBatch) -> usize {
    let rows = batch.upserts.iter().flat_map(|table| &table.rows).map(rows_bytes).sum::<usize>();
    let tombstones = batch.tombstones.iter().map(|tombstone| {
        let topic = tombstone.lineage.as_ref().map_or(0, |lineage| lineage.topic.len());
        TOMBSTONE_BYTES + tombstone.id.len() + tombstone.reason.len() + topic
    });
    MESSAGE_BYTES + rows + tombstones.sum::<usize>()
}

/// Bytes that a malformed message takes on its way to quarantine: its payload, and the encoded entry with the payload in it.
pub(super) fn quarantine_bytes(entry: &QuarantineEntry) -> usize {
    QUARANTINE_BYTES + 2 * entry.payload.len()
}

/// Bytes of the values and of what is around them, which is most of it where a message has many columns and few rows. The columns of a
/// decoded message share one buffer, which `get_array_memory_size` would count for each of them.
fn rows_bytes(rows: &RecordBatch) -> usize {
    let values = |column: &ArrayRef| {
        let data = column.to_data();
        data.get_slice_memory_size().unwrap_or_else(|_| data.get_array_memory_size())
    };
    let values: usize = rows.columns().iter().map(values).sum();
    let fields: usize = rows.schema_ref().fields().iter().map(|field| COLUMN_BYTES + field.name().len()).sum();
    values + fields
}

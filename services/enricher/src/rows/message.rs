//! A batch into queue messages that fit: too large ones are halved until they do.

use std::ops::Range;

use arrow::error::ArrowError;
use arrow::ipc::MetadataVersion;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use lake_proto::queue::v1::{RowBatch, Tombstone};
use lake_shared::queue::Queue;
use lake_shared::wire;

/// What all messages of a batch say of its table.
#[derive(Clone, Debug, Default)]
pub struct Header {
    /// Project space of the rows.
    pub domain: String,
    /// Number of the kind in queue messages.
    pub kind: i32,
    /// Type; `None` for tombstones whose type is not known.
    pub document_type: Option<String>,
}

/// A message that fits.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// A [`RowBatch`] as it is queued.
    pub payload: Bytes,
    /// Which rows of the batch are in it.
    pub rows: Range<usize>,
    /// Which tombstones are in it.
    pub tombstones: Range<usize>,
}

/// A single row or tombstone that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Oversized {
    /// Index of the row in the batch, or of the tombstone among the tombstones.
    pub index: usize,
    /// Whether it is a tombstone.
    pub is_tombstone: bool,
    /// Bytes of the message that it would be.
    pub size: usize,
}

/// Largest payloads, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadSizes {
    /// Of a message with several rows.
    pub of_several: usize,
    /// Of a message with one: what is larger than one piece for the queue costs more, but is taken.
    pub of_one: usize,
}

impl PayloadSizes {
    /// What a queue takes.
    pub fn of(queue: &dyn Queue) -> Self {
        Self { of_several: queue.message_size_max(), of_one: queue.payload_size_max() }
    }

    /// The same with a lower limit.
    pub fn lowered_to(self, size_max: usize) -> Self {
        Self { of_several: self.of_several.min(size_max), of_one: self.of_one.min(size_max) }
    }
}

/// Splits a batch into parts, in the order of its rows, none larger than `sizes` say, and the rows and tombstones that are too large even alone.
///
/// # Errors
/// Where Arrow refuses to encode the rows, which is a bug.
pub fn split(
    header: &Header,
    batch: Option<&RecordBatch>,
    tombstones: &[Tombstone],
    sizes: PayloadSizes,
) -> Result<(Vec<Part>, Vec<Oversized>), ArrowError> {
    let (mut parts, mut oversized) = (Vec::new(), Vec::new());
    let mut rest = vec![(0..batch.map_or(0, RecordBatch::num_rows), 0..tombstones.len())];
    while let Some((rows, dead)) = rest.pop() {
        if rows.is_empty() && dead.is_empty() {
            continue;
        }
        let arrow_ipc = match batch {
            Some(batch) if !rows.is_empty() => ipc_bytes(&batch.slice(rows.start, rows.len()))?,
            _ => Bytes::new(),
        };
        let plain_fits = arrow_ipc.len() <= wire::DECODED_SIZE_MAX / 2;
        let message = RowBatch {
            domain: header.domain.clone(),
            kind: header.kind,
            r#type: header.document_type.clone(),
            arrow_ipc,
            tombstones: tombstones[dead.clone()].to_vec(),
        };
        let payload = wire::encode(&message);
        let is_single = rows.len() + dead.len() == 1;
        let size_max = if is_single { sizes.of_one } else { sizes.of_several };
        if payload.len() <= size_max && plain_fits {
            parts.push(Part { payload, rows, tombstones: dead });
        } else if is_single {
            let is_tombstone = rows.is_empty();
            let index = if is_tombstone { dead.start } else { rows.start };
            oversized.push(Oversized { index, is_tombstone, size: payload.len() });
        } else {
            let (first, second) = halves(rows, dead);
            rest.push(second);
            rest.push(first);
        }
    }
    Ok((parts, oversized))
}

type Ranges = (Range<usize>, Range<usize>);

/// Rows apart from tombstones first, then each in the middle.
fn halves(rows: Range<usize>, dead: Range<usize>) -> (Ranges, Ranges) {
    if !rows.is_empty() && !dead.is_empty() {
        return ((rows, dead.start..dead.start), (0..0, dead));
    }
    let middle = |range: &Range<usize>| range.start + range.len() / 2;
    let (row, tombstone) = (middle(&rows), middle(&dead));
    ((rows.start..row, dead.start..tombstone), (row..rows.end, tombstone..dead.end))
}

/// One Arrow IPC stream with this batch.
///
/// # Errors
/// Where Arrow refuses to encode the rows, which is a bug.
pub fn ipc_bytes(batch: &RecordBatch) -> Result<Bytes, ArrowError> {
    // The default alignment of 64 bytes would cost 150 bytes per column and message.
    let options = IpcWriteOptions::try_new(8, false, MetadataVersion::V5)?;
    let mut writer = StreamWriter::try_new_with_options(Vec::new(), &batch.schema(), options)?;
    writer.write(batch)?;
    Ok(writer.into_inner()?.into())
}

/// The batches of an Arrow IPC stream.
///
/// # Errors
/// Where the bytes are not an Arrow IPC stream.
pub fn read_ipc(ipc: &[u8]) -> Result<Vec<RecordBatch>, ArrowError> {
    StreamReader::try_new(ipc, None)?.collect()
}

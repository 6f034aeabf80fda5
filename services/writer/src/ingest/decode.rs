//! From a queue message to rows. A message that cannot be understood becomes a quarantine entry with the message in it.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow::array::AsArray;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::record_batch::RecordBatch;
use lake_proto::queue::v1::RowBatch;
use lake_shared::error_chain::Chain;
use lake_shared::identity::{Kind, Space};
use lake_shared::panics;
use lake_shared::quarantine::{DocumentIdentity, QuarantineEntry, Reason, Stage};
use lake_shared::queue::Delivery;
use lake_shared::wire;

use super::message;
use crate::table_store::conversion::{ColumnType, converted};
use crate::table_store::schema_plan::ID_SOURCE;
use crate::table_store::{SpaceBatch, TableRows};

/// A message of the stream of rows, decoded.
pub(super) enum Decoded {
    /// Rows and tombstones of a space, and the bytes that they take in memory.
    Rows(SpaceBatch, usize),
    /// A message that cannot be understood, as an entry for the quarantine.
    Malformed(Box<QuarantineEntry>),
}

/// Decodes a message of the stream of rows. Never panics, whatever is in it.
pub(super) fn decode(delivery: &Delivery) -> Decoded {
    let batch = match wire::decode::<RowBatch>(&delivery.payload) {
        Ok(batch) => batch,
        Err(error) => return malformed(delivery, RowBatch::default(), Chain(&error).to_string()),
    };
    match caught(|| rows(&batch).map(|rows| (message::bytes_of(&rows), rows))) {
        Ok((bytes, rows)) => Decoded::Rows(rows, bytes),
        Err(detail) => malformed(delivery, batch, detail),
    }
}

/// The reader of Arrow streams panics on some damaged streams; that must not end the writer each time such a message is delivered.
fn caught<T>(decode: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let caught = catch_unwind(AssertUnwindSafe(decode));
    caught.unwrap_or_else(|panic| Err(format!("rows are no Arrow stream: {}", panics::text(panic.as_ref()))))
}

/// The ids in a message of the stream of rows, and where they belong. Never panics, whatever is in it.
///
/// # Errors
/// Where it cannot be understood, why.
pub(crate) fn ids_of(payload: &[u8]) -> Result<(Space, Vec<String>), String> {
    let batch = wire::decode::<RowBatch>(payload).map_err(|error| Chain(&error).to_string())?;
    caught(|| {
        let SpaceBatch { space, upserts, tombstones } = rows(&batch)?;
        let mut ids: Vec<String> = tombstones.into_iter().map(|tombstone| tombstone.id).collect();
        for rows in upserts.iter().flat_map(|table| &table.rows) {
            let column = rows.column_by_name(ID_SOURCE).and_then(|column| converted(column, ColumnType::String));
            let column = column.ok_or_else(|| format!("rows without the field {ID_SOURCE}"))?;
            ids.extend(column.as_string::<i32>().iter().flatten().map(str::to_owned));
        }
        Ok((space, ids))
    })
}

fn rows(batch: &RowBatch) -> Result<SpaceBatch, String> {
    let kind = Kind::from_proto(batch.kind).ok_or_else(|| format!("kind {} is not known", batch.kind))?;
    if batch.domain.is_empty() {
        return Err("the domain is missing".into());
    }
    refuse_nul("domain", &batch.domain)?;
    let space = Space { domain: batch.domain.as_str().into(), kind };
    let mut upserts = Vec::new();
    if !batch.arrow_ipc.is_empty() {
        let document_type = batch.r#type.as_deref().ok_or("rows without a type")?;
        refuse_nul("type", document_type)?;
        let rows = record_batches(&batch.arrow_ipc).map_err(|error| format!("rows are no Arrow stream: {error}"))?;
        upserts.push(TableRows { document_type: document_type.into(), rows });
    }
    Ok(SpaceBatch { space, upserts, tombstones: batch.tombstones.clone() })
}

/// The metastore cannot store NUL: a table with it in its key would be registered under another key and never be found again.
fn refuse_nul(what: &str, text: &str) -> Result<(), String> {
    if text.contains('\0') { Err(format!("the {what} has a NUL character, which no table can have")) } else { Ok(()) }
}

fn record_batches(stream: &[u8]) -> Result<Vec<RecordBatch>, String> {
    check_lengths(stream)?;
    let text = |error: ArrowError| error.to_string();
    let batches = StreamReader::try_new(Cursor::new(stream), None).map_err(text)?;
    let batches = batches.filter(|batch| batch.as_ref().map_or(true, |batch| batch.num_rows() > 0));
    let batches = batches.collect::<Result<Vec<RecordBatch>, ArrowError>>().map_err(text)?;
    // Each row has an id, which takes bytes. Only columns without any bytes could claim more rows, and then any number.
    if batches.iter().any(|batch| batch.num_rows() > stream.len()) {
        return Err("it has more rows than bytes".into());
    }
    Ok(batches)
}

/// Marker before the length of each message of an Arrow stream; streams of Arrow before 0.15 do not have it
/// (<https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format>).
const CONTINUATION: [u8; 4] = [0xff; 4];

/// Checks that each message is within the stream. The reader takes memory for as many bytes as a length says before it reads them, and a
/// length that is larger than all memory would abort the process, which cannot be caught.
fn check_lengths(stream: &[u8]) -> Result<(), String> {
    let mut rest = stream;
    while let Some((mut length, mut behind)) = rest.split_first_chunk::<4>() {
        if *length == CONTINUATION {
            (length, behind) = behind.split_first_chunk::<4>().ok_or("it ends in the length of a message")?;
        }
        let length = i32::from_le_bytes(*length);
        if length == 0 {
            break;
        }
        let (head, behind) = split(behind, i64::from(length)).ok_or("a message is longer than the stream")?;
        let head = arrow::ipc::root_as_message(head).map_err(|error| error.to_string())?;
        (_, rest) = split(behind, head.bodyLength()).ok_or("the body of a message is longer than the stream")?;
    }
    Ok(())
}

fn split(bytes: &[u8], length: i64) -> Option<(&[u8], &[u8])> {
    bytes.split_at_checked(usize::try_from(length).ok()?)
}

fn malformed(delivery: &Delivery, batch: RowBatch, detail: String) -> Decoded {
    let document = DocumentIdentity {
        domain: batch.domain,
        kind: Kind::from_proto(batch.kind),
        document_type: batch.r#type.unwrap_or_default(),
        id: String::new(),
    };
    let detail = format!("message {} on {}: {detail}", delivery.id, delivery.subject);
    let entry = QuarantineEntry::new(Stage::Writer, Reason::RowBatchMalformed, detail)
        .document(document)
        .payload(delivery.payload.clone());
    Decoded::Malformed(Box::new(entry))
}

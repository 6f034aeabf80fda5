//! A queue message to rows. Whatever cannot be understood becomes a quarantine entry with the message in it.

use std::io::Cursor;

use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::record_batch::RecordBatch;
use lake_proto::queue::v1::{Quarantined, RowBatch};
use lake_shared::error_chain::Chain;
use lake_shared::identity::{Kind, Space};
use lake_shared::queue::Delivery;
use lake_shared::wire;

use crate::table_store::{SpaceBatch, TableRows};

/// What a message is.
pub(super) enum Decoded {
    /// Rows and tombstones of a space.
    Rows(SpaceBatch),
    /// Nothing that can be applied.
    Malformed(Box<Quarantined>),
}

/// Decodes a message of the stream of rows.
pub(super) fn decode(delivery: &Delivery) -> Decoded {
    let batch = match wire::decode::<RowBatch>(&delivery.payload) {
        Ok(batch) => batch,
        Err(error) => return malformed(delivery, RowBatch::default(), Chain(&error).to_string()),
    };
    match rows(&batch) {
        Ok(rows) => Decoded::Rows(rows),
        Err(detail) => malformed(delivery, batch, detail),
    }
}

fn rows(batch: &RowBatch) -> Result<SpaceBatch, String> {
    let kind = Kind::from_proto(batch.kind).ok_or_else(|| format!("kind {} is not known", batch.kind))?;
    if batch.domain.is_empty() {
        return Err("the domain is missing".into());
    }
    let space = Space { domain: batch.domain.as_str().into(), kind };
    let mut upserts = Vec::new();
    if !batch.arrow_ipc.is_empty() {
        let document_type = batch.r#type.as_deref().ok_or("rows without a type")?;
        let rows = record_batches(&batch.arrow_ipc).map_err(|error| format!("rows are no Arrow stream: {error}"))?;
        upserts.push(TableRows { document_type: document_type.into(), rows });
    }
    Ok(SpaceBatch { space, upserts, tombstones: batch.tombstones.clone() })
}

fn record_batches(stream: &[u8]) -> Result<Vec<RecordBatch>, ArrowError> {
    let batches = StreamReader::try_new(Cursor::new(stream), None)?;
    batches.filter(|batch| batch.as_ref().map_or(true, |batch| batch.num_rows() > 0)).collect()
}

fn malformed(delivery: &Delivery, batch: RowBatch, detail: String) -> Decoded {
    Decoded::Malformed(Box::new(Quarantined {
        reason: "row_batch_malformed".into(),
        detail: format!("message {} on {}: {detail}", delivery.id, delivery.subject),
        domain: batch.domain,
        kind: batch.kind,
        r#type: batch.r#type.unwrap_or_default(),
        payload: delivery.payload.clone(),
        quarantined_us: chrono::Utc::now().timestamp_micros(),
        ..Quarantined::default()
    }))
}

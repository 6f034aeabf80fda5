//! Translates rows of either database into erased records.

use super::ErasureRecord;
use crate::metastore::rows::{Fields, space};

pub(in crate::metastore) fn record(row: &impl Fields) -> Result<ErasureRecord, sqlx::Error> {
    Ok(ErasureRecord {
        space: space(row)?,
        id_hash: row.text("id_hash")?,
        since_us: row.number("since_us")?,
        asked_by: row.text("asked_by")?,
        operation_id: row.text("operation_id")?,
        erased_us: row.maybe("erased_us")?,
        report: row.text("report")?,
        allowed_us: row.maybe("allowed_us")?,
        allowed_by: row.text("allowed_by")?,
    })
}

//! The records of a space that were erased and are kept out: nothing of them enters a table any more, and no deletion of them is remembered.

use std::collections::HashSet;

use arrow::array::{Array, AsArray, BooleanArray};
use arrow::compute::filter_record_batch;
use arrow::record_batch::RecordBatch;
use lake_shared::identity::Space;

use crate::metastore::erasures::record_ids::erasure_hash;
use crate::metric_names;
use crate::table_store::conversion::{ColumnType, converted};
use crate::table_store::schema_plan::ID_SOURCE;
use crate::table_store::{SpaceBatch, TableRows};

/// Records that are kept out, by the hashes of their ids.
#[derive(Debug, Default)]
pub(crate) struct KeptOut(HashSet<String>);

impl KeptOut {
    /// What is kept out of one space.
    pub(crate) fn of(hashes: Vec<String>) -> Self {
        Self(hashes.into_iter().collect())
    }

    fn contains(&self, space: &Space, id: &str) -> bool {
        self.0.contains(&erasure_hash(space, id))
    }

    /// The batch without all that is about such records, which counts as applied. `None`: nothing is.
    ///
    /// # Errors
    /// Rows of which the ids cannot be read.
    pub(crate) fn stripped(&self, batch: &SpaceBatch) -> Result<Option<SpaceBatch>, String> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let is_admitted = |id: &str| !self.contains(&batch.space, id);
        let before = batch.len();
        let mut stripped = SpaceBatch {
            space: batch.space.clone(),
            upserts: Vec::with_capacity(batch.upserts.len()),
            tombstones: batch.tombstones.iter().filter(|tombstone| is_admitted(&tombstone.id)).cloned().collect(),
        };
        for table in &batch.upserts {
            let rows = table.rows.iter().map(|rows| admitted(rows, is_admitted)).collect::<Result<Vec<_>, _>>()?;
            let rows: Vec<RecordBatch> = rows.into_iter().filter(|rows| rows.num_rows() > 0).collect();
            // A type whose rows are all kept out gets no table.
            if !rows.is_empty() {
                stripped.upserts.push(TableRows { document_type: table.document_type.clone(), rows });
            }
        }
        let kept_out = before - stripped.len();
        if kept_out == 0 {
            return Ok(None);
        }
        metrics::counter!(metric_names::KEPT_OUT_TOTAL, "kind" => batch.space.kind.name()).increment(kept_out as u64);
        Ok(Some(stripped))
    }
}

/// The rows whose ids may enter. Those without an id are left for others to refuse.
fn admitted(rows: &RecordBatch, is_admitted: impl Fn(&str) -> bool) -> Result<RecordBatch, String> {
    let ids = rows.column_by_name(ID_SOURCE).and_then(|ids| converted(ids, ColumnType::String));
    let ids = ids.ok_or_else(|| format!("field {ID_SOURCE} is missing, or no text"))?;
    let ids = ids.as_string::<i32>();
    let chosen: BooleanArray =
        (0..rows.num_rows()).map(|row| Some(ids.is_null(row) || is_admitted(ids.value(row)))).collect();
    if chosen.true_count() == rows.num_rows() {
        return Ok(rows.clone());
    }
    filter_record_batch(rows, &chosen).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use lake_test_kit::rows::{new_row, record_batch, space, tombstone};

    use super::*;

    fn batch(types: &[(&str, &[&str])], deleted: &[&str]) -> SpaceBatch {
        let rows = |ids: &[&str]| record_batch(&ids.iter().map(|id| new_row(id, 1, &[])).collect::<Vec<_>>());
        let table = |(name, ids): &(&str, &[&str])| TableRows { document_type: (*name).into(), rows: vec![rows(ids)] };
        let tombstones = deleted.iter().map(|id| tombstone(id, None, 1)).collect();
        SpaceBatch { space: space(), upserts: types.iter().map(table).collect(), tombstones }
    }

    #[test]
    fn nothing_about_a_record_that_is_kept_out_is_left() {
        let kept_out = KeptOut::of(vec![erasure_hash(&space(), "x"), erasure_hash(&space(), "y")]);
        assert!(kept_out.stripped(&batch(&[("t", &["a", "b"])], &["c"])).unwrap().is_none());
        let stripped = kept_out.stripped(&batch(&[("t", &["a", "x", "b"]), ("u", &["y"])], &["x", "c"]));
        let stripped = stripped.unwrap().unwrap();
        assert_eq!((stripped.len(), stripped.upserts.len()), (3, 1));
        assert!(!format!("{stripped:?}").contains("\"x\""));
        assert!(KeptOut::default().stripped(&batch(&[("t", &["x"])], &[])).unwrap().is_none());
        let elsewhere = Space { domain: "elsewhere".into(), ..space() };
        let others = SpaceBatch { space: elsewhere, ..batch(&[("t", &["x"])], &["x"]) };
        assert!(kept_out.stripped(&others).unwrap().is_none(), "an id of another project is another record");
    }
}

//! The types of a space whose tables were dropped.

use std::collections::HashSet;

use lake_proto::queue::v1::Tombstone;
use lake_shared::identity::DocumentType;

use crate::metastore::steering::DroppedRecord;
use crate::table_store::delta::files::key_columns::KeyColumns;
use crate::table_store::schema_plan::{ID_SOURCE, OBSERVED_SOURCE, VERSION_SOURCE};
use crate::table_store::{SpaceBatch, TableRows};

/// Why an id leaves whose record is of a dropped table.
const REASON: &str = "table_dropped";

/// Types that have no table, as an operator has dropped it.
#[derive(Debug, Default)]
pub(crate) struct DroppedTypes {
    whole_space: bool,
    types: HashSet<DocumentType>,
}

impl DroppedTypes {
    /// What is kept of one space.
    pub(crate) fn of(records: Vec<DroppedRecord>) -> Self {
        let mut dropped = Self::default();
        for record in records {
            match record.target.document_type {
                Some(document_type) => {
                    dropped.types.insert(document_type);
                }
                None => dropped.whole_space = true,
            }
        }
        dropped
    }

    fn contains(&self, document_type: &DocumentType) -> bool {
        self.whole_space || self.types.contains(document_type)
    }

    /// The batch with a tombstone for each row of such a type: the row has no place, but the id may have an older row in another table, which
    /// it has left. `None`: there is no such row.
    ///
    /// # Errors
    /// A row of which neither id nor order can be read.
    pub(crate) fn stripped(&self, batch: &SpaceBatch) -> Result<Option<SpaceBatch>, String> {
        if !batch.upserts.iter().any(|rows| self.contains(&rows.document_type)) {
            return Ok(None);
        }
        let (leaving, staying): (Vec<TableRows>, Vec<TableRows>) =
            batch.upserts.iter().cloned().partition(|rows| self.contains(&rows.document_type));
        let mut tombstones = batch.tombstones.clone();
        for rows in leaving.iter().flat_map(|table| &table.rows) {
            let keys = KeyColumns::of(rows, ID_SOURCE, VERSION_SOURCE, OBSERVED_SOURCE)?;
            for row in 0..rows.num_rows() {
                let order = keys.order(row);
                tombstones.push(Tombstone {
                    id: keys.id(row).unwrap_or_default().to_owned(),
                    version_us: Some(order.version_us),
                    observed_us: order.observed_us,
                    reason: REASON.to_owned(),
                    lineage: None,
                });
            }
        }
        Ok(Some(SpaceBatch { space: batch.space.clone(), upserts: staying, tombstones }))
    }
}

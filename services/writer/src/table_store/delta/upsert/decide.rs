//! A batch as the guard sees it: one entry per id, and what is to be done about each. Pure.

use std::collections::hash_map::Entry as MapEntry;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;

use crate::key_index::{IdHash, id_hash};
use crate::metastore::StoredTombstone;
use crate::table_store::SpaceBatch;
use crate::table_store::by_id_hash::ByIdHash;
use crate::table_store::conversion::{ColumnType, converted};
use crate::table_store::order_guard::{
    Held, RowOrder, TombstoneOrder, comparable_version, row_enters, tombstone_effect,
};
use crate::table_store::schema_plan::{ID_SOURCE, OBSERVED_SOURCE, VERSION_SOURCE};

/// Where a row stands in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowAt {
    /// Position in `SpaceBatch::upserts`.
    pub(crate) table: usize,
    /// Position in its `rows`.
    pub(crate) batch: usize,
    /// Row of that batch.
    pub(crate) row: usize,
    /// Its order.
    pub(crate) order: RowOrder,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    row: Option<RowAt>,
    tombstone: Option<(usize, TombstoneOrder)>,
}

/// The batch with at most one entry per id, in order of arrival.
#[derive(Debug, Default)]
pub(crate) struct Entries {
    arrived: Vec<IdHash>,
    by_id: ByIdHash<Entry>,
}

/// A row that enters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entering {
    pub(crate) id: IdHash,
    pub(crate) at: RowAt,
}

/// What a batch does to a space.
#[derive(Debug, Default)]
pub(crate) struct Decisions {
    /// Rows that enter, by position in `SpaceBatch::upserts`.
    pub(crate) entering: Vec<Vec<Entering>>,
    /// Ids whose rows leave.
    pub(crate) leaving: Vec<IdHash>,
    /// Tombstones to remember.
    pub(crate) remembered: Vec<StoredTombstone>,
}

/// The columns that the engine itself reads.
pub(crate) struct KeyColumns {
    ids: arrow::array::ArrayRef,
    versions: arrow::array::ArrayRef,
    observed: Option<arrow::array::ArrayRef>,
}

impl KeyColumns {
    /// Finds the columns under these names. The error names the one that is missing or has the wrong type.
    pub(crate) fn of(batch: &RecordBatch, id: &str, version: &str, observed: &str) -> Result<Self, String> {
        let observed = typed_column(batch, observed, ColumnType::Timestamp)?;
        Ok(Self { observed: Some(observed), ..Self::without_observation(batch, id, version)? })
    }

    /// The same where the instants of observation do not matter.
    pub(crate) fn without_observation(batch: &RecordBatch, id: &str, version: &str) -> Result<Self, String> {
        let ids = typed_column(batch, id, ColumnType::String)?;
        Ok(Self { ids, versions: typed_column(batch, version, ColumnType::Long)?, observed: None })
    }

    /// Id of a row; `None` where it is NULL.
    pub(crate) fn id(&self, row: usize) -> Option<&str> {
        let ids = self.ids.as_string::<i32>();
        ids.is_valid(row).then(|| ids.value(row))
    }

    /// What the index knows a row by; `None` for one without an id, which somebody else wrote and which is nobody's.
    pub(crate) fn id_hash(&self, row: usize) -> Option<IdHash> {
        self.id(row).filter(|id| !id.is_empty()).map(id_hash)
    }

    /// Order of a row. NULL is older than anything.
    pub(crate) fn order(&self, row: usize) -> RowOrder {
        let versions = self.versions.as_primitive::<Int64Type>();
        let observed = self.observed.as_ref().map(|observed| observed.as_primitive::<TimestampMicrosecondType>());
        let observed = observed.filter(|observed| observed.is_valid(row)).map(|observed| observed.value(row));
        let version = versions.is_valid(row).then(|| versions.value(row));
        RowOrder { version_us: comparable_version(version), observed_us: observed.unwrap_or(i64::MIN) }
    }
}

fn typed_column(batch: &RecordBatch, name: &str, column_type: ColumnType) -> Result<arrow::array::ArrayRef, String> {
    let array = batch.column_by_name(name).ok_or_else(|| format!("field {name} is missing"))?;
    converted(array, column_type).ok_or_else(|| format!("field {name} is not of type {column_type:?}"))
}

impl Entries {
    /// Folds a batch. The error says which row can never be stored.
    pub(crate) fn of(batch: &SpaceBatch) -> Result<Self, String> {
        let mut entries = Self::default();
        for (table, rows) in batch.upserts.iter().enumerate() {
            for (number, record_batch) in rows.rows.iter().enumerate() {
                let keys = KeyColumns::of(record_batch, ID_SOURCE, VERSION_SOURCE, OBSERVED_SOURCE)?;
                for row in 0..record_batch.num_rows() {
                    let id = keys.id(row).filter(|id| !id.is_empty());
                    let id = id.ok_or_else(|| format!("row {row} of type `{}` has no id", rows.document_type))?;
                    entries.add_row(id_hash(id), RowAt { table, batch: number, row, order: keys.order(row) });
                }
            }
        }
        for (position, tombstone) in batch.tombstones.iter().enumerate() {
            if tombstone.id.is_empty() {
                return Err("a tombstone has no id".into());
            }
            let version_us = tombstone.version_us.map(|version_us| comparable_version(Some(version_us)));
            let order = TombstoneOrder { version_us, observed_us: tombstone.observed_us };
            entries.add_tombstone(id_hash(&tombstone.id), position, order);
        }
        Ok(entries)
    }

    /// The ids, in order of arrival.
    pub(crate) fn ids(&self) -> Vec<IdHash> {
        self.arrived.clone()
    }

    /// Where a decision depends on when a held row was observed: ids with the instants that are compared with it.
    pub(crate) fn questions(&self, held_version_us: impl Fn(IdHash) -> Option<i64>) -> Vec<(IdHash, i64)> {
        let mut questions = Vec::new();
        for &id in &self.arrived {
            let Some(held_us) = held_version_us(id) else { continue };
            let Entry { row, tombstone } = self.by_id[&id];
            let row = row.filter(|row| row.order.version_us == held_us).map(|row| row.order.observed_us);
            let tombstone = tombstone.filter(|(_, order)| order.asks_observation(held_us));
            questions.extend(row.into_iter().chain(tombstone.map(|(_, order)| order.observed_us)).map(|us| (id, us)));
        }
        questions
    }

    fn entry(&mut self, id: IdHash) -> &mut Entry {
        match self.by_id.entry(id) {
            MapEntry::Occupied(held) => held.into_mut(),
            MapEntry::Vacant(free) => {
                self.arrived.push(id);
                free.insert(Entry::default())
            }
        }
    }

    fn add_row(&mut self, id: IdHash, row: RowAt) {
        let entry = self.entry(id);
        if entry.row.is_none_or(|held| row.order > held.order) {
            entry.row = Some(row);
        }
    }

    fn add_tombstone(&mut self, id: IdHash, position: usize, order: TombstoneOrder) {
        let entry = self.entry(id);
        if entry.tombstone.is_none_or(|(_, held)| order.replaces(held)) {
            entry.tombstone = Some((position, order));
        }
    }

    /// What is to be done, given what is held now. Asked again after a conflict, the part that is done already is gone.
    pub(crate) fn decide(&self, batch: &SpaceBatch, held: impl Fn(IdHash) -> Held) -> Decisions {
        let mut decisions = Decisions { entering: vec![Vec::new(); batch.upserts.len()], ..Decisions::default() };
        for &id in &self.arrived {
            let Entry { row, tombstone } = self.by_id[&id];
            let held = held(id);
            // Within the batch the same rule: either the tombstone takes the row away, or the row outlives it.
            let survivor = row.filter(|row| tombstone.is_none_or(|(_, order)| !order.beats_row(row.order)));
            if let Some(at) = survivor {
                if row_enters(held, at.order) {
                    decisions.entering[at.table].push(Entering { id, at });
                }
            } else if let Some((position, order)) = tombstone {
                let effect = tombstone_effect(held, order);
                if effect.remember {
                    let id_text = batch.tombstones[position].id.clone();
                    decisions.remembered.push(StoredTombstone { id_hash: id, id: id_text, order });
                }
                if effect.delete {
                    decisions.leaving.push(id);
                }
            }
        }
        decisions
    }
}

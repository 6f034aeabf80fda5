//! A batch as the guard sees it: one entry per id, and what is to be done about each. Pure.
//!
//! An *incomplete* row is ordered as any other; what it does not bring is taken from the newest complete row of its id, which is in the batch or
//! in a table ([`crate::table_store::delta::upsert::complete_rows`]).

use std::collections::hash_map::Entry as MapEntry;

use lake_proto::queue::v1::Tombstone;

use crate::key_index::{IdHash, id_hash};
use crate::metastore::StoredTombstone;
use crate::order_guard::{KnownOrders, RowOrder, TombstoneOrder, comparable_instant, row_enters, tombstone_effect};
use crate::table_store::SpaceBatch;
use crate::table_store::by_id_hash::ByIdHash;
use crate::table_store::delta::files::key_columns::KeyColumns;
use crate::table_store::schema_plan::{ID_SOURCE, INCOMPLETE_SOURCE, OBSERVED_SOURCE, VERSION_SOURCE};

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
struct BatchEntry {
    row: Option<RowAt>,
    /// The newest row that is complete; `row` itself, unless that is incomplete.
    complete: Option<RowAt>,
    tombstone: Option<(usize, TombstoneOrder)>,
}

/// The batch with at most one entry per id, in order of arrival.
#[derive(Debug, Default)]
pub(crate) struct BatchEntries {
    arrived: Vec<IdHash>,
    by_id: ByIdHash<BatchEntry>,
}

/// A row that enters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Upsert {
    pub(crate) id: IdHash,
    pub(crate) at: RowAt,
}

/// An incomplete row that enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IncompleteUpsert {
    /// Position in [`Decisions::upserts`].
    pub(crate) table: usize,
    /// Position in that table's rows.
    pub(crate) upsert: usize,
    /// The complete row of the batch that has what it lacks; `None`: the row that is held, if there is one.
    pub(crate) base: Option<RowAt>,
}

/// What a batch does to a space.
#[derive(Debug, Default)]
pub(crate) struct Decisions {
    /// Rows that enter, by position in `SpaceBatch::upserts`.
    pub(crate) upserts: Vec<Vec<Upsert>>,
    /// Those among them that are incomplete.
    pub(crate) incomplete: Vec<IncompleteUpsert>,
    /// Ids whose rows leave.
    pub(crate) deletes: Vec<IdHash>,
    /// Tombstones to remember.
    pub(crate) remembered: Vec<StoredTombstone>,
}

impl BatchEntries {
    /// Folds a batch. The error says which row can never be stored.
    pub(crate) fn of(batch: &SpaceBatch) -> Result<Self, String> {
        let mut entries = Self::default();
        for (table, rows) in batch.upserts.iter().enumerate() {
            for (number, record_batch) in rows.rows.iter().enumerate() {
                let keys = KeyColumns::of(record_batch, ID_SOURCE, VERSION_SOURCE, OBSERVED_SOURCE)?;
                let marks = record_batch.column_by_name(INCOMPLETE_SOURCE);
                for row in 0..record_batch.num_rows() {
                    let id = keys.id(row).filter(|id| !id.is_empty());
                    let id = id.ok_or_else(|| format!("row {row} of type `{}` has no id", rows.document_type))?;
                    let is_complete = marks.is_none_or(|marks| marks.is_null(row));
                    entries.add_row(
                        id_hash(id),
                        RowAt { table, batch: number, row, order: keys.order(row) },
                        is_complete,
                    );
                }
            }
        }
        for (position, tombstone) in batch.tombstones.iter().enumerate() {
            if tombstone.id.is_empty() {
                return Err("a tombstone has no id".into());
            }
            let observed_us = comparable_instant(Some(tombstone.observed_us));
            let order = TombstoneOrder { observed_us, version_us: tombstone.version_us };
            entries.add_tombstone(id_hash(&tombstone.id), position, order);
        }
        Ok(entries)
    }

    /// The ids, in order of arrival.
    pub(crate) fn ids(&self) -> Vec<IdHash> {
        self.arrived.clone()
    }

    /// Where a decision depends on the version of a held row: ids with the versions that are compared with it.
    pub(crate) fn tie_breakers_needed(&self, held_observed_us: impl Fn(IdHash) -> Option<i64>) -> Vec<(IdHash, i64)> {
        let mut tie_breakers_needed = Vec::new();
        for &id in &self.arrived {
            let Some(held_us) = held_observed_us(id) else { continue };
            let BatchEntry { row, tombstone, .. } = self.by_id[&id];
            let row = row.filter(|row| row.order.observed_us == held_us).map(|row| row.order.version_us);
            let tombstone = tombstone.and_then(|(_, order)| order.tie_breaker(held_us));
            tie_breakers_needed.extend(row.into_iter().chain(tombstone).map(|version_us| (id, version_us)));
        }
        tie_breakers_needed
    }

    fn entry(&mut self, id: IdHash) -> &mut BatchEntry {
        match self.by_id.entry(id) {
            MapEntry::Occupied(held) => held.into_mut(),
            MapEntry::Vacant(free) => {
                self.arrived.push(id);
                free.insert(BatchEntry::default())
            }
        }
    }

    fn add_row(&mut self, id: IdHash, row: RowAt, is_complete: bool) {
        let entry = self.entry(id);
        let is_newer = |held: Option<RowAt>| held.is_none_or(|held| row.order > held.order);
        if is_newer(entry.row) {
            entry.row = Some(row);
        }
        if is_complete && is_newer(entry.complete) {
            entry.complete = Some(row);
        }
    }

    fn add_tombstone(&mut self, id: IdHash, position: usize, order: TombstoneOrder) {
        let entry = self.entry(id);
        if entry.tombstone.is_none_or(|(_, held)| order.replaces(held)) {
            entry.tombstone = Some((position, order));
        }
    }

    /// What is to be done, given what is held now. Asked again after a conflict, the part that is done already is gone.
    pub(crate) fn decide(&self, batch: &SpaceBatch, held: impl Fn(IdHash) -> KnownOrders) -> Decisions {
        let mut decisions = Decisions { upserts: vec![Vec::new(); batch.upserts.len()], ..Decisions::default() };
        for &id in &self.arrived {
            let BatchEntry { row, complete, tombstone } = self.by_id[&id];
            let held = held(id);
            // Within the batch the same rule: either the tombstone takes the row away, or the row outlives it.
            let survivor = row.filter(|row| tombstone.is_none_or(|(_, order)| !order.beats_row(row.order)));
            if let Some(at) = survivor {
                if row_enters(held, at.order) {
                    if complete != Some(at) {
                        let base = complete.filter(|base| held.row.is_none_or(|held| base.order > held));
                        let upsert = decisions.upserts[at.table].len();
                        decisions.incomplete.push(IncompleteUpsert { table: at.table, upsert, base });
                    }
                    decisions.upserts[at.table].push(Upsert { id, at });
                }
            } else if let Some((position, order)) = tombstone {
                let effect = tombstone_effect(held, order);
                if effect.remember {
                    let Tombstone { id: id_text, reason, .. } = batch.tombstones[position].clone();
                    decisions.remembered.push(StoredTombstone { id_hash: id, id: id_text, order, reason });
                }
                if effect.delete {
                    decisions.deletes.push(id);
                }
            }
        }
        decisions
    }
}

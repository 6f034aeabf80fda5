//! Which tables a batch changes, and which of them have nothing to do with each other. Pure.
//!
//! A *move* ties two tables together: an id whose row enters one and leaves the other. The row must enter before the other one leaves: a
//! reader may see an id twice for a moment, never not at all. Tables without a move in a batch are committed in any order.

use std::collections::{BTreeMap, HashMap, HashSet};

use roaring::RoaringBitmap;

use crate::key_index::{FileNumber, Position};
use crate::table_store::by_id_hash::ByIdHash;
use crate::table_store::delta::space::live_files::LiveFiles;
use crate::table_store::delta::space::state::RowLocation;
use crate::table_store::delta::table_number::TableNumber;
use crate::table_store::delta::upsert::plan::decide::Decisions;

/// What happens to a table that has no part in a move.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct TableChange {
    /// Which table of the space.
    pub(crate) number: TableNumber,
    /// Where its rows that enter are in `SpaceBatch::upserts`, if there are any.
    pub(crate) rows: Option<usize>,
    /// Positions that must leave: replaced and deleted rows, stale rows.
    pub(crate) dead: BTreeMap<FileNumber, RoaringBitmap>,
    /// How many rows leave without being replaced.
    pub(crate) deleted: u64,
}

/// The tables that a batch changes.
#[derive(Debug, Default)]
pub(crate) struct CommitGroups {
    /// Those that stand alone, by number.
    pub(crate) independent: Vec<TableChange>,
    /// Those between which rows move, and those that the batch names twice.
    pub(crate) dependent: HashSet<TableNumber>,
}

/// Divides the tables of a batch. `numbers` are those of `SpaceBatch::upserts`.
pub(crate) fn group(
    numbers: &[TableNumber],
    decisions: &Decisions,
    found: &ByIdHash<RowLocation>,
    live: &LiveFiles,
) -> CommitGroups {
    let dependent = dependent(numbers, decisions, found);
    let mut independent = TableChanges { dependent: &dependent, by_number: BTreeMap::new() };
    for (position, (number, upserts)) in numbers.iter().zip(&decisions.upserts).enumerate() {
        let Some(change) = independent.of(*number).filter(|_| !upserts.is_empty()) else { continue };
        change.rows = Some(position);
        for row in upserts.iter().filter_map(|row| found.get(&row.id)) {
            change.leaves(row.position);
        }
    }
    for row in decisions.deletes.iter().filter_map(|id| found.get(id)) {
        if let Some(change) = independent.of(row.table) {
            change.leaves(row.position);
            change.deleted += 1;
        }
    }
    for number in live.tables_with_stale_rows() {
        if let Some(change) = independent.of(number) {
            for (file, rows) in live.stale_rows_of(number) {
                *change.dead.entry(file).or_default() |= rows;
            }
        }
    }
    let is_changed = |change: &TableChange| change.rows.is_some() || !change.dead.is_empty();
    let independent = independent.by_number.into_values().filter(is_changed).collect();
    CommitGroups { independent, dependent }
}

fn dependent(numbers: &[TableNumber], decisions: &Decisions, found: &ByIdHash<RowLocation>) -> HashSet<TableNumber> {
    let mut dependent = HashSet::new();
    let mut seen: HashMap<TableNumber, usize> = HashMap::new();
    for (position, (number, upserts)) in numbers.iter().zip(&decisions.upserts).enumerate() {
        if seen.insert(*number, position).is_some() {
            dependent.insert(*number);
        }
        for row in upserts.iter().filter_map(|row| found.get(&row.id)) {
            if row.table != *number {
                dependent.extend([*number, row.table]);
            }
        }
    }
    dependent
}

struct TableChanges<'a> {
    dependent: &'a HashSet<TableNumber>,
    by_number: BTreeMap<TableNumber, TableChange>,
}

impl TableChanges<'_> {
    /// The change of a table that stands alone.
    fn of(&mut self, number: TableNumber) -> Option<&mut TableChange> {
        if self.dependent.contains(&number) {
            return None;
        }
        Some(self.by_number.entry(number).or_insert_with(|| TableChange { number, ..TableChange::default() }))
    }
}

impl TableChange {
    fn leaves(&mut self, position: Position) {
        self.dead.entry(position.file).or_default().insert(position.row.get());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key_index::IdHash;
    use crate::order_guard::RowOrder;
    use crate::table_store::delta::upsert::plan::decide::{RowAt, Upsert};

    const ORDER: RowOrder = RowOrder { observed_us: 1, version_us: 1 };

    fn upserts(table: usize, ids: &[IdHash]) -> Vec<Upsert> {
        ids.iter().map(|id| Upsert { id: *id, at: RowAt { table, batch: 0, row: 0, order: ORDER } }).collect()
    }

    const fn number(table: u32) -> TableNumber {
        TableNumber::of_index(table as usize)
    }

    /// Row `id` of table `table` is row `id` of the file with the number of the table.
    fn held(rows: &[(IdHash, u32)]) -> ByIdHash<RowLocation> {
        let found = |&(id, table): &(IdHash, u32)| {
            (id, RowLocation { position: Position::new(table, id as u32), table: number(table), order: ORDER })
        };
        rows.iter().map(found).collect()
    }

    fn change(table: u32, rows: Option<usize>, dead: &[u32], deleted: u64) -> TableChange {
        let rows_dead: RoaringBitmap = dead.iter().copied().collect();
        let dead =
            if dead.is_empty() { BTreeMap::new() } else { BTreeMap::from([(FileNumber::new(table), rows_dead)]) };
        TableChange { number: number(table), rows, dead, deleted }
    }

    #[test]
    fn only_tables_between_which_rows_move_are_tied() {
        let mut live = LiveFiles::default();
        (10..20).for_each(|table| live.set(FileNumber::new(table), number(table), None));
        live.mark_stale(Position::new(15, 7));
        live.mark_stale(Position::new(11, 8));
        let found = held(&[(1, 10), (2, 12), (3, 13), (4, 14), (5, 11), (6, 10), (9, 12)]);
        let decisions = Decisions {
            // 10: one replaced, one new. 11: one replaced, one from 12. 16: nothing. 17: new.
            upserts: vec![upserts(0, &[1, 100]), upserts(1, &[5, 2]), Vec::new(), upserts(3, &[101])],
            // From 13 and 14, which get no rows, from 10, and from 12, which is dependent.
            deletes: vec![3, 4, 6, 9, 999],
            ..Decisions::default()
        };
        let CommitGroups { independent, dependent } = group(&[10, 11, 16, 17].map(number), &decisions, &found, &live);
        assert_eq!(dependent, HashSet::from([11, 12].map(number)));
        let wanted = [
            change(10, Some(0), &[1, 6], 1),
            change(13, None, &[3], 1),
            change(14, None, &[4], 1),
            change(15, None, &[7], 0),
            change(17, Some(3), &[], 0),
        ];
        assert_eq!(independent, wanted);
    }

    #[test]
    fn a_table_that_is_named_twice_is_tied() {
        let upserts = vec![upserts(0, &[1]), upserts(1, &[2]), upserts(2, &[3])];
        let decisions = Decisions { upserts, ..Decisions::default() };
        let division = group(&[5, 6, 5].map(number), &decisions, &ByIdHash::default(), &LiveFiles::default());
        assert_eq!(
            (division.dependent, division.independent),
            (HashSet::from([number(5)]), vec![change(6, Some(1), &[], 0)])
        );
    }
}

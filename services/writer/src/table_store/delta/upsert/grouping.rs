//! Which tables a batch changes, and which of them have nothing to do with each other. Pure.
//!
//! A *move* ties two tables together: an id whose row enters one and leaves the other. The row must enter before the other one leaves: a
//! reader may see an id twice for a moment, never not at all. Tables without a move in a batch are committed in any order.

use std::collections::{BTreeMap, HashMap, HashSet};

use roaring::RoaringBitmap;

use crate::key_index::Position;
use crate::table_store::by_id_hash::ByIdHash;
use crate::table_store::delta::space::live_files::LiveFiles;
use crate::table_store::delta::space::state::Found;
use crate::table_store::delta::upsert::decide::Decisions;

/// What happens to a table that has no part in a move.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Share {
    /// Which table of the space.
    pub(crate) number: u32,
    /// Where its entering rows are in `SpaceBatch::upserts`, if there are any.
    pub(crate) rows: Option<usize>,
    /// Positions that must leave: replaced and deleted rows, strays.
    pub(crate) dead: BTreeMap<u32, RoaringBitmap>,
    /// How many rows leave without being replaced.
    pub(crate) deleted: u64,
}

/// The tables that a batch changes.
#[derive(Debug, Default)]
pub(crate) struct Division {
    /// Those that stand alone, by number.
    pub(crate) apart: Vec<Share>,
    /// Those between which rows move, and those that the batch names twice.
    pub(crate) tied: HashSet<u32>,
}

/// Divides the tables of a batch. `numbers` are those of `SpaceBatch::upserts`.
pub(crate) fn divide(numbers: &[u32], decisions: &Decisions, found: &ByIdHash<Found>, live: &LiveFiles) -> Division {
    let tied = tied(numbers, decisions, found);
    let mut apart = Shares { tied: &tied, by_number: BTreeMap::new() };
    for (position, (number, entering)) in numbers.iter().zip(&decisions.entering).enumerate() {
        let Some(share) = apart.of(*number).filter(|_| !entering.is_empty()) else { continue };
        share.rows = Some(position);
        for row in entering.iter().filter_map(|row| found.get(&row.id)) {
            share.leaves(row.position);
        }
    }
    for row in decisions.leaving.iter().filter_map(|id| found.get(id)) {
        if let Some(share) = apart.of(row.table) {
            share.leaves(row.position);
            share.deleted += 1;
        }
    }
    for number in live.tables_with_strays() {
        if let Some(share) = apart.of(number) {
            for (file, rows) in live.strays_of(number) {
                *share.dead.entry(file).or_default() |= rows;
            }
        }
    }
    let is_changed = |share: &Share| share.rows.is_some() || !share.dead.is_empty();
    let apart = apart.by_number.into_values().filter(is_changed).collect();
    Division { apart, tied }
}

fn tied(numbers: &[u32], decisions: &Decisions, found: &ByIdHash<Found>) -> HashSet<u32> {
    let mut tied = HashSet::new();
    let mut seen: HashMap<u32, usize> = HashMap::new();
    for (position, (number, entering)) in numbers.iter().zip(&decisions.entering).enumerate() {
        if seen.insert(*number, position).is_some() {
            tied.insert(*number);
        }
        for row in entering.iter().filter_map(|row| found.get(&row.id)) {
            if row.table != *number {
                tied.extend([*number, row.table]);
            }
        }
    }
    tied
}

struct Shares<'a> {
    tied: &'a HashSet<u32>,
    by_number: BTreeMap<u32, Share>,
}

impl Shares<'_> {
    /// The share of a table that stands alone.
    fn of(&mut self, number: u32) -> Option<&mut Share> {
        if self.tied.contains(&number) {
            return None;
        }
        Some(self.by_number.entry(number).or_insert_with(|| Share { number, ..Share::default() }))
    }
}

impl Share {
    fn leaves(&mut self, position: Position) {
        self.dead.entry(position.file).or_default().insert(position.row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key_index::IdHash;
    use crate::table_store::delta::upsert::decide::{Entering, RowAt};
    use crate::table_store::order_guard::RowOrder;

    const ORDER: RowOrder = RowOrder { version_us: 1, observed_us: 1 };

    fn entering(table: usize, ids: &[IdHash]) -> Vec<Entering> {
        ids.iter().map(|id| Entering { id: *id, at: RowAt { table, batch: 0, row: 0, order: ORDER } }).collect()
    }

    /// Row `id` of table `table` is row `id` of the file with the number of the table.
    fn held(rows: &[(IdHash, u32)]) -> ByIdHash<Found> {
        let found = |&(id, table): &(IdHash, u32)| {
            (id, Found { position: Position { file: table, row: id as u32 }, table, order: ORDER })
        };
        rows.iter().map(found).collect()
    }

    fn share(number: u32, rows: Option<usize>, dead: &[u32], deleted: u64) -> Share {
        let rows_dead: RoaringBitmap = dead.iter().copied().collect();
        let dead = if dead.is_empty() { BTreeMap::new() } else { BTreeMap::from([(number, rows_dead)]) };
        Share { number, rows, dead, deleted }
    }

    #[test]
    fn only_tables_between_which_rows_move_are_tied() {
        let mut live = LiveFiles::default();
        (10..20).for_each(|table| live.set(table, table, None));
        live.condemn(Position { file: 15, row: 7 });
        live.condemn(Position { file: 11, row: 8 });
        let found = held(&[(1, 10), (2, 12), (3, 13), (4, 14), (5, 11), (6, 10), (9, 12)]);
        let decisions = Decisions {
            // 10: one replaced, one new. 11: one replaced, one from 12. 16: nothing. 17: new.
            entering: vec![entering(0, &[1, 100]), entering(1, &[5, 2]), Vec::new(), entering(3, &[101])],
            // From 13 and 14, which get no rows, from 10, and from 12, which is tied.
            leaving: vec![3, 4, 6, 9, 999],
            remembered: Vec::new(),
        };
        let Division { apart, tied } = divide(&[10, 11, 16, 17], &decisions, &found, &live);
        assert_eq!(tied, HashSet::from([11, 12]));
        let wanted = [
            share(10, Some(0), &[1, 6], 1),
            share(13, None, &[3], 1),
            share(14, None, &[4], 1),
            share(15, None, &[7], 0),
            share(17, Some(3), &[], 0),
        ];
        assert_eq!(apart, wanted);
    }

    #[test]
    fn a_table_that_is_named_twice_is_tied() {
        let entering = vec![entering(0, &[1]), entering(1, &[2]), entering(2, &[3])];
        let decisions = Decisions { entering, ..Decisions::default() };
        let division = divide(&[5, 6, 5], &decisions, &ByIdHash::default(), &LiveFiles::default());
        assert_eq!((division.tied, division.apart), (HashSet::from([5]), vec![share(6, Some(1), &[], 0)]));
    }
}

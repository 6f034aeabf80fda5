//! Where each id of a space lives: derived data in memory, about 60 bytes a key, no texts.
//!
//! Kept in step with commits; rebuilt from the tables when a space is first used. An id has one *place*. Where a second row of
//! the same id is found in another table or file (a type move that was cut between its two commits), the older one is a *stray*
//! and leaves with the next commit of its table.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use siphasher::sip128::{Hasher128, SipHasher24};

use super::order_guard::RowOrder;

/// 128-bit hash of an id.
pub type IdHash = u128;

/// Hash of an id; the same in every process.
pub fn id_hash(id: &str) -> IdHash {
    let mut hasher = SipHasher24::new_with_keys(0x6c61_6b65_2e69_6478, 0x636f_6d6d_6361_7265);
    hasher.write(id.as_bytes());
    hasher.finish128().as_u128()
}

/// Keys are hashes already; half of one is as good a hash as any.
#[derive(Default)]
pub struct HashIsKey(u64);

impl Hasher for HashIsKey {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 ^= u64::from_le_bytes(word);
        }
    }
    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }
}

/// A map by [`IdHash`].
pub type ByIdHash<V> = HashMap<IdHash, V, BuildHasherDefault<HashIsKey>>;

/// A row's place and order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of the table within its space, by this process.
    pub table: u32,
    /// Number of the data file within the space, by this process; never used twice.
    pub file: u32,
    /// Order of the row.
    pub order: RowOrder,
}

/// The index of one space.
#[derive(Debug, Default)]
pub struct KeyIndex {
    places: ByIdHash<Place>,
    strays: HashMap<(u32, IdHash), u32>,
}

impl KeyIndex {
    /// The row of an id.
    pub fn get(&self, id: IdHash) -> Option<Place> {
        self.places.get(&id).copied()
    }

    /// Number of ids.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// A row that was found in a table. The newer of two rows of one id counts, the other is a stray.
    pub fn found(&mut self, id: IdHash, place: Place) {
        let stray = match self.places.get_mut(&id) {
            Some(held) if held.order >= place.order => place,
            Some(held) => std::mem::replace(held, place),
            None => {
                self.places.insert(id, place);
                return;
            }
        };
        self.strays.insert((stray.table, id), stray.file);
    }

    /// A row that was committed to its table. An older row in another table becomes a stray; one in the same table was replaced.
    pub fn committed(&mut self, id: IdHash, place: Place) {
        if let Some(before) = self.places.insert(id, place).filter(|before| before.table != place.table) {
            self.strays.insert((before.table, id), before.file);
        }
    }

    /// A row that was copied into another file of the same table.
    pub fn moved(&mut self, id: IdHash, table: u32, from: u32, to: u32) {
        if let Some(place) = self.places.get_mut(&id).filter(|place| place.table == table && place.file == from) {
            place.file = to;
        }
    }

    /// A row that left its table.
    pub fn left(&mut self, id: IdHash, table: u32) {
        if self.places.get(&id).is_some_and(|place| place.table == table) {
            self.places.remove(&id);
        }
    }

    /// The strays of the files for which `rewritten` answers yes are gone: a rewrite never copies them.
    pub fn strays_left(&mut self, rewritten: impl Fn(u32) -> bool) {
        self.strays.retain(|_, file| !rewritten(*file));
    }

    /// Forgets everything in the files for which `gone` answers yes: they are no longer part of their table.
    pub fn forget_files(&mut self, gone: impl Fn(u32) -> bool) {
        self.places.retain(|_, place| !gone(place.file));
        self.strays.retain(|_, file| !gone(*file));
    }

    /// Tables with strays, each once.
    pub fn tables_with_strays(&self) -> Vec<u32> {
        let mut tables: Vec<u32> = self.strays.keys().map(|(table, _)| *table).collect();
        tables.sort_unstable();
        tables.dedup();
        tables
    }

    /// Files of a table that hold strays.
    pub fn stray_files(&self, table: u32) -> impl Iterator<Item = u32> + '_ {
        self.strays.iter().filter(move |((of, _), _)| *of == table).map(|(_, file)| *file)
    }

    /// Every id with its place.
    pub fn iter(&self) -> impl Iterator<Item = (IdHash, Place)> + '_ {
        self.places.iter().map(|(id, place)| (*id, *place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn place(table: u32, file: u32, version_us: i64) -> Place {
        Place { table, file, order: RowOrder { version_us, observed_us: 0 } }
    }

    #[test]
    fn of_two_rows_found_the_newer_counts() {
        for (first, second) in [(place(1, 1, 5), place(2, 2, 6)), (place(2, 2, 6), place(1, 1, 5))] {
            let mut index = KeyIndex::default();
            index.found(7, first);
            index.found(7, second);
            assert_eq!(index.get(7), Some(place(2, 2, 6)));
            assert_eq!(index.tables_with_strays(), [1]);
            index.strays_left(|file| file == 1);
            assert!(index.tables_with_strays().is_empty());
            assert_eq!(index.get(7), Some(place(2, 2, 6)));
        }
    }

    #[test]
    fn a_type_move_leaves_a_stray_behind() {
        let mut index = KeyIndex::default();
        index.committed(7, place(1, 1, 5));
        index.committed(7, place(1, 2, 6));
        assert!(index.tables_with_strays().is_empty());
        index.committed(7, place(2, 3, 7));
        assert_eq!(index.stray_files(1).collect::<Vec<_>>(), [2]);
        index.moved(7, 2, 3, 4);
        assert_eq!(index.get(7), Some(place(2, 4, 7)));
        index.strays_left(|file| file == 2);
        index.committed(7, place(1, 5, 8));
        assert_eq!(index.tables_with_strays(), [2]);
        index.left(7, 2);
        assert_eq!(index.get(7), Some(place(1, 5, 8)));
        index.left(7, 1);
        assert_eq!(index.get(7), None);
    }

    #[test]
    fn hashes_do_not_change() {
        assert_eq!(id_hash(""), id_hash(""));
        assert_ne!(id_hash("a"), id_hash("b"));
    }
}

//! Finds places of nodes by a hash: four bytes a slot, one and a half slots a node. The keys stay where the nodes are.

const EMPTY: u32 = u32::MAX;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct PlaceIndex {
    slots: Vec<u32>,
}

impl PlaceIndex {
    /// Room for at most `count` places.
    pub fn with_room(count: usize) -> Self {
        Self { slots: vec![EMPTY; count + count / 2 + 1] }
    }

    fn probe(&self, hash: u64) -> impl Iterator<Item = usize> + use<> {
        let size = self.slots.len();
        #[allow(clippy::cast_possible_truncation, reason = "less than the number of slots")]
        let first = ((u128::from(hash) * size as u128) >> 64) as usize;
        (first..size).chain(0..first)
    }

    /// The place with this hash that `is_it` says yes to.
    pub fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        for slot in self.probe(hash) {
            match self.slots[slot] {
                EMPTY => return None,
                place if is_it(place) => return Some(place),
                _ => {}
            }
        }
        None
    }

    /// Adds a place, unless one is there that `is_same` says yes to, or there is no room. Whether it was added.
    pub fn insert(&mut self, hash: u64, place: u32, mut is_same: impl FnMut(u32) -> bool) -> bool {
        for slot in self.probe(hash) {
            match self.slots[slot] {
                EMPTY => {
                    self.slots[slot] = place;
                    return true;
                }
                held if is_same(held) => return false,
                _ => {}
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found_also_where_hashes_collide() {
        let keys: Vec<u64> = (0..1_000).map(|number| number * 7).collect();
        // Few different hashes, and the largest, which wraps around.
        let hash = |key: u64| (key % 13).wrapping_mul(u64::MAX / 12);
        let mut index = PlaceIndex::with_room(keys.len());
        for (place, key) in (0_u32..).zip(&keys) {
            assert!(index.insert(hash(*key), place, |held| keys[held as usize] == *key));
            assert!(!index.insert(hash(*key), place, |held| keys[held as usize] == *key));
        }
        for (place, key) in (0_u32..).zip(&keys) {
            assert_eq!(index.find(hash(*key), |held| keys[held as usize] == *key), Some(place));
        }
        assert_eq!(index.find(hash(1), |held| keys[held as usize] == 1), None);
        assert_eq!(PlaceIndex::default().find(0, |_| true), None);
    }
}

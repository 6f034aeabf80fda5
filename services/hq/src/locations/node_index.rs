//! Finds indexes of nodes by a hash: four bytes a slot, one and a half slots a node. The keys stay where the nodes are.

const EMPTY: u32 = u32::MAX;

/// A hash table from a key's hash to the index of its node.
#[derive(Debug, Default)]
pub(super) struct NodeIndex {
    slots: Vec<u32>,
}

impl NodeIndex {
    /// A table with room for at most `count` nodes.
    pub fn with_room(count: usize) -> Self {
        Self { slots: vec![EMPTY; count + count / 2 + 1] }
    }

    fn probe(&self, hash: u64) -> impl Iterator<Item = usize> + use<> {
        let size = self.slots.len();
        #[allow(clippy::cast_possible_truncation, reason = "less than the number of slots")]
        let first = ((u128::from(hash) * size as u128) >> 64) as usize;
        (first..size).chain(0..first)
    }

    /// The index with this hash for which `is_it` is true.
    pub fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        for slot in self.probe(hash) {
            match self.slots[slot] {
                EMPTY => return None,
                node_index if is_it(node_index) => return Some(node_index),
                _ => {}
            }
        }
        None
    }

    /// Adds an index, unless there is one for which `is_same` is true, or no room. Tells whether it was added.
    pub fn insert(&mut self, hash: u64, node_index: u32, mut is_same: impl FnMut(u32) -> bool) -> bool {
        for slot in self.probe(hash) {
            match self.slots[slot] {
                EMPTY => {
                    self.slots[slot] = node_index;
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
    fn nodes_are_found_also_where_hashes_collide() {
        let keys: Vec<u64> = (0..1_000).map(|number| number * 7).collect();
        // Few different hashes, and the largest, which wraps around.
        let hash = |key: u64| (key % 13).wrapping_mul(u64::MAX / 12);
        let mut index = NodeIndex::with_room(keys.len());
        for (node_index, key) in (0_u32..).zip(&keys) {
            assert!(index.insert(hash(*key), node_index, |held| keys[held as usize] == *key));
            assert!(!index.insert(hash(*key), node_index, |held| keys[held as usize] == *key));
        }
        for (node_index, key) in (0_u32..).zip(&keys) {
            assert_eq!(index.find(hash(*key), |held| keys[held as usize] == *key), Some(node_index));
        }
        assert_eq!(index.find(hash(1), |held| keys[held as usize] == 1), None);
        assert_eq!(NodeIndex::default().find(0, |_| true), None);
    }
}

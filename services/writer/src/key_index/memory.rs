//! The entries that came since the last run was written: small sorted vectors, about 26 bytes an entry, because ids are hashes
//! and spread evenly over the vectors.

use super::entry::{Key, Packed};

/// Entries per vector on average, before each vector is cut in two.
const BUCKET_ENTRIES: usize = 128;
const BUCKET_BITS_MAX: u32 = 24;

#[derive(Debug)]
pub(super) struct MemoryEntries {
    /// Vector `n` holds the keys whose upper `bits` bits are `n`.
    bits: u32,
    buckets: Vec<Vec<Packed>>,
    len: usize,
}

impl Default for MemoryEntries {
    fn default() -> Self {
        Self { bits: 0, buckets: vec![Vec::new()], len: 0 }
    }
}

impl MemoryEntries {
    pub const fn len(&self) -> usize {
        self.len
    }

    pub fn memory_bytes(&self) -> usize {
        let entries: usize = self.buckets.iter().map(Vec::capacity).sum();
        entries * size_of::<Packed>() + self.buckets.capacity() * size_of::<Vec<Packed>>()
    }

    /// Adds an entry in place of those of the same id that it follows.
    ///
    /// An entry follows another if it was observed no earlier and is of a later file. It is put when its row is the live row of the
    /// id (the contract of `put`), so every other row of the id is dead already or, in a move between tables, will be with the
    /// next commit. A copy that comes late, of a row that was changed meanwhile, was observed earlier or is of an earlier file:
    /// it stands beside the other and does no harm.
    pub fn put(&mut self, packed: Packed) {
        if self.len >= self.buckets.len() * BUCKET_ENTRIES && self.bits < BUCKET_BITS_MAX {
            self.cut_buckets();
        }
        let bucket = &mut self.buckets[bucket_of(packed.key(), self.bits)];
        let from = bucket.partition_point(|held| held.key() < packed.key());
        let mut to = from;
        while to < bucket.len() && bucket[to].key() == packed.key() {
            if bucket[to] == packed {
                return;
            }
            if follows(packed, bucket[to]) {
                bucket.remove(to);
                self.len -= 1;
            } else {
                to += 1;
            }
        }
        let at = from + bucket[from..to].partition_point(|held| *held < packed);
        if bucket.len() == bucket.capacity() {
            bucket.reserve_exact(4 + bucket.len() / 8);
        }
        bucket.insert(at, packed);
        self.len += 1;
    }

    /// The entries of an id, in the order of their observation.
    pub fn of(&self, key: Key) -> &[Packed] {
        let bucket = &self.buckets[bucket_of(key, self.bits)];
        let from = bucket.partition_point(|held| held.key() < key);
        let count = bucket[from..].iter().take_while(|held| held.key() == key).count();
        &bucket[from..from + count]
    }

    /// All entries in order.
    pub fn iter(&self) -> impl Iterator<Item = Packed> + '_ {
        self.buckets.iter().flatten().copied()
    }

    fn cut_buckets(&mut self) {
        self.bits += 1;
        let halves = Vec::with_capacity(self.buckets.len() * 2);
        for mut lower in std::mem::replace(&mut self.buckets, halves) {
            let half = lower.partition_point(|held| bucket_of(held.key(), self.bits) & 1 == 0);
            let upper = lower[half..].to_vec();
            lower.truncate(half);
            lower.shrink_to_fit();
            self.buckets.extend([lower, upper]);
        }
    }
}

const fn bucket_of(key: Key, bits: u32) -> usize {
    if bits == 0 { 0 } else { (key.high >> (64 - bits)) as usize }
}

fn follows(packed: Packed, held: Packed) -> bool {
    packed.observed_us() >= held.observed_us() && packed.position().file > held.position().file
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use super::super::{IndexEntry, Position, id_hash};
    use super::*;

    fn packed(id: u128, file: u32, row: u32, observed_us: i64) -> Packed {
        Packed::new(&IndexEntry { id, position: Position::new(file, row), observed_us }).unwrap()
    }

    #[test]
    fn holds_what_was_put_in_order_and_in_little_memory() {
        let mut memory = MemoryEntries::default();
        let mut expected = BTreeSet::new();
        for number in 0..100_000u32 {
            let entry = packed(id_hash(&number.to_string()), number % 7, number, i64::from(number));
            memory.put(entry);
            expected.insert(entry);
        }
        assert_eq!(memory.len(), expected.len());
        assert!(memory.iter().eq(expected.iter().copied()));
        for entry in expected {
            assert_eq!(memory.of(entry.key()), [entry]);
        }
        assert!(memory.of(Key::of(id_hash("absent"))).is_empty());
        assert!(memory.memory_bytes() < 100_000 * 32, "{}", memory.memory_bytes());
    }

    #[test]
    fn an_entry_takes_the_place_of_those_it_follows_only() {
        let mut memory = MemoryEntries::default();
        let id = id_hash("a");
        memory.put(packed(id, 1, 1, 10));
        memory.put(packed(id, 2, 0, 10));
        assert_eq!(memory.of(Key::of(id)), [packed(id, 2, 0, 10)]);
        memory.put(packed(id, 4, 7, 12));
        memory.put(packed(id, 5, 7, 10));
        memory.put(packed(id, 3, 7, 12));
        memory.put(packed(id, 3, 7, 12));
        let expected = [packed(id, 5, 7, 10), packed(id, 3, 7, 12), packed(id, 4, 7, 12)];
        assert_eq!(memory.of(Key::of(id)), expected);
        assert_eq!(memory.len(), 3);
        memory.put(packed(id, 6, 0, 12));
        assert_eq!(memory.of(Key::of(id)), [packed(id, 6, 0, 12)]);
        assert_eq!(memory.len(), 1);
    }
}

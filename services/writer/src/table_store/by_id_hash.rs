//! Maps by the hash of an id.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use crate::key_index::IdHash;

/// Keys are hashes already; the upper half of one is as good a hash as any. What comes out of a key index has no lower half.
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
        self.0 = (key >> 64) as u64;
    }
}

/// A map by [`IdHash`].
pub type ByIdHash<V> = HashMap<IdHash, V, BuildHasherDefault<HashIsKey>>;

/// A set of [`IdHash`].
pub type IdHashes = HashSet<IdHash, BuildHasherDefault<HashIsKey>>;

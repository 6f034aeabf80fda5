//! An entry, and its 24 packed bytes: 10 of the id's hash, 7 of the instant of observation, 4 of the file, 3 of the row, all big endian, so
//! that the order of the bytes is the order of (id, observed, file, row).

use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher24};

use super::position::{Position, ROWS_PER_FILE_MAX};

/// 128-bit hash of an id. The index keeps its upper 80 bits: at a hundred million ids the chance that any two of them agree
/// in these is 4 in a billion.
pub type IdHash = u128;

/// Hash of an id; the same in every process and release.
pub fn id_hash(id: &str) -> IdHash {
    let mut hasher = SipHasher24::new_with_keys(0x6c61_6b65_2e69_6478, 0x636f_6d6d_6361_7265);
    hasher.write(id.as_bytes());
    hasher.finish128().as_u128()
}

/// What the index holds of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// Hash of the row's id. Of an entry that the index gives back, the lower 48 bits are zero.
    pub id: IdHash,
    /// Where the row is.
    pub position: Position,
    /// When the row was observed: µs since 1970, held within ±2^55 (the years 828 to 3111).
    pub observed_us: i64,
}

// Batches and merges hold many of these in memory.
const _: () = assert!(size_of::<IndexEntry>() == 32);

impl IndexEntry {
    /// Position of the row, and when it was observed.
    #[inline]
    pub const fn located(&self) -> Located {
        Located { position: self.position, observed_us: self.observed_us }
    }
}

/// Where a row is, and when it was observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// Where the row is.
    pub position: Position,
    /// When the row was observed: µs since 1970.
    pub observed_us: i64,
}

/// Bytes of a packed entry.
pub(super) const ENTRY_BYTES: usize = 24;

const OBSERVED_BIAS: i64 = 1 << 55;

/// The part of an id's hash that the index keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub high: u64,
    pub low: u16,
}

impl Key {
    pub const fn of(id: IdHash) -> Self {
        Self { high: (id >> 64) as u64, low: (id >> 48) as u16 }
    }

    /// The part that directories of runs hold.
    pub const fn prefix(self) -> u32 {
        (self.high >> 32) as u32
    }
}

/// The 24 bytes as three numbers, whose order is that of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Packed([u64; 3]);

impl Packed {
    /// `None`: the row does not fit into 3 bytes.
    pub const fn new(entry: &IndexEntry) -> Option<Self> {
        if entry.position.row.get() >= ROWS_PER_FILE_MAX {
            return None;
        }
        let observed = match entry.observed_us {
            low if low < -OBSERVED_BIAS => 0,
            high if high >= OBSERVED_BIAS => (1 << 56) - 1,
            observed => (observed + OBSERVED_BIAS) as u64,
        };
        let key = Key::of(entry.id);
        Some(Self([
            key.high,
            (key.low as u64) << 48 | observed >> 8,
            observed << 56 | (entry.position.file.get() as u64) << 24 | entry.position.row.get() as u64,
        ]))
    }

    pub const fn key(self) -> Key {
        Key { high: self.0[0], low: (self.0[1] >> 48) as u16 }
    }

    pub const fn position(self) -> Position {
        Position::new((self.0[2] >> 24) as u32, self.0[2] as u32 & (ROWS_PER_FILE_MAX - 1))
    }

    pub const fn observed_us(self) -> i64 {
        ((self.0[1] << 16 >> 8 | self.0[2] >> 56) as i64) - OBSERVED_BIAS
    }

    pub const fn located(self) -> Located {
        Located { position: self.position(), observed_us: self.observed_us() }
    }

    pub const fn entry(self) -> IndexEntry {
        let id = (self.0[0] as u128) << 64 | ((self.0[1] >> 48) as u128) << 48;
        IndexEntry { id, position: self.position(), observed_us: self.observed_us() }
    }

    pub fn to_bytes(self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        for (word, place) in self.0.iter().zip(bytes.as_chunks_mut::<8>().0) {
            *place = word.to_be_bytes();
        }
        bytes
    }

    pub fn from_bytes(bytes: &[u8; ENTRY_BYTES]) -> Self {
        let mut words = [0; 3];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_be_bytes(*bytes);
        }
        Self(words)
    }
}

/// The packed entries in `bytes`, whose length is a multiple of [`ENTRY_BYTES`].
pub(super) fn unpack(bytes: &[u8]) -> impl ExactSizeIterator<Item = Packed> + '_ {
    bytes.as_chunks::<ENTRY_BYTES>().0.iter().map(Packed::from_bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn entry(id: IdHash, file: u32, row: u32, observed_us: i64) -> IndexEntry {
        IndexEntry { id, position: Position::new(file, row), observed_us }
    }

    proptest! {
        #[test]
        fn packing_keeps_all_but_the_lower_bits_of_the_id(
            id: u128, file: u32, row in 0..ROWS_PER_FILE_MAX, observed_us in -(1i64 << 55)..1 << 55,
        ) {
            let packed = Packed::new(&entry(id, file, row, observed_us)).unwrap();
            prop_assert_eq!(packed.entry(), entry(id >> 48 << 48, file, row, observed_us));
            prop_assert_eq!(packed.key(), Key::of(id));
            prop_assert_eq!(unpack(&packed.to_bytes()).collect::<Vec<_>>(), vec![packed]);
        }

        #[test]
        fn bytes_sort_as_id_observation_and_position(
            a in (0u128..3, -2i64..2, 0u32..3, 0u32..3), b in (0u128..3, -2i64..2, 0u32..3, 0u32..3),
        ) {
            let bytes = |(id, observed_us, file, row): (u128, i64, u32, u32)| {
                let packed = Packed::new(&entry(id << 60, file, row, observed_us)).unwrap();
                (packed, packed.to_bytes())
            };
            prop_assert_eq!(bytes(a).0.cmp(&bytes(b).0), a.cmp(&b));
            prop_assert_eq!(bytes(a).1.cmp(&bytes(b).1), a.cmp(&b));
        }
    }

    #[test]
    fn instants_saturate_and_rows_do_not() {
        let held = |observed_us| Packed::new(&entry(1, 1, 1, observed_us)).unwrap().observed_us();
        assert_eq!(held(i64::MAX), (1 << 55) - 1);
        assert_eq!(held(i64::MIN), -(1 << 55));
        assert_eq!(Packed::new(&entry(1, 1, ROWS_PER_FILE_MAX, 0)), None);
    }

    #[test]
    fn hashes_do_not_change() {
        assert_eq!(id_hash(""), 309_313_432_539_012_887_372_750_984_814_187_873_061);
        assert_ne!(id_hash("a"), id_hash("b"));
    }
}

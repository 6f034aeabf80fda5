//! Which of HQ's databases holds an id: SipHash-2-4 of the id's exact text, and ranges of shards.
//!
//! The text counts: an id with other dashes or other case is another id, in another shard. Nothing here normalises.

use std::hash::Hasher;

use siphasher::sip::SipHasher24;

/// Shards that HQ installations have unless they say otherwise.
pub const SHARD_COUNT_DEFAULT: u32 = 1024;

/// The lower half of the hash; the shard is its remainder.
pub fn hash_of(id: &str) -> u32 {
    let mut hasher = SipHasher24::new_with_keys(0, 0);
    // Not `Hash for str`, which would append a byte.
    hasher.write(id.as_bytes());
    (hasher.finish() & 0xffff_ffff) as u32
}

/// The shards of one database, both ends included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardRange {
    /// Name of the database, for messages.
    pub name: String,
    /// Number of its first shard.
    pub first: u32,
    /// Number of its last shard.
    pub last: u32,
}

/// Routes ids to databases. Every shard belongs to exactly one of them.
#[derive(Clone, Debug)]
pub struct ShardMap {
    mask: u32,
    /// Last shard of each database, ascending, with its index in the list that the map was made from.
    ends: Vec<(u32, usize)>,
}

/// What is wrong with a list of shard ranges.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShardMapError {
    /// The hash is masked, so other counts cannot be.
    #[error("shard_count is {0}, but must be a power of two; take it from HQ's settings (usually 1024)")]
    CountNotPowerOfTwo(u32),
    /// No range at all, so no id has a database.
    #[error("no shard ranges are given")]
    Empty,
    /// A range whose first shard comes after its last.
    #[error("database {name}: first shard {first} is greater than last shard {last}")]
    Reversed {
        /// Name of the database.
        name: String,
        /// First shard of its range.
        first: u32,
        /// Last shard of its range.
        last: u32,
    },
    /// Shards that no database has.
    #[error("shards {first} to {last} belong to no database; ranges must be contiguous and cover 0 to shard_count - 1")]
    Gap {
        /// First shard that is missing.
        first: u32,
        /// Last shard that is missing.
        last: u32,
    },
    /// A shard that two databases have.
    #[error("shard {shard} belongs to both {one} and {other}; ranges must not overlap")]
    Overlap {
        /// Number of the shard.
        shard: u32,
        /// Name of one of the databases.
        one: String,
        /// Name of the other database.
        other: String,
    },
    /// A range that goes beyond the count.
    #[error("database {name} ends with shard {last}, but the last of {count} shards is {}", count - 1)]
    BeyondCount {
        /// Name of the database.
        name: String,
        /// Last shard of its range.
        last: u32,
        /// Number of shards in all.
        count: u32,
    },
}

impl ShardMap {
    /// Checks the ranges (in any order) and makes the map.
    ///
    /// # Errors
    /// What is wrong with the ranges.
    pub fn new(shard_count: u32, ranges: &[ShardRange]) -> Result<Self, ShardMapError> {
        if !shard_count.is_power_of_two() {
            return Err(ShardMapError::CountNotPowerOfTwo(shard_count));
        }
        if ranges.is_empty() {
            return Err(ShardMapError::Empty);
        }
        if let Some(range) = ranges.iter().find(|range| range.first > range.last) {
            return Err(ShardMapError::Reversed { name: range.name.clone(), first: range.first, last: range.last });
        }
        let mut order: Vec<usize> = (0..ranges.len()).collect();
        order.sort_by_key(|&index| ranges[index].first);
        let mut expected = 0;
        let mut before: Option<&ShardRange> = None;
        for range in order.iter().map(|&index| &ranges[index]) {
            if range.last >= shard_count {
                return Err(ShardMapError::BeyondCount {
                    name: range.name.clone(),
                    last: range.last,
                    count: shard_count,
                });
            }
            if let Some(before) = before.filter(|before| range.first <= before.last) {
                let (one, other) = (before.name.clone(), range.name.clone());
                return Err(ShardMapError::Overlap { shard: range.first, one, other });
            }
            if range.first > expected {
                return Err(ShardMapError::Gap { first: expected, last: range.first - 1 });
            }
            expected = range.last + 1;
            before = Some(range);
        }
        if expected < shard_count {
            return Err(ShardMapError::Gap { first: expected, last: shard_count - 1 });
        }
        Ok(Self { mask: shard_count - 1, ends: order.into_iter().map(|index| (ranges[index].last, index)).collect() })
    }

    /// The shard of an id.
    pub fn shard_of(&self, id: &str) -> u32 {
        hash_of(id) & self.mask
    }

    /// The index, in the list that the map was made from, of the database that holds an id.
    pub fn database_of(&self, id: &str) -> usize {
        let shard = self.shard_of(id);
        let at = self.ends.partition_point(|&(last, _)| last < shard);
        // The ranges cover all shards, so `at` is never beyond the end.
        self.ends[at.min(self.ends.len() - 1)].1
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn ranges(of: &[(&str, u32, u32)]) -> Vec<ShardRange> {
        of.iter().map(|&(name, first, last)| ShardRange { name: name.into(), first, last }).collect()
    }

    #[test]
    fn check_vectors_hold() {
        let map = ShardMap::new(1024, &ranges(&[("all", 0, 1023)])).unwrap();
        for (id, hash, shard) in [
            ("", 1_937_178_839, 215),
            ("0", 882_925_130, 586),
            ("1", 3_146_605_522, 978),
            ("abc", 1_198_583_518, 734),
            ("403724ef9fe141f2908363918c62c2ff", 1_414_919_873, 705),
            ("95dece4cd7c945ec83c6d2dd04d38673", 980_857_880, 24),
            ("b0916685-7247-4c44-b712-633d3d64e0c0", 154_164_408, 184),
            ("统一码", 2_029_323_719, 455),
        ] {
            assert_eq!((hash_of(id), map.shard_of(id)), (hash, shard), "{id}");
        }
    }

    #[test]
    fn ids_go_to_the_database_of_their_shard_whatever_the_order_of_the_list() {
        let map = ShardMap::new(
            1024,
            &ranges(&[("p3", 410, 614), ("p1", 0, 204), ("p5", 820, 1023), ("p2", 205, 409), ("p4", 615, 819)]),
        )
        .unwrap();
        for (id, index) in [("", 3), ("0", 0), ("1", 2), ("abc", 4), ("95dece4cd7c945ec83c6d2dd04d38673", 1)] {
            assert_eq!(map.database_of(id), index, "{id}");
        }
    }

    #[test]
    fn borders_belong_to_the_range_that_names_them() {
        // `abc` is in shard 734.
        for (last, index) in [(733, 1), (734, 0)] {
            let map = ShardMap::new(1024, &ranges(&[("a", 0, last), ("b", last + 1, 1023)])).unwrap();
            assert_eq!(map.database_of("abc"), index);
        }
    }

    #[test]
    fn wrong_ranges_are_refused_with_what_is_wrong() {
        let refused = |count, of: &[(&str, u32, u32)]| ShardMap::new(count, &ranges(of)).unwrap_err();
        assert_eq!(refused(1000, &[("a", 0, 999)]), ShardMapError::CountNotPowerOfTwo(1000));
        assert_eq!(refused(0, &[("a", 0, 0)]), ShardMapError::CountNotPowerOfTwo(0));
        assert_eq!(refused(4, &[]), ShardMapError::Empty);
        assert_eq!(refused(4, &[("a", 3, 0)]), ShardMapError::Reversed { name: "a".into(), first: 3, last: 0 });
        assert_eq!(refused(4, &[("a", 1, 3)]), ShardMapError::Gap { first: 0, last: 0 });
        assert_eq!(refused(8, &[("a", 0, 1), ("b", 4, 7)]), ShardMapError::Gap { first: 2, last: 3 });
        assert_eq!(refused(4, &[("a", 0, 2)]), ShardMapError::Gap { first: 3, last: 3 });
        let overlap = ShardMapError::Overlap { shard: 1, one: "a".into(), other: "b".into() };
        assert_eq!(refused(4, &[("b", 1, 3), ("a", 0, 1)]), overlap);
        let beyond = ShardMapError::BeyondCount { name: "b".into(), last: 4, count: 4 };
        assert_eq!(refused(4, &[("a", 0, 1), ("b", 2, 4)]), beyond);
        assert_eq!(beyond.to_string(), "database b ends with shard 4, but the last of 4 shards is 3");
    }
}

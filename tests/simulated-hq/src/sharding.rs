//! Which shard database a row belongs to: HQ's SipHash of the id's text, written independently of the code under test.

use std::hash::Hasher;

use anyhow::{Result, ensure};
use siphasher::sip::SipHasher24;

/// The lower 32 bits of SipHash-2-4 with a zero key over the id's UTF-8 bytes.
pub fn hash(id: &str) -> u32 {
    let mut hasher = SipHasher24::new_with_keys(0, 0);
    hasher.write(id.as_bytes());
    (hasher.finish() & 0xffff_ffff) as u32
}

/// HQ's shard map: inclusive ranges that start at 0, follow each other and end at a power of two less one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardMap {
    ranges: Vec<(u32, u32)>,
    shards: u32,
}

impl ShardMap {
    /// Takes the range of each database, in the order of the databases. No range at all: everything is in the main database.
    ///
    /// # Errors
    ///
    /// When the ranges leave a gap, overlap, or their number of shards is no power of two.
    pub fn new(ranges: Vec<(u32, u32)>) -> Result<Self> {
        let mut next = 0;
        for &(first, last) in &ranges {
            ensure!(
                first == next,
                "a shard range starts at {first} where {next} is next; ranges must follow each other"
            );
            ensure!(last >= first, "the shard range {first}-{last} is empty");
            next = last + 1;
        }
        ensure!(
            ranges.is_empty() || next.is_power_of_two(),
            "{next} shards; the number of shards must be a power of two"
        );
        Ok(Self { ranges, shards: next })
    }

    /// Divides 1024 shards evenly over so many databases.
    ///
    /// # Errors
    ///
    /// For more than 1024 databases.
    pub fn even(databases: u32) -> Result<Self> {
        ensure!(databases <= 1024, "{databases} databases for 1024 shards");
        Self::new((0..databases).map(|n| (n * 1024 / databases, (n + 1) * 1024 / databases - 1)).collect())
    }

    /// The inclusive range of each database.
    pub fn ranges(&self) -> &[(u32, u32)] {
        &self.ranges
    }

    /// The number of the id's shard; 0 where HQ is not partitioned.
    pub fn shard(&self, id: &str) -> u32 {
        hash(id) & self.shards.saturating_sub(1)
    }

    /// The position of the database that has the id; `None` where HQ is not partitioned.
    pub fn database(&self, id: &str) -> Option<usize> {
        let shard = self.shard(id);
        self.ranges.iter().position(|&(first, last)| (first..=last).contains(&shard))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn ids_hash_as_in_hq() {
        let vectors = [
            ("", 1_937_178_839, 215),
            ("0", 882_925_130, 586),
            ("1", 3_146_605_522, 978),
            ("abc", 1_198_583_518, 734),
            ("403724ef9fe141f2908363918c62c2ff", 1_414_919_873, 705),
            ("95dece4cd7c945ec83c6d2dd04d38673", 980_857_880, 24),
            ("b0916685-7247-4c44-b712-633d3d64e0c0", 154_164_408, 184),
            ("统一码", 2_029_323_719, 455),
        ];
        let map = ShardMap::even(5).unwrap();
        for (id, expected, shard) in vectors {
            assert_eq!(hash(id), expected, "{id}");
            assert_eq!(map.shard(id), shard, "{id}");
        }
    }

    #[test]
    fn even_maps_cover_all_shards() {
        for databases in [1, 2, 3, 5, 20, 1024] {
            let map = ShardMap::even(databases).unwrap();
            assert_eq!(map.ranges().len(), databases as usize);
            assert_eq!(map.ranges().last().unwrap().1, 1023);
        }
        assert_eq!(ShardMap::even(5).unwrap().database("abc"), Some(3));
        assert_eq!(ShardMap::even(0).unwrap().database("abc"), None);
    }

    #[test]
    fn maps_with_gaps_are_refused() {
        assert!(ShardMap::new(vec![(0, 511), (513, 1023)]).is_err());
        assert!(ShardMap::new(vec![(1, 1023)]).is_err());
        assert!(ShardMap::new(vec![(0, 999)]).is_err());
        assert!(ShardMap::new(vec![(0, 511), (400, 1023)]).is_err());
    }
}

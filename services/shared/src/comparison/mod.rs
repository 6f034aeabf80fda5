//! Comparing HQ's documents with the lake's rows without moving either: what stands for a document, and for all documents of a bucket. Pure.
//!
//! Fetchers have HQ's Postgres compute the same in SQL (`services/hq/src/postgres/compare.rs`), so this is MD5, which every version of it has. It
//! guards against what goes wrong by itself, not against who makes two documents of one sum.

use lake_proto::queue::v1 as proto;
use md5::{Digest, Md5};

use crate::identity::Kind;

/// Most buckets.
pub const BUCKETS_MAX: u32 = 16_384;
/// Fewest buckets.
const BUCKETS_LEAST: u32 = 64;
/// Documents of a bucket, as long as there may be more buckets.
const DOCUMENTS_OF_BUCKET: u64 = 32;

/// Stands between the parts of what is summed up.
pub const SEPARATOR: char = '\u{1f}';

/// The times of a document that change with its saves, by their names in HQ's table and in its document: first when HQ saved it.
pub const fn time_columns(kind: Kind) -> [Option<&'static str>; 2] {
    match kind {
        Kind::Case => [Some("server_modified_on"), Some("modified_on")],
        Kind::Form => [Some("server_modified_on"), Some("received_on")],
        Kind::Location => [Some("last_modified"), None],
    }
}

/// What is compared of a live document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComparedDocument<'d> {
    /// Its id.
    pub id: &'d str,
    /// Its type, as the lake names it.
    pub document_type: &'d str,
    /// The times of [`time_columns`], microseconds since 1970; `None` where it has none.
    pub times_us: [Option<i64>; 2],
}

impl ComparedDocument<'_> {
    /// Stands for its present state: the first 64 bits of the MD5 of id, type and times.
    pub fn fingerprint(&self) -> u64 {
        let [first, second] = self.times_us.map(|time| time.map(|time| time.to_string()).unwrap_or_default());
        let text = format!("{}{SEPARATOR}{}{SEPARATOR}{first}{SEPARATOR}{second}", self.id, self.document_type);
        let digest: [u8; 16] = Md5::digest(text.as_bytes()).into();
        digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

/// The bucket of an id: of the first 24 bits of its MD5 as many as there are buckets, a power of two.
pub fn bucket(id: &str, bucket_count: u32) -> u32 {
    let digest: [u8; 16] = Md5::digest(id.as_bytes()).into();
    let first = digest.iter().take(3).fold(0, |number, byte| number << 8 | u32::from(*byte));
    first & bucket_count.saturating_sub(1)
}

/// How many buckets so many documents are put into: a power of two.
pub fn bucket_count(documents: u64) -> u32 {
    let wanted = u32::try_from(documents / DOCUMENTS_OF_BUCKET).unwrap_or(BUCKETS_MAX).min(BUCKETS_MAX);
    wanted.next_power_of_two().clamp(BUCKETS_LEAST, BUCKETS_MAX)
}

/// The number of buckets that is asked for, made one that there can be.
pub fn valid_bucket_count(asked: u32) -> u32 {
    asked.clamp(1, BUCKETS_MAX).next_power_of_two()
}

/// The documents of a bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BucketSum {
    /// How many there are.
    pub documents: u64,
    /// The sum of their fingerprints, modulo 2^64.
    pub sum: u64,
}

impl BucketSum {
    /// Adds a document.
    pub fn add(&mut self, fingerprint: u64) {
        self.include(Self { documents: 1, sum: fingerprint });
    }

    /// Adds all documents of another part of the bucket.
    pub fn include(&mut self, other: Self) {
        self.documents += other.documents;
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

/// Sums of all buckets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketSums(Vec<BucketSum>);

impl BucketSums {
    /// So many empty buckets, a power of two.
    pub fn new(bucket_count: u32) -> Self {
        Self(vec![BucketSum::default(); valid_bucket_count(bucket_count) as usize])
    }

    /// Number of buckets.
    pub fn bucket_count(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(BUCKETS_MAX)
    }

    /// Adds a document.
    pub fn add(&mut self, document: &ComparedDocument<'_>) {
        let bucket = bucket(document.id, self.bucket_count());
        self.include(bucket, BucketSum { documents: 1, sum: document.fingerprint() });
    }

    /// Adds a part of a bucket; one that there is not is left out.
    pub fn include(&mut self, bucket: u32, part: BucketSum) {
        if let Some(sum) = self.0.get_mut(bucket as usize) {
            sum.include(part);
        }
    }

    /// Documents in all.
    pub fn documents(&self) -> u64 {
        self.0.iter().map(|sum| sum.documents).sum()
    }

    /// All buckets, by number.
    pub fn iter(&self) -> impl Iterator<Item = (u32, BucketSum)> + '_ {
        (0..).zip(self.0.iter().copied())
    }

    /// As messages; empty buckets are left out.
    pub fn to_proto(&self) -> Vec<proto::BucketSum> {
        let filled = self.iter().filter(|(_, of)| *of != BucketSum::default());
        filled.map(|(bucket, of)| proto::BucketSum { bucket, documents: of.documents, sum: of.sum }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: ComparedDocument<'_> =
        ComparedDocument { id: "abc", document_type: "person", times_us: [Some(1), Some(-2)] };

    #[test]
    fn every_part_counts() {
        let others = [
            ComparedDocument { id: "abd", ..DOCUMENT },
            ComparedDocument { document_type: "child", ..DOCUMENT },
            ComparedDocument { times_us: [Some(2), Some(-2)], ..DOCUMENT },
            ComparedDocument { times_us: [Some(1), None], ..DOCUMENT },
            ComparedDocument { times_us: [None, Some(-2)], ..DOCUMENT },
        ];
        for other in others {
            assert_ne!(other.fingerprint(), DOCUMENT.fingerprint(), "{other:?}");
        }
        // md5('abc') is 900150983cd24fb0d6963f7d28e17f72.
        assert_eq!(bucket("abc", 1 << 14), 0x90_0150 & 0x3fff);
        assert_eq!((bucket("abc", 1), bucket("abc", 0)), (0, 0));
    }

    #[test]
    fn sums_do_not_depend_on_the_order_and_wrap() {
        let (mut one, mut other) = (BucketSums::new(100), BucketSums::new(100));
        assert_eq!(one.bucket_count(), 128);
        let ids: Vec<String> = (0..1_000).map(|number| format!("id-{number}")).collect();
        let document = |id| ComparedDocument { id, ..DOCUMENT };
        ids.iter().for_each(|id| one.add(&document(id)));
        ids.iter().rev().for_each(|id| other.add(&document(id)));
        assert_eq!((&one, one.documents()), (&other, 1_000));
        other.add(&document("one more"));
        let differing = one.iter().zip(other.iter()).filter(|(of, than)| of != than).count();
        assert_eq!(differing, 1);
        one.include(4_711, BucketSum { documents: 1, sum: 1 });
        assert_eq!(one.documents(), 1_000, "there is no such bucket");
        let mut sum = BucketSum { documents: 1, sum: u64::MAX };
        sum.add(2);
        assert_eq!(sum, BucketSum { documents: 2, sum: 1 });
    }

    #[test]
    fn there_are_as_many_buckets_as_are_of_use() {
        assert_eq!([0, 3_000, 40_000, u64::MAX].map(bucket_count), [64, 128, 2_048, BUCKETS_MAX]);
        assert_eq!([0, 3, 16_384, u32::MAX].map(valid_bucket_count), [1, 4, 16_384, BUCKETS_MAX]);
    }
}

//! Which buckets differ, and how many of them are looked at at once. Pure.

use std::collections::BTreeSet;

use lake_shared::comparison::{BucketSum, BucketSums};

/// A bucket in which HQ and the lake differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DifferingBucket {
    pub(super) bucket: u32,
    /// About how many documents are compared for it.
    pub(super) documents: u64,
}

/// The buckets that differ.
pub(super) fn differing(hq: &BucketSums, lake: &BucketSums) -> Vec<DifferingBucket> {
    let both = hq.iter().zip(lake.iter()).map(|((bucket, of_hq), (_, of_lake))| (bucket, of_hq, of_lake));
    let differing = |(bucket, of_hq, of_lake): (u32, BucketSum, BucketSum)| DifferingBucket {
        bucket,
        documents: of_hq.documents.max(of_lake.documents),
    };
    both.filter(|(_, of_hq, of_lake)| of_hq != of_lake).map(differing).collect()
}

/// Buckets in portions of about so many documents, at least one bucket in each.
pub(super) fn portions(buckets: &[DifferingBucket], documents_max: u64) -> Vec<BTreeSet<u32>> {
    let (mut portions, mut documents) = (Vec::<BTreeSet<u32>>::new(), 0);
    for of in buckets {
        documents += of.documents;
        match portions.last_mut() {
            Some(last) if documents <= documents_max => drop(last.insert(of.bucket)),
            _ => {
                documents = of.documents;
                portions.push(BTreeSet::from([of.bucket]));
            }
        }
    }
    portions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_looked_at() {
        let (mut hq, mut lake) = (BucketSums::new(64), BucketSums::new(64));
        for (bucket, of_hq, of_lake) in
            [(1, (2, 7), (2, 7)), (2, (2, 7), (2, 8)), (3, (0, 0), (5, 1)), (4, (9, 9), (1, 1))]
        {
            hq.include(bucket, BucketSum { documents: of_hq.0, sum: of_hq.1 });
            lake.include(bucket, BucketSum { documents: of_lake.0, sum: of_lake.1 });
        }
        let found = differing(&hq, &lake);
        let found: Vec<_> = found.iter().map(|of| (of.bucket, of.documents)).collect();
        assert_eq!(found, [(2, 2), (3, 5), (4, 9)]);
    }

    #[test]
    fn portions_are_bounded_and_leave_nothing_out() {
        let bucket = |(bucket, documents)| DifferingBucket { bucket, documents };
        let buckets: Vec<_> = [(1, 4), (2, 6), (3, 1), (4, 30), (5, 0)].map(bucket).into();
        assert_eq!(portions(&buckets, 10), [vec![1, 2], vec![3], vec![4], vec![5]].map(|of| of.into_iter().collect()));
        assert!(portions(&[], 10).is_empty());
    }
}

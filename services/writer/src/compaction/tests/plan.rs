//! The policy against a simulated table whose files hold keys.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use crate::compaction::{ClusterRange, FileFacts, Job, PartitionNumber, Policy, Reason, plan};
use crate::key_index::FileNumber;

const MB: u64 = 1 << 20;

fn policy() -> Policy {
    Policy {
        target_file_bytes: 128 * MB,
        small_file_bytes: 64 * MB,
        small_files_max: 16,
        deleted_share_max: 0.15,
        overlap_max: 8,
        job_bytes_max: 1_536 * MB,
        job_files_max: 64,
        job_rows_max: u64::MAX,
        purge_all: false,
    }
}

/// Month and supervisor; 0 stands for NULL.
type Key = (u8, u16);

/// A file as the keys of its rows, each of the same size, with the dead ones at the end.
#[derive(Clone, Debug)]
struct File {
    partition: PartitionNumber,
    live: Vec<Key>,
    dead: usize,
    known: bool,
}

/// Files by number, and what was done to them.
struct Table {
    files: BTreeMap<FileNumber, File>,
    next: u32,
    row_bytes: u64,
    /// Ranges come from statistics by column rather than from the first and last row.
    by_column: bool,
    written: BTreeMap<&'static str, u64>,
}

impl Table {
    fn new(row_bytes: u64, by_column: bool) -> Self {
        Self { files: BTreeMap::new(), next: 0, row_bytes, by_column, written: BTreeMap::new() }
    }

    fn add(&mut self, partition: PartitionNumber, mut live: Vec<Key>, dead: usize, known: bool) {
        live.sort_unstable();
        self.files.insert(FileNumber::new(self.next), File { partition, live, dead, known });
        self.next += 1;
    }

    fn facts(&self) -> Vec<FileFacts> {
        let bytes = |key: &Key| [&[key.0][..], &key.1.to_be_bytes()].concat();
        let facts = |(&number, file): (&FileNumber, &File)| {
            let rows = (file.live.len() + file.dead) as u64;
            let ends = file.live.first().zip(file.live.last()).filter(|_| file.known).map(|(min, max)| {
                let second = || file.live.iter().map(|key| key.1);
                let (low, high) = (second().min().unwrap(), second().max().unwrap());
                // As `ClusterKeys::range` makes it.
                let (first, last) = if self.by_column && min.0 != max.0 { (high, low) } else { (min.1, max.1) };
                ClusterRange { min: bytes(&(min.0, first)), max: bytes(&(max.0, last)) }
            });
            let (partition, deleted) = (file.partition, file.dead as u64);
            FileFacts { number, partition, bytes: rows * self.row_bytes, rows, deleted, clustered: ends }
        };
        self.files.iter().map(facts).collect()
    }

    fn carry_out(&mut self, job: &Job) {
        let files: Vec<File> = job.files.iter().map(|number| self.files.remove(number).unwrap()).collect();
        let mut live: Vec<Key> = files.iter().flat_map(|file| file.live.clone()).collect();
        live.sort_unstable();
        let reason = match job.reason {
            Reason::SmallFiles => "small files",
            Reason::DeletedRows => "deleted rows",
            Reason::Clustering => "clustering",
        };
        *self.written.entry(reason).or_default() += live.len() as u64 * self.row_bytes;
        assert_eq!(job.outputs == 0, live.is_empty());
        if !live.is_empty() {
            let known = files.iter().all(|file| file.known);
            for part in live.chunks(live.len().div_ceil(job.outputs)) {
                self.add(files[0].partition, part.to_vec(), 0, known);
            }
        }
    }

    /// Plans and carries out until there is nothing to do; returns the number of rounds.
    fn settle(&mut self, policy: &Policy, rounds_max: usize) -> usize {
        for round in 0..rounds_max {
            let jobs = plan(&self.facts(), policy);
            if jobs.is_empty() {
                return round;
            }
            self.check(&jobs, policy);
            jobs.iter().for_each(|job| self.carry_out(job));
        }
        panic!("no end: {:?}", plan(&self.facts(), policy));
    }

    fn check(&self, jobs: &[Job], policy: &Policy) {
        let facts: BTreeMap<FileNumber, FileFacts> =
            self.facts().into_iter().map(|facts| (facts.number, facts)).collect();
        let mut seen = HashSet::new();
        for job in jobs {
            assert!(!job.files.is_empty() && job.files.iter().all(|number| seen.insert(*number)), "not disjoint");
            let files: Vec<&FileFacts> = job.files.iter().map(|number| &facts[number]).collect();
            assert!(files.iter().all(|file| file.partition == files[0].partition), "groups are mixed");
            assert_eq!(job.bytes, files.iter().map(|file| file.bytes).sum::<u64>());
            if let [file] = files[..] {
                assert!(job.reason == Reason::DeletedRows && file.deleted > 0, "a rewrite for nothing");
            } else {
                assert!(job.bytes <= policy.job_bytes_max && files.len() <= policy.job_files_max, "over the budget");
                assert!(files.iter().map(|file| file.rows).sum::<u64>() <= policy.job_rows_max, "too many rows");
            }
        }
    }

    fn live(&self) -> Vec<(PartitionNumber, Key)> {
        let mut live: Vec<_> =
            self.files.values().flat_map(|file| file.live.iter().map(|key| (file.partition, *key))).collect();
        live.sort_unstable();
        live
    }

    /// Files that hold rows on both sides of one point, at most; files of at least `small` bytes only.
    fn depth(&self, small: u64) -> usize {
        let files = self.files.values().filter(|file| file.live.len() as u64 * self.row_bytes >= small);
        let ranges: Vec<(Key, Key)> = files.map(|file| (file.live[0], file.live[file.live.len() - 1])).collect();
        let over = |at: Key| ranges.iter().filter(|(min, max)| *min <= at && at < *max).count();
        ranges.iter().map(|(min, _)| over(*min)).max().unwrap_or_default()
    }
}

fn random_table(seed: u64, by_column: bool) -> (Table, Policy) {
    let rng = &mut StdRng::seed_from_u64(seed);
    let mut table = Table::new(MB / 4, by_column);
    let groups = rng.random_range(1..4);
    let (months, supervisors) = (rng.random_range(1..30), rng.random_range(1..300));
    for _ in 0..rng.random_range(0..250) {
        let rows = 1_usize << rng.random_range(0..10);
        let middle: u8 = rng.random_range(0..=months);
        let narrow = rng.random_bool(0.5);
        let row = |rng: &mut StdRng| {
            let month = if narrow { middle } else { rng.random_range(0..=months) };
            (month, rng.random_range(0..=supervisors))
        };
        let live: Vec<Key> = (0..rows).map(|_| row(rng)).collect();
        let dead = if rng.random_bool(0.3) { rng.random_range(0..=rows) } else { 0 };
        let live = if dead == rows { Vec::new() } else { live };
        let known = rng.random_bool(0.95);
        table.add(PartitionNumber::new(rng.random_range(0..groups)), live, dead, known);
    }
    let policy = Policy {
        small_files_max: rng.random_range(0..30),
        overlap_max: rng.random_range(0..12),
        job_bytes_max: rng.random_range(100..2_000) * MB,
        job_files_max: rng.random_range(2..70),
        purge_all: rng.random_bool(0.2),
        ..policy()
    };
    (table, policy)
}

fn settles(mut table: Table, policy: Policy) {
    let before = table.live();
    table.settle(&policy, 400);
    assert_eq!(table.live(), before);
    let share = |file: &File| file.dead as f64 / (file.live.len() + file.dead) as f64;
    assert!(table.files.values().all(|file| file.dead == 0 || !policy.purge_all && share(file) <= 0.15));
    // Small files are few, or grow in steps of four.
    let small = policy.small_file_bytes.min(policy.job_bytes_max / 2);
    let mut sizes: BTreeMap<PartitionNumber, Vec<usize>> = BTreeMap::new();
    for file in table.files.values().filter(|file| (file.live.len() as u64 * table.row_bytes) < small) {
        sizes.entry(file.partition).or_default().push(file.live.len());
    }
    for sizes in sizes.values_mut() {
        sizes.sort_unstable();
        let stepped = sizes.windows(2).all(|pair| pair[1] as f64 > 3.9 * pair[0] as f64);
        assert!(sizes.len() <= policy.small_files_max.max(1) || stepped, "{sizes:?}");
    }
}

fn order_does_not_matter(seed: u64) {
    let (table, policy) = random_table(seed, false);
    let mut facts = table.facts();
    let jobs = plan(&facts, &policy);
    facts.shuffle(&mut StdRng::seed_from_u64(seed));
    assert_eq!(plan(&facts, &policy), jobs);
}

#[test]
fn the_order_of_the_files_does_not_matter_where_widths_differ_by_a_rounding() {
    order_does_not_matter(4_233_729_704_648_323_666);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_table_settles(seed: u64) {
        let (table, policy) = random_table(seed, false);
        settles(table, policy);
    }

    #[test]
    fn every_table_settles_with_ranges_from_statistics(seed: u64) {
        let (table, policy) = random_table(seed, true);
        settles(table, policy);
    }

    #[test]
    fn the_order_of_the_files_does_not_matter(seed: u64) {
        order_does_not_matter(seed);
    }

    #[test]
    fn odd_facts_and_limits_break_nothing(
        files in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), any::<(u8, u8)>()), 0..40),
        limits in any::<(u64, u64, u8, u8, u64, u8, u64, bool)>(),
        share in any::<f64>(),
    ) {
        let facts: Vec<FileFacts> = (0..).zip(files).map(|(number, (bytes, rows, deleted, (min, max)))| {
            FileFacts { number: FileNumber::new(number), partition: PartitionNumber::new(0), bytes, rows, deleted, clustered: Some(ClusterRange { min: vec![min], max: vec![max] }) }
        }).collect();
        let (target, small, small_max, overlap, job_bytes, job_files, job_rows, purge_all) = limits;
        let policy = Policy {
            target_file_bytes: target, small_file_bytes: small, small_files_max: small_max.into(), deleted_share_max: share,
            overlap_max: overlap.into(), job_bytes_max: job_bytes, job_files_max: job_files.into(), job_rows_max: job_rows, purge_all,
        };
        for job in plan(&facts, &policy) {
            prop_assert!(job.files.len() > 1 || job.reason == Reason::DeletedRows);
        }
    }
}

fn facts(number: u32, bytes: u64, deleted: u64) -> FileFacts {
    FileFacts {
        number: FileNumber::new(number),
        partition: PartitionNumber::new(0),
        bytes,
        rows: 1_000,
        deleted,
        clustered: None,
    }
}

#[test]
fn partitions_with_a_few_tiny_files_are_left_alone() {
    let tiny = |number| FileFacts { partition: PartitionNumber::new(number / 2), ..facts(number, 10_000, 0) };
    let files: Vec<FileFacts> = (0..20_000).map(tiny).collect();
    assert!(plan(&files, &policy()).is_empty());
}

#[test]
fn a_large_file_is_purged_alone_even_over_the_budget() {
    let files = [facts(1, 10_000 * MB, 200), facts(2, 128 * MB, 100), facts(3, 128 * MB, 0)];
    let jobs = plan(&files, &policy());
    assert_eq!(
        jobs,
        [Job { files: vec![FileNumber::new(1)], reason: Reason::DeletedRows, outputs: 63, bytes: 10_000 * MB }]
    );
    let jobs = plan(&files, &Policy { purge_all: true, ..policy() });
    assert_eq!(jobs.iter().map(|job| &job.files[..]).collect::<Vec<_>>(), [[FileNumber::new(1)], [FileNumber::new(2)]]);
}

/// 1,000 rows a file.
#[test]
fn a_job_has_no_more_rows_than_fit_in_memory() {
    let rows_of = |job: &Job| 1_000 * job.files.len() as u64;
    let small: Vec<FileFacts> = (0..40).map(|number| facts(number, MB, 0)).collect();
    let purged: Vec<FileFacts> = (0..10).map(|number| facts(number, MB, 500)).collect();
    let range = ClusterRange { min: vec![0], max: vec![9] };
    let over: Vec<FileFacts> =
        (0..30).map(|number| FileFacts { clustered: Some(range.clone()), ..facts(number, 128 * MB, 0) }).collect();
    for (files, reason) in [(small, Reason::SmallFiles), (purged, Reason::DeletedRows), (over, Reason::Clustering)] {
        let most = |job_rows_max| {
            let jobs = plan(&files, &Policy { job_rows_max, ..policy() });
            assert!(jobs.iter().all(|job| job.reason == reason), "{jobs:?}");
            jobs.iter().map(rows_of).max().unwrap_or_default()
        };
        assert!(most(u64::MAX) > 4_000, "{reason:?}");
        assert_eq!(most(4_000), 4_000, "{reason:?}");
    }
    // A single file that is larger still loses its deleted rows.
    let jobs = plan(&[facts(1, 128 * MB, 500)], &Policy { job_rows_max: 10, ..policy() });
    assert_eq!(jobs.len(), 1);
}

#[test]
fn a_file_without_live_rows_makes_no_file() {
    let jobs = plan(&[facts(1, MB, 1_000)], &policy());
    assert_eq!(jobs, [Job { files: vec![FileNumber::new(1)], reason: Reason::DeletedRows, outputs: 0, bytes: MB }]);
}

#[test]
fn files_that_touch_or_hold_one_value_are_clustered() {
    let with = |number, min: u8, max: u8| FileFacts {
        clustered: Some(ClusterRange { min: vec![min], max: vec![max] }),
        ..facts(number, 128 * MB, 0)
    };
    let files: Vec<FileFacts> = (0..100).map(|number| with(number, number as u8, number as u8 + 1)).collect();
    assert!(plan(&files, &policy()).is_empty());
    let files: Vec<FileFacts> = (0..100).map(|number| with(number, 7, 7)).collect();
    assert!(plan(&files, &policy()).is_empty());
    let files: Vec<FileFacts> = (0..9).map(|number| with(number, 0, 9)).collect();
    let jobs = plan(&files, &policy());
    assert_eq!(jobs.len(), 1);
    assert_eq!((jobs[0].reason, jobs[0].files.len(), jobs[0].outputs), (Reason::Clustering, 9, 9));
}

/// What 10,000 files of 1 MB, one after the other, cost in a table: bytes rewritten per byte arrived, by reason.
fn arrivals(by_column: bool, key: impl Fn(&mut StdRng, usize) -> Key) -> (Table, BTreeMap<&'static str, f64>) {
    let rng = &mut StdRng::seed_from_u64(7);
    let mut table = Table::new(MB / 8, by_column);
    let policy = policy();
    for arrival in 0..10_000 {
        let keys = (0..8).map(|_| key(rng, arrival)).collect();
        table.add(PartitionNumber::new(0), keys, 0, true);
        table.settle(&policy, 50);
        let small = table.files.values().filter(|file| file.live.len() < 64 * 8).count();
        assert!(small <= policy.small_files_max, "{small} small files");
    }
    assert_eq!(table.live().len(), 80_000);
    let factors = table.written.iter().map(|(reason, bytes)| (*reason, *bytes as f64 / (10_000 * MB) as f64)).collect();
    (table, factors)
}

#[test]
fn random_arrivals_are_rewritten_a_few_times() {
    let (table, factors) = arrivals(false, |rng, _| (rng.random_range(0..=60), rng.random_range(0..500)));
    println!("random keys: {factors:?}, {} files, depth {}", table.files.len(), table.depth(64 * MB));
    assert!(factors["small files"] <= 4.0 && factors["clustering"] <= 5.0, "{factors:?}");
    assert!(table.depth(64 * MB) <= 10);
}

#[test]
fn random_arrivals_with_ranges_from_statistics_are_rewritten_a_few_times() {
    let (table, factors) = arrivals(true, |rng, _| (rng.random_range(0..=60), rng.random_range(0..500)));
    println!("random keys, statistics: {factors:?}, {} files, depth {}", table.files.len(), table.depth(64 * MB));
    assert!(factors["small files"] <= 4.0 && factors["clustering"] <= 6.0, "{factors:?}");
    assert!(table.depth(64 * MB) <= 10);
}

#[test]
fn arrivals_by_month_need_less_clustering() {
    let (table, factors) = arrivals(true, |rng, arrival| ((arrival / 170) as u8 + 1, rng.random_range(0..500)));
    println!("month by month: {factors:?}, {} files, depth {}", table.files.len(), table.depth(64 * MB));
    assert!(factors["small files"] <= 4.0, "{factors:?}");
    assert!(factors.get("clustering").is_none_or(|factor| *factor <= 2.0), "{factors:?}");
}

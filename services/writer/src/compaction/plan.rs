//! The policy: which files are worth a rewrite. Pure, deterministic, and without memory of earlier plans.
//!
//! Every rewrite has to pay. A job for small files or for clustering needs a least gain per byte written, counted in a potential
//! that arriving bytes bring along and that only jobs use up. So the bytes rewritten per byte arrived grow with the logarithm
//! of the table, and no file is written again each time a tiny one arrives.

use std::collections::{BTreeMap, HashSet};

use super::clustering::clustering;
use crate::key_index::FileNumber;

/// Jobs of one kind that a plan holds at most for one group; the next plan brings more.
pub(super) const JOBS_PER_GROUP: usize = 16;

/// Small files of one group that are looked at, the smallest first.
const SMALL_FILES_SEEN: usize = 4_096;

/// Least gain of a merge of small files: the mean, over its bytes, of ln(size after / size before). Two files whose sizes
/// differ by a factor of four reach it, so small files without a job grow in steps of more than four.
const SMALL_GAIN_MIN: f64 = 0.5;

/// Number of a group of files within one plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionNumber(u32);

impl PartitionNumber {
    /// The group with this number.
    #[inline]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }
}

/// What the policy knows of a data file.
#[derive(Clone, Debug, PartialEq)]
pub struct FileFacts {
    /// Identifies the file; unique within one plan.
    pub number: FileNumber,
    /// Files of different groups, such as partitions, are never merged.
    pub partition: PartitionNumber,
    /// Size of the file in bytes.
    pub bytes: u64,
    /// Physical rows.
    pub rows: u64,
    /// Rows that the deletion vector marks.
    pub deleted: u64,
    /// Where the file lies in the clustering order. `None`: not known, or the table is not clustered; no clustering then.
    pub clustered: Option<ClusterRange>,
}

/// A range of the clustering order that the rows of a file span for certain, as bytes that compare like the values (see
/// [`super::ClusterKeys`]). Files that only might overlap must not look as if they did: merging them would change nothing, again
/// and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterRange {
    /// Not below the first row of the file in clustering order.
    pub min: Vec<u8>,
    /// Not above the last one.
    pub max: Vec<u8>,
}

/// When files are rewritten, and how much at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Size that rewritten files should have, bytes.
    pub target_file_bytes: u64,
    /// A file with fewer live bytes is small. At most half of the target and of the job's limit counts, so that two fit in one.
    pub small_file_bytes: u64,
    /// Small files that a group may have. Above it, those of similar size are merged.
    pub small_files_max: usize,
    /// Share of deleted rows (0 to 1) above which a file is purged; 0.1 to 0.2 is usual.
    pub deleted_share_max: f64,
    /// Files, small ones left out, that may cover one point of the clustering order.
    pub overlap_max: usize,
    /// Bytes that one job reads at most; only the purge of a single file may be larger.
    pub job_bytes_max: u64,
    /// Files that one job reads at most.
    pub job_files_max: usize,
    /// Rows that one job reads at most, deleted ones included, as the place of each is in memory; only the purge of a single file may have
    /// more.
    pub job_rows_max: u64,
    /// Every deletion vector has to go, however few rows it marks (`deletion_vectors = off`).
    pub purge_all: bool,
}

/// Why files are rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The group has too many small files.
    SmallFiles,
    /// Too many rows of the files are deleted, or no deletion vector is wanted.
    DeletedRows,
    /// Too many files cover one point of the clustering order.
    Clustering,
}

/// Files of one group to be merged and replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Numbers of the files, in clustering order where it is known.
    pub files: Vec<FileNumber>,
    /// Why.
    pub reason: Reason,
    /// Files that the live rows should be cut into, of equal row counts; 0 if no row lives.
    pub outputs: usize,
    /// Bytes to be read.
    pub bytes: u64,
}

/// Chooses the files to rewrite: the most urgent job first (how many times over its limit a thing is), jobs disjoint, each within
/// the limits of the policy except the purge of a single large file. Few jobs per group are planned at once.
///
/// A job is carried out well when its live rows are merged in clustering order and cut into `outputs` files of equal row
/// counts. If that is done, planning and carrying out come to an end. (Cutting at a size instead leaves a small last file,
/// and with it more work.)
pub fn plan(files: &[FileFacts], policy: &Policy) -> Vec<Job> {
    let limits = Limits::of(policy);
    let mut groups: BTreeMap<PartitionNumber, Vec<&FileFacts>> = BTreeMap::new();
    for file in files {
        groups.entry(file.partition).or_default().push(file);
    }
    let mut ranked = Vec::new();
    for group in groups.values_mut() {
        // Sums of fractions depend on the order they are made in, so the order must not come from the caller.
        group.sort_unstable_by_key(|file| file.number);
        let mut taken = HashSet::new();
        small_files(group, &limits, &mut taken, &mut ranked);
        clustering(group, &limits, &mut taken, &mut ranked);
        purge(group, &limits, &taken, &mut ranked);
    }
    ranked.sort_by(|one, other| {
        let by_urgency = other.urgency.total_cmp(&one.urgency);
        by_urgency.then_with(|| one.job.bytes.cmp(&other.job.bytes)).then_with(|| one.job.files.cmp(&other.job.files))
    });
    ranked.into_iter().map(|ranked| ranked.job).collect()
}

/// A job and how many times over its limit the thing is that it mends.
pub(super) struct Ranked {
    urgency: f64,
    job: Job,
}

impl Ranked {
    pub(super) fn new(mut files: Vec<&FileFacts>, reason: Reason, urgency: f64, limits: &Limits) -> Self {
        files.sort_by_key(|file| in_cluster_order(file));
        let bytes = files.iter().map(|file| file.bytes).fold(0, u64::saturating_add);
        let live = files.iter().map(|file| live_bytes(file)).fold(0, u64::saturating_add);
        let some = files.iter().any(|file| file.deleted < file.rows);
        let outputs = if some { (live.saturating_add(limits.target / 2) / limits.target).max(1) } else { 0 };
        let outputs = usize::try_from(outputs).unwrap_or(usize::MAX);
        Self { urgency, job: Job { files: files.iter().map(|file| file.number).collect(), reason, outputs, bytes } }
    }
}

/// The policy with its limits made consistent.
pub(super) struct Limits {
    pub(super) target: u64,
    pub(super) small: u64,
    pub(super) small_files: usize,
    pub(super) overlap: usize,
    pub(super) job_bytes: u64,
    pub(super) job_files: usize,
    pub(super) job_rows: u64,
    deleted_share: f64,
    purge_all: bool,
}

impl Limits {
    fn of(policy: &Policy) -> Self {
        let target = policy.target_file_bytes.max(2);
        Self {
            target,
            small: policy.small_file_bytes.min(target / 2).min(policy.job_bytes_max / 2),
            small_files: policy.small_files_max.max(1),
            overlap: policy.overlap_max.max(1),
            job_bytes: policy.job_bytes_max,
            job_files: policy.job_files_max,
            job_rows: policy.job_rows_max,
            deleted_share: policy.deleted_share_max,
            purge_all: policy.purge_all,
        }
    }

    pub(super) fn is_small(&self, file: &FileFacts) -> bool {
        live_bytes(file) < self.small
    }

    /// How many times over its limit the share of deleted rows is; `None` if the file need not be purged.
    fn purge_urgency(&self, file: &FileFacts) -> Option<f64> {
        if file.deleted == 0 {
            return None;
        }
        let share = file.deleted.min(file.rows) as f64 / file.rows.max(1) as f64;
        let urgency = share / self.deleted_share.max(0.01);
        if self.purge_all {
            return Some(1.0 + urgency);
        }
        (share > self.deleted_share).then_some(urgency)
    }
}

/// Estimated bytes of the live rows, at least one.
pub(super) fn live_bytes(file: &FileFacts) -> u64 {
    let live = u128::from(file.rows.saturating_sub(file.deleted));
    let bytes = u128::from(file.bytes) * live / u128::from(file.rows.max(1));
    u64::try_from(bytes).unwrap_or(u64::MAX).max(1)
}

/// Neighbours in this order have neighbouring ranges.
fn in_cluster_order(file: &FileFacts) -> (Option<Vec<u8>>, FileNumber) {
    (file.clustered.as_ref().map(|range| range.min.clone()), file.number)
}

/// Merges small files of similar size while a group has too many of them. Each job makes one file.
fn small_files<'a>(
    group: &[&'a FileFacts],
    limits: &Limits,
    taken: &mut HashSet<FileNumber>,
    ranked: &mut Vec<Ranked>,
) {
    let mut small: Vec<&FileFacts> = group.iter().copied().filter(|file| limits.is_small(file)).collect();
    let mut count = small.len();
    if count <= limits.small_files {
        return;
    }
    small.sort_by_key(|file| (live_bytes(file), file.number));
    small.truncate(SMALL_FILES_SEEN);
    for _ in 0..JOBS_PER_GROUP {
        if count <= limits.small_files {
            break;
        }
        let Some((start, end)) = best_small(&small, limits) else { break };
        let files: Vec<&'a FileFacts> = small.drain(start..end).collect();
        let urgency = count as f64 / limits.small_files as f64;
        taken.extend(files.iter().map(|file| file.number));
        let result = files.iter().map(|file| live_bytes(file)).fold(0, u64::saturating_add);
        count = count - files.len() + usize::from(result < limits.small);
        ranked.push(Ranked::new(files, Reason::SmallFiles, urgency, limits));
    }
}

/// The window of files sorted by size whose merge gains most per byte written.
///
/// The gain, the mean of ln(size after / size before) over the bytes, is the entropy of the sizes: high for many equal files, low
/// for a large one with a few tiny ones.
fn best_small(small: &[&FileFacts], limits: &Limits) -> Option<(usize, usize)> {
    let mut best = None;
    let mut best_gain = SMALL_GAIN_MIN;
    for start in 0..small.len() {
        let (mut bytes, mut rows, mut live, mut weighted) = (0_u64, 0_u64, 0_u64, 0.0);
        for (end, file) in small.iter().enumerate().skip(start).take(limits.job_files) {
            let size = live_bytes(file);
            bytes = bytes.saturating_add(file.bytes);
            rows = rows.saturating_add(file.rows);
            live = live.saturating_add(size);
            if bytes > limits.job_bytes || rows > limits.job_rows || live > limits.target {
                break;
            }
            weighted += size as f64 * (size as f64).ln();
            let gain = (live as f64).ln() - weighted / live as f64;
            if end > start && gain > best_gain {
                best_gain = gain;
                best = Some((start, end + 1));
            }
        }
    }
    best
}

/// Purges what no other job takes: files that stay large one by one, neighbours that are small together.
fn purge<'a>(group: &[&'a FileFacts], limits: &Limits, taken: &HashSet<FileNumber>, ranked: &mut Vec<Ranked>) {
    let wanted = group.iter().filter(|file| !taken.contains(&file.number));
    let mut wanted: Vec<(f64, &'a FileFacts)> =
        wanted.filter_map(|file| Some((limits.purge_urgency(file)?, *file))).collect();
    wanted.sort_by_key(|(_, file)| in_cluster_order(file));
    let mut pack: Vec<&FileFacts> = Vec::new();
    let (mut bytes, mut rows, mut live, mut most) = (0_u64, 0_u64, 0_u64, 0.0_f64);
    for (urgency, file) in wanted {
        if !limits.is_small(file) {
            ranked.push(Ranked::new(vec![file], Reason::DeletedRows, urgency, limits));
            continue;
        }
        let size = live_bytes(file);
        let full = bytes.saturating_add(file.bytes) > limits.job_bytes
            || rows.saturating_add(file.rows) > limits.job_rows
            || live.saturating_add(size) > limits.target
            || pack.len() >= limits.job_files;
        if full && !pack.is_empty() {
            ranked.push(Ranked::new(std::mem::take(&mut pack), Reason::DeletedRows, most, limits));
            (bytes, rows, live, most) = (0, 0, 0, 0.0);
        }
        pack.push(file);
        (bytes, live, most) = (bytes.saturating_add(file.bytes), live.saturating_add(size), most.max(urgency));
        rows = rows.saturating_add(file.rows);
    }
    if !pack.is_empty() {
        ranked.push(Ranked::new(pack, Reason::DeletedRows, most, limits));
    }
}

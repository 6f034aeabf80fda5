//! What the policy knows of files, and the jobs that it makes of them. Pure.

use crate::key_index::FileNumber;

/// Jobs of one kind that a plan holds at most for one group; the next plan brings more.
pub(super) const JOBS_PER_GROUP: usize = 16;

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
pub enum JobReason {
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
    pub reason: JobReason,
    /// Files that the live rows should be cut into, of equal row counts; 0 if no row lives.
    pub outputs: usize,
    /// Bytes to be read.
    pub bytes: u64,
}

/// A job and how many times over its limit the thing is that it mends.
pub(super) struct Ranked {
    pub(super) urgency: f64,
    pub(super) job: Job,
}

impl Ranked {
    pub(super) fn new(mut files: Vec<&FileFacts>, reason: JobReason, urgency: f64, limits: &Limits) -> Self {
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
    pub(super) fn of(policy: &Policy) -> Self {
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
    pub(super) fn purge_urgency(&self, file: &FileFacts) -> Option<f64> {
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
pub(super) fn in_cluster_order(file: &FileFacts) -> (Option<Vec<u8>>, FileNumber) {
    (file.clustered.as_ref().map(|range| range.min.clone()), file.number)
}

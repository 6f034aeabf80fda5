//! The policy: which files are worth a rewrite. Pure, deterministic, and without memory of earlier plans.
//!
//! Every rewrite has to pay. A job for small files or for clustering needs a least gain per byte written, counted in a potential
//! that arriving bytes bring along and that only jobs use up. So the bytes rewritten per byte arrived grow with the logarithm
//! of the table, and no file is written again each time a tiny one arrives.

use std::collections::{BTreeMap, HashSet};

use super::clustering::clustering;
use super::job::{
    FileFacts, JOBS_PER_GROUP, Job, JobReason, Limits, PartitionNumber, Policy, Ranked, in_cluster_order, live_bytes,
};
use crate::key_index::FileNumber;

/// Small files of one group that are looked at, the smallest first.
const SMALL_FILES_SEEN: usize = 4_096;

/// Least gain of a merge of small files: the mean, over its bytes, of ln(size after / size before). Two files whose sizes
/// differ by a factor of four reach it, so small files without a job grow in steps of more than four.
const SMALL_GAIN_MIN: f64 = 0.5;

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
        ranked.push(Ranked::new(files, JobReason::SmallFiles, urgency, limits));
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
            ranked.push(Ranked::new(vec![file], JobReason::DeletedRows, urgency, limits));
            continue;
        }
        let size = live_bytes(file);
        let full = bytes.saturating_add(file.bytes) > limits.job_bytes
            || rows.saturating_add(file.rows) > limits.job_rows
            || live.saturating_add(size) > limits.target
            || pack.len() >= limits.job_files;
        if full && !pack.is_empty() {
            ranked.push(Ranked::new(std::mem::take(&mut pack), JobReason::DeletedRows, most, limits));
            (bytes, rows, live, most) = (0, 0, 0, 0.0);
        }
        pack.push(file);
        (bytes, live, most) = (bytes.saturating_add(file.bytes), live.saturating_add(size), most.max(urgency));
        rows = rows.saturating_add(file.rows);
    }
    if !pack.is_empty() {
        ranked.push(Ranked::new(pack, JobReason::DeletedRows, most, limits));
    }
}

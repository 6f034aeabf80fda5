//! Which files to merge so that fewer cover one point of the clustering order.
//!
//! The order is cut into *gaps* at the ends of all ranges; the *depth* of a gap is the number of files that cover it. A job takes
//! files that all cover one gap that is too deep. Cut into disjoint files, their rows lie no deeper anywhere and less deep
//! there, so clustering comes to an end. Files that merely touch, or hold one value only, cover no common gap.
//!
//! What bounds the work is the choice among the files of a gap: files of similar width (a width is the data that lies
//! in the range) share out their ranges among each other, a wide file with a narrow one gains little. It is the rule for
//! small files once more, with width in the place of size.

use crate::key_index::FileNumber;
use std::collections::HashSet;

use super::job::{FileFacts, JOBS_PER_GROUP, JobReason, Limits, Ranked, live_bytes};

/// Least gain of a job: the mean, over its files, of the logarithm of how many times narrower the rows will lie. Two files
/// whose widths differ by a factor of four reach it.
const GAIN_MIN: f64 = 0.22;

/// Gaps that are tried for one job, the deepest first.
const GAPS_TRIED: usize = 16;

/// Files over one gap that are compared, the widest first.
const FILES_COMPARED: usize = 256;

/// A file as a span of gaps.
struct Span<'a> {
    file: &'a FileFacts,
    /// First gap that is covered.
    from: usize,
    /// First gap behind it that is not.
    to: usize,
    /// Estimated bytes of all files within the range.
    width: f64,
}

/// Plans clustering jobs of one group. Small files take no part: their own limit bounds them.
pub(super) fn clustering<'a>(
    group: &[&'a FileFacts],
    limits: &Limits,
    taken: &mut HashSet<FileNumber>,
    ranked: &mut Vec<Ranked>,
) {
    let apart = |file: &&&FileFacts| !taken.contains(&file.number) && !limits.is_small(file);
    let (mut spans, gaps) = spans(group.iter().filter(apart).copied());
    if spans.len() <= limits.overlap {
        return;
    }
    let mut depth = vec![0_usize; gaps];
    for span in &spans {
        depth[span.from..span.to].iter_mut().for_each(|depth| *depth += 1);
    }
    for _ in 0..JOBS_PER_GROUP {
        let mut deep: Vec<usize> = (0..gaps).filter(|&gap| depth[gap] > limits.overlap).collect();
        deep.sort_by_key(|&gap| (std::cmp::Reverse(depth[gap]), gap));
        let tried = deep.into_iter().take(GAPS_TRIED);
        let Some((gap, chosen)) = tried.into_iter().find_map(|gap| Some((gap, best_over(gap, &spans, limits)?))) else {
            break;
        };
        let urgency = depth[gap] as f64 / limits.overlap as f64;
        let (inputs, rest): (Vec<Span<'a>>, Vec<Span<'a>>) =
            spans.into_iter().partition(|span| chosen.contains(&span.file.number));
        spans = rest;
        // The new files lie side by side somewhere within the ranges of the old ones: one more file everywhere, at most.
        let from = inputs.iter().map(|span| span.from).min().unwrap_or_default();
        let to = inputs.iter().map(|span| span.to).max().unwrap_or_default();
        for span in &inputs {
            depth[span.from..span.to].iter_mut().for_each(|depth| *depth -= 1);
        }
        depth[from..to].iter_mut().for_each(|depth| *depth += 1);
        taken.extend(&chosen);
        let files = inputs.iter().map(|span| span.file).collect();
        ranked.push(Ranked::new(files, JobReason::Clustering, urgency, limits));
    }
}

/// The files that cover gaps, with their widths, and the number of gaps.
fn spans<'a>(files: impl Iterator<Item = &'a FileFacts>) -> (Vec<Span<'a>>, usize) {
    let known = files.filter_map(|file| file.clustered.as_ref().map(|range| (file, range)));
    let known: Vec<_> = known.filter(|(_, range)| range.min < range.max).collect();
    let mut ends: Vec<&[u8]> = known.iter().flat_map(|(_, range)| [&range.min[..], &range.max[..]]).collect();
    ends.sort_unstable();
    ends.dedup();
    let rank = |end: &[u8]| ends.partition_point(|other| *other < end);
    let mut spans: Vec<Span<'a>> = known
        .iter()
        .map(|(file, range)| Span { file, from: rank(&range.min), to: rank(&range.max), width: 0.0 })
        .collect();
    let gaps = ends.len().saturating_sub(1);
    // The bytes of a file, spread evenly over its gaps, say how much data lies in each gap.
    let mut change = vec![0.0; gaps + 1];
    for span in &spans {
        let share = live_bytes(span.file) as f64 / (span.to - span.from) as f64;
        change[span.from] += share;
        change[span.to] -= share;
    }
    let mut before = vec![0.0; gaps + 1];
    let mut density = 0.0;
    for gap in 0..gaps {
        density += change[gap];
        before[gap + 1] = before[gap] + f64::max(density, 0.0);
    }
    for span in &mut spans {
        span.width = (before[span.to] - before[span.from]).max(1.0);
    }
    (spans, gaps)
}

/// The files over a gap, similar in width, whose merge gains most per byte written.
///
/// Of the rows of one file, each other file makes the range narrower in proportion to the overlap of the two: by 1 if it is as wide,
/// by little if one of them is much narrower.
fn best_over(gap: usize, spans: &[Span<'_>], limits: &Limits) -> Option<HashSet<FileNumber>> {
    let mut over: Vec<&Span<'_>> = spans.iter().filter(|span| span.from <= gap && gap < span.to).collect();
    over.sort_by(|one, other| other.width.total_cmp(&one.width).then(one.file.number.cmp(&other.file.number)));
    over.truncate(FILES_COMPARED);
    let mut best = None;
    let mut best_gain = GAIN_MIN;
    let mut narrower: Vec<f64> = Vec::new();
    for start in 0..over.len() {
        narrower.clear();
        let (mut bytes, mut rows) = (0_u64, 0_u64);
        for (end, span) in over.iter().enumerate().skip(start).take(limits.job_files) {
            bytes = bytes.saturating_add(span.file.bytes);
            rows = rows.saturating_add(span.file.rows);
            if bytes > limits.job_bytes || rows > limits.job_rows {
                break;
            }
            let mut own = 1.0;
            for (factor, other) in narrower.iter_mut().zip(&over[start..end]) {
                // Sorted: the other one is at least as wide.
                let alike = span.width / other.width;
                *factor += alike;
                own += alike;
            }
            narrower.push(own);
            let gain = narrower.iter().map(|factor| factor.ln()).sum::<f64>() / narrower.len() as f64;
            if end > start && gain > best_gain {
                best_gain = gain;
                best = Some((start, end + 1));
            }
        }
    }
    let (start, end) = best?;
    Some(over[start..end].iter().map(|span| span.file.number).collect())
}

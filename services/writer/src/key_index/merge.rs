//! Merging runs: which, and how.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::sync::Arc;

use super::Liveness;
use super::error::IndexError;
use super::folder::Folder;
use super::position::FileNumber;
use super::run::{Run, RunScan};
use super::run_builder::FinishedRun;
use super::run_writer::RunWriter;

/// How many of the runs, which are in the order of their sizes with the greatest first, stay as they are; the others are to be
/// merged into one.
///
/// A run stays while it is at least `ratio` times as large as all smaller ones together. So each is at most a `1 / ratio` of
/// the one before it, their number grows with the logarithm of the entries, and an entry is copied at most `ratio + 1`
/// times for each size that there is.
pub(super) fn runs_to_keep(sizes: &[u64], ratio: u64) -> usize {
    let mut smaller: u64 = sizes.iter().sum();
    for (number, size) in sizes.iter().enumerate() {
        smaller -= size;
        if *size < smaller.saturating_mul(ratio) {
            return number;
        }
    }
    sizes.len()
}

/// Runs that are to be merged into one; meanwhile everything else of the index goes on. There is one job of an index at a time:
/// while it or its result exists, no other is due.
#[derive(Debug)]
pub struct MergeJob {
    pub(super) folder: Arc<Folder>,
    pub(super) inputs: Vec<Arc<Run>>,
    pub(super) token: Arc<()>,
}

/// The result of a merge. Dropped instead of installed, it leaves nothing behind.
#[derive(Debug)]
pub struct MergedRuns {
    pub(super) inputs: Vec<Arc<Run>>,
    pub(super) output: FinishedRun,
    _token: Arc<()>,
}

impl MergeJob {
    /// Entries that the job reads.
    pub fn entries(&self) -> u64 {
        self.inputs.iter().map(|run| run.entries()).sum()
    }

    /// Writes the live entries of the runs into one. `live` must know of everything that was put or attached before the job was
    /// made: what it calls dead is forgotten.
    pub fn run(self, live: &dyn Liveness) -> Result<MergedRuns, IndexError> {
        let mut writer = RunWriter::create(&self.folder)?;
        let mut files = KnownFiles::default();
        let mut heads = BinaryHeap::with_capacity(self.inputs.len());
        let mut scans: Vec<RunScan> = self.inputs.iter().cloned().map(RunScan::new).collect();
        for (number, scan) in scans.iter_mut().enumerate() {
            heads.extend(scan.next()?.map(|entry| Reverse((entry, number))));
        }
        let mut before = None;
        while let Some(mut head) = heads.peek_mut() {
            let Reverse((entry, number)) = *head;
            match scans[number].next()? {
                Some(next) => *head = Reverse((next, number)),
                None => drop(PeekMut::pop(head)),
            }
            // One entry may be in several runs: what was put again after a crash.
            let position = entry.position();
            if before != Some(entry) && files.is_live(position.file, live) && live.is_live(position) {
                writer.push(entry)?;
                before = Some(entry);
            }
        }
        let output = FinishedRun::new(&self.folder, writer.finish()?);
        Ok(MergedRuns { inputs: self.inputs, output, _token: self.token })
    }
}

impl MergedRuns {
    /// Entries that are left.
    pub fn entries(&self) -> u64 {
        self.output.entries()
    }
}

/// Which files are dead, asked once for each file. A file that dies later is found by its rows.
#[derive(Debug, Default)]
struct KnownFiles {
    /// Two bits for each file: asked, live.
    bits: Vec<u64>,
}

impl KnownFiles {
    /// Files with greater numbers are not remembered: 4 MiB are enough.
    const FILE_MAX: u32 = 1 << 24;

    fn is_live(&mut self, file: FileNumber, live: &dyn Liveness) -> bool {
        const ASKED: u64 = 1;
        const LIVE: u64 = 2;
        let number = file.get();
        if number > Self::FILE_MAX {
            return true;
        }
        let (word, shift) = (number as usize / 32, number % 32 * 2);
        if word >= self.bits.len() {
            self.bits.resize((word + 1).next_power_of_two(), 0);
        }
        if self.bits[word] >> shift & ASKED == 0 {
            let answer = if live.file_is_live(file) { ASKED | LIVE } else { ASKED };
            self.bits[word] |= answer << shift;
        }
        self.bits[word] >> shift & LIVE != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_a_falling_size_stay() {
        assert_eq!(runs_to_keep(&[], 2), 0);
        assert_eq!(runs_to_keep(&[5], 2), 1);
        assert_eq!(runs_to_keep(&[100, 30, 10, 3, 1], 2), 5);
        assert_eq!(runs_to_keep(&[100, 30, 10, 1, 1], 2), 3);
        assert_eq!(runs_to_keep(&[130, 30, 30], 2), 1);
        assert_eq!(runs_to_keep(&[100, 51], 2), 0);
        assert_eq!(runs_to_keep(&[1, 1], 2), 0);
    }

    #[test]
    fn runs_stay_few_and_writes_too() {
        let (mut sizes, mut copied, mut most) = (vec![100_000_000u64], 0, 0);
        for _ in 0..1_000 {
            sizes.push(1_000_000);
            sizes.sort_unstable_by_key(|size| Reverse(*size));
            let keep = runs_to_keep(&sizes, 2);
            if keep < sizes.len() {
                let merged = sizes.drain(keep..).sum::<u64>();
                copied += merged;
                // As many entries died as came.
                sizes.push(merged.min(100_000_000));
            }
            most = most.max(sizes.len());
        }
        assert!(most <= 6, "{most}");
        assert!(copied < 12 * 1_000_000_000, "{copied}");
    }
}

//! Which files of a table a change marks, rewrites or takes away. Pure.
//!
//! Small files are *folded* into the new one of their partition when there are too many of them, so that live ingest does not pile files up
//! faster than compaction merges them. Where deletion vectors are written only tiny files are folded, and only so many at once: the cost of
//! a change still follows the change.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use roaring::RoaringBitmap;

use crate::key_index::FileNumber;
use crate::table_store::delta::files::data_file::DataFile;
use crate::table_store::delta::files::partition::Partition;
use crate::table_store::delta::options::DeltaOptions;
use crate::table_store::delta::space::table::TableState;
use crate::table_store::delta::upsert::plan::rewrite_or_deletion_vectors::Replacement;

/// Tiny files of one partition that one change folds at most, the smallest first; the next change goes on. All of them are open at once.
const FOLDED_OF_PARTITION_MAX: usize = 32;

/// Tiny files that one change may fold for every two partitions that it writes to. A partition gets one more by a change, so with more than
/// two they become fewer; and a change of many partitions never folds all of them at once.
const FOLDED_FOR_TWO_PARTITIONS: usize = 3;

/// Tiny files that any change may fold.
const FOLDED_ALWAYS: usize = 4 * FOLDED_OF_PARTITION_MAX;

/// What happens to the files of a table.
pub(crate) struct FilePlan<'a> {
    /// Those that get a deletion vector, with all rows that are dead then.
    pub(crate) marked: Vec<(&'a DataFile, Arc<RoaringBitmap>)>,
    /// Those whose other rows are written anew.
    pub(crate) rewritten: Vec<&'a DataFile>,
    /// Those without another row.
    pub(crate) removed: Vec<&'a DataFile>,
}

/// Decides about the files. `everything`: all are written anew; `replacement`: how rows leave; `incoming`: where rows enter.
pub(crate) fn plan_files<'a>(
    table: &'a TableState,
    dead: &BTreeMap<FileNumber, RoaringBitmap>,
    everything: bool,
    replacement: Replacement,
    incoming: &HashSet<&Partition>,
    options: &DeltaOptions,
) -> FilePlan<'a> {
    let mut files = FilePlan { marked: Vec::new(), rewritten: Vec::new(), removed: Vec::new() };
    let mut rewritten: HashSet<FileNumber> = HashSet::new();
    for file in table.files() {
        let dead = dead.get(&file.number);
        if dead.is_none() && !everything {
            continue;
        }
        let mut rows = file.deleted_rows().map_or_else(RoaringBitmap::new, |rows| rows.as_ref().clone());
        rows |= dead.unwrap_or(&RoaringBitmap::new());
        if file.rows >= 0 && i64::try_from(rows.len()).is_ok_and(|deleted| deleted >= file.rows) {
            files.removed.push(file);
        } else if everything || replacement == Replacement::Rewrite || !file.partition.is_plain() {
            rewritten.insert(file.number);
        } else {
            files.marked.push((file, Arc::new(rows)));
        }
    }
    let taken: HashSet<FileNumber> =
        rewritten.iter().copied().chain(files.removed.iter().map(|file| file.number)).collect();
    let folded = match replacement {
        Replacement::DeletionVectors => tiny_files(table, &taken, incoming, options),
        Replacement::Rewrite => small_files(table, &taken, incoming, options),
    };
    // Its dead rows are left behind when it is copied.
    files.marked.retain(|(file, _)| !folded.contains(&file.number));
    rewritten.extend(folded);
    files.rewritten = table.files().filter(|file| rewritten.contains(&file.number)).collect();
    files
}

/// Small files that are folded into a rewrite, as there are too many of them in a partition that is written anyway.
fn small_files(
    table: &TableState,
    taken: &HashSet<FileNumber>,
    incoming: &HashSet<&Partition>,
    options: &DeltaOptions,
) -> HashSet<FileNumber> {
    let is_small = |file: &DataFile| file.size < options.small_file_bytes as i64;
    let small = too_many(table, taken, incoming, options, is_small);
    small.into_iter().flat_map(|(_, files)| files).map(|file| file.number).collect()
}

/// Tiny files that are folded into the new one of their partition although deletion vectors may be written. To read and write one costs
/// about as much as to put the new file, and what comes of it is soon tiny no more: in the mean a change copies at most
/// `tiny_file_bytes / small_files_max` bytes of each partition that it writes to.
fn tiny_files(
    table: &TableState,
    taken: &HashSet<FileNumber>,
    incoming: &HashSet<&Partition>,
    options: &DeltaOptions,
) -> HashSet<FileNumber> {
    let below = options.small_file_bytes.min(options.tiny_file_bytes.saturating_add(1));
    let is_tiny = |file: &DataFile| file.size.unsigned_abs() < below;
    let mut left = FOLDED_ALWAYS.max(FOLDED_FOR_TWO_PARTITIONS * incoming.len() / 2);
    let mut folded = HashSet::new();
    for (_, mut files) in too_many(table, taken, incoming, options, is_tiny) {
        files.sort_unstable_by_key(|file| (file.size, file.number));
        files.truncate(FOLDED_OF_PARTITION_MAX);
        let Some(rest) = left.checked_sub(files.len()) else { break };
        left = rest;
        folded.extend(files.into_iter().map(|file| file.number));
    }
    folded
}

/// Files of a kind in those partitions that are written to and have too many of them; the partitions with the most come first.
fn too_many<'a>(
    table: &'a TableState,
    taken: &HashSet<FileNumber>,
    incoming: &HashSet<&Partition>,
    options: &DeltaOptions,
    is_meant: impl Fn(&DataFile) -> bool,
) -> Vec<(&'a Partition, Vec<&'a DataFile>)> {
    let mut meant: HashMap<&Partition, Vec<&DataFile>> = HashMap::new();
    for file in table.files() {
        if is_meant(file) && !taken.contains(&file.number) && incoming.contains(&file.partition) {
            meant.entry(&file.partition).or_default().push(file);
        }
    }
    // The new file is probably of that kind too.
    let mut meant: Vec<_> = meant.into_iter().filter(|(_, files)| files.len() + 1 > options.small_files_max).collect();
    meant.sort_unstable_by_key(|(partition, files)| (Reverse(files.len()), *partition));
    meant
}

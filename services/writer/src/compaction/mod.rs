//! Compaction: which files of a table are rewritten, how their rows are merged, and where each row went.
//!
//! Upserts leave small files, deleted rows and files whose clustering ranges overlap. [`plan()`] decides which files are worth a
//! rewrite, [`merge`] streams their live rows in clustering order, and [`PositionMap`] turns positions that were deleted while the
//! merge ran into positions of the new files. Nothing here reads or writes a file or knows Delta.
//!
//! Invariants:
//! - A plan comes to an end: when its jobs are carried out as described at [`plan()`], it asks for nothing more.
//! - A merge yields every live row exactly once with its exact place of origin, whether or not its inputs are sorted.
//! - The orders agree: [`ClusterKeys`] makes bytes that compare as the merge orders rows, NULL first.

mod cluster_key;
mod clustering;
mod merge;
mod plan;
mod positions;

#[cfg(test)]
mod tests;

pub use cluster_key::{ClusterKeys, ColumnBounds};
pub use merge::{Input, MergeError, Merged, Source, merge, sorted};
pub use plan::{ClusterRange, FileFacts, Job, PartitionNumber, Policy, Reason, plan};
pub use positions::PositionMap;

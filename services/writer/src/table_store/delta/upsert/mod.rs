//! Applying a batch: what is decided about each id, and the commits that come of it.

pub(crate) mod actions;
pub(crate) mod adopt;
pub(crate) mod apply;
pub(crate) mod change;
pub(crate) mod commit_change;
pub(crate) mod complete_rows;
pub(crate) mod dependent_commits;
pub(crate) mod parallel_commits;
pub(crate) mod partition_files;
pub(crate) mod plan;
pub(crate) mod progress;
pub(crate) mod rows;
pub(crate) mod write_change;

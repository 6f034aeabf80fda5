//! Applying a batch: what is decided for each id, and the commits that come of it.

pub(crate) mod apply;
pub(crate) mod decide;
pub(crate) mod file_plan;
pub(crate) mod grouping;
pub(crate) mod parallel_commits;
pub(crate) mod partition_files;
pub(crate) mod rewrite_budget;
pub(crate) mod rows;
pub(crate) mod write_change;

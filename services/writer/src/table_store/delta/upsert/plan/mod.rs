//! Decisions about a batch, without I/O: what happens to each id, to each table, to each file.

pub(crate) mod decide;
pub(crate) mod file_plan;
pub(crate) mod grouping;
pub(crate) mod rewrite_budget;
pub(crate) mod rewrite_or_deletion_vectors;

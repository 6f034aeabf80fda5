//! Compaction, beside batches that go on being applied.

pub(crate) mod commit;
pub(crate) mod rewrite;
pub(crate) mod run;
pub(crate) mod select;
pub(crate) mod yield_to_batches;

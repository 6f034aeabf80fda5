//! Compaction on values: no file is read or written.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod merge;
mod plan;

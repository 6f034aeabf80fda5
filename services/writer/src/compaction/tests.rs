//! Proofs of the plan and of the merge, on values.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod merge;
mod plan;

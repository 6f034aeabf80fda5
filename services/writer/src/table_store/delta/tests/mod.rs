//! Proofs of the engine on a local folder.
#![allow(clippy::unwrap_used, reason = "tests")]

mod flaky;
mod lake;
mod model;
mod single;

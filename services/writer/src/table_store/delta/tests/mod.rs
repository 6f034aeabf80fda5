//! Proofs of the engine on a local folder.
#![allow(clippy::unwrap_used, reason = "tests")]

mod cleanup;
mod compaction;
mod flaky;
mod gate;
mod index;
mod lake;
mod layout;
mod log;
mod many_tables;
mod messages;
mod model;
mod partitions;
mod single;
mod strangers;
mod unusable;
mod vectors;

//! Proofs of the engine on a local folder.
#![allow(clippy::unwrap_used, reason = "tests")]

mod cleanup;
mod compaction;
mod foreign;
mod index;
mod int96;
mod lake;
mod layout;
mod log;
mod logged_paths;
mod many_tables;
mod messages;
mod model;
mod partitions;
mod presence;
mod protocol;
mod resident;
mod respelled;
mod retention;
mod single;
mod strangers;
mod unusable;
mod vectors;

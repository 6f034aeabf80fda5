//! Tables are found by name through a Hive Metastore: the adapter on three versions of it, and a writer whose tables Spark reads.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod contract;
mod stage;
mod writer;

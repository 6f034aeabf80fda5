//! What the whole-system tests stand on: real servers to run against, and independent readers that judge the lake.

pub mod engine;
pub mod invocation;
pub mod location_hq;
pub mod parts;
pub mod readers;
pub mod system;
pub mod two_shards;

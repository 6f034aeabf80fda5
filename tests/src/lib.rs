//! What the whole-system tests stand on: real servers to run against, and independent readers that judge the lake.

pub mod invocation;
pub mod parts;
pub mod readers;
pub mod system;

//! What the whole-system tests stand on: real servers to run against, and independent readers that judge the lake.

pub mod certificates;
pub mod engine;
pub mod invocation;
pub mod location_hq;
pub mod parts;
pub mod readers;
pub mod system;
pub mod two_shards;

use std::path::{Path, PathBuf};

/// A file or folder of this package, by its path from there.
///
/// Cargo tells the folder when it runs a test. What was compiled in is for programs that are started by hand: in a target directory that
/// several checkouts share it can be the folder of another one.
pub fn package_file(path: impl AsRef<Path>) -> PathBuf {
    let told = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    told.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR"))).join(path)
}

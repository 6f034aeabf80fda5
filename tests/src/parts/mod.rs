//! Real parts for tests: Postgres, NATS, Apache Kafka, an S3 store, HDFS, Apache Spark, the Hive Metastore and the binaries of this workspace.
//!
//! Invariants: everything listens on 127.0.0.1 only (but for Hive Metastores before 4, which cannot be told to), on ports that no other test holds; every part keeps its data in a folder of its own;
//! a part ends when its value is dropped, and also when the test process dies without dropping it. Nothing else is ever stopped.
//! The parts are installed by `tests/set-up`; a missing one is an error that says so.

mod dialogue;
mod hdfs;
mod hive_metastore;
mod kafka;
mod link;
mod nats;
mod object_store;
mod port;
mod postgres;
mod probe;
mod process;
mod prometheus;
mod service;
mod spark;
mod waiting;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

pub(crate) use self::dialogue::Dialogue;
pub use self::hdfs::Hdfs;
pub use self::hive_metastore::{HiveMetastore, HiveVersion, KeyStore, postgres_driver};
pub use self::kafka::{Kafka, with_consumer};
pub use self::link::Link;
pub use self::nats::Nats;
pub use self::object_store::ObjectStore;
pub use self::port::Port;
pub use self::postgres::Postgres;
pub use self::process::Process;
pub use self::prometheus::Prometheus;
pub use self::service::{Launch, Service, binary_path};
pub use self::spark::{Spark, SparkRelease, read_kafka_with_spark, sql_name};
pub use self::waiting::wait_until;

/// The folder that `tests/set-up` installs into: `LAKE_TEST_PARTS`, else `~/.cache/commcare-lake/parts`.
///
/// # Errors
/// When neither `LAKE_TEST_PARTS` nor `HOME` is set.
pub fn parts_dir() -> anyhow::Result<PathBuf> {
    if let Some(folder) = std::env::var_os("LAKE_TEST_PARTS").filter(|value| !value.is_empty()) {
        return Ok(PathBuf::from(folder));
    }
    let home = std::env::var_os("HOME").context("set HOME or LAKE_TEST_PARTS to find the parts that the tests run")?;
    Ok(Path::new(&home).join(".cache/commcare-lake/parts"))
}

/// A file or folder below [`parts_dir`] that must be there.
pub(crate) fn installed(path: &str) -> anyhow::Result<PathBuf> {
    let found = parts_dir()?.join(path);
    if !found.exists() {
        bail!("{} is missing: run tests/set-up (it installs what the tests need)", found.display());
    }
    Ok(found)
}

/// Starts something on fresh ports, again when a foreign program took one of them in between.
fn with_fresh_ports<T>(mut start: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    for _ in 0..2 {
        match start() {
            Err(error) if format!("{error:#}").to_lowercase().contains("address already in use") => {}
            outcome => return outcome,
        }
    }
    start()
}

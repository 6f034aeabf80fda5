//! Judges of the lake that share no code with it: DuckDB, Polars and Spark read the tables.
//!
//! [`compare`] judges a whole lake against a folder of expectations, in a script that ends. [`Readers`] is for tests that look at tables
//! again and again: one process that gives what each reader sees. [`Snapshot`] is the quick look within this process.

mod content;
mod inquiry;
mod session;
mod snapshot;
mod statistics;

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::package_file;
use crate::parts::{ObjectStore, installed};

pub use self::content::{Content, Row};
pub use self::inquiry::{Answer, Condition, Inquiry, Test};
pub use self::session::{Reader, Readers};
pub use self::snapshot::Snapshot;

/// The readers that every comparison asks.
pub const READERS: &str = "duckdb,polars";

/// Compares all tables below `root_uri` (a path, or `s3://bucket/prefix` with `s3`) with the expectation in `expected_dir`, cell by cell, and
/// gives the summary, one line per reader: `duckdb: tables N rows M differences 0`.
///
/// `expected_dir` holds `tables.json` and one `.ndjson` file a table; `tests/readers/compare.py` tells the format.
///
/// # Errors
/// When any reader finds a difference (the error lists the first of them), cannot read a table, or is not installed.
pub fn compare(expected_dir: &Path, root_uri: &str, s3: Option<&ObjectStore>) -> anyhow::Result<String> {
    let script = package_file("readers/compare.py");
    let mut command = Command::new(installed("python/bin/python")?);
    command.arg(script).arg("--expected").arg(expected_dir).args(["--root", root_uri, "--readers", READERS]);
    if let Some(s3) = s3 {
        command.envs(s3.environment());
    }
    let output = command.stdin(Stdio::null()).output().context("run tests/readers/compare.py")?;
    let summary = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let trouble = String::from_utf8_lossy(&output.stderr).into_owned();
        bail!("the tables below {root_uri} are not as expected ({}):\n{summary}{trouble}", output.status);
    }
    Ok(summary)
}

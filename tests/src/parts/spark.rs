//! Apache Spark with Delta's jars: the reader that most consumers of such a lake use, and a concurrent writer of its tables.
//!
//! Two releases, as many users have not moved on from Spark 3 yet.
//!
//! One local session of two threads and at most 1.2 GB of heap in a Python process; nothing is fetched from anywhere, nothing listens
//! but on 127.0.0.1. It takes some ten seconds to start, so a test binary shares one of a release.

use std::fmt;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, ensure};
use serde_json::{Map, Value, json};

use super::dialogue::Dialogue;
use super::installed;
use crate::package_file;
use crate::readers::{Answer, Content};

static SHARED: [Mutex<Option<Spark>>; 2] = [const { Mutex::new(None) }; 2];

/// A release line of Spark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SparkRelease {
    /// Spark 3.5 with Delta 3.
    Three,
    /// Spark 4 with Delta 4.
    Four,
}

impl SparkRelease {
    /// Where `tests/set-up` installs it.
    const fn folder(self) -> &'static str {
        match self {
            Self::Three => "spark-3",
            Self::Four => "spark",
        }
    }
}

impl fmt::Display for SparkRelease {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.folder())
    }
}

/// Has a job of Spark 3.5 read topics to their ends, as the lake's predecessor did. The checkpoint of each is in the folder, by its name.
///
/// # Errors
/// When it is not installed, or fails.
pub fn read_kafka_with_spark(bootstrap: &str, checkpoints: &Path, topics: &[&str]) -> anyhow::Result<()> {
    let mut job = Command::new(installed("spark-3/python/bin/python")?);
    job.arg(package_file("readers/spark_kafka_job.py")).arg(installed("spark-3-kafka/jars")?);
    job.arg(bootstrap).arg(checkpoints).args(topics).env("JAVA_HOME", installed("spark-3/java")?);
    let outcome = job.output().context("start a job of Spark 3")?;
    ensure!(outcome.status.success(), "the job of Spark 3 failed:\n{}", String::from_utf8_lossy(&outcome.stderr));
    Ok(())
}

/// A running Spark.
#[derive(Debug)]
pub struct Spark {
    dialogue: Dialogue,
}

impl Spark {
    /// Starts a Python process with a Spark session in it.
    ///
    /// # Errors
    /// When it is not installed or does not come up.
    pub fn start(release: SparkRelease) -> anyhow::Result<Self> {
        Self::start_with(release, &[])
    }

    /// The same with further settings of the session.
    ///
    /// # Errors
    /// As [`Spark::start`].
    pub fn start_with(release: SparkRelease, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let part = |name: &str| installed(&format!("{release}/{name}"));
        let mut command = Command::new(part("python/bin/python")?);
        command.arg(package_file("readers/spark.py")).arg(part("jars")?);
        let settings: Map<String, Value> =
            settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
        command.arg(Value::Object(settings).to_string());
        let name = match release {
            SparkRelease::Three => {
                // Newer ones are not for it.
                command.env("JAVA_HOME", part("java")?);
                "Spark 3"
            }
            SparkRelease::Four => "Spark",
        };
        Ok(Self { dialogue: Dialogue::start(name, command)? })
    }

    /// Does something with the Spark 4 of this process, which the first call starts. Others wait meanwhile.
    ///
    /// # Errors
    /// When Spark is not installed or does not come up, and the errors of `work`.
    pub fn shared<T>(work: impl FnOnce(&mut Self) -> anyhow::Result<T>) -> anyhow::Result<T> {
        Self::shared_of(SparkRelease::Four, work)
    }

    /// The same with the Spark of a release.
    ///
    /// # Errors
    /// When Spark is not installed or does not come up, and the errors of `work`.
    pub fn shared_of<T>(release: SparkRelease, work: impl FnOnce(&mut Self) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let mut held = SHARED[release as usize].lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() {
            *held = Some(Self::start(release)?);
        }
        work(held.as_mut().context("it was just started")?)
    }

    /// The process that answers; Java runs below it.
    pub fn process_id(&self) -> u32 {
        self.dialogue.process_id()
    }

    /// All rows of a table, now or at a version, and what `SELECT count(*)` says.
    ///
    /// # Errors
    /// When Spark cannot read it.
    pub fn read(&mut self, table: &Path, version: Option<u64>) -> anyhow::Result<Content> {
        self.dialogue.ask(&json!({"do": "read", "table": table, "version": version}))
    }

    /// Asks about a table; see [`crate::readers::Readers::ensure_sees`].
    pub(crate) fn inquire(&mut self, table: &Path, mut inquiry: Value) -> anyhow::Result<Answer> {
        inquiry["do"] = "inquire".into();
        inquiry["table"] = table.to_str().context("a table's path is text")?.into();
        self.dialogue.ask(&inquiry)
    }

    /// Runs SQL statements one after another, and gives the rows of the last as text. A table is named ``delta.`/its/folder` ``.
    ///
    /// # Errors
    /// When Spark refuses one of them; those before it have been done.
    pub fn sql(&mut self, statements: &[&str]) -> anyhow::Result<Vec<Vec<Option<String>>>> {
        self.dialogue.ask(&json!({"do": "sql", "sql": statements}))
    }

    /// Merges the rows of a parquet file into a table by `_id`. A row whose column `__deleted` is true leaves the table, any other
    /// enters or replaces; what a row lacks becomes NULL, new columns are added.
    ///
    /// # Errors
    /// When Spark refuses.
    pub fn merge(&mut self, table: &Path, parquet: &Path) -> anyhow::Result<()> {
        self.dialogue.ask(&json!({"do": "merge", "table": table, "parquet": parquet}))
    }
}

/// The name of a table in SQL.
pub fn sql_name(table: &Path) -> String {
    format!("delta.`{}`", table.display().to_string().replace('`', "``"))
}

//! Apache Spark with Delta's jars: the reader that most consumers of such a lake use, and a concurrent writer of its tables.
//!
//! One local session of two threads and at most 1.2 GB of heap in a Python process; nothing is fetched from anywhere, nothing listens
//! but on 127.0.0.1. It takes some ten seconds to start, so a test binary shares one.

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use serde_json::{Value, json};

use super::dialogue::Dialogue;
use super::installed;
use crate::package_file;
use crate::readers::{Answer, Content};

static SHARED: Mutex<Option<Spark>> = Mutex::new(None);

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
    pub fn start() -> anyhow::Result<Self> {
        let mut command = Command::new(installed("spark/python/bin/python")?);
        let script = package_file("readers/spark.py");
        command.arg(script).arg(installed("spark/jars")?);
        Ok(Self { dialogue: Dialogue::start("Spark", command)? })
    }

    /// Does something with the Spark of this process, which the first call starts. Others wait meanwhile.
    ///
    /// # Errors
    /// When Spark is not installed or does not come up, and the errors of `work`.
    pub fn shared<T>(work: impl FnOnce(&mut Self) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let mut held = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() {
            *held = Some(Self::start()?);
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

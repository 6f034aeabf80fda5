//! A Python process with DuckDB, Polars and python deltalake, kept for many questions; python deltalake also changes tables, as a concurrent writer.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::content::{Content, Row};
use super::inquiry::{Inquiry, spoken};
use crate::package_file;
use crate::parts::{Dialogue, ObjectStore, Spark, SparkRelease, installed};

/// A program that reads Delta tables, independent of the lake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reader {
    /// DuckDB's `delta_scan` (Delta Kernel).
    DuckDb,
    /// Polars' `scan_delta`.
    Polars,
    /// DataFusion, as `QueryBuilder` of python deltalake.
    DataFusion,
    /// Apache Spark 4 with Delta's jars; local tables only.
    Spark,
    /// Apache Spark 3.5 likewise.
    Spark3,
}

impl Reader {
    /// Those that start at once and can be asked about every table.
    pub const QUICK: [Self; 3] = [Self::DuckDb, Self::Polars, Self::DataFusion];
    /// One of each kind.
    pub const ALL: [Self; 4] = [Self::DuckDb, Self::Polars, Self::DataFusion, Self::Spark];
    /// Both releases of Spark. A second one takes its time and memory, so one test binary asks them both: `delta_layouts`.
    pub const SPARKS: [Self; 2] = [Self::Spark, Self::Spark3];

    const fn spark(self) -> Option<SparkRelease> {
        match self {
            Self::DuckDb | Self::Polars | Self::DataFusion => None,
            Self::Spark => Some(SparkRelease::Four),
            Self::Spark3 => Some(SparkRelease::Three),
        }
    }
}

impl fmt::Display for Reader {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::DuckDb => "duckdb",
            Self::Polars => "polars",
            Self::DataFusion => "datafusion",
            Self::Spark => "spark",
            Self::Spark3 => "spark 3",
        })
    }
}

/// The readers. Tables are named by their folder; on S3 by their path in the bucket.
#[derive(Debug)]
pub struct Readers {
    dialogue: Dialogue,
    on_s3: bool,
}

impl Readers {
    /// Readers of tables in folders.
    ///
    /// # Errors
    /// When they are not installed.
    pub fn of_folders() -> anyhow::Result<Self> {
        Self::start("/", None)
    }

    /// Readers of tables below a folder that stands for a store: they are named by their path in the store.
    ///
    /// # Errors
    /// When they are not installed.
    pub fn of_copy(folder: &Path) -> anyhow::Result<Self> {
        Self::start(folder.to_str().context("the folder's path is text")?, None)
    }

    /// Readers of tables in a bucket.
    ///
    /// # Errors
    /// When they are not installed.
    pub fn of_bucket(s3: &ObjectStore, bucket: &str) -> anyhow::Result<Self> {
        Self::start(&format!("s3://{bucket}"), Some(s3))
    }

    fn start(root: &str, s3: Option<&ObjectStore>) -> anyhow::Result<Self> {
        let mut command = Command::new(installed("python/bin/python")?);
        command.arg(package_file("readers/session.py")).arg(root);
        if let Some(s3) = s3 {
            command.envs(s3.environment());
        }
        Ok(Self { dialogue: Dialogue::start("readers/session.py", command)?, on_s3: s3.is_some() })
    }

    fn ask<T: serde::de::DeserializeOwned>(&mut self, what: &str, table: &Path, mut more: Value) -> anyhow::Result<T> {
        let path = table.to_str().context("a table's path is text")?;
        more["do"] = what.into();
        more["table"] = path.trim_start_matches('/').into();
        self.dialogue.ask(&more)
    }

    /// All rows of a table, now or at a version, and what the reader's SQL says to `count(*)`.
    ///
    /// # Errors
    /// When the reader cannot read it, or is not installed.
    pub fn read(&mut self, reader: Reader, table: &Path, version: Option<u64>) -> anyhow::Result<Content> {
        let content = match reader.spark() {
            None => self.ask("read", table, json!({"reader": reader.to_string(), "version": version})),
            Some(_) if self.on_s3 => bail!("Spark reads local tables only here"),
            Some(release) => Spark::shared_of(release, |spark| spark.read(table, version)),
        };
        content.with_context(|| format!("{reader} reads {} (version {version:?})", table.display()))
    }

    /// Asks about a table, now or at a version, and compares the answer with the rows that should be there.
    ///
    /// # Errors
    /// When the reader cannot read it or is wrong.
    pub fn ensure_sees(
        &mut self,
        reader: Reader,
        table: &Path,
        version: Option<u64>,
        inquiry: &Inquiry,
        expected: &[Row],
    ) -> anyhow::Result<()> {
        let mut question = spoken(inquiry, version);
        let answer = match reader.spark() {
            Some(release) => Spark::shared_of(release, |spark| spark.inquire(table, question)),
            None => {
                question["reader"] = reader.to_string().into();
                self.ask("inquire", table, question)
            }
        };
        answer
            .and_then(|answer| inquiry.ensure_answered(&answer, expected))
            .with_context(|| format!("{reader} reads {} (version {version:?})", table.display()))
    }

    /// All rows as old programs see them, through PyArrow, which knows no deletion vectors.
    ///
    /// # Errors
    /// When the table has deletion vectors.
    pub fn read_by_pyarrow(&mut self, table: &Path) -> anyhow::Result<Content> {
        self.ask("read", table, json!({"reader": "pyarrow", "version": null}))
    }

    /// Column names, each with the source path that the lake noted for it.
    ///
    /// # Errors
    /// When there is no such table.
    pub fn sources(&mut self, table: &Path) -> anyhow::Result<BTreeMap<String, Option<String>>> {
        self.ask("schema", table, json!({}))
    }

    /// Makes an empty table with the columns of a parquet file (its `__deleted` aside).
    ///
    /// # Errors
    /// When deltalake refuses, as with the methods below.
    pub fn create(&mut self, table: &Path, parquet: &Path, partition_by: &[String]) -> anyhow::Result<()> {
        self.ask::<u64>("create", table, json!({"parquet": parquet, "partition_by": partition_by})).map(drop)
    }

    /// deltalake's MERGE of a parquet file by `_id`. A row whose column `__deleted` is true leaves the table, any other enters or
    /// replaces; what a row lacks becomes NULL, new columns are added. Gives the new version, as the methods below.
    ///
    /// # Errors
    /// When deltalake refuses.
    pub fn merge(&mut self, table: &Path, parquet: &Path) -> anyhow::Result<u64> {
        self.ask("merge", table, json!({"parquet": parquet}))
    }

    /// deltalake's DELETE.
    ///
    /// # Errors
    /// When deltalake refuses.
    pub fn delete(&mut self, table: &Path, predicate: &str) -> anyhow::Result<u64> {
        self.ask("delete", table, json!({"predicate": predicate}))
    }

    /// deltalake's UPDATE of one column to the value of an SQL expression.
    ///
    /// # Errors
    /// When deltalake refuses.
    pub fn update(&mut self, table: &Path, column: &str, value: &str, predicate: &str) -> anyhow::Result<u64> {
        let updates = Value::Object([(column.to_owned(), Value::from(value))].into_iter().collect());
        self.ask("update", table, json!({"updates": updates, "predicate": predicate}))
    }

    /// deltalake's append of a parquet file.
    ///
    /// # Errors
    /// When deltalake refuses.
    pub fn append(&mut self, table: &Path, parquet: &Path) -> anyhow::Result<u64> {
        self.ask("append", table, json!({"parquet": parquet}))
    }

    /// deltalake's overwriting: the rows of the table become those of a parquet file.
    ///
    /// # Errors
    /// When deltalake refuses.
    pub fn overwrite(&mut self, table: &Path, parquet: &Path) -> anyhow::Result<u64> {
        self.ask("overwrite", table, json!({"parquet": parquet}))
    }

    /// deltalake's OPTIMIZE.
    ///
    /// # Errors
    /// When deltalake refuses.
    pub fn optimize(&mut self, table: &Path) -> anyhow::Result<u64> {
        self.ask("optimize", table, json!({}))
    }

    /// deltalake's ALTER TABLE ADD COLUMN of a text column.
    ///
    /// # Errors
    /// When deltalake refuses.
    pub fn add_column(&mut self, table: &Path, column: &str) -> anyhow::Result<u64> {
        self.ask("add_column", table, json!({"column": column}))
    }

    /// deltalake sets a property of a table, one that means nothing to anybody: a commit of metadata alone.
    ///
    /// # Errors
    /// When deltalake refuses.
    pub fn set_property(&mut self, table: &Path, name: &str, value: &str) -> anyhow::Result<u64> {
        self.ask("set_property", table, json!({"name": name, "value": value}))
    }

    /// deltalake's VACUUM: the files that it deletes, or, on a dry run, would. With `full` it also looks for files that no log names.
    ///
    /// # Errors
    /// When deltalake refuses.
    pub fn vacuum(
        &mut self,
        table: &Path,
        retention_hours: u64,
        full: bool,
        dry_run: bool,
    ) -> anyhow::Result<Vec<String>> {
        self.ask("vacuum", table, json!({"retention_hours": retention_hours, "full": full, "dry_run": dry_run}))
    }

    /// deltalake's repair: takes files out of the table that are not there, and names them.
    ///
    /// # Errors
    /// When deltalake refuses.
    pub fn repair(&mut self, table: &Path) -> anyhow::Result<Vec<String>> {
        self.ask("repair", table, json!({}))
    }
}

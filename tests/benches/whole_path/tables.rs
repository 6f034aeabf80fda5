//! The lake's tables as their logs tell them: rows, commits, files. Reads each commit once; deltalake would read the files' statistics too.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;
use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, TimeUnit};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

/// All tables below a folder.
#[derive(Debug, Default)]
pub struct Tables {
    tables: BTreeMap<PathBuf, Table>,
}

#[derive(Debug, Default)]
struct Table {
    next_version: u64,
    /// Rows that can be seen, by file.
    files: BTreeMap<String, i64>,
    commits: Vec<Commit>,
}

/// A commit that changed data.
#[derive(Clone, Copy, Debug)]
struct Commit {
    /// When its file was written: since then the rows can be read.
    at: SystemTime,
}

/// A row's instants, microseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Instants {
    /// When HQ published the message that brought it.
    pub published_us: i64,
    /// What `_lake_committed_at` says.
    pub stamped_us: i64,
    /// When the commit was there that made it readable.
    pub readable_us: i64,
}

impl Tables {
    /// Reads what is new.
    pub fn update(&mut self, root: &Path) -> anyhow::Result<()> {
        for domain in folders(root) {
            for topic in folders(&domain) {
                for table in folders(&topic).into_iter().filter(|folder| folder.join("_delta_log").is_dir()) {
                    let known = self.tables.entry(table.clone()).or_default();
                    known.update(&table).with_context(|| table.display().to_string())?;
                }
            }
        }
        Ok(())
    }

    /// Rows that can be seen.
    pub fn rows(&self) -> i64 {
        self.tables.values().flat_map(|table| table.files.values()).sum()
    }

    /// Number of tables.
    pub fn count(&self) -> usize {
        self.tables.len()
    }

    /// Number of commits that changed data.
    pub fn commits(&self) -> usize {
        self.tables.values().map(|table| table.commits.len()).sum()
    }

    /// Rows whose message was published at or after this instant, by partition and offset.
    pub fn instants_since(&self, published_us: i64) -> anyhow::Result<BTreeMap<(i64, i64), Instants>> {
        let mut found = BTreeMap::new();
        for (folder, table) in &self.tables {
            for file in table.files.keys() {
                let path = folder.join(file);
                for (place, mut instants) in
                    row_instants(&path, published_us).with_context(|| path.display().to_string())?
                {
                    // Stamped before its commit, and after that of the commit before.
                    let commit =
                        table.commits.iter().map(|commit| micros(commit.at)).find(|at| *at >= instants.stamped_us);
                    instants.readable_us = commit.context("a row is newer than the newest commit")?;
                    found.insert(place, instants);
                }
            }
        }
        Ok(found)
    }
}

impl Table {
    fn update(&mut self, folder: &Path) -> anyhow::Result<()> {
        loop {
            let path = folder.join(format!("_delta_log/{:020}.json", self.next_version));
            let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
            let at = fs::metadata(&path)?.modified()?;
            let mut changes = false;
            let actions: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
            // First what goes: a file that gets a deletion vector is removed and added in one commit.
            for removed in actions.iter().map(|action| &action["remove"]) {
                changes |= removed["dataChange"] == true;
                removed["path"].as_str().and_then(|path| self.files.remove(path));
            }
            for added in actions.iter().map(|action| &action["add"]) {
                let Some(path) = added["path"].as_str() else { continue };
                changes |= added["dataChange"] == true;
                let statistics: Value = serde_json::from_str(added["stats"].as_str().unwrap_or("null"))?;
                let rows = statistics["numRecords"].as_i64().context("a file without its number of rows")?;
                let hidden = added["deletionVector"]["cardinality"].as_i64().unwrap_or_default();
                self.files.insert(path.to_owned(), rows - hidden);
            }
            if changes {
                self.commits.push(Commit { at });
            }
            self.next_version += 1;
        }
    }
}

fn row_instants(path: &Path, published_us: i64) -> anyhow::Result<Vec<((i64, i64), Instants)>> {
    const COLUMNS: [&str; 4] = ["_lake_partition", "_lake_offset", "_lake_published_at", "_lake_committed_at"];
    let builder = ParquetRecordBatchReaderBuilder::try_new(fs::File::open(path)?)?;
    let mask = ProjectionMask::columns(builder.parquet_schema(), COLUMNS);
    let mut found = Vec::new();
    for batch in builder.with_projection(mask).build()? {
        let batch = batch?;
        let column = |name: &str| -> anyhow::Result<Vec<i64>> {
            let array = batch.column_by_name(name).with_context(|| format!("no column {name}"))?;
            let array = match array.data_type() {
                DataType::Timestamp(_, zone) => cast(array, &DataType::Timestamp(TimeUnit::Microsecond, zone.clone()))?,
                _ => array.clone(),
            };
            Ok(cast(&array, &DataType::Int64)?
                .as_primitive::<Int64Type>()
                .iter()
                .map(Option::unwrap_or_default)
                .collect())
        };
        let [partitions, offsets, published, stamped] = COLUMNS.map(column);
        let (partitions, offsets, published, stamped) = (partitions?, offsets?, published?, stamped?);
        for row in (0..batch.num_rows()).filter(|&row| published[row] >= published_us) {
            let instants = Instants { published_us: published[row], stamped_us: stamped[row], readable_us: 0 };
            found.push(((partitions[row], offsets[row]), instants));
        }
    }
    Ok(found)
}

fn micros(at: SystemTime) -> i64 {
    chrono::DateTime::<chrono::Utc>::from(at).timestamp_micros()
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

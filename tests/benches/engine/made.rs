//! Tables that are made once and copied for each phase.
//!
//! A table is made, kept aside and copied back at the same place, so that what the engine remembers of its place stays true.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::arguments::{Arguments, Part};
use super::home::{self, Home};
use super::load::{Load, Loaded};
use super::phase::Phase;
use super::{rows, table};

/// The tables that all parts share, in one folder.
pub struct MadeTables {
    folder: PathBuf,
    keep: bool,
    load_batch: u64,
    options: Vec<(String, String)>,
    sizes: Vec<u64>,
}

/// Beside a made table: how it was made.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    revision: u32,
    load_batch: u64,
    options: Vec<(String, String)>,
    loaded: Loaded,
}

impl MadeTables {
    /// The tables that the parts will need; none is made yet.
    pub fn new(arguments: &Arguments) -> anyhow::Result<Self> {
        let mut sizes = Vec::new();
        if [Part::Upsert, Part::Index, Part::Lookup, Part::Trace].into_iter().any(|part| arguments.has(part)) {
            sizes.extend(&arguments.rows);
        }
        if arguments.has(Part::Merge) {
            sizes.extend(&arguments.merge_rows);
        }
        if arguments.has(Part::Compaction) {
            sizes.push(arguments.rows_compacted());
        }
        if arguments.has(Part::Foreign) {
            sizes.push(arguments.rows_rewritten());
        }
        sizes.sort_unstable();
        sizes.dedup();
        let folder = arguments.folder.clone();
        let folder = folder.unwrap_or_else(|| std::env::temp_dir().join("commcare-lake-engine-benchmark"));
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let folder = fs::canonicalize(folder)?;
        let (keep, load_batch) = (arguments.keep, arguments.load_batch);
        Ok(Self { folder, keep, load_batch, options: arguments.options.clone(), sizes })
    }

    /// Makes the tables that are not there, and prints how long it took.
    pub fn make_all(&self) -> anyhow::Result<()> {
        if self.sizes.is_empty() {
            return Ok(());
        }
        let title = format!("Making the tables: {} columns, batches of {} rows", rows::COLUMNS, self.load_batch);
        let columns = ["rows", "seconds", "rows/s", "in the engine", "files", "MiB", "peak MiB"];
        table::begin(&title, &columns);
        for rows in &self.sizes {
            let loaded = self.make(*rows)?;
            table::line(&[
                table::number(rows),
                table::figure(loaded.seconds),
                table::number((*rows as f64 / loaded.seconds) as u64),
                format!("{:.0} %", 100.0 * loaded.seconds_in_engine / loaded.seconds),
                table::number(loaded.files),
                table::mebibytes(loaded.bytes as f64),
                table::mebibytes(loaded.memory.peak as f64),
            ]);
        }
        Ok(())
    }

    fn make(&self, rows: u64) -> anyhow::Result<Loaded> {
        if let Some(loaded) = self.kept(rows) {
            return Ok(loaded);
        }
        home::remove(&self.pristine(rows))?;
        let home = self.current(rows);
        home.remove()?;
        let loaded: Loaded = Phase::Load(Load { rows, batch: self.load_batch, counted: false }).run_on(&home)?;
        let (load_batch, options) = (self.load_batch, self.options.clone());
        let record = Record { revision: rows::REVISION, load_batch, options, loaded };
        fs::rename(&home.folder, self.pristine(rows))?;
        // Last, as it says that all the rest is there.
        fs::write(self.record(rows), serde_json::to_vec_pretty(&record)?)?;
        Ok(record.loaded)
    }

    fn kept(&self, rows: u64) -> Option<Loaded> {
        let record: Record = serde_json::from_slice(&fs::read(self.record(rows)).ok()?).ok()?;
        let same = record.revision == rows::REVISION && record.load_batch == self.load_batch;
        (same && record.options == self.options && self.pristine(rows).is_dir()).then_some(record.loaded)
    }

    /// A fresh copy of a made table. There is one copy at a time.
    pub fn fresh(&self, rows: u64) -> anyhow::Result<Home> {
        let home = self.current(rows);
        home.copy_from(&self.pristine(rows))?;
        Ok(home)
    }

    /// An empty home.
    pub fn empty(&self, name: &str) -> anyhow::Result<Home> {
        let home = Home::new(self.folder.join(name), &self.options);
        home.remove()?;
        Ok(home)
    }

    /// Deletes what need not be kept.
    pub fn clean_up(&self) -> anyhow::Result<()> {
        for rows in &self.sizes {
            self.current(*rows).remove()?;
            if !self.keep {
                home::remove(&self.folder.join(rows.to_string()))?;
            }
        }
        Ok(())
    }

    fn current(&self, rows: u64) -> Home {
        Home::new(self.folder.join(rows.to_string()).join("current"), &self.options)
    }

    fn pristine(&self, rows: u64) -> PathBuf {
        self.folder.join(rows.to_string()).join("pristine")
    }

    fn record(&self, rows: u64) -> PathBuf {
        self.pristine(rows).join("made.json")
    }
}

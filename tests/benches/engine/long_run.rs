//! What the log of a table costs after a long time of small commits: every file that a commit marks is removed with its old deletion vector and
//! added with the new one, and checkpoints carry the removed ones along for as long as the table asks for.
//!
//! The log is made up, as a table needs weeks for it: only what is read and written by checkpoints and by opening is there, no data.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::{Instant, SystemTime};

use anyhow::Context;
use deltalake::{DeltaTable, DeltaTableBuilder, checkpoints};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use url::Url;
use uuid::Uuid;

use super::arguments::Arguments;
use super::home::Home;
use super::made::MadeTables;
use super::measure::Memory;
use super::phase::Phase;
use super::rows;
use super::table;
use super::upsert::milliseconds;

/// Files of the table; each commit marks all of them.
const FILES: usize = 60;
/// Commits between two checkpoints.
const INTERVAL: u64 = 64;
/// Removed files in one made-up commit of the past. Real ones have as many as the table has files.
const REMOVES_AT_ONCE: u64 = 20_000;

/// One step in the life of such a table.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum LongRun {
    /// Its past, as commits, and the checkpoint of it.
    Past {
        /// Removed files that checkpoints carry along.
        removes: u64,
    },
    /// Commits up to the next checkpoint.
    Commits,
    /// Writing the checkpoint that is due after them.
    Checkpoint,
    /// Opening the table.
    Open,
    /// Reading what was removed, as a clean-up does.
    Removed,
}

/// What a step took.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Took {
    milliseconds: f64,
    memory: Memory,
    checkpoint_bytes: u64,
    removes: u64,
}

impl LongRun {
    /// Takes the step.
    pub async fn run(self, home: &Home) -> anyhow::Result<Took> {
        let log = Log { folder: home.folder.join("table"), paths: (0..FILES).map(path_of).collect() };
        if let Self::Past { removes } = self {
            log.begin(removes)?;
            checkpoints::create_checkpoint(&log.open().await?, None).await.context("checkpoint of the past")?;
        }
        if matches!(self, Self::Commits) {
            let latest = log.latest()?;
            (1..=INTERVAL).try_for_each(|step| log.commit(latest + step, FILES as u64))?;
        }
        let opened = if matches!(self, Self::Checkpoint | Self::Removed) { Some(log.open().await?) } else { None };
        let began = Instant::now();
        let mut removes = 0;
        match (self, opened) {
            (Self::Open, _) => drop(log.open().await?),
            (Self::Checkpoint, Some(table)) => checkpoints::create_checkpoint(&table, None).await?,
            (Self::Removed, Some(table)) => {
                let log_store = table.log_store();
                let mut removed = table.snapshot()?.all_tombstones(log_store.as_ref());
                while let Some(removed) = removed.next().await {
                    removed?;
                    removes += 1;
                }
            }
            _ => {}
        }
        let took = Took { milliseconds: milliseconds(began), memory: Memory::now(), checkpoint_bytes: 0, removes };
        Ok(Took { checkpoint_bytes: log.checkpoint_bytes()?, ..took })
    }
}

struct Log {
    folder: PathBuf,
    paths: Vec<String>,
}

impl Log {
    fn begin(&self, removes: u64) -> anyhow::Result<()> {
        fs::create_dir_all(self.folder.join("_delta_log"))?;
        let fields: Vec<Value> = (0..rows::COLUMNS)
            .map(|column| json!({ "name": column_of(column), "type": "string", "nullable": true, "metadata": {} }))
            .collect();
        let metadata = json!({
            "id": Uuid::new_v4().to_string(), "format": { "provider": "parquet", "options": {} },
            "schemaString": json!({ "type": "struct", "fields": fields }).to_string(), "partitionColumns": [],
            "configuration": { "delta.enableDeletionVectors": "true", "delta.deletedFileRetentionDuration": "interval 168 hours" },
            "createdTime": now_ms(),
        });
        let features = json!(["deletionVectors"]);
        let protocol = json!({
            "minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": features, "writerFeatures": features,
        });
        self.write(0, &format!("{}\n{}\n", json!({ "protocol": protocol }), json!({ "metaData": metadata })))?;
        let commits = removes.div_ceil(REMOVES_AT_ONCE).max(1);
        (1..=commits).try_for_each(|version| self.commit(version, removes / commits))
    }

    /// Removes the files so often in all, each time with another vector, and adds them with the last.
    fn commit(&self, version: u64, removes: u64) -> anyhow::Result<()> {
        let mut text = String::new();
        let mut vector = Value::Null;
        for number in 0..removes as usize {
            if number.is_multiple_of(self.paths.len()) {
                vector = vector_of();
            }
            vector["offset"] = json!(1 + 46 * (number % self.paths.len()));
            let remove = json!({
                "path": self.paths[number % self.paths.len()], "dataChange": true, "deletionTimestamp": now_ms(),
                "extendedFileMetadata": true, "partitionValues": {}, "size": 134_217_728, "deletionVector": vector,
            });
            writeln!(text, "{}", json!({ "remove": remove }))?;
        }
        let bounds = |letter: &str| {
            let values = (0..rows::COLUMNS).map(|column| (column_of(column), json!(letter.repeat(16))));
            Value::Object(values.collect())
        };
        let stats = json!({
            "numRecords": 1_600_000, "minValues": bounds("a"), "maxValues": bounds("z"), "tightBounds": false,
        });
        let vector = vector_of();
        for path in &self.paths {
            let add = json!({
                "path": path, "partitionValues": {}, "size": 134_217_728, "modificationTime": now_ms(),
                "dataChange": true, "stats": stats.to_string(), "deletionVector": vector,
            });
            writeln!(text, "{}", json!({ "add": add }))?;
        }
        self.write(version, &text)
    }

    fn write(&self, version: u64, text: &str) -> anyhow::Result<()> {
        let path = self.folder.join(format!("_delta_log/{version:020}.json"));
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    fn files(&self, ending: &str) -> anyhow::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(self.folder.join("_delta_log"))?.collect::<Result<Vec<_>, _>>()?;
        let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
        files.retain(|path| path.to_string_lossy().ends_with(ending));
        files.sort();
        Ok(files)
    }

    fn latest(&self) -> anyhow::Result<u64> {
        let newest = self.files(".json")?.pop().context("the log is empty")?;
        let name = newest.file_stem().context("a name")?.to_string_lossy().into_owned();
        Ok(name.parse()?)
    }

    fn checkpoint_bytes(&self) -> anyhow::Result<u64> {
        let newest = self.files(".checkpoint.parquet")?.pop().context("there is no checkpoint")?;
        Ok(fs::metadata(newest)?.len())
    }

    async fn open(&self) -> anyhow::Result<DeltaTable> {
        let url = Url::from_directory_path(&self.folder).ok().context("a folder")?;
        DeltaTableBuilder::from_url(url)?.load().await.context("open the table")
    }
}

fn path_of(_: usize) -> String {
    format!("part-00000-{}-c000.zstd.parquet", Uuid::new_v4())
}

fn column_of(column: usize) -> String {
    format!("column_{column}")
}

/// One file of vectors for each commit, as the engine writes them.
fn vector_of() -> Value {
    json!({
        "storageType": "u", "pathOrInlineDv": &Uuid::new_v4().simple().to_string()[..20], "offset": 1, "sizeInBytes": 38,
        "cardinality": 2,
    })
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or_default()
}

/// Measures a checkpoint, an opening and a clean-up's reading for each number of removed files.
pub fn report(arguments: &Arguments, made: &MadeTables) -> anyhow::Result<()> {
    let title = format!(
        "A long run: {FILES} files, all of them marked by each of {INTERVAL} commits between checkpoints, and removed files in the log"
    );
    let columns =
        ["removed files", "checkpoint s", "MiB", "peak MiB", "open ms", "peak MiB", "read removed s", "peak MiB"];
    table::begin(&title, &columns);
    for removes in &arguments.removes {
        let home = made.empty("long-run")?;
        let run = |step: LongRun| Phase::LongRun(step).run_on::<Took>(&home);
        run(LongRun::Past { removes: *removes })?;
        run(LongRun::Commits)?;
        let checkpoint = run(LongRun::Checkpoint)?;
        let (open, removed) = (run(LongRun::Open)?, run(LongRun::Removed)?);
        let expected = *removes;
        anyhow::ensure!(removed.removes >= expected / 2, "{} removed files instead of {expected}", removed.removes);
        table::line(&[
            table::number(removed.removes),
            table::figure(checkpoint.milliseconds / 1e3),
            table::mebibytes(checkpoint.checkpoint_bytes as f64),
            table::mebibytes(checkpoint.memory.peak as f64),
            table::figure(open.milliseconds),
            table::mebibytes(open.memory.peak as f64),
            table::figure(removed.milliseconds / 1e3),
            table::mebibytes(removed.memory.peak as f64),
        ]);
        home.remove()?;
    }
    Ok(())
}

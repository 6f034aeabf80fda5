//! MERGE beside the engine: the same table and the same keys, through deltalake and through Spark.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use arrow::ipc::writer::FileWriter;
use lake_tests::parts;
use serde::{Deserialize, Serialize};

use super::aims::{self, Figure, Findings};
use super::arguments::{Arguments, Part};
use super::made::MadeTables;
use super::measure::Spread;
use super::phase::{Phase, output_of};
use super::scan::{python, script};
use super::upsert::{Upserted, Upserts, keys_within};
use super::{home, table};

/// Batches written to files `0.arrow`, `1.arrow`, … of a folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Export {
    /// The batches to be written.
    pub upserts: Upserts,
    /// The folder that they are written to.
    pub folder: PathBuf,
}

impl Export {
    /// Writes the files and says how many.
    pub fn run(self) -> anyhow::Result<u64> {
        fs::create_dir_all(&self.folder)?;
        for repetition in 0..=self.upserts.repeats {
            let batch = self.upserts.record_batch(repetition);
            let file = File::create(self.folder.join(format!("{repetition}.arrow")))?;
            let mut writer = FileWriter::try_new(file, &batch.schema())?;
            writer.write(&batch)?;
            writer.finish()?;
        }
        Ok(self.upserts.repeats + 1)
    }
}

/// What an engine took. The scripts print the same.
#[derive(Clone, Debug, Deserialize)]
struct Merged {
    /// The first merge, which is not measured.
    first_ms: f64,
    times_ms: Vec<f64>,
    /// Bytes of memory before the first merge and at most.
    memory_before: u64,
    memory_peak: u64,
    /// Bytes of all files that the measured merges wrote.
    bytes: u64,
    /// Rows at the end.
    rows: u64,
}

impl Merged {
    /// How many times the time and the memory of another one it took.
    fn times(&self, other: &Self) -> (f64, f64) {
        let time = Spread::of(&self.times_ms).median / Spread::of(&other.times_ms).median;
        (time, self.memory_peak as f64 / other.memory_peak as f64)
    }
}

impl From<Upserted> for Merged {
    fn from(upserted: Upserted) -> Self {
        Self {
            first_ms: upserted.first_ms,
            bytes: upserted.written.bytes(),
            times_ms: upserted.times_ms,
            memory_before: upserted.memory_before.resident,
            memory_peak: upserted.memory.peak,
            rows: upserted.rows_total,
        }
    }
}

/// An engine that merges.
struct Engine {
    part: Part,
    name: &'static str,
    /// Settings of the Spark session, `name=value`.
    settings: &'static [&'static str],
}

/// Spark twice, since its defaults are for clusters and tables larger than these.
const ENGINES: [Engine; 3] = [
    Engine { part: Part::Merge, name: "deltalake MERGE", settings: &[] },
    Engine { part: Part::Spark, name: "Spark MERGE, defaults", settings: &[] },
    Engine {
        part: Part::Spark,
        name: "Spark MERGE, few partitions",
        settings: &["spark.sql.shuffle.partitions=4", "spark.databricks.delta.snapshotPartitions=2"],
    },
];

const COLUMNS: [&str; 12] = [
    "rows",
    "keys",
    "engine",
    "n",
    "median",
    "max",
    "first",
    "times ours",
    "MiB written",
    "MiB before",
    "peak MiB",
    "times ours",
];

/// Measures tables of all sizes, and prints a line for each.
pub fn report(arguments: &Arguments, made: &MadeTables, findings: &mut Findings) -> anyhow::Result<()> {
    table::begin("MERGE beside the engine: the same table, the same keys", &COLUMNS);
    let mut failed = Vec::new();
    for rows in &arguments.merge_rows {
        let keys = keys_within(arguments.merge_keys, *rows);
        let home = made.fresh(*rows)?;
        let merges = Upserts { rows: *rows, keys, new_percent: 10, repeats: arguments.merge_repeats, first_round: 1 };
        let upserts = Upserts { repeats: arguments.repeats_of(keys), ..merges };
        // Both begin with the same batches; ours are so short that more of them are needed for a median.
        let ours: Merged = Phase::Upsert(upserts).run_on::<Upserted>(&home)?.into();
        print(&upserts, "this", &ours, &ours);

        let home = made.fresh(*rows)?;
        let other = Others { arguments, upserts: merges, folder: home.folder.join("others") };
        let _: u64 = Phase::Export(Export { upserts: merges, folder: other.folder.join("batches") }).run_on(&home)?;
        other.prepare(&home.table_folder())?;
        for engine in ENGINES.iter().filter(|engine| arguments.parts.contains(&engine.part)) {
            match other.merge(engine) {
                Ok(theirs) => {
                    print(&merges, engine.name, &theirs, &ours);
                    if engine.part == Part::Merge && keys == aims::KEYS {
                        let (time, memory) = theirs.times(&ours);
                        findings.note(Figure::MergeTime, *rows, time);
                        findings.note(Figure::MergePeak, *rows, memory);
                    }
                }
                Err(error) => failed.push(format!("{}, {rows} rows: {error:#}", engine.name)),
            }
        }
        home.remove()?;
    }
    anyhow::ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

fn print(upserts: &Upserts, name: &str, merged: &Merged, ours: &Merged) {
    let spread = Spread::of(&merged.times_ms);
    let (time, memory) = merged.times(ours);
    table::line(&[
        table::number(upserts.rows),
        format!("{}, {} % new", table::number(upserts.keys), upserts.new_percent),
        name.to_owned(),
        spread.count.to_string(),
        table::figure(spread.median),
        table::figure(spread.max),
        table::figure(merged.first_ms),
        table::figure(time),
        table::mebibytes(merged.bytes as f64 / spread.count.max(1) as f64),
        table::mebibytes(merged.memory_before as f64),
        table::mebibytes(merged.memory_peak as f64),
        table::figure(memory),
    ]);
}

/// The other engines, and where they work.
struct Others<'a> {
    arguments: &'a Arguments,
    upserts: Upserts,
    folder: PathBuf,
}

impl Others<'_> {
    /// Makes a plain Delta table of the data files of ours, and batches with the names of its columns.
    fn prepare(&self, table: &Path) -> anyhow::Result<()> {
        let mut command = Command::new(python(self.arguments)?);
        command.arg(script("plain_table.py")).arg("--table").arg(table);
        command.arg("--batches").arg(self.folder.join("batches")).arg("--out").arg(self.folder.join("plain"));
        let rows: u64 = output_of(command).context("make a plain Delta table")?;
        anyhow::ensure!(rows == self.upserts.rows, "the plain table has {rows} rows");
        Ok(())
    }

    fn merge(&self, engine: &Engine) -> anyhow::Result<Merged> {
        let work = self.folder.join("work");
        home::remove(&work)?;
        // Linked: none of them changes a file in place.
        home::copy_tree(&self.folder.join("plain/table"), &work.join("table"), true)?;
        let mut command = match engine.part {
            Part::Spark => self.spark(engine.settings)?,
            _ => {
                let mut command = Command::new(python(self.arguments)?);
                command.arg(script("merge_deltalake.py"));
                command
            }
        };
        command.arg("--table").arg(work.join("table")).arg("--batches").arg(self.folder.join("plain/batches"));
        let merged: Merged = output_of(command)?;
        let new = self.upserts.keys * self.upserts.new_percent / 100 * (self.upserts.repeats + 1);
        let expected = self.upserts.rows + new;
        anyhow::ensure!(merged.rows == expected, "the table has {} rows afterwards, not {expected}", merged.rows);
        Ok(merged)
    }

    fn spark(&self, settings: &[&str]) -> anyhow::Result<Command> {
        let work = self.folder.join("spark");
        home::remove(&work)?;
        let installed = parts::parts_dir()?.join("spark");
        let python = self.arguments.spark_python.clone().unwrap_or_else(|| installed.join("python/bin/python"));
        let jars = self.arguments.spark_jars.clone().unwrap_or_else(|| installed.join("jars"));
        anyhow::ensure!(python.exists(), "{} is missing: run tests/set-up", python.display());
        let mut command = Command::new(python);
        command.arg(script("merge_spark.py")).arg("--jars").arg(jars).arg("--work").arg(work);
        command.args(["--memory", &self.arguments.spark_memory]);
        command.args(settings.iter().flat_map(|setting| ["--setting", setting]));
        Ok(command)
    }
}

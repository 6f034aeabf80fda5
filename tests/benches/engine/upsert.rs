//! Upserts of random keys: time, bytes, files and memory.

use std::time::Instant;

use anyhow::Context;
use arrow::record_batch::RecordBatch;
use lake_writer::table_store::TableStore;
use serde::{Deserialize, Serialize};

use super::aims::{self, Figure, Findings};
use super::arguments::Arguments;
use super::home::{self, Home};
use super::made::MadeTables;
use super::measure::{Memory, Spread, TableFolder, Written};
use super::phase::Phase;
use super::{rows, table};

/// Repeated upserts into one table; the first is the warm-up.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Upserts {
    /// Rows that the table was made with.
    pub rows: u64,
    /// Keys of one upsert.
    pub keys: u64,
    /// Of them, so many in a hundred are new.
    pub new_percent: u64,
    /// Number of measured upserts.
    pub repeats: u64,
    /// The round of the warm-up; greater than any that the table has seen.
    pub first_round: u64,
}

/// What came of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Upserted {
    /// The first upsert after the start, milliseconds.
    pub first_ms: f64,
    /// The upserts after the first, milliseconds each.
    pub times_ms: Vec<f64>,
    /// What the others wrote, all together.
    pub written: Written,
    /// Rows at the end.
    pub rows_total: u64,
    /// Before the first upsert.
    pub memory_before: Memory,
    /// Memory after the last upsert.
    pub memory: Memory,
}

impl Upserts {
    /// The rows of one repetition; repetition 0 is the warm-up.
    pub fn record_batch(&self, repetition: u64) -> RecordBatch {
        let round = self.first_round + repetition;
        let new = self.keys * self.new_percent / 100;
        let mut numbers = rows::drawn(round, self.keys - new, self.rows);
        let first_new = self.rows + round * self.keys;
        numbers.extend(first_new..first_new + new);
        rows::record_batch(&numbers, round, &home::document_type())
    }

    /// Applies the upserts.
    pub async fn run(self, home: &Home) -> anyhow::Result<Upserted> {
        let store = home.open().await?;
        let folder = TableFolder::of(home)?;
        let memory_before = Memory::now();
        let (mut times_ms, mut written, mut rows_total) = (Vec::new(), Written::default(), 0);
        for repetition in 0..=self.repeats {
            let batch = rows::space_batch(home::space(), home::document_type(), self.record_batch(repetition));
            let before = folder.files().await?;
            let began = Instant::now();
            let applied = store.apply(batch).await.context("apply an upsert")?;
            times_ms.push(milliseconds(began));
            let changed = applied.tables.first().context("an upsert changed nothing")?;
            anyhow::ensure!(changed.rows_upserted == self.keys, "only {} rows entered", changed.rows_upserted);
            rows_total = changed.rows_total;
            if repetition > 0 {
                written.add(&folder.written_since(&before).await?);
            }
        }
        let first_ms = times_ms.remove(0);
        let memory = Memory::now();
        store.close().await;
        Ok(Upserted { first_ms, times_ms, written, rows_total, memory_before, memory })
    }
}

/// Since a moment, in milliseconds.
pub fn milliseconds(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e3
}

/// How many keys can be asked of a table at most: different ones must be found quickly.
pub fn keys_within(keys: u64, rows: u64) -> u64 {
    keys.min(rows / 2)
}

/// Shares of new keys that are measured.
const NEW_PERCENTS: [u64; 2] = [0, 10];

const COLUMNS: [&str; 14] = [
    "rows",
    "keys",
    "new",
    "n",
    "median",
    "p95",
    "max",
    "first",
    "MiB data",
    "MiB vectors",
    "MiB log",
    "files +/marked/−",
    "MiB before",
    "peak MiB",
];

/// Measures all sizes with all numbers of keys.
pub fn report(arguments: &Arguments, made: &MadeTables, findings: &mut Findings) -> anyhow::Result<()> {
    table::begin("Upsert of random keys (bytes and files are means of one upsert)", &COLUMNS);
    let mut medians = Vec::new();
    for rows in &arguments.rows {
        for keys in &arguments.keys {
            for new_percent in NEW_PERCENTS {
                let keys = keys_within(*keys, *rows);
                let repeats = arguments.repeats_of(keys);
                let upserts = Upserts { rows: *rows, keys, new_percent, repeats, first_round: 1 };
                let home = made.fresh(*rows)?;
                let upserted: Upserted = Phase::Upsert(upserts).run_on(&home)?;
                table::line(&cells(&upserts, &upserted));
                if keys == aims::KEYS {
                    let median = Spread::of(&upserted.times_ms).median;
                    findings.note(Figure::Upsert, *rows, median);
                    findings.note(Figure::UpsertPeak, *rows, aims::megabytes(upserted.memory.peak));
                    medians.push((*rows, new_percent, median));
                }
                home.remove()?;
            }
        }
    }
    note_growth(&medians, findings);
    Ok(())
}

/// Compares the two sizes that an aim is about, if both were measured. `medians`: rows, share of new keys, milliseconds.
fn note_growth(medians: &[(u64, u64, f64)], findings: &mut Findings) {
    for new_percent in NEW_PERCENTS {
        let of = |rows: u64| medians.iter().find(|(size, new, _)| (*size, *new) == (rows, new_percent));
        if let (Some((_, _, few)), Some((_, _, many))) = (of(aims::ROWS_FEW), of(aims::ROWS_MANY)) {
            findings.note(Figure::UpsertGrowth, aims::ROWS_MANY, many / few);
        }
    }
}

/// A line of the table.
fn cells(upserts: &Upserts, upserted: &Upserted) -> [String; 14] {
    let spread = Spread::of(&upserted.times_ms);
    let written = &upserted.written;
    let mean = |total: u64| total as f64 / spread.count.max(1) as f64;
    [
        table::number(upserts.rows),
        table::number(upserts.keys),
        format!("{} %", upserts.new_percent),
        spread.count.to_string(),
        table::figure(spread.median),
        table::figure(spread.p95),
        table::figure(spread.max),
        table::figure(upserted.first_ms),
        table::mebibytes(mean(written.data_bytes)),
        table::mebibytes(mean(written.vector_bytes)),
        table::mebibytes(mean(written.log_bytes + written.checkpoint_bytes)),
        format!("{:.1}/{:.1}/{:.1}", mean(written.data_files), mean(written.files_marked), mean(written.files_removed)),
        table::mebibytes(upserted.memory_before.resident as f64),
        table::mebibytes(upserted.memory.peak as f64),
    ]
}

/// Head of a table about upserts on S3, which shares its cells with the others.
pub fn report_on(home: &Home, upserts: Upserts) -> anyhow::Result<()> {
    let upserted: Upserted = Phase::Upsert(upserts).run_on(home)?;
    table::line(&cells(&upserts, &upserted));
    Ok(())
}

/// Prints the head of a table whose lines come from [`report_on`].
pub fn begin(title: &str) {
    table::begin(title, &COLUMNS);
}

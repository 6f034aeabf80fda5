//! A table of thousands of partitions, each of which gets a few rows with every batch: what a batch costs, how many files there come to be,
//! and what compaction makes of them.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use arrow::array::{ArrayRef, Date32Array, StringArray};
use arrow::record_batch::RecordBatch;
use lake_writer::table_store::TableStore;
use serde::{Deserialize, Serialize};

use super::arguments::Arguments;
use super::home::{self, Home};
use super::made::MadeTables;
use super::measure::{Memory, Spread};
use super::phase::Phase;
use super::upsert::milliseconds;
use super::{rows, table};

/// Batches into a table of many partitions, then compaction.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Partitions {
    /// Number of partitions.
    pub partitions: u64,
    /// Rows of a batch.
    pub keys: u64,
    /// Number of batches.
    pub batches: u64,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Partitioned {
    /// Times of the batches.
    pub times_ms: Vec<f64>,
    /// Data files after them.
    pub files_before: u64,
    /// Data files after compaction.
    pub files_after: u64,
    /// Calls of compaction.
    pub rounds: u64,
    /// Commits of compaction.
    pub commits: u64,
    /// Time of all calls together.
    pub seconds: f64,
    /// Whether nothing was left to do at the end.
    pub settled: bool,
    /// Longest time for which a batch may have waited for compaction, milliseconds.
    pub held_up_ms: f64,
    /// Memory at the end.
    pub memory: Memory,
}

const SUPERVISORS_OF_A_MONTH: u64 = 250;
/// Different rows, for each row of a batch.
const ROWS_OF_A_KEY: u64 = 20;
/// Compaction is given up after so long.
const COMPACTION_SECONDS_MAX: f64 = 300.0;

impl Partitions {
    /// Applies the batches and compacts.
    pub async fn run(self, home: &Home) -> anyhow::Result<Partitioned> {
        let store = home.open().await?;
        let mut done = Partitioned::default();
        for round in 1..=self.batches {
            let batch = rows::space_batch(home::space(), home::document_type(), self.record_batch(round)?);
            let began = Instant::now();
            let applied = store.apply(batch).await.context("apply a batch")?;
            done.times_ms.push(milliseconds(began));
            done.files_before = applied.tables.first().context("a batch changed nothing")?.files;
            eprintln!("partitions: batch {round} of {}, {} files", self.batches, done.files_before);
        }
        let mut files = done.files_before;
        while !done.settled && done.seconds < COMPACTION_SECONDS_MAX {
            let began = Instant::now();
            let compacted = store.compact(&home::space()).await.context("compact the space")?;
            done.seconds += began.elapsed().as_secs_f64();
            done.held_up_ms = done.held_up_ms.max(compacted.held_up_max.as_secs_f64() * 1e3);
            done.rounds += 1;
            done.commits += compacted.commits;
            files = files + compacted.files_after - compacted.files_before;
            done.settled = !compacted.more;
            eprintln!("partitions: round {} of compaction, {files} files", done.rounds);
        }
        done.files_after = files;
        done.memory = Memory::now();
        store.close().await;
        Ok(done)
    }

    /// The same row is always in the same partition.
    fn record_batch(&self, round: u64) -> anyhow::Result<RecordBatch> {
        let numbers = rows::drawn(round, self.keys, self.keys * ROWS_OF_A_KEY);
        let made = rows::record_batch(&numbers, round, &home::document_type());
        let of = |number: &u64| rows::mixed(number ^ 0x9A27) % self.partitions.max(1);
        let months = numbers.iter().map(|number| rows::month(of(number) / SUPERVISORS_OF_A_MONTH % 48));
        let supervisors = numbers.iter().map(|number| rows::supervisor(of(number) % SUPERVISORS_OF_A_MONTH));
        let months: ArrayRef = Arc::new(Date32Array::from_iter_values(months));
        let supervisors: ArrayRef = Arc::new(StringArray::from_iter_values(supervisors));
        let schema = made.schema();
        let columns = schema.fields().iter().zip(made.columns()).map(|(field, array)| match field.name().as_str() {
            "+month" => Arc::clone(&months),
            "+supervisor_id" => Arc::clone(&supervisors),
            _ => Arc::clone(array),
        });
        let columns = columns.collect();
        RecordBatch::try_new(schema, columns).context("rows of many partitions")
    }
}

/// Measures it and prints a line.
pub fn report(arguments: &Arguments, made: &MadeTables) -> anyhow::Result<()> {
    let mut home = made.empty("partitions")?;
    let own = [("partition_by", r#"["month","supervisor_id"]"#), ("deletion_vectors", "on")];
    home.options.splice(0..0, own.map(|(key, value)| (key.to_owned(), value.to_owned())));
    let partitions = Partitions {
        partitions: arguments.partitions,
        keys: arguments.partition_keys,
        batches: arguments.partition_batches,
    };
    let title = format!(
        "Partitions: {} of month and supervisor, {} batches of {} rows over all of them (milliseconds a batch), then compaction",
        table::number(partitions.partitions),
        partitions.batches,
        table::number(partitions.keys)
    );
    let done: Partitioned = Phase::Partitions(partitions).run_on(&home)?;
    let spread = Spread::of(&done.times_ms);
    table::begin(
        &title,
        &[
            "median",
            "p95",
            "max",
            "files",
            "compacted to",
            "calls",
            "commits",
            "seconds",
            "longest hold ms",
            "peak MiB",
        ],
    );
    table::line(&[
        table::figure(spread.median),
        table::figure(spread.p95),
        table::figure(spread.max),
        table::number(done.files_before),
        format!("{}{}", table::number(done.files_after), if done.settled { "" } else { " (not done)" }),
        done.rounds.to_string(),
        table::number(done.commits),
        table::figure(done.seconds),
        format!("{:.1}", done.held_up_ms),
        table::mebibytes(done.memory.peak as f64),
    ]);
    home.remove()
}

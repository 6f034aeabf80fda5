//! Tracing single records: the index says where the row is, and that one row is read from its file. First right after a start, when the space has
//! to be loaded, then of random records, and of ids that there are not.

use std::time::Instant;

use anyhow::Context;
use lake_writer::table_store::TableStore;
use serde::{Deserialize, Serialize};

use super::aims::{Figure, Findings};
use super::arguments::Arguments;
use super::home::{self, Home};
use super::made::MadeTables;
use super::measure::{Memory, Spread};
use super::phase::Phase;
use super::upsert::milliseconds;
use super::{rows, table};

/// Traces of random records, one after the other.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Traces {
    /// Rows that the table was made with.
    pub rows: u64,
    /// Records that are traced.
    pub records: u64,
}

/// What came of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TracedRecords {
    /// From opening the engine to the first answer, milliseconds.
    pub first_ms: f64,
    /// The others.
    pub times_ms: Vec<f64>,
    /// Those of ids that there are not.
    pub absent_ms: Vec<f64>,
    /// Memory at the end.
    pub memory: Memory,
}

const RECORDS: u64 = 200;

impl Traces {
    /// Starts the engine on a home and traces.
    pub async fn run(self, home: &Home) -> anyhow::Result<TracedRecords> {
        let space = home::space();
        let drawn = rows::drawn(7, self.records.min(self.rows), self.rows);
        let began = Instant::now();
        let store = home.open().await?;
        let found = store.locate(&space, &rows::id_of(drawn[0])).await.context("trace the first record")?;
        let first_ms = milliseconds(began);
        anyhow::ensure!(found.is_some(), "the first record was not found");
        let (mut times_ms, mut absent_ms) = (Vec::new(), Vec::new());
        for number in &drawn[1..] {
            let began = Instant::now();
            let found = store.locate(&space, &rows::id_of(*number)).await.context("trace a record")?;
            times_ms.push(milliseconds(began));
            let found = found.with_context(|| format!("record {number} was not found"))?;
            anyhow::ensure!(
                found.committed_us.is_some(),
                "the row of record {number} does not say when it was committed"
            );
        }
        for number in &drawn {
            let began = Instant::now();
            let found = store.locate(&space, &format!("absent {number}")).await.context("trace a record")?;
            absent_ms.push(milliseconds(began));
            anyhow::ensure!(found.is_none(), "there is a record that nobody made");
        }
        let memory = Memory::now();
        store.close().await;
        Ok(TracedRecords { first_ms, times_ms, absent_ms, memory })
    }
}

/// Measures tables of all sizes, and prints a line for each.
pub fn report(arguments: &Arguments, made: &MadeTables, findings: &mut Findings) -> anyhow::Result<()> {
    let title = "Trace of a record: where its row is and which change made it, milliseconds";
    table::begin(title, &["rows", "first after a start", "n", "median", "p95", "max", "absent, median", "peak MiB"]);
    for rows in &arguments.rows {
        let home = made.fresh(*rows)?;
        let traced: TracedRecords = Phase::Trace(Traces { rows: *rows, records: RECORDS }).run_on(&home)?;
        let spread = Spread::of(&traced.times_ms);
        findings.note(Figure::Trace, *rows, spread.max);
        table::line(&[
            table::number(rows),
            table::figure(traced.first_ms),
            spread.count.to_string(),
            table::figure(spread.median),
            table::figure(spread.p95),
            table::figure(spread.max),
            table::figure(Spread::of(&traced.absent_ms).median),
            table::mebibytes(traced.memory.peak as f64),
        ]);
        home.remove()?;
    }
    Ok(())
}

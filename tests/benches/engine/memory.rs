//! Memory of one engine that has thousands of tables.

use std::time::Instant;

use anyhow::Context;
use lake_shared::identity::{DocumentType, Kind, Space};
use lake_writer::table_store::{SpaceBatch, TableRows, TableStore};
use serde::{Deserialize, Serialize};

use super::aims::{self, Figure, Findings};
use super::arguments::Arguments;
use super::home::Home;
use super::made::MadeTables;
use super::measure::Memory;
use super::phase::Phase;
use super::upsert::milliseconds;
use super::{rows, table};

/// Many tables, each of which gets rows in several rounds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ManyTables {
    /// How many, over all spaces.
    pub tables: u64,
}

/// One round: a batch for each table.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Round {
    /// Time of all batches, milliseconds.
    pub milliseconds: f64,
    /// Memory at its end.
    pub memory: Memory,
}

const SPACES: u64 = 10;
const ROUNDS: u64 = 4;
/// Rows that a table gets in a round; half of them replace rows of the round before.
const ROWS_A_ROUND: u64 = 50;
/// Tables in one batch.
const TABLES_A_BATCH: u64 = 50;

impl ManyTables {
    /// Writes to all tables.
    pub async fn run(self, home: &Home) -> anyhow::Result<Vec<Round>> {
        let store = home.open().await?;
        let mut rounds = Vec::new();
        for round in 0..ROUNDS {
            let began = Instant::now();
            for first in (0..self.tables.div_ceil(SPACES)).step_by(TABLES_A_BATCH as usize) {
                for space in 0..SPACES {
                    let last = self.tables.div_ceil(SPACES).min(first + TABLES_A_BATCH);
                    let batch = batch(space, first..last, round);
                    let applied = store.apply(batch).await.context("apply a batch for many tables")?;
                    anyhow::ensure!(applied.tables.len() as u64 == last - first, "a table was left out");
                }
            }
            rounds.push(Round { milliseconds: milliseconds(began), memory: Memory::now() });
            eprintln!("many tables: round {} of {ROUNDS} done", round + 1);
        }
        store.close().await;
        Ok(rounds)
    }
}

fn batch(space: u64, types: std::ops::Range<u64>, round: u64) -> SpaceBatch {
    let upserts = types.map(|number| {
        let document_type = DocumentType::from(format!("type_{number}"));
        let first = number * 1_000_000 + round * ROWS_A_ROUND / 2;
        let numbers: Vec<u64> = (first..first + ROWS_A_ROUND).collect();
        let made = rows::record_batch(&numbers, round, &document_type);
        TableRows { document_type, rows: vec![made] }
    });
    let space = Space { domain: format!("bench-{space}").into(), kind: Kind::Case };
    SpaceBatch { space, upserts: upserts.collect(), tombstones: Vec::new() }
}

/// Measures the rounds, and prints a line for each.
pub fn report(arguments: &Arguments, made: &MadeTables, findings: &mut Findings) -> anyhow::Result<()> {
    let home = made.empty("many-tables")?;
    let tables = ManyTables { tables: arguments.tables };
    let title = format!(
        "Many tables: {} in {SPACES} spaces of one engine, {ROWS_A_ROUND} rows each in a round",
        table::number(tables.tables)
    );
    let rounds: Vec<Round> = Phase::ManyTables(tables).run_on(&home)?;
    table::begin(&title, &["round", "seconds", "tables/s", "MiB after", "peak MiB"]);
    for (number, round) in rounds.iter().enumerate() {
        table::line(&[
            (number + 1).to_string(),
            table::figure(round.milliseconds / 1e3),
            table::figure(tables.tables as f64 / round.milliseconds * 1e3),
            table::mebibytes(round.memory.resident as f64),
            table::mebibytes(round.memory.peak as f64),
        ]);
    }
    if let Some(last) = rounds.last().filter(|_| tables.tables >= aims::TABLES) {
        findings.note(Figure::TablesPeak, tables.tables, aims::megabytes(last.memory.peak));
    }
    home.remove()
}

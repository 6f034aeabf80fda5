//! One batch whose rows belong to many tables, as the forms of a domain do: its commits, on disk and on an S3 store.

use std::time::Instant;

use anyhow::Context;
use lake_shared::identity::DocumentType;
use lake_tests::parts;
use lake_writer::table_store::{SpaceBatch, TableRows, TableStore};
use serde::{Deserialize, Serialize};

use super::arguments::Arguments;
use super::home::{self, Home};
use super::made::MadeTables;
use super::measure::{Memory, Spread};
use super::phase::Phase;
use super::upsert::milliseconds;
use super::{rows, table};

/// Batches over the same tables: the first makes them, the others replace all their rows.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct SpreadBatches {
    /// Tables of a batch.
    pub tables: u64,
    /// Rows of a batch.
    pub rows: u64,
    /// Batches after the first.
    pub repeats: u64,
}

/// What came of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SpreadTimes {
    /// The batch that makes the tables, milliseconds.
    pub first_ms: f64,
    /// The batches after the first, milliseconds each.
    pub times_ms: Vec<f64>,
    /// Memory after the last batch.
    pub memory: Memory,
}

const BUCKET: &str = "lake";
const REPEATS: u64 = 5;

impl SpreadBatches {
    fn batch(self, round: u64) -> SpaceBatch {
        let rows_each = self.rows.div_ceil(self.tables.max(1));
        let upserts = (0..self.tables).map(|number| {
            let document_type = DocumentType::from(format!("type_{number}"));
            let numbers: Vec<u64> = (0..rows_each).map(|row| number * 1_000_000 + row).collect();
            let made = rows::record_batch(&numbers, round, &document_type);
            TableRows { document_type, rows: vec![made] }
        });
        SpaceBatch { space: home::space(), upserts: upserts.collect(), tombstones: Vec::new() }
    }

    /// Applies the batches.
    pub async fn run(self, home: &Home) -> anyhow::Result<SpreadTimes> {
        let store = home.open().await?;
        let mut times_ms = Vec::new();
        for round in 0..=self.repeats {
            let batch = self.batch(round);
            let began = Instant::now();
            let applied = store.apply(batch).await.context("apply a batch over many tables")?;
            times_ms.push(milliseconds(began));
            anyhow::ensure!(applied.tables.len() as u64 == self.tables, "a table was left out");
        }
        let first_ms = times_ms.remove(0);
        let memory = Memory::now();
        store.close().await;
        Ok(SpreadTimes { first_ms, times_ms, memory })
    }
}

/// Measures on the local disk and on S3, and prints a line for each.
pub fn report(arguments: &Arguments, made: &MadeTables) -> anyhow::Result<()> {
    let batches = SpreadBatches { tables: arguments.spread_tables, rows: arguments.spread_rows, repeats: REPEATS };
    let title = format!(
        "One batch over many tables: {} rows of {} tables; the first batch makes them",
        table::number(batches.rows),
        table::number(batches.tables)
    );
    table::begin(&title, &["store", "first", "n", "median", "max", "ms a table", "peak MiB"]);
    report_on("local disk", &made.empty("spread")?, batches)?;
    let server = parts::ObjectStore::start()?;
    server.create_bucket(BUCKET)?;
    let mut home = made.empty("spread")?;
    home.remote_root = Some(format!("s3://{BUCKET}/spread"));
    home.environment = server.environment();
    report_on("S3 (SeaweedFS)", &home, batches)
}

fn report_on(store: &str, home: &Home, batches: SpreadBatches) -> anyhow::Result<()> {
    let times: SpreadTimes = Phase::Spread(batches).run_on(home)?;
    let spread = Spread::of(&times.times_ms);
    table::line(&[
        store.to_owned(),
        table::figure(times.first_ms),
        spread.count.to_string(),
        table::figure(spread.median),
        table::figure(spread.max),
        table::figure(spread.median / batches.tables.max(1) as f64),
        table::mebibytes(times.memory.peak as f64),
    ]);
    home.remove()
}

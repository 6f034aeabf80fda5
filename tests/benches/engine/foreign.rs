//! Another writer rewrites all files of a table while the engine is running. Measured is the next upsert: its commit finds the rewrite, and
//! the engine has to read all keys anew.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::Context;
use lake_writer::table_store::delta::DeltaTableStore;
use lake_writer::table_store::{Applied, TableStore};
use serde::{Deserialize, Serialize};

use super::aims;
use super::arguments::Arguments;
use super::home::{self, Home};
use super::made::MadeTables;
use super::measure::{Memory, Spread};
use super::phase::{Phase, output_of};
use super::scan::{python, script};
use super::upsert::{keys_within, milliseconds};
use super::{rows, table};

/// Upserts after that one, to compare.
const ORDINARY: u64 = 5;
/// Keys of the batch that only starts the engine.
const FEW_KEYS: u64 = 100;

/// A rewrite by deltalake, and upserts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Foreign {
    /// Rows that the table was made with.
    pub rows: u64,
    /// Keys of each upsert.
    pub keys: u64,
    /// The Python that has deltalake.
    pub python: PathBuf,
}

/// What the script beside this file did to the table. It ends with an error when a file is left.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Rewritten {
    seconds: f64,
    files_before: u64,
    files_after: u64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Followed {
    /// What the rewrite took and made.
    pub rewritten: Rewritten,
    /// The first upsert after it, milliseconds.
    pub next_ms: f64,
    /// The upserts after that one, milliseconds.
    pub ordinary_ms: Vec<f64>,
    /// Memory before the first upsert.
    pub memory_before: Memory,
    /// Memory after the first upsert.
    pub memory: Memory,
}

impl Foreign {
    /// Starts the engine, has the table rewritten and goes on.
    pub async fn run(self, home: &Home) -> anyhow::Result<Followed> {
        let store = home.open().await?;
        // A batch that is known already: the engine loads the space, and the table stays without deletion vectors.
        let (_, known) = apply(&store, 0, FEW_KEYS.min(self.keys), self.rows).await?;
        anyhow::ensure!(known.tables.is_empty(), "a batch that was delivered again made a commit");
        let mut command = Command::new(&self.python);
        command.arg(script("rewrite_deltalake.py")).arg("--table").arg(home.table_folder());
        let rewriting = tokio::task::spawn_blocking(move || output_of::<Rewritten>(command));
        let rewritten = rewriting.await?.context("rewrite the table with deltalake")?;
        let memory_before = Memory::now();
        let next_ms = self.upsert(&store, 1).await?;
        let memory = Memory::now();
        let mut ordinary_ms = Vec::new();
        for round in 2..=ORDINARY + 1 {
            ordinary_ms.push(self.upsert(&store, round).await?);
        }
        store.close().await;
        Ok(Followed { rewritten, next_ms, ordinary_ms, memory_before, memory })
    }

    async fn upsert(&self, store: &DeltaTableStore, round: u64) -> anyhow::Result<f64> {
        let (took_ms, applied) = apply(store, round, self.keys, self.rows).await?;
        let changed = applied.tables.first().context("an upsert changed nothing")?;
        anyhow::ensure!(changed.rows_upserted == self.keys, "only {} rows entered", changed.rows_upserted);
        anyhow::ensure!(changed.rows_total == self.rows, "the table has {} rows", changed.rows_total);
        Ok(took_ms)
    }
}

async fn apply(store: &DeltaTableStore, round: u64, keys: u64, rows: u64) -> anyhow::Result<(f64, Applied)> {
    let made = rows::record_batch(&rows::drawn(round, keys, rows), round, &home::document_type());
    let batch = rows::space_batch(home::space(), home::document_type(), made);
    let began = Instant::now();
    let applied = store.apply(batch).await.context("apply a batch")?;
    Ok((milliseconds(began), applied))
}

/// Measures it and prints a line.
pub fn report(arguments: &Arguments, made: &MadeTables) -> anyhow::Result<()> {
    let rows = arguments.rows_rewritten();
    let keys = keys_within(aims::KEYS, rows);
    let home = made.fresh(rows)?;
    let foreign = Foreign { rows, keys, python: python(arguments)? };
    let followed: Followed = Phase::Foreign(foreign).run_on(&home)?;
    let ordinary_ms = Spread::of(&followed.ordinary_ms).median;
    let waited = (followed.next_ms - ordinary_ms).max(0.1) / 1e3;
    let rewritten = followed.rewritten;
    let columns = [
        "rows",
        "keys",
        "files",
        "rewrite, seconds",
        "next upsert",
        "upserts after it",
        "keys read/s",
        "MiB before",
        "peak MiB",
    ];
    table::begin("All files rewritten by another writer (deltalake's z-order) beside the running engine", &columns);
    table::line(&[
        table::number(rows),
        table::number(keys),
        format!("{} → {}", rewritten.files_before, rewritten.files_after),
        table::figure(rewritten.seconds),
        table::figure(followed.next_ms),
        table::figure(ordinary_ms),
        table::number((rows as f64 / waited) as u64),
        table::mebibytes(followed.memory_before.resident as f64),
        table::mebibytes(followed.memory.peak as f64),
    ]);
    home.remove()
}

//! The key index, through what the engine shows of it: a batch that is delivered again is looked up and left alone, and the first
//! batch after a start waits until the index is there.

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
use super::upsert::{Upserted, Upserts, keys_within, milliseconds};
use super::{rows, table};

/// A start of the engine: one small upsert, another one, then batches that are delivered again.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Start {
    /// Rows that the table was made with.
    pub rows: u64,
    /// The round of the first upsert; greater than any that the table has seen.
    pub round: u64,
    /// Batches that are delivered again.
    pub redelivered: u64,
    /// Keys of each upsert.
    pub keys: u64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Started {
    /// From opening the engine to the answer to the first upsert.
    pub first_ms: f64,
    /// The second upsert, milliseconds.
    pub second_ms: f64,
    /// The batches that were delivered again, milliseconds each.
    pub redelivered_ms: Vec<f64>,
    /// Memory at the end.
    pub memory: Memory,
}

/// Keys of the two upserts.
const FEW_KEYS: u64 = 100;
/// Commits that a restarted engine has to catch up with.
const MISSED_COMMITS: u64 = 20;
/// Keys of each, and of each batch that is delivered again.
const KEYS: u64 = 10_000;
const REDELIVERED: u64 = 10;

impl Start {
    /// Starts the engine on a home and applies the batches.
    pub async fn run(self, home: &Home) -> anyhow::Result<Started> {
        let few = |round: u64| {
            let numbers = rows::drawn(round, FEW_KEYS.min(self.rows), self.rows);
            let made = rows::record_batch(&numbers, round, &home::document_type());
            rows::space_batch(home::space(), home::document_type(), made)
        };
        let (first, second) = (few(self.round), few(self.round + 1));
        let began = Instant::now();
        let store = home.open().await?;
        store.apply(first).await.context("apply the first upsert")?;
        let first_ms = milliseconds(began);
        let began = Instant::now();
        store.apply(second).await.context("apply the second upsert")?;
        let second_ms = milliseconds(began);
        let mut redelivered_ms = Vec::new();
        for at in 0..self.redelivered {
            let numbers = rows::drawn(!at, self.keys, self.rows);
            let made = rows::record_batch(&numbers, 0, &home::document_type());
            let batch = rows::space_batch(home::space(), home::document_type(), made);
            let began = Instant::now();
            let applied = store.apply(batch).await.context("apply a batch again")?;
            redelivered_ms.push(milliseconds(began));
            anyhow::ensure!(applied.tables.is_empty(), "a batch that was delivered again made a commit");
        }
        let memory = Memory::now();
        store.close().await;
        Ok(Started { first_ms, second_ms, redelivered_ms, memory })
    }
}

/// Measures tables of all sizes, and prints a line for each.
pub fn report(arguments: &Arguments, made: &MadeTables, findings: &mut Findings) -> anyhow::Result<()> {
    let title = format!("Key index: first upsert of {FEW_KEYS} keys after a start");
    table::begin(&title, &["rows", "start", "first upsert", "second upsert", "keys/s", "peak MiB"]);
    let mut look_ups = Vec::new();
    for rows in &arguments.rows {
        let home = made.fresh(*rows)?;
        let keys = keys_within(KEYS, *rows);
        let start = |round: u64, redelivered: u64| Start { rows: *rows, round, redelivered, keys };
        let started: Started = Phase::Start(start(1, REDELIVERED)).run_on(&home)?;
        print(*rows, "with the index as it was left", &started, None);
        let spread = Spread::of(&started.redelivered_ms);
        look_ups.push([
            table::number(rows),
            table::number(keys),
            spread.count.to_string(),
            table::figure(spread.median),
            table::figure(spread.max),
            table::number((keys as f64 / spread.median * 1e3) as u64),
        ]);
        if home.index_folder().is_dir() {
            let keys_a_second = after_loss(&home, *rows, keys, start)?;
            findings.note(Figure::Rebuild, *rows, keys_a_second);
        } else {
            let reason = "(the engine keeps no index on disk: every start rebuilds it)";
            let nothing = || table::NOTHING.to_owned();
            table::line(&[table::number(rows), reason.into(), nothing(), nothing(), nothing(), nothing()]);
        }
        home.remove()?;
    }
    let title = "Key index: look-up, by a batch of random keys that is delivered again and makes no commit";
    table::begin(title, &["rows", "keys", "n", "median", "max", "keys/s"]);
    look_ups.iter().for_each(|look_up| table::line(look_up));
    Ok(())
}

/// Starts with an old index, then without any; answers how many keys a second that one took in.
fn after_loss(home: &Home, rows: u64, keys: u64, start: impl Fn(u64, u64) -> Start) -> anyhow::Result<f64> {
    let (index, old) = (home.index_folder(), home.folder.join("old-index"));
    home::copy_tree(&index, &old, false)?;
    let upserts = Upserts { rows, keys, new_percent: 0, repeats: MISSED_COMMITS - 1, first_round: 10 };
    let _: Upserted = Phase::Upsert(upserts).run_on(home)?;
    home::remove(&index)?;
    std::fs::rename(&old, &index)?;
    let started: Started = Phase::Start(start(100, 0)).run_on(home)?;
    let what = format!("with an index that lacks {MISSED_COMMITS} commits of {} keys", table::number(keys));
    print(rows, &what, &started, Some(MISSED_COMMITS * keys));
    home::remove(&index)?;
    let started: Started = Phase::Start(start(200, 0)).run_on(home)?;
    print(rows, "without an index (rebuild)", &started, Some(rows));
    Ok(keys_a_second(&started, rows))
}

fn keys_a_second(started: &Started, keys: u64) -> f64 {
    // The second upsert tells what the first would have cost without the start.
    let waited = (started.first_ms - started.second_ms).max(0.1) / 1e3;
    keys as f64 / waited
}

fn print(rows: u64, what: &str, started: &Started, keys: Option<u64>) {
    table::line(&[
        table::number(rows),
        what.to_owned(),
        table::figure(started.first_ms),
        table::figure(started.second_ms),
        keys.map_or_else(|| table::NOTHING.into(), |keys| table::number(keys_a_second(started, keys) as u64)),
        table::mebibytes(started.memory.peak as f64),
    ]);
}

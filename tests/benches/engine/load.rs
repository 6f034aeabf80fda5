//! Making a table: all rows enter through the engine, in large batches. The next batch is made while one is applied.

use std::time::Instant;

use anyhow::Context;
use lake_writer::table_store::TableStore;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::home::{self, Home};
use super::measure::Memory;
use super::{rows, type_change};

/// A table to be made.
#[derive(Debug, Serialize, Deserialize)]
pub struct Load {
    /// Rows of the table.
    pub rows: u64,
    /// Rows of a batch.
    pub batch: u64,
    /// Whether the rows have a column of numbers beside the others, for a type change.
    pub counted: bool,
}

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Loaded {
    /// Time from the first batch to the last answer.
    pub seconds: f64,
    /// Of that, time spent in the engine.
    pub seconds_in_engine: f64,
    /// Number of data files.
    pub files: u64,
    /// Bytes of the data files.
    pub bytes: u64,
    /// Memory at the end.
    pub memory: Memory,
}

/// Batches between two lines about the progress.
const TOLD_EVERY: u64 = 20;

impl Load {
    /// Makes the table.
    pub async fn run(self, home: &Home) -> anyhow::Result<Loaded> {
        let store = home.open().await?;
        let began = Instant::now();
        let (sender, mut batches) = mpsc::channel(1);
        let (total, size, counted) = (self.rows, self.batch.max(1), self.counted);
        std::thread::spawn(move || {
            for first in (0..total).step_by(size as usize) {
                let numbers: Vec<u64> = (first..total.min(first + size)).collect();
                let plain = rows::record_batch(&numbers, 0, &home::document_type());
                let made = if counted { type_change::counted(&plain, &numbers) } else { plain };
                if sender.blocking_send(made).is_err() {
                    return;
                }
            }
        });
        let (mut in_engine, mut done, mut batch_number, mut last) = (0.0, 0, 0, None);
        while let Some(made) = batches.recv().await {
            done += made.num_rows() as u64;
            let batch = rows::space_batch(home::space(), home::document_type(), made);
            let applying = Instant::now();
            last = store.apply(batch).await.context("apply a batch")?.tables.pop();
            in_engine += applying.elapsed().as_secs_f64();
            batch_number += 1;
            if batch_number % TOLD_EVERY == 0 {
                let speed = done as f64 / began.elapsed().as_secs_f64();
                eprintln!("making a table: {done} of {total} rows, {speed:.0} rows/s");
            }
        }
        let table = last.context("a table without rows was asked for")?;
        anyhow::ensure!(table.rows_total == total, "the table has {} rows instead of {total}", table.rows_total);
        let loaded = Loaded {
            seconds: began.elapsed().as_secs_f64(),
            seconds_in_engine: in_engine,
            files: table.files,
            bytes: table.bytes,
            memory: Memory::now(),
        };
        store.close().await;
        Ok(loaded)
    }
}

//! One flush into a wide table: what the rows cost in memory when most of their columns are NULL.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use arrow::array::{ArrayRef, StringBuilder};
use arrow::datatypes::{Field, Schema};
use arrow::record_batch::RecordBatch;
use lake_writer::table_store::{SpaceBatch, TableRows, TableStore};
use serde::{Deserialize, Serialize};

use super::arguments::Arguments;
use super::home::{self, Home};
use super::made::MadeTables;
use super::measure::{Memory, TableFolder};
use super::phase::Phase;
use super::upsert::milliseconds;
use super::{rows, table};

/// Rows that arrive as many messages and are applied at once.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Wide {
    /// Rows of the flush.
    pub rows: u64,
    /// Columns of the table.
    pub columns: u64,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Flushed {
    /// Time of `apply`, milliseconds.
    pub milliseconds: f64,
    /// Before it, the rows included; the peak is that of the flush alone.
    pub before: Memory,
    /// Memory after the flush.
    pub after: Memory,
    /// Bytes of the data files.
    pub bytes: u64,
    /// How many there are.
    pub files: u64,
}

/// Rows of one message.
const ROWS_A_MESSAGE: u64 = 500;
/// One in so many columns is in a message, and one in so many of its values is not NULL there.
const ONE_IN: u64 = 2;

impl Wide {
    /// Applies the flush to an empty lake.
    pub async fn run(self, home: &Home) -> anyhow::Result<Flushed> {
        let store = home.open().await?;
        let messages = (0..self.rows).step_by(ROWS_A_MESSAGE as usize);
        let made = messages.map(|first| self.message(first)).collect::<anyhow::Result<Vec<_>>>()?;
        let upserts = vec![TableRows { document_type: home::document_type(), rows: made }];
        let batch = SpaceBatch { space: home::space(), upserts, tombstones: Vec::new() };
        Memory::forget_peak()?;
        let before = Memory::now();
        let began = Instant::now();
        let applied = store.apply(batch).await.context("apply a wide flush")?;
        let milliseconds = milliseconds(began);
        let after = Memory::now();
        let rows_total = applied.tables.first().map(|changed| changed.rows_total);
        anyhow::ensure!(rows_total == Some(self.rows), "the table has {rows_total:?} rows");
        store.close().await;
        let written = TableFolder::of(home)?.written_since(&Default::default()).await?;
        Ok(Flushed { milliseconds, before, after, bytes: written.data_bytes, files: written.data_files })
    }

    fn message(self, first: u64) -> anyhow::Result<RecordBatch> {
        let numbers: Vec<u64> = (first..self.rows.min(first + ROWS_A_MESSAGE)).collect();
        let narrow = rows::record_batch(&numbers, 0, &home::document_type());
        let (mut fields, mut arrays) = (narrow.schema().fields().to_vec(), narrow.columns().to_vec());
        for column in rows::COLUMNS as u64..self.columns {
            // The first message brings all columns, so that their number is certain.
            if first == 0 || rows::mixed(first ^ (column << 32)).is_multiple_of(ONE_IN) {
                let array = answers(column, &numbers);
                fields.push(Arc::new(Field::new(format!("/form/question_{column}"), array.data_type().clone(), true)));
                arrays.push(array);
            }
        }
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?)
    }
}

/// Answers to a question: one of a few, a number, or a text of its own.
fn answers(column: u64, numbers: &[u64]) -> ArrayRef {
    let mut builder = StringBuilder::new();
    for number in numbers {
        let mix = rows::mixed(number ^ (column << 40));
        let value = (mix >> 8).is_multiple_of(ONE_IN).then(|| match column % 3 {
            0 => ["yes", "no", "unknown", "not_applicable"][(mix >> 20) as usize % 4].to_owned(),
            1 => ((mix >> 20) % 1_000).to_string(),
            _ => format!("{:x}", mix >> 16),
        });
        builder.append_option(value);
    }
    Arc::new(builder.finish())
}

/// Measures a wide and a narrow flush.
pub fn report(arguments: &Arguments, made: &MadeTables) -> anyhow::Result<()> {
    table::begin(
        "One flush into a new table, a quarter of the cells filled",
        &["rows", "columns", "seconds", "MiB before", "peak MiB above", "MiB data", "files"],
    );
    for columns in &arguments.wide_columns {
        let wide = Wide { rows: arguments.wide_rows, columns: *columns };
        let home = made.empty("wide")?;
        let flushed: Flushed = Phase::Wide(wide).run_on(&home)?;
        table::line(&[
            table::number(wide.rows),
            table::number(wide.columns),
            table::figure(flushed.milliseconds / 1e3),
            table::mebibytes(flushed.before.resident as f64),
            table::mebibytes(flushed.after.peak.saturating_sub(flushed.before.resident) as f64),
            table::mebibytes(flushed.bytes as f64),
            table::number(flushed.files),
        ]);
        home.remove()?;
    }
    Ok(())
}

//! A type change: a column of numbers gets a text, so that one commit writes the whole table anew.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use arrow::array::{ArrayRef, Int64Array, StringArray};
use arrow::datatypes::{Field, Schema};
use arrow::record_batch::RecordBatch;
use lake_writer::table_store::delta::DeltaTableStore;
use lake_writer::table_store::{AppliedTable, TableStore};
use serde::{Deserialize, Serialize};

use super::aims;
use super::arguments::Arguments;
use super::home::{self, Home};
use super::load::{Load, Loaded};
use super::made::MadeTables;
use super::measure::{Memory, Spread, TableFolder, Written};
use super::phase::Phase;
use super::upsert::{keys_within, milliseconds};
use super::{rows, table};

/// Source path of the column of numbers.
const COUNTED: &str = "/counted";
/// What no number is.
const TEXT: &str = "many";
/// Upserts before the type change and after it; the first of all waits for the start.
const ORDINARY: u64 = 5;

/// Upserts of numbers, one with a text, and upserts of numbers again.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct TypeChange {
    /// Rows that the table was made with.
    pub rows: u64,
    /// Keys of each upsert.
    pub keys: u64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TypeChanged {
    /// Upserts before, the first one left out, milliseconds.
    pub before_ms: Vec<f64>,
    /// The one with the text, milliseconds.
    pub changed_ms: f64,
    /// Upserts after it, milliseconds.
    pub after_ms: Vec<f64>,
    /// What the one with the text wrote.
    pub written: Written,
    /// Bytes of the data files before it.
    pub bytes_before: u64,
    /// Before the one with the text.
    pub memory_before: Memory,
    /// Memory after the change.
    pub memory: Memory,
}

/// Rows with a column of numbers beside the others.
pub fn counted(rows: &RecordBatch, numbers: &[u64]) -> RecordBatch {
    let counts = numbers.iter().map(|number| count_of(*number));
    with_column(rows, Arc::new(Int64Array::from_iter_values(counts)))
}

/// The same, as texts; one of them is no number.
fn counted_in_text(rows: &RecordBatch, numbers: &[u64]) -> RecordBatch {
    let counts = numbers.iter().skip(1).map(|number| count_of(*number).to_string());
    with_column(rows, Arc::new(StringArray::from_iter_values(std::iter::once(TEXT.to_owned()).chain(counts))))
}

fn count_of(number: u64) -> i64 {
    (rows::mixed(number ^ 0x00C0_0417) % 1_000) as i64
}

fn with_column(rows: &RecordBatch, column: ArrayRef) -> RecordBatch {
    let (mut fields, mut arrays) = (rows.schema().fields().to_vec(), rows.columns().to_vec());
    fields.push(Arc::new(Field::new(COUNTED, column.data_type().clone(), true)));
    arrays.push(column);
    // Columns of one length each: this cannot fail.
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
        .unwrap_or_else(|error| panic!("columns do not fit together: {error}"))
}

impl TypeChange {
    /// Applies the batch that changes the type.
    pub async fn run(self, home: &Home) -> anyhow::Result<TypeChanged> {
        let store = home.open().await?;
        let folder = TableFolder::of(home)?;
        let (mut before_ms, mut after_ms) = (Vec::new(), Vec::new());
        let (first_ms, mut before) = self.apply(&store, 1, counted).await?;
        eprintln!("type change: the first upsert took {first_ms:.0} ms");
        for round in 2..=ORDINARY {
            let (took_ms, changed) = self.apply(&store, round, counted).await?;
            before_ms.push(took_ms);
            before = changed;
        }
        let files = folder.files().await?;
        let memory_before = Memory::now();
        let (changed_ms, _) = self.apply(&store, ORDINARY + 1, counted_in_text).await?;
        let memory = Memory::now();
        let written = folder.written_since(&files).await?;
        let (commits, removed) = (written.commits, written.files_removed);
        anyhow::ensure!(commits == 1, "the type change made {commits} commits");
        anyhow::ensure!(removed == before.files, "it replaced {removed} of {} files", before.files);
        for round in ORDINARY + 2..=2 * ORDINARY {
            let (took_ms, _) = self.apply(&store, round, counted).await?;
            after_ms.push(took_ms);
        }
        store.close().await;
        Ok(TypeChanged { before_ms, changed_ms, after_ms, written, bytes_before: before.bytes, memory_before, memory })
    }

    /// Applies one upsert, and says how long it took and what the table is then.
    async fn apply(
        &self,
        store: &DeltaTableStore,
        round: u64,
        count: fn(&RecordBatch, &[u64]) -> RecordBatch,
    ) -> anyhow::Result<(f64, AppliedTable)> {
        let numbers = rows::drawn(round, self.keys, self.rows);
        let made = count(&rows::record_batch(&numbers, round, &home::document_type()), &numbers);
        let batch = rows::space_batch(home::space(), home::document_type(), made);
        let began = Instant::now();
        let mut applied = store.apply(batch).await.context("apply an upsert")?;
        let took_ms = milliseconds(began);
        let changed = applied.tables.pop().context("an upsert changed nothing")?;
        anyhow::ensure!(changed.rows_total == self.rows, "the table has {} rows", changed.rows_total);
        Ok((took_ms, changed))
    }
}

/// Measures tables of all sizes, and prints a line for each.
pub fn report(arguments: &Arguments, made: &MadeTables) -> anyhow::Result<()> {
    let columns = [
        "rows",
        "keys",
        "upserts before",
        "type change, seconds",
        "upserts after",
        "MiB of the table",
        "MiB written",
        "files +/−",
        "MiB before",
        "peak MiB",
    ];
    table::begin("Type change: the upsert that turns a column of numbers into text", &columns);
    for rows in &arguments.type_change_rows {
        let home = made.empty("type-change")?;
        let load = Load { rows: *rows, batch: arguments.load_batch, counted: true };
        let _: Loaded = Phase::Load(load).run_on(&home)?;
        let change = TypeChange { rows: *rows, keys: keys_within(aims::KEYS, *rows).max(1) };
        let changed: TypeChanged = Phase::TypeChange(change).run_on(&home)?;
        table::line(&[
            table::number(change.rows),
            table::number(change.keys),
            table::figure(Spread::of(&changed.before_ms).median),
            table::figure(changed.changed_ms / 1e3),
            table::figure(Spread::of(&changed.after_ms).median),
            table::mebibytes(changed.bytes_before as f64),
            table::mebibytes(changed.written.bytes() as f64),
            format!("{}/{}", changed.written.data_files, changed.written.files_removed),
            table::mebibytes(changed.memory_before.resident as f64),
            table::mebibytes(changed.memory.peak as f64),
        ]);
        home.remove()?;
    }
    Ok(())
}

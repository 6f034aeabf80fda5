//! Compaction of rows with long texts, such as repeat groups as JSON, which are ten times smaller in a file than in memory.

use std::sync::Arc;

use anyhow::Context;
use arrow::array::{ArrayRef, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;
use lake_writer::table_store::TableStore;
use serde::{Deserialize, Serialize};

use super::arguments::Arguments;
use super::compaction::Maintenance;
use super::home::{self, Home};
use super::made::MadeTables;
use super::measure::TableFolder;
use super::phase::Phase;
use super::{rows, table};

/// A table of files that overlap in the clustering order.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct LongTexts {
    /// Rows of one file.
    pub rows: u64,
    /// Number of data files.
    pub files: u64,
    /// Length of the text in each row.
    pub characters: u64,
}

/// More than may overlap, so that they are compacted.
const FILES: u64 = 12;

impl LongTexts {
    /// Makes the table; the answer is its size in bytes.
    pub async fn run(self, home: &Home) -> anyhow::Result<u64> {
        let store = home.open().await?;
        for file in 0..self.files {
            let numbers: Vec<u64> = (file * self.rows..(file + 1) * self.rows).collect();
            let batch = rows::space_batch(home::space(), home::document_type(), self.with_texts(&numbers)?);
            store.apply(batch).await.context("apply long texts")?;
        }
        store.close().await;
        Ok(TableFolder::of(home)?.written_since(&Default::default()).await?.data_bytes)
    }

    fn with_texts(self, numbers: &[u64]) -> anyhow::Result<RecordBatch> {
        let short = rows::record_batch(numbers, 0, &home::document_type());
        let (mut fields, mut arrays) = (short.schema().fields().to_vec(), short.columns().to_vec());
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values(numbers.iter().map(|number| self.text(*number))));
        fields.push(Arc::new(Field::new("/form/visits", DataType::Utf8, true)));
        arrays.push(texts);
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?)
    }

    fn text(self, number: u64) -> String {
        let mut text = String::from("[");
        let mut visit = 0;
        while (text.len() as u64) < self.characters {
            let weight = rows::mixed(number << 20 | visit) % 1_000;
            text += &format!(r#"{{"visit":{visit},"outcome":"no_change","weight":{weight}}},"#);
            visit += 1;
        }
        text
    }
}

/// Measures compaction of such tables.
pub fn report(arguments: &Arguments, made: &MadeTables) -> anyhow::Result<()> {
    table::begin(
        "Compaction of a table of twelve files with long texts, until nothing was left",
        &["rows", "characters a row", "MiB data", "seconds", "files written", "peak MiB"],
    );
    for characters in &arguments.text_characters {
        let texts = LongTexts { rows: arguments.text_rows / FILES, files: FILES, characters: *characters };
        let home = made.empty("long-texts")?;
        let bytes: u64 = Phase::LongTexts(texts).run_on(&home)?;
        let done: Maintenance = Phase::Maintain.run_on(&home)?;
        table::line(&[
            table::number(texts.rows * texts.files),
            table::number(texts.characters),
            table::mebibytes(bytes as f64),
            table::figure(done.seconds),
            table::number(done.files_compacted),
            table::mebibytes(done.memory.peak as f64),
        ]);
        home.remove()?;
    }
    Ok(())
}

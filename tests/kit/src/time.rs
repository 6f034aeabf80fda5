//! Time that passes for a table: a test cannot wait for hours, so the times on disk are set back instead.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arrow::array::{Array, ArrayRef, AsArray, StructArray};
use arrow::compute::{cast, unary};
use arrow::datatypes::{DataType, FieldRef, Fields, Int64Type, Schema, TimeUnit};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;
use tempfile::NamedTempFile;

/// Where the engine notes, beside a table, which files are superseded and since when.
pub const NOTE: &str = "_lake/superseded_files.json";

/// Milliseconds of an hour.
pub const HOUR_MS: i64 = 3_600_000;

/// Everything that happened to a table up to a version happened so many hours earlier: what the log says about removals, what the engine
/// noted, and all data files and deletion vectors.
///
/// # Errors
/// When a file cannot be read or written.
pub fn pass_time(table: &Path, hours: u64, up_to: Option<u64>) -> anyhow::Result<()> {
    let earlier_ms = i64::try_from(hours)? * HOUR_MS;
    for entry in fs::read_dir(table.join("_delta_log"))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let version = name.split('.').next().and_then(|name| name.parse::<u64>().ok());
        let Some(version) = version.filter(|&version| up_to.is_none_or(|last| version <= last)) else { continue };
        if name.ends_with(".json") && name.matches('.').count() == 1 {
            set_back_entry(&path, earlier_ms).with_context(|| format!("entry {version}"))?;
        } else if name.ends_with(".parquet") {
            set_back_checkpoint(&path, earlier_ms).with_context(|| format!("checkpoint {version}"))?;
        } else {
            continue;
        }
        // Hadoop notes checksums beside what Spark writes.
        let _ = fs::remove_file(path.with_file_name(format!(".{name}.crc")));
    }
    for file in data_files(table)? {
        let file = match File::options().write(true).open(file) {
            // The last tasks of an engine that crashed may still delete.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            opened => opened?,
        };
        file.set_modified(file.metadata()?.modified()? - Duration::from_secs(hours * 3_600))?;
    }
    set_back_note(table, earlier_ms, |_| true).map(drop)
}

/// The engine noted these deletion vectors so many milliseconds earlier. Answers how many the note has, `None` where there is no note.
///
/// # Errors
/// When it cannot be read or written.
pub fn set_back_note(table: &Path, earlier_ms: i64, which: impl Fn(&str) -> bool) -> anyhow::Result<Option<usize>> {
    let note = table.join(NOTE);
    let Ok(text) = fs::read_to_string(&note) else { return Ok(None) };
    let mut noted: Value = serde_json::from_str(&text)?;
    let files = noted["files"].as_object_mut().context("a note without files")?;
    for (_, since) in files.iter_mut().filter(|(path, _)| which(path)) {
        *since = (since.as_i64().context("a note without a time")? - earlier_ms).into();
    }
    let count = files.len();
    exchange(&note, noted.to_string().as_bytes())?;
    Ok(Some(count))
}

/// Data files and deletion vectors below a folder, in use or not.
///
/// # Errors
/// When a folder cannot be listed.
pub fn data_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("_delta_log") {
            found.extend(data_files(&path)?);
        } else if path.extension().is_some_and(|end| end == "parquet" || end == "bin") {
            found.push(path);
        }
    }
    Ok(found)
}

/// Puts another file in the place of one at once: a checkpoint that is made in the background and found an empty entry of the log would be
/// one without what the entry says.
fn exchange(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let mut file = NamedTempFile::new_in(path.parent().context("a file is in a folder")?)?;
    file.write_all(content)?;
    file.persist(path)?;
    Ok(())
}

/// What an entry of the log removes was removed so many milliseconds earlier.
///
/// # Errors
/// When it cannot be read or written.
pub fn set_back_entry(path: &Path, earlier_ms: i64) -> anyhow::Result<()> {
    let mut lines = String::new();
    for line in fs::read_to_string(path)?.lines() {
        let mut action: Value = serde_json::from_str(line)?;
        if let Some(removed) = action.pointer_mut("/remove/deletionTimestamp") {
            *removed = (removed.as_i64().unwrap_or_default() - earlier_ms).into();
        }
        lines.push_str(&format!("{action}\n"));
    }
    exchange(path, lines.as_bytes())
}

fn set_back_checkpoint(path: &Path, earlier_ms: i64) -> anyhow::Result<()> {
    let batches = ParquetRecordBatchReaderBuilder::try_new(File::open(path)?)?.build()?;
    let batches = batches.collect::<Result<Vec<RecordBatch>, _>>()?;
    let Some(read) = batches.first().map(RecordBatch::schema) else { return Ok(()) };
    let schema = Arc::new(Schema::new(in_microseconds(read.fields())));
    let mut written = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut written, Arc::clone(&schema), None)?;
    for batch in batches {
        let columns = batch.columns().iter().zip(schema.fields());
        let mut columns =
            columns.map(|(column, field)| cast(column, field.data_type())).collect::<Result<Vec<_>, _>>()?;
        if let Some((at, _)) = schema.column_with_name("remove") {
            columns[at] = set_back_removals(columns[at].as_struct(), earlier_ms)?;
        }
        writer.write(&RecordBatch::try_new(Arc::clone(&schema), columns)?)?;
    }
    writer.close()?;
    exchange(path, &written)
}

/// Spark writes the instants of statistics as INT96, which is read as nanoseconds. Written so, Spark would not read them.
fn in_microseconds(fields: &Fields) -> Fields {
    let field = |field: &FieldRef| match field.data_type() {
        DataType::Struct(fields) => DataType::Struct(in_microseconds(fields)),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        other => other.clone(),
    };
    fields.iter().map(|one| one.as_ref().clone().with_data_type(field(one))).collect()
}

fn set_back_removals(removals: &StructArray, earlier_ms: i64) -> anyhow::Result<ArrayRef> {
    let mut columns = removals.columns().to_vec();
    if let Some(at) = removals.column_names().iter().position(|name| *name == "deletionTimestamp") {
        columns[at] = Arc::new(unary::<Int64Type, _, Int64Type>(columns[at].as_primitive(), |ms| ms - earlier_ms));
    }
    Ok(Arc::new(StructArray::try_new(removals.fields().clone(), columns, removals.nulls().cloned())?))
}

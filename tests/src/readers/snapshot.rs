//! A table read file by file: the file list from delta-rs, the rows from the parquet files, deletion vectors by the letter of the Delta
//! protocol. Much quicker than a query engine, so that a table can be looked at after every step; and stricter: it also checks that each
//! file is as the log says, its statistics included.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, TimeUnit};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use chrono::DateTime;
use deltalake::DeltaTableBuilder;
use deltalake::kernel::{DeletionVectorDescriptor, StorageType};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use roaring::RoaringTreemap;
use serde_json::Value;
use url::Url;

use super::content::Row;
use super::statistics::Statistics;

/// Bytes `D1 D3 39 64`: what every deletion vector begins with.
const DELETION_VECTOR_MAGIC: u32 = 1_681_511_377;

/// A table at one version.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Version of the table that was read.
    pub version: u64,
    /// Column names and the source paths that the lake noted for them; `foreign:<name>` where it noted none.
    pub sources: BTreeMap<String, String>,
    /// Column names and their types in the Delta schema.
    pub kinds: BTreeMap<String, String>,
    /// The rows, sorted.
    pub rows: Vec<Row>,
    /// Values of the partition columns, over all files.
    pub partition_values: BTreeSet<String>,
    /// Files with deletion vectors in folders whose names hold escaped characters: Polars does not find those vectors.
    pub vectors_in_escaped_folders: usize,
    /// Number of data files.
    pub files: usize,
    /// The data files and those of their deletion vectors.
    pub used: BTreeSet<PathBuf>,
    /// Properties of the table.
    pub properties: BTreeMap<String, String>,
    /// Rows in them that deletion vectors hide.
    pub hidden_rows: u64,
}

impl Snapshot {
    /// The fields of a row by source path, whether they have columns of their own or not.
    pub fn fields_of(&self, row: &Row) -> anyhow::Result<BTreeMap<String, String>> {
        let mut fields = BTreeMap::new();
        for (name, text) in row {
            let source = self.sources.get(name).with_context(|| format!("column {name} is not in the schema"))?;
            if source == "+_lake_overflow" {
                fields.extend(serde_json::from_str::<BTreeMap<String, String>>(text)?);
            } else if !source.starts_with("+_lake_") && source != "/_id" {
                fields.insert(source.clone(), text.clone());
            }
        }
        Ok(fields)
    }

    /// Reads the table in a folder, at a version or the latest; `None` if there is no table yet.
    ///
    /// # Errors
    /// When a file is not as the log says: missing, of another type than its column, with another number of rows.
    pub async fn read(folder: &Path, version: Option<u64>) -> anyhow::Result<Option<Self>> {
        let log = folder.join("_delta_log");
        // A crash may leave an empty folder behind.
        if !log.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
            return Ok(None);
        }
        let url = Url::from_directory_path(folder).map_err(|()| anyhow::anyhow!("not an absolute path"))?;
        let builder = DeltaTableBuilder::from_url(url)?;
        let table = match version {
            Some(version) => builder.with_version(version),
            None => builder,
        };
        let table = table.load().await.with_context(|| format!("open {}", folder.display()))?;
        let snapshot = table.snapshot()?;
        let schema = serde_json::to_value(snapshot.schema().as_ref())?;
        let fields: Vec<TableField> =
            schema["fields"].as_array().context("a schema has fields")?.iter().map(TableField::of).collect();
        let mut read = Self {
            version: snapshot.version(),
            sources: fields.iter().map(|field| (field.name.clone(), field.source.clone())).collect(),
            kinds: fields.iter().map(|field| (field.name.clone(), field.kind.clone())).collect(),
            rows: Vec::new(),
            partition_values: BTreeSet::new(),
            vectors_in_escaped_folders: 0,
            files: 0,
            used: BTreeSet::new(),
            properties: serde_json::from_value(serde_json::to_value(snapshot.metadata())?["configuration"].take())?,
            hidden_rows: 0,
        };
        for view in snapshot.log_data().iter() {
            let partition: Row = view
                .partition_values_map()
                .into_iter()
                .filter_map(|(name, value)| Some((name, value.filter(|value| !value.is_empty())?)))
                .collect();
            let hidden = match view.deletion_vector_descriptor() {
                Some(descriptor) => {
                    read.used.extend(vector_file(folder, &descriptor)?);
                    deleted_rows(folder, &descriptor)?
                }
                None => RoaringTreemap::new(),
            };
            let path = view.path().into_owned();
            let statistics = Statistics::of(view.stats().as_deref())?;
            let found = read
                .add_file(&folder.join(&path), &fields, &partition, &hidden, &statistics)
                .with_context(|| format!("data file {path} of {}", folder.display()))?;
            let recorded = view.num_records();
            ensure!(
                recorded.is_none_or(|recorded| recorded == found),
                "{path}: {found} rows, the log says {recorded:?}"
            );
            read.files += 1;
            read.used.insert(folder.join(&path));
            read.hidden_rows += hidden.len();
            if !hidden.is_empty() {
                ensure!(!statistics.are_tight(), "{path}: rows are hidden, but its statistics are said to be exact");
                read.vectors_in_escaped_folders += usize::from(path.contains(['%', '~']));
            }
            read.partition_values.extend(partition.into_values());
        }
        read.rows.sort();
        Ok(Some(read))
    }

    /// Adds the visible rows of a file; gives the number of rows in it, hidden ones included.
    fn add_file(
        &mut self,
        path: &Path,
        fields: &[TableField],
        partition: &Row,
        hidden: &RoaringTreemap,
        statistics: &Statistics,
    ) -> anyhow::Result<usize> {
        let mut position = 0;
        let mut nulls: BTreeMap<String, usize> = BTreeMap::new();
        for batch in ParquetRecordBatchReaderBuilder::try_new(File::open(path)?)?.build()? {
            let batch = batch?;
            let mut columns: Vec<(&str, Vec<Option<String>>)> = Vec::new();
            for (name, array) in batch.schema_ref().fields().iter().map(|field| field.name()).zip(batch.columns()) {
                let field = fields.iter().find(|field| field.name == *name);
                let field = field.with_context(|| format!("column {name} is not in the schema"))?;
                let found = delta_type(array.data_type())?;
                ensure!(found == field.kind, "column {name} holds {found}, the schema says {}", field.kind);
                let cells = texts(array)?;
                statistics.ensure_hold(name, &field.kind, &cells)?;
                *nulls.entry(name.clone()).or_default() += array.null_count();
                columns.push((&field.name, cells));
            }
            for row in 0..batch.num_rows() {
                if !hidden.contains(position as u64) {
                    let cells =
                        columns.iter().filter_map(|(name, cells)| Some(((*name).to_owned(), cells[row].clone()?)));
                    self.rows.push(cells.chain(partition.clone()).collect());
                }
                position += 1;
            }
        }
        statistics.ensure_nulls(&nulls, position)?;
        ensure!(
            hidden.max().is_none_or(|last| last < position as u64),
            "a deletion vector hides a row behind the last"
        );
        Ok(position)
    }
}

struct TableField {
    name: String,
    kind: String,
    source: String,
}

impl TableField {
    fn of(field: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let name = text(&field["name"]);
        let source = field["metadata"]["lake.source"].as_str();
        let source = source.map_or_else(|| format!("foreign:{name}"), str::to_owned);
        Self { kind: text(&field["type"]), source, name }
    }
}

fn delta_type(found: &DataType) -> anyhow::Result<&'static str> {
    Ok(match found {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "string",
        DataType::Int64 => "long",
        DataType::Int32 => "integer",
        DataType::Float64 => "double",
        DataType::Boolean => "boolean",
        DataType::Date32 => "date",
        // Spark writes the old INT96, which carries no zone.
        DataType::Timestamp(_, _) => "timestamp",
        other => bail!("{other} in a data file"),
    })
}

/// The cells of a column, written as every reader's are.
fn texts(array: &ArrayRef) -> anyhow::Result<Vec<Option<String>>> {
    if let DataType::Timestamp(_, zone) = array.data_type() {
        let micros = cast(array, &DataType::Timestamp(TimeUnit::Microsecond, zone.clone()))?;
        let micros = cast(&micros, &DataType::Int64)?;
        let moment = |micros| {
            let moment = DateTime::from_timestamp_micros(micros);
            moment.map_or_else(|| micros.to_string(), |moment| moment.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string())
        };
        return Ok(micros.as_primitive::<Int64Type>().iter().map(|cell| cell.map(moment)).collect());
    }
    let options = FormatOptions::default();
    let formatter = ArrayFormatter::try_new(array, &options)?;
    Ok((0..array.len()).map(|row| array.is_valid(row).then(|| formatter.value(row).to_string())).collect())
}

/// The file that holds a deletion vector, unless the log itself does.
fn vector_file(folder: &Path, descriptor: &DeletionVectorDescriptor) -> anyhow::Result<Option<PathBuf>> {
    if descriptor.storage_type != StorageType::UuidRelativePath {
        return Ok(None);
    }
    let text = descriptor.path_or_inline_dv.as_str();
    let (prefix, id) = text.split_at(text.len().checked_sub(20).context("20 characters name the file")?);
    let id = uuid::Uuid::from_slice(&z85::decode(id)?)?;
    Ok(Some(folder.join(prefix).join(format!("deletion_vector_{id}.bin"))))
}

/// The positions that a deletion vector hides.
fn deleted_rows(folder: &Path, descriptor: &DeletionVectorDescriptor) -> anyhow::Result<RoaringTreemap> {
    let size = usize::try_from(descriptor.size_in_bytes)?;
    let bytes = match descriptor.storage_type {
        StorageType::Inline => z85::decode(&descriptor.path_or_inline_dv)?,
        StorageType::UuidRelativePath => {
            let file = vector_file(folder, descriptor)?.context("a vector in a file")?;
            let bytes = std::fs::read(&file).with_context(|| file.display().to_string())?;
            ensure!(bytes.first() == Some(&1), "{} is not of format version 1", file.display());
            let at = usize::try_from(descriptor.offset.unwrap_or(1))?;
            let length = bytes.get(at..at + 4).context("a deletion vector behind the end of its file")?;
            ensure!(u32::from_be_bytes(length.try_into()?) as usize == size, "the file gives the vector another size");
            bytes.get(at + 4..at + 4 + size).context("a deletion vector behind the end of its file")?.to_vec()
        }
        StorageType::AbsolutePath => bail!("a deletion vector at an absolute path"),
    };
    let magic = bytes.get(..4).context("a deletion vector of less than 4 bytes")?;
    ensure!(u32::from_le_bytes(magic.try_into()?) == DELETION_VECTOR_MAGIC, "not a deletion vector");
    let rows = RoaringTreemap::deserialize_from(&bytes[4..])?;
    ensure!(i64::try_from(rows.len())? == descriptor.cardinality, "the log gives the vector another cardinality");
    Ok(rows)
}

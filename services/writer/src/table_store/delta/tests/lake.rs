//! A lake in a temporary folder, batches for it, and a reader that shares no code with the engine but for the decoding of deletion vectors.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use deltalake::DeltaTableBuilder;
use lake_proto::queue::v1::Tombstone;
use lake_shared::escaped_names;
use lake_test_kit::delegating_store::DelegatingStore;
use lake_test_kit::faults::Faults;
use lake_test_kit::gate::Gate;
pub(super) use lake_test_kit::rows::{
    Cell, NewRow, new_row, numbered, numbered_id, record_batch, space, table, tombstone,
};
pub(super) use lake_test_kit::waiting::until;
use object_store::ObjectStore;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use roaring::RoaringBitmap;
use serde_json::Value;
use tempfile::TempDir;
use url::Url;

use crate::key_index::{IndexError, IndexOptions, KeyIndex};
use crate::metastore::Metastore;
use crate::metastore::fence::Fence;
use crate::metastore::sqlite::SqliteMetastore;
use crate::table_store::delta::files::deletion_vectors;
use crate::table_store::delta::{DeltaOptions, DeltaTableStore};
use crate::table_store::lake_store::{LakeStore, LakeStoreConfig};
use crate::table_store::{SpaceBatch, TableRows};

/// A row as a reader sees it: source path to text; NULL is absent.
pub(super) type ReadRow = BTreeMap<String, String>;

pub(super) struct Lake {
    pub(super) folder: TempDir,
    pub(super) metastore: Arc<dyn Metastore>,
    /// What fails in the store of the engines, and when they write.
    pub(super) faults: Arc<Faults>,
    /// The folder of the key indexes.
    pub(super) index: TempDir,
    pub(super) database: TempDir,
}

impl Lake {
    pub(super) async fn new() -> Self {
        // A file: a call that is dropped half-way takes its connection with it, and a database in memory would go too.
        let database = TempDir::new().unwrap();
        let metastore = SqliteMetastore::file(&database.path().join("metastore.sqlite"));
        metastore.migrate().await.unwrap();
        let folder = TempDir::new().unwrap();
        Self {
            folder,
            metastore: Arc::new(metastore),
            faults: Arc::default(),
            index: TempDir::new().unwrap(),
            database,
        }
    }

    /// An engine that knows nothing yet, as after a start.
    pub(super) fn open(&self, options: DeltaOptions) -> DeltaTableStore {
        let index_folder = Some(self.index.path().to_owned());
        self.open_elsewhere(DeltaOptions { index_folder, ..options })
    }

    /// An engine on another machine.
    pub(super) fn open_elsewhere(&self, options: DeltaOptions) -> DeltaTableStore {
        self.open_on(options, |inner| DelegatingStore::over(inner, Arc::clone(&self.faults)))
    }

    /// As [`Lake::open`], with something before the store instead of the faults.
    pub(super) fn open_behind(
        &self,
        options: DeltaOptions,
        before: impl FnOnce(Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore>,
    ) -> DeltaTableStore {
        let options = DeltaOptions { index_folder: Some(self.index.path().to_owned()), ..options };
        self.open_on(options, before)
    }

    /// As [`Lake::open`], behind a gate instead of the faults.
    pub(super) fn open_gated(&self, options: DeltaOptions) -> (DeltaTableStore, Arc<Gate>) {
        let gate = Arc::new(Gate::default());
        (self.open_behind(options, |inner| DelegatingStore::over(inner, Arc::clone(&gate))), gate)
    }

    /// An engine on another machine that writes under a lease, behind a gate.
    pub(super) fn open_under(&self, fence: &Fence, options: DeltaOptions) -> (DeltaTableStore, Arc<Gate>) {
        let gate = Arc::new(Gate::default());
        let metastore = self.metastore.fenced(fence.clone());
        (self.open_with(metastore, options, |inner| DelegatingStore::over(inner, Arc::clone(&gate))), gate)
    }

    fn open_on(
        &self,
        options: DeltaOptions,
        before: impl FnOnce(Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore>,
    ) -> DeltaTableStore {
        self.open_with(Arc::clone(&self.metastore), options, before)
    }

    fn open_with(
        &self,
        metastore: Arc<dyn Metastore>,
        options: DeltaOptions,
        before: impl FnOnce(Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore>,
    ) -> DeltaTableStore {
        let root = self.folder.path().to_str().unwrap().to_owned();
        let lake = LakeStore::open(&LakeStoreConfig::of_root(root)).unwrap().wrapped(before);
        DeltaTableStore::new(Arc::new(lake), metastore, options)
    }

    /// The metastore loses what it knows of all tables.
    pub(super) async fn forget_tables(&self) {
        let file = self.database.path().join("metastore.sqlite");
        let pool = sqlx::SqlitePool::connect(&format!("sqlite:{}", file.display())).await.unwrap();
        sqlx::query("DELETE FROM lake_table").execute(&pool).await.unwrap();
        pool.close().await;
    }

    /// The key index is lost, after the last task of a dropped engine has let go of it.
    pub(super) async fn lose_index(&self) {
        let _ = std::fs::remove_dir_all(self.free_index().await);
    }

    /// The folder of the key index, after the last task of a dropped engine has let go of it.
    pub(super) async fn free_index(&self) -> PathBuf {
        let folder = self.index.path().join(escaped_names::space_path(&space()));
        let is_free = || !matches!(KeyIndex::open(&folder, IndexOptions::default()), Err(IndexError::Locked { .. }));
        until("a key index that nobody holds", is_free).await;
        folder
    }

    pub(super) fn table_folder(&self, document_type: &str) -> PathBuf {
        self.folder.path().join(escaped_names::table_path(&table(document_type)))
    }

    /// All rows of a table by id, read file by file through delta-rs's own snapshot. Panics at an id that is there twice. Rows of others without
    /// an id are left out.
    pub(super) async fn read(&self, document_type: &str) -> BTreeMap<String, ReadRow> {
        self.read_at(document_type, None).await
    }

    /// The same as of a version.
    pub(super) async fn read_at(&self, document_type: &str, version: Option<u64>) -> BTreeMap<String, ReadRow> {
        let folder = self.table_folder(document_type);
        let mut rows = BTreeMap::new();
        if !folder.join("_delta_log").exists() {
            return rows;
        }
        let url = Url::from_directory_path(&folder).unwrap();
        let builder = DeltaTableBuilder::from_url(url).unwrap();
        let builder = version.into_iter().fold(builder, DeltaTableBuilder::with_version);
        let table = builder.load().await.unwrap();
        let snapshot = table.snapshot().unwrap();
        let schema = serde_json::to_value(snapshot.schema().as_ref()).unwrap();
        let fields = schema["fields"].as_array().unwrap().iter();
        let fields: HashMap<&str, &Value> = fields.map(|field| (field["name"].as_str().unwrap(), field)).collect();
        for view in snapshot.log_data().iter() {
            let deleted = match view.deletion_vector_descriptor() {
                None => RoaringBitmap::new(),
                Some(vector) => {
                    let vector = deletion_vectors::load(&table.object_store(), vector).await.unwrap();
                    assert!(!vector.rows.is_empty());
                    (*vector.rows).clone()
                }
            };
            let partition = view.partition_values_map();
            let file = File::open(folder.join(view.path().as_ref())).unwrap();
            let mut read = 0;
            for batch in ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap() {
                let batch = batch.unwrap();
                for (field_read, array) in batch.schema().fields().iter().zip(batch.columns()) {
                    let declared = &fields[field_read.name().as_str()]["type"];
                    assert!(delta_type(array).is_none_or(|held| held == *declared), "{field_read}");
                }
                for row in 0..batch.num_rows() {
                    if deleted.contains((read + row) as u32) {
                        continue;
                    }
                    let mut values = read_row(&batch, row, &fields);
                    for (column, value) in &partition {
                        let source = fields[column.as_str()]["metadata"]["lake.source"].as_str().unwrap().to_owned();
                        values.extend(value.clone().map(|value| (source, value)));
                    }
                    let Some(id) = values.get("/_id").cloned() else { continue };
                    assert!(rows.insert(id.clone(), values).is_none(), "{id} is twice in {document_type}");
                }
                read += batch.num_rows();
            }
            assert_eq!(view.num_records(), Some(read));
            assert!(deleted.max().is_none_or(|last| (last as usize) < read), "a row that is not there is deleted");
            assert!(deleted.len() < read as u64, "a file without rows is part of the table");
        }
        rows
    }
}

fn read_row(batch: &RecordBatch, row: usize, fields: &HashMap<&str, &Value>) -> ReadRow {
    let mut values = ReadRow::new();
    for (field_read, array) in batch.schema().fields().iter().zip(batch.columns()) {
        if array.is_valid(row) {
            let source = fields[field_read.name().as_str()]["metadata"]["lake.source"].as_str();
            let source = source.unwrap_or(field_read.name()).to_owned();
            let text = ArrayFormatter::try_new(array, &FormatOptions::default()).unwrap().value(row).to_string();
            values.insert(source, text);
        }
    }
    values
}

/// `None` for types that the lake does not write.
fn delta_type(array: &ArrayRef) -> Option<&'static str> {
    use arrow::datatypes::{DataType, TimeUnit};
    Some(match array.data_type() {
        DataType::Utf8 => "string",
        DataType::Int64 => "long",
        DataType::Int32 => "integer",
        DataType::Float64 => "double",
        DataType::Boolean => "boolean",
        DataType::Date32 => "date",
        DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => "timestamp",
        _ => return None,
    })
}

/// Small limits, so that little data meets all of them.
pub(super) fn small() -> DeltaOptions {
    DeltaOptions {
        columns_max: 24,
        target_file_bytes: NonZeroU64::new(20_000).unwrap(),
        small_file_bytes: 8_000,
        small_files_max: 3,
        tables_open_max: 2,
        retention_hours: 0,
        tombstone_retention_hours: 1,
        copy_on_write_below_bytes: 30_000,
        index_entries_in_memory_max: 50,
        ..DeltaOptions::default()
    }
}

/// The versions of rows that were read, by id.
pub(super) fn versions(rows: &BTreeMap<String, ReadRow>) -> BTreeMap<&str, i64> {
    rows.iter().map(|(id, row)| (id.as_str(), row["+_lake_version"].parse().unwrap())).collect()
}

/// Rows by type, one record batch each, and tombstones.
pub(super) fn batch(rows: &[(&str, Vec<NewRow>)], tombstones: Vec<Tombstone>) -> SpaceBatch {
    let upserts = rows
        .iter()
        .map(|(document_type, rows)| TableRows {
            document_type: (*document_type).into(),
            rows: vec![record_batch(rows)],
        })
        .collect();
    SpaceBatch { space: space(), upserts, tombstones }
}

/// Reads several tables at once: id to (type, row). Panics at an id that is in two of them.
pub(super) async fn read_all(lake: &Lake, types: &[&str]) -> HashMap<String, (String, ReadRow)> {
    let mut all = HashMap::new();
    for document_type in types {
        for (id, row) in lake.read(document_type).await {
            assert!(all.insert(id.clone(), ((*document_type).to_owned(), row)).is_none(), "{id} is in two tables");
        }
    }
    all
}

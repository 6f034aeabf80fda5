//! The log of a table as text, and commits of somebody else who shares no code with the engine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, new_null_array};
use arrow::compute::filter_record_batch;
use lake_test_kit::time::{HOUR_MS, set_back_entry, set_back_note};
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use roaring::RoaringBitmap;
use serde_json::{Value, json};
use uuid::Uuid;

use super::lake::{Lake, until};
use crate::table_store::delta::files::deletion_vectors;

/// The log of one table.
pub(super) struct Log {
    pub(super) folder: PathBuf,
}

impl Log {
    pub(super) fn of(lake: &Lake, document_type: &str) -> Self {
        Self { folder: lake.table_folder(document_type) }
    }

    /// Where the entry of a version is.
    pub(super) fn entry(&self, version: u64) -> PathBuf {
        self.folder.join(format!("_delta_log/{version:020}.json"))
    }

    /// The versions whose entries are there.
    pub(super) fn versions(&self) -> BTreeSet<u64> {
        let log = fs::read_dir(self.folder.join("_delta_log")).unwrap();
        let names = log.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter_map(|name| name.strip_suffix(".json")?.parse().ok()).collect()
    }

    /// Whether the log has a file whose name ends so.
    pub(super) fn has_in_log(&self, ending: &str) -> bool {
        let log = fs::read_dir(self.folder.join("_delta_log")).unwrap();
        log.into_iter().any(|entry| entry.unwrap().file_name().to_string_lossy().ends_with(ending))
    }

    /// The last version.
    pub(super) fn latest(&self) -> u64 {
        *self.versions().last().unwrap()
    }

    /// The bodies of the actions of one kind in a version.
    pub(super) fn actions(&self, version: u64, kind: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.entry(version)).unwrap();
        let actions = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        actions.filter_map(|action| action.get(kind).cloned()).collect()
    }

    /// The newest action of a kind that a table has one of.
    pub(super) fn newest(&self, kind: &str) -> Value {
        let newest = self.versions().into_iter().rev().find_map(|version| self.actions(version, kind).pop());
        newest.unwrap_or_default()
    }

    /// The files of the last version: path to `add`.
    pub(super) fn active(&self) -> BTreeMap<String, Value> {
        self.active_at(self.latest())
    }

    fn active_at(&self, latest: u64) -> BTreeMap<String, Value> {
        let mut active = BTreeMap::new();
        for version in self.versions().range(..=latest).copied() {
            for remove in self.actions(version, "remove") {
                active.remove(remove["path"].as_str().unwrap());
            }
            let adds = self.actions(version, "add").into_iter();
            active.extend(adds.map(|add| (add["path"].as_str().unwrap().to_owned(), add)));
        }
        active
    }

    /// Deleted rows over all files, as the log has them.
    pub(super) fn deleted_rows(&self) -> i64 {
        self.active().values().filter_map(|add| add["deletionVector"]["cardinality"].as_i64()).sum()
    }

    /// Files of the table with this ending, the log left out.
    pub(super) fn files(&self, ending: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut folders = vec![self.folder.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() && !path.ends_with("_delta_log") {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == ending) {
                    found.insert(path.strip_prefix(&self.folder).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        found
    }

    /// Data files that no version ever had.
    pub(super) fn orphans(&self) -> BTreeSet<String> {
        let adds = self.versions().into_iter().flat_map(|version| self.actions(version, "add"));
        let named: BTreeSet<String> = adds.map(|add| add["path"].as_str().unwrap().to_owned()).collect();
        self.files("parquet").difference(&named).cloned().collect()
    }

    /// Names of files of deletion vectors that no version names.
    pub(super) fn orphaned_vectors(&self) -> BTreeSet<String> {
        let adds = self.versions().into_iter().flat_map(|version| self.actions(version, "add"));
        let named: BTreeSet<String> = adds
            .filter_map(|add| serde_json::from_value(add.get("deletionVector")?.clone()).ok())
            .filter_map(|descriptor| Some(deletion_vectors::path_of(&descriptor)?.to_string()))
            .collect();
        self.files("bin").difference(&named).cloned().collect()
    }

    /// A commit of another program.
    pub(super) fn commit(&self, mut actions: Vec<Value>) {
        actions.insert(0, json!({ "commitInfo": { "timestamp": now_ms(), "operation": "UNKNOWN" } }));
        let lines: String = actions.iter().map(|action| format!("{action}\n")).collect();
        fs::write(self.entry(self.latest() + 1), lines).unwrap();
    }

    /// Somebody else writes these rows into a new file, in the place of some files.
    pub(super) fn replace(&self, paths: &[&str], rows: &RecordBatch) {
        let active = self.active();
        let mut actions: Vec<Value> =
            paths.iter().map(|path| json!({ "remove": removal(&active[*path], true) })).collect();
        let name = format!("somebody-{}.parquet", Uuid::new_v4());
        let file = File::create(self.folder.join(&name)).unwrap();
        let mut writer = ArrowWriter::try_new(file, rows.schema(), None).unwrap();
        writer.write(rows).unwrap();
        writer.close().unwrap();
        actions.push(json!({ "add": self.addition(&name, rows.num_rows(), true) }));
        self.commit(actions);
    }

    /// All rows of the active files without deleted rows, as they are in the files.
    pub(super) fn rows(&self) -> Vec<RecordBatch> {
        let files = self.active().into_keys().map(|path| File::open(self.folder.join(path)).unwrap());
        files
            .flat_map(|file| ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap())
            .map(Result::unwrap)
            .collect()
    }

    /// Somebody else puts the rows of some files into one, those left out that do not stay.
    pub(super) async fn rewrite(&self, paths: &[&str], data_change: bool, stays: impl Fn(&str) -> bool) {
        let active = self.active();
        let mut batches: Vec<RecordBatch> = Vec::new();
        let mut actions = Vec::new();
        for path in paths {
            let add = &active[*path];
            let deleted = self.deleted(add).await;
            let file = File::open(self.folder.join(path)).unwrap();
            let mut row = 0;
            for batch in ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap() {
                let batch = batch.unwrap();
                let ids = batch.column_by_name("_id").unwrap().as_string::<i32>();
                let mask: BooleanArray =
                    (row..).zip(ids).map(|(row, id)| Some(!deleted.contains(row) && stays(id.unwrap()))).collect();
                row += batch.num_rows() as u32;
                batches.push(filter_record_batch(&batch, &mask).unwrap());
            }
            actions.push(json!({ "remove": removal(add, data_change) }));
        }
        let schema = batches.iter().map(RecordBatch::schema).max_by_key(|schema| schema.fields().len()).unwrap();
        let name = format!("somebody-{}.parquet", Uuid::new_v4());
        let mut writer = ArrowWriter::try_new(File::create(self.folder.join(&name)).unwrap(), schema.clone(), None);
        let writer = writer.as_mut().unwrap();
        let mut rows = 0;
        for batch in batches {
            let columns = schema.fields().iter().map(|field| {
                let held = batch.column_by_name(field.name()).cloned();
                held.unwrap_or_else(|| new_null_array(field.data_type(), batch.num_rows()))
            });
            let columns: Vec<ArrayRef> = columns.collect();
            writer.write(&RecordBatch::try_new(schema.clone(), columns).unwrap()).unwrap();
            rows += batch.num_rows();
        }
        writer.finish().unwrap();
        actions.push(json!({ "add": self.addition(&name, rows, data_change) }));
        self.commit(actions);
    }

    /// Somebody else inserts the rows of a file once more.
    pub(super) fn duplicate(&self, path: &str) {
        let name = format!("somebody-{}.parquet", Uuid::new_v4());
        fs::copy(self.folder.join(path), self.folder.join(&name)).unwrap();
        let stats: Value = serde_json::from_str(self.active()[path]["stats"].as_str().unwrap()).unwrap();
        let rows = stats["numRecords"].as_u64().unwrap() as usize;
        self.commit(vec![json!({ "add": self.addition(&name, rows, true) })]);
    }

    /// Somebody else marks rows of a file as deleted.
    pub(super) async fn mark(&self, path: &str, rows: impl IntoIterator<Item = u32>) {
        let add = &self.active()[path];
        let mut deleted = self.deleted(add).await;
        deleted.extend(rows);
        let vector = deletion_vectors::store(&self.store(), vec![Arc::new(deleted)]).await.unwrap().remove(0);
        let mut marked = add.clone();
        marked["deletionVector"] = serde_json::to_value(vector.descriptor).unwrap();
        self.commit(vec![json!({ "remove": removal(add, true) }), json!({ "add": marked })]);
    }

    /// Somebody else restores an old version.
    pub(super) fn restore(&self, version: u64) {
        let (now, then) = (self.active(), self.active_at(version));
        let only_in = |these: &BTreeMap<String, Value>, others: &BTreeMap<String, Value>| {
            let is_there = |(path, add): &(&String, &Value)| {
                others.get(*path).is_some_and(|other| other["deletionVector"] == add["deletionVector"])
            };
            these.iter().filter(|file| !is_there(file)).map(|(_, add)| add.clone()).collect::<Vec<_>>()
        };
        let removed = only_in(&now, &then).into_iter().map(|add| json!({ "remove": removal(&add, true) }));
        let added = only_in(&then, &now).into_iter().map(|add| json!({ "add": add }));
        self.commit(removed.chain(added).collect());
    }

    async fn deleted(&self, add: &Value) -> RoaringBitmap {
        if add["deletionVector"].is_null() {
            return RoaringBitmap::new();
        }
        let descriptor = serde_json::from_value(add["deletionVector"].clone()).unwrap();
        deletion_vectors::load(&self.store(), descriptor).await.unwrap().rows.as_ref().clone()
    }

    fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::new(LocalFileSystem::new_with_prefix(&self.folder).unwrap())
    }

    /// The action of a file that is there.
    pub(super) fn addition(&self, name: &str, rows: usize, data_change: bool) -> Value {
        json!({
            "path": name, "partitionValues": {}, "size": fs::metadata(self.folder.join(name)).unwrap().len(),
            "modificationTime": now_ms(), "dataChange": data_change,
            "stats": json!({ "numRecords": rows }).to_string(),
        })
    }

    /// What a version removed was removed so many hours earlier.
    pub(super) fn removed_earlier(&self, version: u64, hours: i64) {
        set_back_entry(&self.entry(version), HOUR_MS * hours).unwrap();
    }

    /// The engine noted superseded vectors so many hours earlier. Answers how many it noted, `None` where there is no note.
    pub(super) fn noted_earlier(&self, hours: i64) -> Option<usize> {
        set_back_note(&self.folder, HOUR_MS * hours, |_| true).unwrap()
    }

    /// Waits for a checkpoint and for the hint that is written after it.
    pub(super) async fn checkpointed(&self, version: u64) {
        let hint = self.folder.join("_delta_log/_last_checkpoint");
        let is_last = || {
            let last: Value = serde_json::from_str(&fs::read_to_string(&hint).unwrap_or_default()).unwrap_or_default();
            last["version"].as_u64() == Some(version)
        };
        until(&format!("checkpoint {version}"), is_last).await;
    }

    /// The log is read from its entries again, whose times a test can change.
    pub(super) fn forget_checkpoints(&self) {
        for entry in fs::read_dir(self.folder.join("_delta_log")).unwrap() {
            let path = entry.unwrap().path();
            if path.to_string_lossy().contains("checkpoint") {
                fs::remove_file(path).unwrap();
            }
        }
    }

    /// Files of the table were last written so many hours ago.
    pub(super) fn age(&self, files: impl IntoIterator<Item = impl AsRef<Path>>, hours: u64) {
        for file in files {
            let file = File::options().write(true).open(self.folder.join(file)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(3_600 * hours)).unwrap();
        }
    }
}

fn removal(add: &Value, data_change: bool) -> Value {
    json!({
        "path": add["path"], "dataChange": data_change, "deletionTimestamp": now_ms(), "extendedFileMetadata": true,
        "partitionValues": add["partitionValues"], "size": add["size"], "deletionVector": add["deletionVector"],
    })
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64
}

//! Tables that somebody altered or damaged: each keeps only itself from work, and comes back when it is repaired.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};

use super::clean_space;
use super::lake::{Lake, batch, numbered, numbered_id, read_all, space, table, tombstone, versions};
use super::log::Log;
use crate::key_index::{IndexOptions, KeyIndex, id_hash};
use crate::table_store::delta::space::unusable::tables::make_due;
use crate::table_store::delta::{DeletionVectors, DeltaOptions, DeltaTableStore};
use crate::table_store::{SpaceBatch, StoreError, TableStore};

/// Rows are marked, nothing is compacted, files of the past stay.
fn options() -> DeltaOptions {
    DeltaOptions {
        deletion_vectors: DeletionVectors::On,
        small_files_max: 1_000,
        deleted_share_max: 1.0,
        overlap_max: 1_000,
        ..DeltaOptions::default()
    }
}

/// What somebody does to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    VoidColumn,
    WriterFeature,
    ReaderFeature,
    AppendOnly,
    FileWithoutIds,
    BrokenLog,
    MissingFile,
    ShortFile,
    GarbledFile,
    MissingVector,
}

/// How it is undone.
enum Repair {
    Commit(Vec<Value>),
    Put(PathBuf, Vec<u8>),
    Delete(PathBuf),
}

impl Damage {
    fn is_in_a_file(self) -> bool {
        [Self::MissingFile, Self::ShortFile, Self::GarbledFile].contains(&self)
    }

    fn inflict(self, log: &Log) -> Repair {
        let (metadata, protocol) = (log.newest("metaData"), log.newest("protocol"));
        let largest = || {
            let (path, _) = log.active().into_iter().max_by_key(|(_, add)| add["size"].as_i64()).unwrap();
            log.folder.join(path)
        };
        let undo = |kind: &str, before: Value, after: Value| {
            log.commit(vec![json!({ kind: after })]);
            Repair::Commit(vec![json!({ kind: before })])
        };
        match self {
            Self::VoidColumn => {
                let mut schema: Value = serde_json::from_str(metadata["schemaString"].as_str().unwrap()).unwrap();
                let field = json!({ "name": "nothing", "type": "void", "nullable": true, "metadata": {} });
                schema["fields"].as_array_mut().unwrap().push(field);
                let mut altered = metadata.clone();
                altered["schemaString"] = Value::String(schema.to_string());
                undo("metaData", metadata, altered)
            }
            Self::AppendOnly => {
                let mut altered = metadata.clone();
                altered["configuration"]["delta.appendOnly"] = json!("true");
                undo("metaData", metadata, altered)
            }
            Self::WriterFeature | Self::ReaderFeature => {
                let mut features = vec!["deletionVectors"];
                let reader = features.clone();
                features.push("somethingNew");
                let reader = if self == Self::ReaderFeature { features.clone() } else { reader };
                let altered = json!({
                    "minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": reader, "writerFeatures": features,
                });
                undo("protocol", protocol, altered)
            }
            Self::FileWithoutIds => {
                let name = "somebody.parquet";
                let rows = Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef;
                let rows = RecordBatch::try_from_iter([("_lake_version", rows)]).unwrap();
                let file = File::create(log.folder.join(name)).unwrap();
                let mut writer = ArrowWriter::try_new(file, rows.schema(), None).unwrap();
                writer.write(&rows).unwrap();
                writer.close().unwrap();
                let add = log.addition(name, 2, true);
                let remove = json!({ "path": name, "dataChange": true, "deletionTimestamp": 1, "size": add["size"] });
                log.commit(vec![json!({ "add": add })]);
                Repair::Commit(vec![json!({ "remove": remove })])
            }
            Self::BrokenLog => {
                let entry = log.entry(log.latest() + 1);
                fs::write(&entry, "{\"add\": what is this").unwrap();
                Repair::Delete(entry)
            }
            Self::MissingFile => taken_away(largest()),
            Self::MissingVector => taken_away(log.folder.join(log.files("bin").into_iter().next_back().unwrap())),
            Self::ShortFile => rewritten(largest(), |bytes| bytes.truncate(bytes.len() / 2)),
            Self::GarbledFile => rewritten(largest(), |bytes| bytes.fill(7)),
        }
    }
}

fn taken_away(path: PathBuf) -> Repair {
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    Repair::Put(path, bytes)
}

fn rewritten(path: PathBuf, how: impl FnOnce(&mut Vec<u8>)) -> Repair {
    let before = fs::read(&path).unwrap();
    let mut after = before.clone();
    how(&mut after);
    fs::write(&path, after).unwrap();
    Repair::Put(path, before)
}

impl Repair {
    fn make(self, log: &Log) {
        match self {
            Self::Commit(actions) => log.commit(actions),
            Self::Put(path, bytes) => fs::write(path, bytes).unwrap(),
            Self::Delete(path) => fs::remove_file(path).unwrap(),
        }
    }
}

/// Two tables: `t` with a file of deletion vectors, and `u`.
async fn two_tables(store: &DeltaTableStore) {
    store.apply(batch(&[("t", numbered(0..20, 1)), ("u", numbered(100..110, 1))], vec![])).await.unwrap();
    store.apply(batch(&[("t", numbered(0..5, 2))], vec![])).await.unwrap();
}

/// Rows of `t` that are there already and rows that are newer, and newer ones of `u`.
fn for_both() -> SpaceBatch {
    let rows = numbered(10..12, 1).into_iter().chain(numbered(12..14, 3)).collect();
    batch(&[("t", rows), ("u", numbered(100..102, 2))], vec![])
}

async fn assert_refused(store: &DeltaTableStore, batch: SpaceBatch, what: &str) {
    let error = store.apply(batch).await.unwrap_err();
    match &error {
        StoreError::UnusableTable { table: refused, reason } => {
            assert_eq!((*refused == table("t"), reason.is_empty()), (true, false), "{what}");
        }
        other => panic!("{what}: {other:?}"),
    }
}

async fn rows_recorded(lake: &Lake, document_type: &str) -> i64 {
    let records = lake.metastore.tables(Some(&space())).await.unwrap();
    records.into_iter().find(|record| record.key == table(document_type)).unwrap().state.rows
}

async fn alone(damage: Damage, runs_on: bool, is_maintained: bool) {
    let what = format!("{damage:?}, runs on {runs_on}, maintained {is_maintained}");
    let lake = Lake::new().await;
    // Who runs on reads a file when it rewrites it.
    let deletion_vectors = if runs_on && damage.is_in_a_file() { DeletionVectors::Off } else { DeletionVectors::On };
    let options = || DeltaOptions { deletion_vectors, ..options() };
    let mut store = lake.open(options());
    two_tables(&store).await;
    if !runs_on {
        drop(store);
        lake.lose_index().await;
        store = lake.open(options());
    }
    let log = Log::of(&lake, "t");
    let repair = damage.inflict(&log);
    let version = log.latest();
    assert_refused(&store, for_both(), &what).await;
    // Now that it is known, nothing of such a batch is applied; what is for the other table is taken, and so are tombstones.
    assert_refused(&store, batch(&[("u", numbered(105..106, 2)), ("t", numbered(0..1, 9))], vec![]), &what).await;
    assert_eq!(versions(&lake.read("u").await)[numbered_id(105).as_str()], 1, "{what}");
    let rest = batch(&[("u", numbered((100..102).chain([8]), 5))], vec![tombstone(&numbered_id(7), None, 1_000)]);
    let applied = store.apply(rest).await.unwrap();
    assert_eq!((applied.tables.len(), applied.tables[0].rows_total), (1, 11), "{what}");
    assert_refused(&store, for_both(), &what).await;
    // Compaction and clean-up leave it alone; the metastore has what was true last.
    store.compact(&space()).await.unwrap();
    assert_eq!(store.maintain(&space()).await.unwrap().tables, 1, "{what}");
    make_due(&store.spaces.cell(&space())).await;
    assert_refused(&store, for_both(), &what).await;
    assert_eq!((rows_recorded(&lake, "t").await, log.latest()), (20, version), "{what}");
    // An index that is saved now does not stand for its files.
    if is_maintained {
        store.close().await;
    }
    repair.make(&log);
    if is_maintained {
        store.apply(batch(&[("u", numbered(100..101, 5))], vec![])).await.unwrap();
        store.maintain(&space()).await.unwrap();
        // The row that was deleted meanwhile and the one that is in another table now have left.
        assert_eq!(rows_recorded(&lake, "t").await, 18, "{what}");
    } else {
        make_due(&store.spaces.cell(&space())).await;
    }
    store.apply(for_both()).await.unwrap();
    store.apply(batch(&[("t", numbered(7..9, 4))], vec![])).await.unwrap();
    let all = read_all(&lake, &["t", "u"]).await;
    assert_eq!(all.len(), 20 - 1 + 10, "{what}");
    for n in (0..20).filter(|n| *n != 7) {
        let (held_in, row) = &all[&numbered_id(n)];
        let (wanted_in, version) = match n {
            0..5 => ("t", "2"),
            8 => ("u", "5"),
            12..14 => ("t", "3"),
            _ => ("t", "1"),
        };
        assert_eq!((held_in.as_str(), row["+_lake_version"].as_str()), (wanted_in, version), "{what}: {n}");
    }
    assert_eq!(rows_recorded(&lake, "t").await, 18, "{what}");
    // Whoever opens it next finds the same.
    drop(store);
    lake.lose_index().await;
    assert!(lake.open(options()).apply(for_both()).await.unwrap().tables.is_empty(), "{what}");
}

#[tokio::test]
async fn a_table_with_a_column_that_the_lake_does_not_write() {
    alone(Damage::VoidColumn, true, false).await;
    alone(Damage::VoidColumn, true, true).await;
    alone(Damage::VoidColumn, false, false).await;
    alone(Damage::VoidColumn, false, true).await;
}

#[tokio::test]
async fn a_table_with_features_that_nobody_here_knows() {
    for damage in [Damage::WriterFeature, Damage::ReaderFeature, Damage::AppendOnly] {
        alone(damage, true, false).await;
        alone(damage, false, true).await;
    }
}

#[tokio::test]
async fn a_table_with_a_file_without_ids() {
    alone(Damage::FileWithoutIds, true, true).await;
    alone(Damage::FileWithoutIds, false, false).await;
}

#[tokio::test]
async fn a_table_with_a_broken_log() {
    alone(Damage::BrokenLog, true, true).await;
    alone(Damage::BrokenLog, false, false).await;
}

#[tokio::test]
async fn a_table_with_files_that_are_missing_or_broken() {
    for damage in [Damage::MissingFile, Damage::ShortFile, Damage::GarbledFile, Damage::MissingVector] {
        if damage.is_in_a_file() {
            alone(damage, true, true).await;
        }
        alone(damage, false, false).await;
    }
}

#[tokio::test]
async fn an_unusable_table_that_is_deleted_is_built_anew() {
    let lake = Lake::new().await;
    let store = lake.open(options());
    two_tables(&store).await;
    Damage::VoidColumn.inflict(&Log::of(&lake, "t"));
    assert_refused(&store, for_both(), "altered").await;
    fs::remove_dir_all(lake.table_folder("t")).unwrap();
    assert_refused(&store, for_both(), "not tried again yet").await;
    make_due(&store.spaces.cell(&space())).await;
    store.apply(batch(&[("t", numbered(0..20, 1))], vec![])).await.unwrap();
    assert_eq!((lake.read("t").await.len(), Log::of(&lake, "t").latest()), (20, 0));
}

/// Files that are not there any more say nothing about a table: somebody may have dropped it.
#[tokio::test]
async fn several_tables_that_are_deleted_at_once_are_built_anew() {
    let lake = Lake::new().await;
    let store = lake.open(DeltaOptions { deletion_vectors: DeletionVectors::Off, ..options() });
    let types = ["t", "u", "v", "w"];
    let rows = |count: usize, version: i64| -> Vec<_> {
        types.iter().enumerate().map(|(n, name)| (*name, numbered(n * 10..n * 10 + count, version))).collect()
    };
    // Some rows of each file stay, so each file has to be read.
    store.apply(batch(&rows(10, 1), vec![])).await.unwrap();
    for name in types {
        fs::remove_dir_all(lake.table_folder(name)).unwrap();
    }
    let applied = store.apply(batch(&rows(5, 2), vec![])).await.unwrap();
    assert_eq!(applied.tables.len(), types.len());
    assert!(applied.tables.iter().all(|table| (table.version, table.rows_total) == (0, 5)), "{applied:?}");
    for name in types {
        assert_eq!(lake.read(name).await.len(), 5);
    }
}

/// Whoever does not know whether a table is unusable must not forget what was deleted of it.
#[tokio::test]
async fn deletions_are_remembered_while_nobody_knows_the_tables() {
    let lake = Lake::new().await;
    let options = || DeltaOptions { tombstone_retention_hours: 0, ..options() };
    let store = lake.open(options());
    two_tables(&store).await;
    store.apply(batch(&[], vec![tombstone("long gone", None, 1)])).await.unwrap();
    drop(store);
    // Somebody else has the index of the space, so it cannot be loaded.
    let folder = lake.free_index().await;
    let index = KeyIndex::create(&folder, IndexOptions::default()).unwrap();
    let store = lake.open(options());
    let _ = store.maintain(&space()).await;
    drop(index);
    let id = id_hash("long gone");
    assert_eq!(lake.metastore.tombstones_of(&space(), &[id]).await.unwrap().len(), 1);
    assert_eq!(store.maintain(&space()).await.unwrap().tombstones_forgotten, 1);
}

/// Rows of a table that breaks while it is read have no say in what becomes of rows elsewhere.
#[tokio::test]
async fn rows_of_a_broken_table_decide_nothing() {
    let lake = Lake::new().await;
    let store = lake.open(options());
    store.apply(batch(&[("u", numbered(0..10, 1))], vec![])).await.unwrap();
    // The same ids, later, in a table that somebody else made: they would win, could the whole table be read.
    let other = lake.open_elsewhere(options());
    other.apply(batch(&[("t", numbered(0..10, 2))], vec![])).await.unwrap();
    let log = Log::of(&lake, "t");
    drop((store, other));
    lake.lose_index().await;
    let repair = Damage::FileWithoutIds.inflict(&log);
    // Both have each id again.
    let first = Log::of(&lake, "u");
    first.commit(vec![json!({ "add": first.actions(0, "add")[0] })]);
    let store = lake.open(options());
    store.apply(batch(&[("u", numbered(5..6, 3))], vec![])).await.unwrap();
    assert_eq!(lake.read("u").await.len(), 10);
    repair.make(&log);
    store.maintain(&space()).await.unwrap();
    let all = read_all(&lake, &["t", "u"]).await;
    assert_eq!(all.len(), 10);
    let of = |n: usize| (all[&numbered_id(n)].0.as_str(), all[&numbered_id(n)].1["+_lake_version"].as_str());
    assert_eq!((of(4), of(5)), (("t", "2"), ("u", "3")));
}

#[tokio::test]
async fn a_clean_up_goes_on_after_a_table_that_fails() {
    let lake = Lake::new().await;
    let store = lake.open(options());
    two_tables(&store).await;
    store.close().await;
    Damage::BrokenLog.inflict(&Log::of(&lake, "t"));
    let other = Log::of(&lake, "u");
    let orphan = "part-00000-0b8e1b6e-8c3c-4a6e-a0f6-6f6ffa6c0001-c000.zstd.parquet";
    fs::write(other.folder.join(orphan), "x").unwrap();
    other.age([orphan], 24 * 365);
    // Nobody has used the space yet, so nobody knows.
    let store = lake.open(options());
    clean_space(&store).await.unwrap_err();
    other.noted_earlier(24 * 365);
    clean_space(&store).await.unwrap_err();
    assert!(!other.folder.join(orphan).exists());
}

//! Files that others wrote under paths which they encode in their own way.

use std::fs;

use deltalake::{DeltaTableBuilder, checkpoints};
use serde_json::{Value, json};
use url::Url;

use super::lake::{Lake, batch, new_row, space};
use super::log::Log;
use crate::table_store::TableStore;
use crate::table_store::delta::{DeletionVectors, DeltaOptions};

fn options(deletion_vectors: DeletionVectors, partition_by: &[&str]) -> DeltaOptions {
    DeltaOptions {
        deletion_vectors,
        partition_by: partition_by.iter().map(|column| (*column).to_owned()).collect(),
        small_files_max: 1_000,
        overlap_max: 1_000,
        ..DeltaOptions::default()
    }
}

/// Somebody moves a file to another path of which the log says `logged`.
fn remapped_deletes(log: &Log, path: &str, on_disk: &str, logged: &str) {
    let add = &log.active()[path];
    // As the engine wrote it: decoded once it is the name on disk.
    let held =
        log.files("parquet").into_iter().find(|held| held.rsplit('/').next() == path.rsplit('/').next()).unwrap();
    let target = log.folder.join(on_disk);
    fs::create_dir_all(target.parent().unwrap()).unwrap();
    fs::copy(log.folder.join(held), target).unwrap();
    let mut added = add.clone();
    (added["path"], added["dataChange"]) = (json!(logged), json!(false));
    let removed = json!({
        "path": path, "dataChange": false, "deletionTimestamp": 1, "extendedFileMetadata": true,
        "partitionValues": add["partitionValues"], "size": add["size"],
    });
    log.commit(vec![json!({ "add": added }), json!({ "remove": removed })]);
}

/// Rows by the adds of the log, each told by its exact text.
fn rows(log: &Log) -> i64 {
    let of = |add: &Value| {
        let stats: Value = serde_json::from_str(add["stats"].as_str().unwrap()).unwrap();
        stats["numRecords"].as_i64().unwrap() - add["deletionVector"]["cardinality"].as_i64().unwrap_or_default()
    };
    log.active().values().map(of).sum()
}

async fn checkpoint(log: &Log) {
    let url = Url::from_directory_path(&log.folder).unwrap();
    let table = DeltaTableBuilder::from_url(url).unwrap().load().await.unwrap();
    checkpoints::create_checkpoint(&table, None).await.unwrap();
}

#[tokio::test]
async fn a_file_in_a_folder_of_somebody_else_leaves_once_and_for_all() {
    // The value, the folder that Spark makes of it, and what Spark writes into its log.
    let folders = [
        ("ü", "supervisor_id=ü", "supervisor_id=ü"),
        ("a ü", "supervisor_id=a ü", "supervisor_id=a%20ü"),
        ("a/ü", "supervisor_id=a%2Fü", "supervisor_id=a%252Fü"),
        ("é", "supervisor_id=é", "supervisor_id=%C3%A9"),
        ("b c", "supervisor_id=b c", "supervisor_id=b%20c"),
        ("x~y&z", "supervisor_id=x~y&z", "supervisor_id=x~y&z"),
    ];
    for deletion_vectors in [DeletionVectors::On, DeletionVectors::Off] {
        for is_checkpointed in [false, true] {
            for (value, folder, logged) in folders {
                let lake = Lake::new().await;
                let store = lake.open(options(deletion_vectors, &["supervisor_id"]));
                let row =
                    |n: usize, version| new_row(&format!("id-{n}"), version, &[("+supervisor_id", value), ("/x", "y")]);
                let rows_of = |ids: std::ops::Range<usize>, version| ids.map(|n| row(n, version)).collect::<Vec<_>>();
                store.apply(batch(&[("t", rows_of(0..10, 1))], vec![])).await.unwrap();
                let log = Log::of(&lake, "t");
                let path = log.active().into_keys().next().unwrap();
                let logged = format!("{logged}/part-1.parquet");
                remapped_deletes(&log, &path, &format!("{folder}/part-1.parquet"), &logged);
                if is_checkpointed {
                    checkpoint(&log).await;
                    drop(store);
                    lake.lose_index().await;
                    let store = lake.open(options(deletion_vectors, &["supervisor_id"]));
                    store.apply(batch(&[("t", rows_of(0..3, 2))], vec![])).await.unwrap();
                } else {
                    store.apply(batch(&[("t", rows_of(0..3, 2))], vec![])).await.unwrap();
                }
                let removed = log.actions(log.latest(), "remove");
                assert_eq!(removed[0]["path"], json!(logged), "{value}");
                assert_eq!((rows(&log), lake.read("t").await.len()), (10, 10), "{value}");
            }
        }
    }
}

#[tokio::test]
async fn a_vector_and_a_compaction_know_the_path_too() {
    let lake = Lake::new().await;
    let store = lake.open(options(DeletionVectors::On, &[]));
    let rows_of = |ids: std::ops::Range<usize>, version| {
        ids.map(|n| new_row(&format!("id-{n}"), version, &[("/x", "y")])).collect::<Vec<_>>()
    };
    store.apply(batch(&[("t", rows_of(0..20, 1))], vec![])).await.unwrap();
    let log = Log::of(&lake, "t");
    let path = log.active().into_keys().next().unwrap();
    remapped_deletes(&log, &path, "ü 1.parquet", "ü%201.parquet");
    for version in 2..4 {
        store.apply(batch(&[("t", rows_of(0..version, version as i64))], vec![])).await.unwrap();
        let actions = |kind| log.actions(log.latest(), kind).into_iter().map(|action| action["path"].clone());
        assert!(actions("remove").any(|path| path == "ü%201.parquet"));
        assert!(actions("add").any(|path| path == "ü%201.parquet"));
        assert_eq!((rows(&log), lake.read("t").await.len()), (20, 20));
    }
    drop(store);
    let store = lake.open(options(DeletionVectors::Off, &[]));
    // Nothing new, but now the table is in use.
    store.apply(batch(&[("t", rows_of(0..1, 1))], vec![])).await.unwrap();
    store.compact(&space()).await.unwrap();
    assert!(!log.active().contains_key("ü%201.parquet"), "{:?}", log.active().keys());
    assert_eq!((rows(&log), lake.read("t").await.len()), (20, 20));
}

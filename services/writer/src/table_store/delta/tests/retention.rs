//! How long the log speaks of removed files, and what the clean-up does when it does not; checkpoints; other spellings of folders.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;

use lake_test_kit::delegating_store::DelegatingStore;
use lake_test_kit::time::NOTE;
use serde_json::{Value, json};

use super::lake::{Lake, batch, new_row, numbered, numbered_id, space, tombstone};
use super::log::Log;
use super::respelled::Respelled;
use crate::key_index::{FileNumber, IndexError, RowNumber};
use crate::table_store::TableStore;
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::{DeletionVectors, DeltaOptions, DeltaTableStore};

fn keeping(retention_hours: u64) -> DeltaOptions {
    DeltaOptions {
        deletion_vectors: DeletionVectors::On,
        small_files_max: 1_000,
        deleted_share_max: 1.0,
        overlap_max: 1_000,
        retention_hours,
        ..DeltaOptions::default()
    }
}

fn checkpointing(every_commits: u64, retention_hours: u64) -> DeltaOptions {
    DeltaOptions { checkpoint_every_commits: every_commits, ..keeping(retention_hours) }
}

async fn upsert(store: &DeltaTableStore, ids: std::ops::Range<usize>, version: i64) {
    store.apply(batch(&[("t", numbered(ids, version))], vec![])).await.unwrap();
}

fn property(log: &Log, key: &str) -> Value {
    log.newest("metaData")["configuration"][key].clone()
}

/// Versions of the checkpoints that are there.
fn checkpoints(log: &Log) -> BTreeSet<u64> {
    let entries = fs::read_dir(log.folder.join("_delta_log")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter_map(|name| name.strip_suffix(".checkpoint.parquet")?.parse().ok()).collect()
}

#[tokio::test]
async fn the_properties_follow_the_retention_unless_somebody_else_has_set_them() {
    let (removed, kept) = ("delta.deletedFileRetentionDuration", "delta.logRetentionDuration");
    let lake = Lake::new().await;
    let log = Log::of(&lake, "t");
    let mut version = 0;
    let mut next = async |options: DeltaOptions| {
        version += 1;
        upsert(&lake.open_elsewhere(options), 0..5, version).await;
    };
    next(checkpointing(7, 48)).await;
    assert_eq!(property(&log, "delta.checkpointInterval"), "7");
    for (hours, expected) in [(48, (72, 168)), (24 * 30, (744, 744)), (0, (24, 168))] {
        next(keeping(hours)).await;
        let (of_removed, of_log) = expected;
        assert_eq!(property(&log, removed), format!("interval {of_removed} hours"));
        assert_eq!(property(&log, kept), format!("interval {of_log} hours"));
    }
    let entries = log.actions(log.latest(), "metaData").len();
    next(keeping(0)).await;
    assert_eq!((entries, log.actions(log.latest(), "metaData").len()), (1, 0), "only a change is written");
    let mut metadata = log.newest("metaData");
    metadata["configuration"][removed] = json!("interval 3 days");
    metadata["configuration"].as_object_mut().unwrap().remove(kept);
    log.commit(vec![json!({ "metaData": metadata })]);
    next(keeping(500)).await;
    assert_eq!((property(&log, removed), property(&log, kept)), (json!("interval 3 days"), Value::Null));
    metadata["configuration"][removed] = json!("interval 900 hours");
    log.commit(vec![json!({ "metaData": metadata })]);
    next(keeping(100)).await;
    assert_eq!(property(&log, removed), "interval 900 hours");
}

/// Whoever asks for a longer retention, or for all of the history, gets it.
#[tokio::test]
async fn what_somebody_else_wants_to_keep_stays() {
    let lake = Lake::new().await;
    let log = Log::of(&lake, "t");
    let store = lake.open(keeping(1));
    upsert(&store, 0..5, 1).await;
    upsert(&store, 0..5, 2).await;
    store.close().await;
    drop(store);
    log.removed_earlier(1, 24 * 29);
    log.age(log.files("parquet"), 24 * 60);
    let mut metadata = log.newest("metaData");
    metadata["configuration"]["delta.deletedFileRetentionDuration"] = json!("interval 30 days");
    metadata["configuration"]["delta.enableExpiredLogCleanup"] = json!("false");
    log.commit(vec![json!({ "metaData": metadata })]);
    let store = lake.open(checkpointing(3, 1));
    upsert(&store, 5..6, 3).await;
    log.checkpointed(3).await;
    let checkpoint = log.folder.join(format!("_delta_log/{:020}.checkpoint.parquet", 3));
    log.age((0..=3).map(|version| log.entry(version)).chain([checkpoint]), 24 * 60);
    let maintained = store.maintain(&space()).await.unwrap();
    assert_eq!((maintained.files_deleted, maintained.log_files_deleted), (0, 0), "{maintained:?}");
    assert_eq!(lake.read_at("t", Some(0)).await.len(), 5);
    // Neither any more.
    metadata["configuration"]["delta.deletedFileRetentionDuration"] = json!("interval 20 days");
    metadata["configuration"]["delta.enableExpiredLogCleanup"] = json!("true");
    log.commit(vec![json!({ "metaData": metadata })]);
    let maintained = store.maintain(&space()).await.unwrap();
    assert!(maintained.files_deleted == 1 && maintained.log_files_deleted > 0, "{maintained:?}");
    assert_eq!(lake.read("t").await.len(), 6);
}

/// The log speaks of a removed file until after its deletion, checkpoint or not.
#[tokio::test]
async fn a_removed_file_is_deleted_by_the_time_of_its_removal() {
    for (hours_ago, is_there) in [(47, true), (49, false), (71, false)] {
        let lake = Lake::new().await;
        let log = Log::of(&lake, "t");
        let store = lake.open(keeping(48));
        upsert(&store, 0..10, 1).await;
        upsert(&store, 0..10, 2).await;
        store.close().await;
        drop(store);
        log.removed_earlier(1, hours_ago);
        log.age(log.files("parquet"), 1_000);
        let store = lake.open(checkpointing(3, 48));
        upsert(&store, 10..11, 3).await;
        log.checkpointed(2).await;
        assert_eq!(log.files("parquet").len(), 3);
        store.maintain(&space()).await.unwrap();
        assert_eq!(log.files("parquet").len() == 3, is_there, "{hours_ago}");
        assert!(!log.folder.join(NOTE).exists(), "nothing had to be noted");
        assert_eq!(lake.read("t").await.len(), 11);
    }
}

/// A shorter retention has made the log forget a removal. The file stays for the longer one from when it was missed.
#[tokio::test]
async fn an_old_file_that_the_log_has_just_forgotten_stays_for_the_retention() {
    let lake = Lake::new().await;
    let log = Log::of(&lake, "t");
    let store = lake.open(keeping(0));
    upsert(&store, 0..10, 1).await;
    upsert(&store, 0..10, 2).await;
    store.close().await;
    drop(store);
    log.removed_earlier(1, 30);
    log.age(log.files("parquet"), 1_000);
    let store = lake.open(checkpointing(3, 0));
    upsert(&store, 10..11, 3).await;
    log.checkpointed(2).await;
    drop(store);
    let store = lake.open_elsewhere(keeping(48));
    store.maintain(&space()).await.unwrap();
    assert_eq!((log.files("parquet").len(), log.noted_earlier(47)), (3, Some(1)));
    assert_eq!(lake.read_at("t", Some(0)).await.len(), 10);
    store.maintain(&space()).await.unwrap();
    assert_eq!((log.files("parquet").len(), log.noted_earlier(2)), (3, Some(1)));
    store.maintain(&space()).await.unwrap();
    assert_eq!((log.files("parquet").len(), log.noted_earlier(0)), (2, Some(0)));
    assert_eq!(lake.read("t").await.len(), 11);
}

#[tokio::test]
async fn vectors_that_were_back_between_two_clean_ups_are_superseded_anew() {
    let lake = Lake::new().await;
    let log = Log::of(&lake, "t");
    let store = lake.open(keeping(24));
    let mut rows = BTreeMap::new();
    for round in 1..6 {
        let gone = vec![tombstone(&numbered_id(50 - round), None, 9)];
        let ids = if round == 1 { 0..50 } else { round * 5..round * 5 + 5 };
        store.apply(batch(&[("t", numbered(ids, round as i64))], gone)).await.unwrap();
        rows.insert(log.latest(), lake.read("t").await.len());
    }
    log.age(log.files("bin"), 100);
    store.maintain(&space()).await.unwrap();
    let noted = log.noted_earlier(100).unwrap();
    assert!(noted > 1);
    // Back to an old version and to the newest again, before anybody looks.
    let (old, newest) = (*rows.keys().nth(1).unwrap(), log.latest());
    log.restore(old);
    log.restore(newest);
    let before = log.files("bin").len();
    store.maintain(&space()).await.unwrap();
    assert_eq!(before - log.files("bin").len(), noted - 1, "all but the one that was back");
    assert_eq!(log.noted_earlier(25), Some(1));
    assert_eq!(lake.read_at("t", Some(old)).await.len(), rows[&old]);
    store.maintain(&space()).await.unwrap();
    assert_eq!(before - log.files("bin").len(), noted);
    assert_eq!(lake.read("t").await.len(), rows[&newest]);
}

#[tokio::test]
async fn a_checkpoint_that_was_cut_off_is_made_by_the_next_start() {
    let lake = Lake::new().await;
    let log = Log::of(&lake, "t");
    let store = lake.open(checkpointing(1_000, 24));
    for version in 0..12 {
        upsert(&store, 0..5, version).await;
    }
    assert!(checkpoints(&log).is_empty());
    drop(store);
    let store = lake.open(checkpointing(5, 24));
    upsert(&store, 0..5, 12).await;
    log.checkpointed(12).await;
    for version in 13..17 {
        upsert(&store, 0..5, version).await;
    }
    drop(store);
    // Whoever comes next knows of the last one.
    let store = lake.open(checkpointing(5, 24));
    upsert(&store, 0..5, 17).await;
    log.checkpointed(17).await;
    upsert(&store, 0..5, 18).await;
    assert_eq!(checkpoints(&log), BTreeSet::from([12, 17]));
    assert_eq!(lake.read("t").await.len(), 5);
}

/// Some file systems list `plain` as `Plain` when such a folder is there, and delete the one for the other.
#[tokio::test]
async fn a_file_whose_folder_is_listed_in_another_spelling_stays() {
    let lake = Lake::new().await;
    let options = DeltaOptions { partition_by: vec!["supervisor_id".into()], orphan_hours: 0, ..keeping(0) };
    let rows = |version: i64| {
        let row =
            |(n, supervisor): (usize, &&str)| new_row(&numbered_id(n), version, &[("+supervisor_id", *supervisor)]);
        ["Plain", "plain", "Plain", "plain"].iter().enumerate().map(row).collect::<Vec<_>>()
    };
    let store = lake.open_behind(options, |inner| DelegatingStore::over(inner, Arc::new(Respelled::default())));
    store.apply(batch(&[("t", rows(1))], vec![])).await.unwrap();
    store.apply(batch(&[("t", rows(2)[..2].to_vec())], vec![])).await.unwrap();
    let log = Log::of(&lake, "t");
    log.age(log.files("parquet").into_iter().chain(log.files("bin")), 1_000);
    let (before, files, vectors) = (lake.read("t").await, log.files("parquet"), log.files("bin"));
    assert!(files.len() == 4 && vectors.len() == 1, "{files:?} {vectors:?}");
    let maintained = store.maintain(&space()).await.unwrap();
    assert_eq!((maintained.files_deleted, lake.read("t").await), (0, before));
    assert_eq!((log.files("parquet"), log.files("bin")), (files, vectors));
    // What is really superseded goes.
    store.apply(batch(&[("t", rows(3))], vec![])).await.unwrap();
    assert!(store.maintain(&space()).await.unwrap().files_deleted >= 4);
    assert_eq!(lake.read("t").await.len(), 4);
}

#[tokio::test]
async fn types_that_differ_by_case_have_folders_that_differ_by_more() {
    for ignores_case in [true, false] {
        types_differ_by_case(ignores_case).await;
    }
}

async fn types_differ_by_case(ignores_case: bool) {
    let lake = Lake::new().await;
    let types = ["Person", "person", "PERSON"];
    for version in 1..3 {
        let store = lake.open(keeping(24));
        if ignores_case {
            store.access.lake().ignore_case();
        }
        for (n, document_type) in (0..).zip(types) {
            let rows = numbered(n * 10..n * 10 + 5, version);
            store.apply(batch(&[(document_type, rows)], vec![])).await.unwrap();
        }
        store.close().await;
    }
    let records = lake.metastore.tables(Some(&space())).await.unwrap();
    let paths: BTreeSet<String> = records.iter().map(|record| record.path.to_lowercase()).collect();
    // Where case counts, the path is that of the type alone.
    assert_eq!(paths.len(), if ignores_case { types.len() } else { 1 });
    for record in records {
        let folder = lake.folder.path().join(&record.path);
        let entries = fs::read_dir(folder.join("_delta_log")).unwrap();
        assert_eq!(entries.filter(|entry| entry.as_ref().unwrap().path().extension().is_some()).count(), 2);
        assert!(record.location.ends_with(&record.path) && record.state.rows == 5, "{record:?}");
    }
}

#[tokio::test]
async fn a_file_with_too_many_rows_is_no_lost_index() {
    let error = EngineError::Index(IndexError::RowTooLarge { file: FileNumber::new(1), row: RowNumber::new(1 << 24) });
    assert!(!error.is_index_lost());
    let lake = Lake::new().await;
    let log = Log::of(&lake, "t");
    let store = lake.open(keeping(24));
    upsert(&store, 0..5, 1).await;
    let mut add = log.active().into_values().next().unwrap();
    let path = add["path"].as_str().unwrap().to_owned();
    fs::copy(log.folder.join(&path), log.folder.join("somebody.parquet")).unwrap();
    add["path"] = json!("somebody.parquet");
    add["stats"] = json!(json!({ "numRecords": (1 << 24) + 1 }).to_string());
    log.commit(vec![json!({ "add": add })]);
    let error = store.apply(batch(&[("t", numbered(0..5, 2))], vec![])).await.unwrap_err();
    let text = lake_shared::error_chain::Chain(&error).to_string();
    assert!(text.contains("16777216 rows") && text.contains("somebody.parquet"), "{text}");
    assert!(!store.loader.indexes().is_lost(&space()));
}

/// The numbers of an index that was lost mean nothing to the next one.
#[tokio::test]
async fn a_space_that_is_loaded_anew_saves_its_index_in_time() {
    let lake = Lake::new().await;
    let store = lake.open(keeping(24));
    upsert(&store, 0..5, 1).await;
    let cell = store.spaces.cell(&space());
    cell.index_upkeep.set_saved(FileNumber::new(3_000_000_000));
    store.forget(&space()).await;
    lake.lose_index().await;
    upsert(&store, 0..5, 2).await;
    let saved = cell.index_upkeep.saved_number();
    assert!(saved < FileNumber::new(1_000), "{saved}");
}

//! The clean-up: what goes, what stays, and what can still be read then.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use lake_test_kit::table_file::TableFile;
use lake_test_kit::time::NOTE;
use serde_json::Value;

use super::clean_space;
use super::lake::{Lake, batch, new_row, numbered, numbered_id, space, table, tombstone, until, versions};
use super::log::Log;
use crate::table_store::TableStore;
use crate::table_store::delta::{DeletionVectors, DeltaOptions};

/// Rows are marked; nothing is compacted unless asked for; files stay for hours.
fn keeping(retention_hours: u64, orphan_hours: u64) -> DeltaOptions {
    DeltaOptions {
        deletion_vectors: DeletionVectors::On,
        small_files_max: 1_000,
        deleted_share_max: 1.0,
        overlap_max: 1_000,
        retention_hours,
        orphan_hours,
        ..DeltaOptions::default()
    }
}

/// The same, and files with deleted rows are rewritten.
fn purging(retention_hours: u64, orphan_hours: u64) -> DeltaOptions {
    DeltaOptions { deleted_share_max: 0.01, ..keeping(retention_hours, orphan_hours) }
}

/// A table with superseded data files and vectors. What each version held.
async fn past(lake: &Lake) -> BTreeMap<u64, usize> {
    let store = lake.open(keeping(24, 24));
    let mut rows = BTreeMap::new();
    for round in 1..6 {
        let ids = if round == 1 { 0..50 } else { round * 5..round * 5 + 5 };
        let gone = vec![tombstone(&numbered_id(50 - round), None, 9)];
        store.apply(batch(&[("t", numbered(ids, round as i64))], gone)).await.unwrap();
        rows.insert(Log::of(lake, "t").latest(), lake.read("t").await.len());
    }
    store.close().await;
    rows
}

fn note(log: &Log) -> BTreeMap<String, i64> {
    let Ok(text) = fs::read_to_string(log.folder.join(NOTE)) else { return BTreeMap::new() };
    let note: Value = serde_json::from_str(&text).unwrap();
    serde_json::from_value(note["files"].clone()).unwrap()
}

fn files(log: &Log) -> BTreeSet<String> {
    log.files("parquet").into_iter().chain(log.files("bin")).collect()
}

#[tokio::test]
async fn versions_within_the_retention_stay_readable_with_their_vectors() {
    let lake = Lake::new().await;
    let past = past(&lake).await;
    let log = Log::of(&lake, "t");
    let before = files(&log);
    // Every file is old; it was superseded just now.
    log.age(&before, 100);
    let store = lake.open(purging(1, 0));
    store.apply(batch(&[], vec![])).await.unwrap();
    let maintained = store.maintain(&space()).await.unwrap();
    assert!(maintained.files_compacted > 0);
    assert_eq!((maintained.files_deleted, log.deleted_rows()), (0, 0));
    assert!(files(&log).is_superset(&before));
    assert_eq!(note(&log).len(), log.files("bin").len());
    for (version, rows) in past {
        assert_eq!(lake.read_at("t", Some(version)).await.len(), rows, "version {version}");
    }
}

/// A file leaves once for each of its vectors; it is superseded since the last time.
#[tokio::test]
async fn a_file_that_was_marked_long_ago_stays_as_long_as_others() {
    let lake = Lake::new().await;
    let past = past(&lake).await;
    let log = Log::of(&lake, "t");
    log.versions().into_iter().for_each(|version| log.removed_earlier(version, 50));
    log.age(files(&log), 100);
    let store = lake.open(purging(24, 24));
    store.apply(batch(&[], vec![])).await.unwrap();
    let maintained = store.maintain(&space()).await.unwrap();
    assert!(maintained.files_compacted > 0 && log.deleted_rows() == 0);
    assert_eq!(maintained.files_deleted, 0, "its last version was superseded just now");
    let (version, rows) = past.last_key_value().unwrap();
    assert_eq!(lake.read_at("t", Some(*version)).await.len(), *rows);
}

#[tokio::test]
async fn after_the_retention_they_go_and_once_is_enough() {
    let lake = Lake::new().await;
    past(&lake).await;
    let log = Log::of(&lake, "t");
    let before = lake.read("t").await;
    let store = lake.open(purging(0, 0));
    store.apply(batch(&[], vec![])).await.unwrap();
    let maintained = store.maintain(&space()).await.unwrap();
    assert!(maintained.files_deleted > 2, "{maintained:?}");
    let active: BTreeSet<String> = log.active().into_keys().collect();
    assert_eq!(files(&log), active, "data files of the version, and no vectors");
    assert_eq!((lake.read("t").await, note(&log).len()), (before, 0));
    let (versions, again) = (log.versions(), store.maintain(&space()).await.unwrap());
    assert_eq!((again.files_deleted, again.log_files_deleted, log.versions()), (0, 0, versions));
    store.apply(batch(&[("t", numbered(0..50, 10))], vec![])).await.unwrap();
    assert_eq!(lake.read("t").await.len(), 50);
}

#[tokio::test]
async fn vectors_in_use_stay() {
    let lake = Lake::new().await;
    past(&lake).await;
    let (log, before) = (Log::of(&lake, "t"), lake.read("t").await);
    log.age(files(&log), 1_000);
    let store = lake.open(keeping(0, 0));
    store.apply(batch(&[], vec![])).await.unwrap();
    let maintained = store.maintain(&space()).await.unwrap();
    assert!(maintained.files_deleted > 0 && log.deleted_rows() > 0);
    assert!(!log.files("bin").is_empty());
    assert_eq!(lake.read("t").await, before);
    assert_eq!(store.maintain(&space()).await.unwrap().files_deleted, 0);
}

#[tokio::test]
async fn files_of_a_crash_go_when_they_are_old() {
    let lake = Lake::new().await;
    past(&lake).await;
    let log = Log::of(&lake, "t");
    let before = files(&log);
    let data = "part-00000-0b8e1b6e-8c3c-4a6e-a0f6-6f6ffa6c0001-c000.zstd.parquet";
    let vectors = "deletion_vector_0b8e1b6e-8c3c-4a6e-a0f6-6f6ffa6c0002.bin";
    let strange = ["notes.txt", "somebody.bin", "_hidden.parquet", "_tmp/x.parquet"];
    fs::create_dir(log.folder.join("_tmp")).unwrap();
    for name in [data, vectors].into_iter().chain(strange) {
        fs::write(log.folder.join(name), "x").unwrap();
    }
    log.age(strange, 100);
    let orphans = || [data, vectors].map(|name| log.folder.join(name).exists());
    // Such files may be of a write under way, however short the retention is.
    let store = lake.open(keeping(0, 2));
    store.apply(batch(&[], vec![])).await.unwrap();
    log.age([data, vectors], 1);
    store.maintain(&space()).await.unwrap();
    assert_eq!((orphans(), note(&log).contains_key(vectors)), ([true, true], false));
    log.age([data, vectors], 3);
    store.maintain(&space()).await.unwrap();
    assert_eq!(orphans(), [false, false]);
    assert!(strange.iter().all(|name| log.folder.join(name).exists()), "what the lake did not write is not ours");
    assert!(files(&log).is_subset(&before.into_iter().chain(strange.map(str::to_owned)).collect()));
    assert_eq!(lake.read("t").await.len(), 45);
}

/// The clean-up alone: whoever has loaded the space takes away again what a restore brings back.
#[tokio::test]
async fn superseded_vectors_are_noted_with_the_time_and_forgotten_when_they_are_back() {
    let lake = Lake::new().await;
    let versions = past(&lake).await;
    let log = Log::of(&lake, "t");
    log.age(files(&log), 100);
    let store = lake.open(keeping(24, 1));
    clean_space(&store).await.unwrap();
    let noted = note(&log);
    assert!(noted.len() > 1);
    clean_space(&store).await.unwrap();
    assert_eq!(note(&log), noted, "the first time counts");
    // Somebody restores an old version, the vector of which is in use again.
    let old = *versions.keys().nth(1).unwrap();
    log.restore(old);
    clean_space(&store).await.unwrap();
    let back: BTreeSet<String> = noted.keys().filter(|path| !note(&log).contains_key(*path)).cloned().collect();
    assert_eq!(back.len(), 1);
    drop(store);
    // After the retention the others go, and that one stays.
    let store = lake.open(keeping(0, 1));
    clean_space(&store).await.unwrap();
    assert_eq!((log.files("bin"), note(&log).len()), (back, 0));
    assert_eq!(lake.read("t").await.len(), versions[&old]);
    // A note that is broken delays, and nothing else.
    fs::write(log.folder.join(NOTE), "{").unwrap();
    clean_space(&store).await.unwrap();
    assert_eq!(lake.read("t").await.len(), versions[&old]);
}

/// A folder name is escaped twice on its way into the log; a file of such a folder that is in use must not look like an orphan.
#[tokio::test]
async fn files_in_folders_with_odd_names_are_told_apart() {
    let lake = Lake::new().await;
    let options = DeltaOptions { partition_by: vec!["month".into(), "supervisor_id".into()], ..keeping(0, 0) };
    let odd = ["a b", "a%20b", "x/y", "ü=é", "100%", "..", ".hidden", "_tmp", "", "plain", "~", "a+b&c", "#?;:@"];
    let rows = |version: i64| {
        let row = |(n, supervisor): (usize, &&str)| {
            let cells = [("+month", "2024-01-01"), ("+supervisor_id", *supervisor)];
            [new_row(&numbered_id(2 * n), version, &cells), new_row(&numbered_id(2 * n + 1), 1, &cells)]
        };
        odd.iter().enumerate().flat_map(row).collect::<Vec<_>>()
    };
    let store = lake.open(options);
    for version in 1..4 {
        store.apply(batch(&[("t", rows(version))], vec![])).await.unwrap();
    }
    let (log, before) = (Log::of(&lake, "t"), lake.read("t").await);
    log.age(files(&log), 1_000);
    let maintained = store.maintain(&space()).await.unwrap();
    assert!(maintained.files_deleted >= 2 * 10, "{maintained:?}");
    assert_eq!((before.len(), lake.read("t").await), (2 * odd.len(), before));
    assert_eq!(store.maintain(&space()).await.unwrap().files_deleted, 0);
    let known: BTreeSet<String> = log.active().into_keys().collect();
    assert_eq!(log.files("parquet").len(), known.len(), "only the files of the last version are left");
}

#[tokio::test]
async fn files_of_partitions_by_a_column_with_an_underscore_go_like_others() {
    let lake = Lake::new().await;
    let options = DeltaOptions { partition_by: vec!["_round".into()], ..keeping(0, 1) };
    let store = lake.open(options);
    let round =
        |round: i64| (0..5).map(|n| new_row(&numbered_id(n), round, &[("/_round", &round.to_string())])).collect();
    for number in 1..=3 {
        store.apply(batch(&[("t", round(number))], vec![])).await.unwrap();
    }
    let log = Log::of(&lake, "t");
    assert!(files(&log).iter().all(|file| file.contains("_round=")), "{:?}", files(&log));
    assert!(files(&log).len() >= 3);
    assert!(clean_space(&store).await.unwrap().files_deleted >= 2);
    let left: BTreeSet<String> = log.active().keys().cloned().collect();
    assert_eq!(log.files("parquet"), left);
    let read = lake.read("t").await;
    assert!(read.len() == 5 && versions(&read).values().all(|version| *version == 3), "{read:?}");
}

#[tokio::test]
async fn checkpoints_come_beside_commits_and_handles_go_on() {
    let lake = Lake::new().await;
    let store = lake.open(keeping(0, 24));
    let log = Log::of(&lake, "t");
    let key = table("t");
    for round in 0..64 {
        assert!(store.access.is_open(&key) == (round != 0), "round {round}");
        store.apply(batch(&[("t", numbered(0..5, round))], vec![])).await.unwrap();
    }
    log.checkpointed(63).await;
    for round in 64..70 {
        store.apply(batch(&[("t", numbered(0..5, round))], vec![])).await.unwrap();
    }
    assert_eq!((log.latest(), lake.read("t").await.len()), (69, 5));
    assert_eq!(lake.read_at("t", Some(40)).await.len(), 5);
}

#[tokio::test]
async fn batches_do_not_wait_for_a_checkpoint() {
    let lake = Lake::new().await;
    let (store, gate) = lake.open_gated(DeltaOptions { checkpoint_every_commits: 4, ..keeping(0, 24) });
    let log = Log::of(&lake, "t");
    gate.hold_next(TableFile::Checkpoint);
    for round in 0..4 {
        store.apply(batch(&[("t", numbered(0..5, round))], vec![])).await.unwrap();
    }
    gate.held().await;
    // Checkpoints of other tables wait for their turn, and are made then, of the version of which they were due.
    let other = Log::of(&lake, "u");
    for round in 4..12 {
        let rows = [("t", numbered(0..5, round)), ("u", numbered(10..15, round))];
        store.apply(batch(&rows, vec![])).await.unwrap();
    }
    assert!(!log.has_in_log(".checkpoint.parquet"), "it is still being written");
    gate.release();
    until("a checkpoint", || log.has_in_log(".checkpoint.parquet")).await;
    other.checkpointed(3).await;
    assert_eq!((other.latest(), lake.read("u").await.len()), (7, 5));
    store.apply(batch(&[("t", numbered(0..5, 20))], vec![])).await.unwrap();
    assert_eq!((log.latest(), lake.read("t").await.len()), (12, 5));
}

#[tokio::test]
async fn the_log_is_cleaned_up_to_a_checkpoint_and_everything_stays_readable() {
    let lake = Lake::new().await;
    let store = lake.open(keeping(24, 24));
    let log = Log::of(&lake, "t");
    for round in 0..140 {
        let ids = if round == 0 { 0..40 } else { 0..2 };
        store.apply(batch(&[("t", numbered(ids, round))], vec![])).await.unwrap();
        if round % 64 == 63 {
            log.checkpointed(round as u64).await;
        }
    }
    let before = lake.read("t").await;
    let entries: Vec<_> =
        fs::read_dir(log.folder.join("_delta_log")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let number = |path: &std::path::Path| {
        path.file_name().and_then(|name| name.to_str()).and_then(|name| name.get(..20)?.parse::<u64>().ok())
    };
    log.age(entries.iter().filter(|path| number(path).is_some_and(|version| version < 130)), 24 * 31);
    let maintained = store.maintain(&space()).await.unwrap();
    assert!(maintained.log_files_deleted > 100, "{maintained:?}");
    assert!(!log.versions().contains(&100) && log.versions().contains(&130));
    assert_eq!(lake.read("t").await, before);
    assert_eq!(lake.read_at("t", Some(130)).await.len(), 40);
    // Who has the table open goes on, and so does who opens it anew, with the index and without.
    store.apply(batch(&[("t", numbered(0..2, 200))], vec![])).await.unwrap();
    drop(store);
    let again = || batch(&[("t", numbered(2..40, 0))], vec![]);
    for store in [lake.open(keeping(24, 24)), lake.open_elsewhere(keeping(24, 24))] {
        assert!(store.apply(again()).await.unwrap().tables.is_empty());
    }
    let store = lake.open_elsewhere(keeping(24, 24));
    store.apply(batch(&[("t", numbered(0..40, 300))], vec![])).await.unwrap();
    let read = lake.read("t").await;
    assert!(read.len() == 40 && versions(&read).values().all(|version| *version == 300));
}

/// A longer retention needs removals remembered longer.
#[tokio::test]
async fn a_retention_of_more_than_a_week_holds_after_a_checkpoint() {
    let lake = Lake::new().await;
    let store = lake.open(keeping(30 * 24, 0));
    let log = Log::of(&lake, "t");
    store.apply(batch(&[("t", numbered(0..10, 1))], vec![])).await.unwrap();
    store.apply(batch(&[("t", numbered(0..10, 2))], vec![])).await.unwrap();
    store.close().await;
    drop(store);
    // The second commit, which took the first file away, was ten days ago; the file is older than the retention.
    log.removed_earlier(1, 10 * 24);
    log.age(files(&log), 60 * 24);
    let store = lake.open(keeping(30 * 24, 0));
    for round in 2..65 {
        store.apply(batch(&[("t", numbered(20..21, round))], vec![])).await.unwrap();
    }
    log.checkpointed(63).await;
    store.maintain(&space()).await.unwrap();
    assert_eq!(lake.read_at("t", Some(0)).await.len(), 10);
}

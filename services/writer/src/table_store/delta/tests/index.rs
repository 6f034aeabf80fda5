//! The key index: whatever becomes of it, or of the tables behind its back, answers are right.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;

use lake_shared::escaped_names;

use super::lake::{Lake, batch, new_row, numbered, numbered_id, space, table, tombstone, versions};
use super::log::Log;
use crate::table_store::delta::{DeletionVectors, DeltaOptions, DeltaTableStore};
use crate::table_store::{Applied, SpaceBatch, StoreError, TableStore};

/// Rows are marked, the index is on disk after a few rows, nothing is compacted.
fn options() -> DeltaOptions {
    DeltaOptions {
        deletion_vectors: DeletionVectors::On,
        small_files_max: 1_000,
        deleted_share_max: 1.0,
        overlap_max: 1_000,
        index_entries_in_memory_max: 50,
        ..DeltaOptions::default()
    }
}

/// A table with a past: 300 rows of versions 1, 2 and 3, one of which is deleted.
fn history() -> Vec<SpaceBatch> {
    vec![
        batch(&[("t", numbered(0..200, 1))], vec![]),
        batch(&[("t", numbered((0..200).step_by(3), 2))], vec![tombstone(&numbered_id(100), Some(1), 2)]),
        batch(&[("t", numbered((0..50).chain(200..300), 3)), ("u", numbered(300..310, 3))], vec![]),
    ]
}

async fn live(store: &DeltaTableStore) {
    for batch in history() {
        store.apply(batch).await.unwrap();
    }
}

/// All of it once more changes nothing; the next versions are right.
async fn assert_right(lake: &Lake, store: &DeltaTableStore, what: &str) {
    let log = Log::of(lake, "t");
    let (version, before) = (log.latest(), lake.read("t").await);
    for batch in history() {
        assert!(apply(store, batch).await.tables.is_empty(), "{what}");
    }
    assert_eq!(log.latest(), version, "{what}");
    let next = 1 + versions(&before).values().max().unwrap();
    let applied = apply(store, batch(&[("t", numbered((0..300).step_by(4), next))], vec![])).await;
    assert_eq!(
        applied.tables[0].rows_total as usize,
        before.len() + usize::from(!before.contains_key("id-00100")),
        "{what}"
    );
    // Reading asserts that no id is there twice.
    let read = lake.read("t").await;
    assert!((0..300).step_by(4).all(|n| versions(&read)[numbered_id(n).as_str()] == next), "{what}");
}

/// A damaged index is noticed by whoever meets the damage; the next call has a new one.
async fn apply(store: &DeltaTableStore, batch: SpaceBatch) -> Applied {
    for _ in 0..2 {
        if let Ok(applied) = store.apply(batch.clone()).await {
            return applied;
        }
    }
    store.apply(batch).await.unwrap()
}

#[tokio::test]
async fn a_start_with_a_checkpoint_reads_no_data_file() {
    let lake = Lake::new().await;
    let store = lake.open(options());
    live(&store).await;
    store.close().await;
    drop(store);
    let (store, gate) = lake.open_gated(options());
    for batch in history() {
        assert!(store.apply(batch).await.unwrap().tables.is_empty());
    }
    // What was observed at the same instant asks for versions: out of the statistics in each file, at most.
    store.forget(&space()).await;
    gate.reads.store(0, Ordering::Relaxed);
    store.apply(batch(&[("t", numbered(0..300, 4))], vec![])).await.unwrap();
    assert_eq!(gate.reads.load(Ordering::Relaxed), 0);
    assert_right(&lake, &store, "after a checkpoint").await;
}

#[tokio::test]
async fn a_start_after_a_crash_catches_up() {
    let lake = Lake::new().await;
    let store = lake.open(options());
    let mut batches = history().into_iter();
    store.apply(batches.next().unwrap()).await.unwrap();
    store.close().await;
    drop(store);
    let store = lake.open(options());
    for batch in batches {
        store.apply(batch).await.unwrap();
    }
    drop(store);
    assert_right(&lake, &lake.open(options()), "checkpoint of the first batch").await;

    let lake = Lake::new().await;
    live(&lake.open(options())).await;
    assert_right(&lake, &lake.open(options()), "no checkpoint").await;
}

#[tokio::test]
async fn a_lost_folder_is_built_anew() {
    let lake = Lake::new().await;
    let store = lake.open(options());
    live(&store).await;
    store.close().await;
    drop(store);
    lake.lose_index().await;
    let store = lake.open(options());
    assert_right(&lake, &store, "lost").await;
    store.close().await;
    assert!(lake.index.path().join(escaped_names::space_path(&space())).join("manifest").exists());
}

/// The folder is gone while it is in use, or its disk is full: memory does not grow without bound, and the index comes back.
#[tokio::test]
async fn an_index_that_cannot_be_written_stays_small_and_comes_back() {
    let lake = Lake::new().await;
    let store = lake.open(DeltaOptions { index_entries_in_memory_max: 10, ..options() });
    store.apply(batch(&[("t", numbered(0..10, 1))], vec![])).await.unwrap();
    std::fs::remove_dir_all(lake.index.path().join(escaped_names::space_path(&space()))).unwrap();
    let (mut refused, mut most) = (0, 0);
    for round in 0..40_usize {
        let rows = numbered(round * 7..round * 7 + 10, 2);
        while let Err(error) = store.apply(batch(&[("t", rows.clone())], vec![])).await {
            assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
            refused += 1;
            assert!(refused < 10, "{error:?}");
        }
        let cell = store.spaces.cell(&space());
        let state = cell.state.lock().await;
        most = most.max(state.as_ref().unwrap().index().entries_in_memory());
    }
    assert!(refused > 0 && most <= 50, "refused {refused} times, {most} entries in memory");
    let everything = 39 * 7 + 10;
    let again = store.apply(batch(&[("t", numbered(0..everything, 2))], vec![])).await.unwrap();
    assert_eq!((again.tables.len(), lake.read("t").await.len()), (0, everything));
}

#[tokio::test]
async fn a_damaged_folder_is_built_anew() {
    let lake = Lake::new().await;
    let mut store = lake.open(options());
    live(&store).await;
    let mut damages = 0;
    for part in 0..4 {
        store.close().await;
        drop(store);
        let folder = lake.free_index().await;
        let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.retain(|path| path.file_name().is_none_or(|name| name != "lock"));
        for path in &names {
            let mut bytes = fs::read(path).unwrap();
            let (at, last) = (bytes.len() * part / 4, bytes.len() - 1);
            bytes[at.min(last)] ^= 0x10;
            // The whole index is damaged, or one file of it, or it is cut.
            if part == 3 {
                bytes.truncate(last);
            }
            fs::write(path, bytes).unwrap();
            damages += 1;
            if part == 0 {
                break;
            }
        }
        store = lake.open(options());
        assert_right(&lake, &store, &format!("damaged in part {part}")).await;
    }
    assert!(damages > 4);
    // A file of the index is gone.
    store.close().await;
    drop(store);
    let folder = lake.free_index().await;
    let run = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let run = run.into_iter().find(|path| path.file_name().unwrap().to_str().unwrap().starts_with("run-")).unwrap();
    fs::remove_file(run).unwrap();
    assert_right(&lake, &lake.open(options()), "a run is gone").await;
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            copy_folder(&path, &to.join(path.file_name().unwrap()));
        } else {
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

#[tokio::test]
async fn the_folder_of_another_lake_misleads_nobody() {
    let (lake, other) = (Lake::new().await, Lake::new().await);
    let stores = (lake.open(options()), other.open(options()));
    live(&stores.0).await;
    // The same ids in the same tables, but elsewhere and of other versions.
    for part in (0..300).step_by(20) {
        stores
            .1
            .apply(batch(&[("t", numbered(part..part + 20, 50)), ("x", numbered(300..301, 50))], vec![]))
            .await
            .unwrap();
    }
    stores.0.close().await;
    stores.1.close().await;
    drop(stores);
    lake.lose_index().await;
    other.free_index().await;
    copy_folder(other.index.path(), lake.index.path());
    assert_right(&lake, &lake.open(options()), "index of another lake").await;
}

#[tokio::test]
async fn an_index_out_of_a_backup_catches_up() {
    let lake = Lake::new().await;
    let mut batches = history().into_iter();
    let store = lake.open(options());
    store.apply(batches.next().unwrap()).await.unwrap();
    store.close().await;
    drop(store);
    lake.free_index().await;
    let backup = tempfile::TempDir::new().unwrap();
    copy_folder(lake.index.path(), backup.path());
    let rewriting = DeltaOptions { deletion_vectors: DeletionVectors::Off, ..options() };
    let store = lake.open(rewriting);
    for batch in batches {
        store.apply(batch).await.unwrap();
    }
    store.close().await;
    drop(store);
    lake.lose_index().await;
    copy_folder(backup.path(), lake.index.path());
    assert_right(&lake, &lake.open(options()), "index of yesterday").await;
}

#[tokio::test]
async fn a_table_that_was_dropped_and_made_again_is_another_table() {
    for runs_on in [false, true] {
        for recreated in [false, true] {
            let lake = Lake::new().await;
            let mut store = lake.open(options());
            live(&store).await;
            if !runs_on {
                store.close().await;
            }
            fs::remove_dir_all(lake.table_folder("t")).unwrap();
            let mut expected: BTreeMap<String, i64> = BTreeMap::new();
            if recreated {
                let other = lake.open_elsewhere(options());
                other.apply(batch(&[("t", numbered(10..20, 7))], vec![])).await.unwrap();
                expected.extend((10..20).map(|n| (numbered_id(n), 7)));
            }
            if !runs_on {
                store = lake.open(options());
            }
            let what = format!("runs on {runs_on}, recreated {recreated}");
            let applied = apply(&store, batch(&[("t", numbered(5..15, 9))], vec![])).await;
            expected.extend((5..15).map(|n| (numbered_id(n), 9)));
            assert_eq!(applied.tables[0].rows_total, expected.len() as u64, "{what}");
            // Rows of the old table are gone: they enter again.
            apply(&store, history().remove(0)).await;
            let read = lake.read("t").await;
            let (held, mut wanted) = (versions(&read), expected);
            (0..200).filter(|n| *n != 100).for_each(|n| {
                wanted.entry(numbered_id(n)).or_insert(1);
            });
            let wanted: BTreeMap<&str, i64> = wanted.iter().map(|(id, version)| (id.as_str(), *version)).collect();
            assert_eq!(held, wanted, "{what}");
        }
    }
}

#[tokio::test]
async fn an_old_version_that_somebody_restores_is_followed() {
    for runs_on in [false, true] {
        let lake = Lake::new().await;
        let mut store = lake.open(options());
        store.apply(batch(&[("t", numbered(0..50, 1))], vec![])).await.unwrap();
        store.apply(batch(&[("t", numbered(0..10, 2))], vec![])).await.unwrap();
        store.apply(batch(&[("t", numbered(5..50, 3))], vec![])).await.unwrap();
        store
            .apply(batch(&[("t", numbered(20..30, 4).into_iter().chain(numbered(60..61, 4)).collect())], vec![]))
            .await
            .unwrap();
        if !runs_on {
            store.close().await;
        }
        Log::of(&lake, "t").restore(1);
        assert_eq!(lake.read("t").await.len(), 50);
        if !runs_on {
            store = lake.open(options());
        }
        // Rows of versions 1 and 2 are back, in files that the index had forgotten.
        let applied = store.apply(batch(&[("t", numbered(0..5, 5))], vec![])).await.unwrap();
        assert_eq!(applied.tables[0].rows_total, 50, "runs on {runs_on}");
        for again in [numbered(5..10, 2), numbered(10..50, 1), numbered(5..50, 1)] {
            assert!(store.apply(batch(&[("t", again)], vec![])).await.unwrap().tables.is_empty(), "runs on {runs_on}");
        }
        store.apply(batch(&[("t", numbered(5..50, 3))], vec![])).await.unwrap();
        let read = lake.read("t").await;
        assert_eq!(read.len(), 50);
        let versions = versions(&read);
        assert!((0..50).all(|n| versions[numbered_id(n).as_str()] == if n < 5 { 5 } else { 3 }), "runs on {runs_on}");
    }
}

#[tokio::test]
async fn rows_that_somebody_deletes_are_gone_and_may_come_again() {
    for by_mark in [false, true] {
        for runs_on in [false, true] {
            let lake = Lake::new().await;
            let mut store = lake.open(options());
            store.apply(batch(&[("t", numbered(0..20, 1))], vec![])).await.unwrap();
            store.apply(batch(&[("t", numbered(0..2, 2))], vec![])).await.unwrap();
            if !runs_on {
                store.close().await;
            }
            let log = Log::of(&lake, "t");
            let (path, _) = log.active().into_iter().max_by_key(|(_, add)| add["size"].as_i64()).unwrap();
            if by_mark {
                let (rows, keys) = (0..20, super::layout::keys_in_order(&log.folder.join(&path)));
                let at = |id: &str| rows.clone().zip(&keys).find(|(_, (_, _, held))| held == id).unwrap().0;
                log.mark(&path, [at(&numbered_id(7)), at(&numbered_id(8))]).await;
            } else {
                log.rewrite(&[&path], true, |id| id != numbered_id(7) && id != numbered_id(8)).await;
            }
            if !runs_on {
                store = lake.open(options());
            }
            // Whoever runs on notices with its next commit.
            let applied = store.apply(batch(&[("t", numbered(2..4, 2))], vec![])).await.unwrap();
            assert_eq!(applied.tables[0].rows_total, 18, "{by_mark} {runs_on}");
            let applied = store.apply(batch(&[("t", numbered(4..8, 1))], vec![])).await.unwrap();
            assert_eq!((applied.tables[0].rows_upserted, applied.tables[0].rows_total), (1, 19), "{by_mark} {runs_on}");
            assert_eq!(lake.read("t").await.len(), 19);
        }
    }
}

#[tokio::test]
async fn of_rows_that_somebody_inserts_again_the_newest_stays() {
    for runs_on in [false, true] {
        let lake = Lake::new().await;
        let mut store = lake.open(options());
        let log = Log::of(&lake, "t");
        store.apply(batch(&[("t", numbered(0..20, 1))], vec![])).await.unwrap();
        let first = log.active().into_keys().next().unwrap();
        store.apply(batch(&[("t", numbered(0..5, 2))], vec![])).await.unwrap();
        if !runs_on {
            store.close().await;
        }
        // Ids 0 to 4 are there in an older version, the others in the same.
        log.duplicate(&first);
        log.duplicate(&first);
        if !runs_on {
            store = lake.open(options());
        }
        store.apply(batch(&[("t", numbered(30..31, 1))], vec![])).await.unwrap();
        let read = lake.read("t").await;
        assert_eq!(read.len(), 21, "runs on {runs_on}");
        let versions = versions(&read);
        assert!((0..20).all(|n| versions[numbered_id(n).as_str()] == if n < 5 { 2 } else { 1 }));
        assert!(store.apply(batch(&[("t", numbered(0..20, 1))], vec![])).await.unwrap().tables.is_empty());
        store.apply(batch(&[("t", numbered(0..20, 3))], vec![])).await.unwrap();
        assert_eq!(lake.read("t").await.len(), 21);
    }
}

#[tokio::test]
async fn two_engines_on_one_folder_are_refused_with_a_reason() {
    let lake = Lake::new().await;
    let (one, other) = (lake.open(options()), lake.open(options()));
    one.apply(batch(&[("t", numbered(0..5, 1))], vec![])).await.unwrap();
    let error = other.apply(batch(&[("t", numbered(0..5, 2))], vec![])).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    let mut texts = vec![error.to_string()];
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        texts.push(error.to_string());
        source = error.source();
    }
    let last = texts.last().unwrap();
    assert!(
        last.contains("in use by another process") && last.contains(lake.index.path().to_str().unwrap()),
        "{texts:?}"
    );
    // The first is not disturbed, and when it has gone the other one goes on.
    one.apply(batch(&[("t", numbered(0..5, 3))], vec![])).await.unwrap();
    drop(one);
    other.apply(batch(&[("t", numbered(0..5, 4))], vec![])).await.unwrap();
    let read = lake.read("t").await;
    assert_eq!((read.len(), versions(&read).values().all(|version| *version == 4)), (5, true));
}

/// A space whose ownership was lost comes back after another machine has worked on it.
#[tokio::test]
async fn a_space_that_comes_back_is_read_anew() {
    let lake = Lake::new().await;
    let store = lake.open(options());
    live(&store).await;
    store.forget(&space()).await;
    let other = lake.open_elsewhere(DeltaOptions { deletion_vectors: DeletionVectors::Off, ..options() });
    other
        .apply(batch(&[("t", numbered(0..100, 8)), ("u", vec![new_row(&numbered_id(150), 8, &[])])], vec![]))
        .await
        .unwrap();
    drop(other);
    let applied = store.apply(batch(&[("t", numbered(90..110, 9))], vec![])).await.unwrap();
    assert_eq!(applied.tables.iter().find(|applied| applied.table == table("t")).unwrap().rows_total, 299);
    let read = lake.read("t").await;
    assert!(!read.contains_key(&numbered_id(150)));
    assert_eq!([0, 89, 90, 109].map(|n| versions(&read)[numbered_id(n).as_str()]), [8, 8, 9, 9]);
}

//! Compaction: what is rewritten and how, and what happens to batches that are applied meanwhile.

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lake_test_kit::gate::Gate;
use lake_test_kit::table_file::TableFile;
use lake_test_kit::waiting::Interrupted;
use serde_json::{Value, json};

use super::lake::{Cell, Lake, NewRow, batch, new_row, numbered, numbered_id, read_all, space, tombstone, versions};
use super::log::Log;
use crate::table_store::delta::compact::run::Scope;
use crate::table_store::delta::{DeletionVectors, DeltaOptions, DeltaTableStore};
use crate::table_store::{Applied, Compacted, StoreError, TableStore};

/// Nothing is asked for, and rows are marked, not rewritten.
pub(super) fn idle() -> DeltaOptions {
    DeltaOptions {
        deletion_vectors: DeletionVectors::On,
        small_file_bytes: 1,
        small_files_max: 1_000,
        tiny_file_bytes: 0,
        deleted_share_max: 1.0,
        overlap_max: 1_000,
        ..DeltaOptions::default()
    }
}

/// More than two small files are merged.
pub(super) fn merging() -> DeltaOptions {
    DeltaOptions { small_file_bytes: 1 << 20, small_files_max: 2, ..idle() }
}

/// Files of so many numbered rows each, which all cover all months.
pub(super) async fn files_of_rows(store: &DeltaTableStore, files: usize, rows: usize) -> u64 {
    let mut bytes = 0;
    for part in 0..files {
        let rows = numbered(part * rows..part * rows + rows, 1);
        bytes = store.apply(batch(&[("t", rows)], vec![])).await.unwrap().tables[0].bytes;
    }
    bytes / files as u64
}

/// Every key is found where it is now: the same rows once more bring nothing.
pub(super) async fn assert_known(lake: &Lake, store: &DeltaTableStore) {
    let read = lake.read("t").await;
    let again = versions(&read).into_iter().map(|(id, version)| new_row(id, version, &[])).collect();
    assert!(store.apply(batch(&[("t", again)], vec![])).await.unwrap().tables.is_empty(), "a row was not found");
}

/// Runs a compaction and, while it writes its first file, something else.
pub(super) async fn meanwhile<T>(
    store: &DeltaTableStore,
    gate: &Arc<Gate>,
    work: impl Future<Output = T>,
) -> (Compacted, T) {
    gate.hold_next(TableFile::Data);
    let working = async {
        gate.held().await;
        let done = work.await;
        gate.release();
        done
    };
    let space = space();
    let (compacted, done) = tokio::join!(store.compact(&space), working);
    (compacted.unwrap(), done)
}

fn stats(add: &Value) -> Value {
    serde_json::from_str(add["stats"].as_str().unwrap()).unwrap()
}

/// The most files that cover one month.
fn depth(log: &Log) -> usize {
    let active = log.active();
    let ranges: Vec<(String, String)> = active
        .values()
        .map(|add| {
            let month = |which: &str| stats(add)[which]["month"].as_str().unwrap().to_owned();
            (month("minValues"), month("maxValues"))
        })
        .collect();
    let months: BTreeSet<&String> = ranges.iter().flat_map(|(min, max)| [min, max]).collect();
    months
        .into_iter()
        .map(|month| ranges.iter().filter(|(min, max)| (min..=max).contains(&month)).count())
        .max()
        .unwrap()
}

#[tokio::test]
async fn small_files_become_one_in_order_and_readers_see_no_change() {
    let lake = Lake::new().await;
    let store = lake.open(merging());
    files_of_rows(&store, 6, 30).await;
    store.apply(batch(&[("t", numbered(0..5, 2))], vec![tombstone(&numbered_id(9), None, 2)])).await.unwrap();
    let (log, before) = (Log::of(&lake, "t"), lake.read("t").await);
    let version = log.latest();
    let compacted = store.compact(&space()).await.unwrap();
    assert_eq!((compacted.commits, compacted.files_before, compacted.files_after), (1, 7, 1), "{compacted:?}");
    assert_eq!(lake.read("t").await, before);
    assert_eq!(lake.read_at("t", Some(version)).await, before, "time travel");
    let actions: Vec<Value> = ["add", "remove"].iter().flat_map(|kind| log.actions(log.latest(), kind)).collect();
    assert_eq!(actions.len(), 8);
    assert!(actions.iter().all(|action| action["dataChange"] == json!(false)));
    assert_eq!(log.actions(log.latest(), "commitInfo")[0]["operation"], json!("OPTIMIZE"));
    let (path, add) = log.active().pop_first().unwrap();
    assert_eq!(
        (stats(&add)["numRecords"].clone(), add.get("deletionVector").unwrap_or(&Value::Null)),
        (json!(179), &Value::Null)
    );
    let keys = super::layout::keys_in_order(&log.folder.join(path));
    assert!(keys.is_sorted() && keys.len() == 179);
    assert_known(&lake, &store).await;
    let again = store.compact(&space()).await.unwrap();
    assert_eq!(again, Compacted { held_up_max: again.held_up_max, ..Compacted::default() });
}

#[tokio::test]
async fn a_file_with_many_deleted_rows_is_purged_and_one_with_few_is_not() {
    let lake = Lake::new().await;
    let store = lake.open(DeltaOptions { deleted_share_max: 0.3, ..idle() });
    files_of_rows(&store, 1, 100).await;
    let log = Log::of(&lake, "t");
    let delete = async |ids: std::ops::Range<usize>| {
        let gone = ids.map(|n| tombstone(&numbered_id(n), None, 2)).collect();
        store.apply(batch(&[], gone)).await.unwrap();
        store.compact(&space()).await.unwrap()
    };
    assert_eq!(delete(0..30).await.commits, 0);
    assert_eq!((log.deleted_rows(), lake.read("t").await.len()), (30, 70));
    assert_eq!(delete(30..35).await.commits, 1);
    assert_eq!((log.deleted_rows(), lake.read("t").await.len(), log.active().len()), (0, 65, 1));
    assert_known(&lake, &store).await;
}

#[tokio::test]
async fn files_that_cover_the_same_months_are_sorted_into_each_other() {
    let lake = Lake::new().await;
    let store = lake.open(idle());
    let bytes = files_of_rows(&store, 6, 600).await;
    store.close().await;
    drop(store);
    let (log, before) = (Log::of(&lake, "t"), lake.read("t").await);
    assert_eq!(depth(&log), 6);
    let target_file_bytes = NonZeroU64::new(bytes).unwrap();
    let store = lake.open(DeltaOptions { overlap_max: 2, target_file_bytes, ..idle() });
    store.apply(batch(&[], vec![])).await.unwrap();
    let compacted = store.compact(&space()).await.unwrap();
    assert!(compacted.files_before >= 3 && compacted.files_after > 1, "{compacted:?}");
    // Neighbours touch at the ends of their ranges.
    assert!(depth(&log) <= 3, "{}", depth(&log));
    assert_eq!(lake.read("t").await, before);
    for path in log.active().keys() {
        assert!(super::layout::keys_in_order(&log.folder.join(path)).is_sorted());
    }
    assert_known(&lake, &store).await;
}

#[tokio::test]
async fn what_is_applied_during_a_rewrite_is_kept() {
    let lake = Lake::new().await;
    let (store, gate) = lake.open_gated(merging());
    files_of_rows(&store, 4, 25).await;
    store.apply(batch(&[("t", numbered(0..3, 2))], vec![])).await.unwrap();
    let log = Log::of(&lake, "t");
    let work = async {
        // Replaced, deleted, new, and with a new column; the same row twice.
        let gone = (20..30).map(|n| tombstone(&numbered_id(n), None, 9)).collect();
        store.apply(batch(&[("t", numbered(10..20, 3))], gone)).await.unwrap();
        store.apply(batch(&[("t", numbered((10..12).chain(100..105), 4))], vec![])).await.unwrap();
        store.apply(batch(&[("t", vec![new_row(&numbered_id(50), 5, &[("/new", "x")])])], vec![])).await.unwrap();
        (log.latest(), lake.read("t").await)
    };
    let (compacted, (version, before)) = meanwhile(&store, &gate, work).await;
    assert!(compacted.commits >= 1, "{compacted:?}");
    let first = log.actions(version + 1, "add").remove(0);
    assert_eq!(first["deletionVector"]["cardinality"], json!(21), "positions are those of the new file");
    assert_eq!((&first["dataChange"], &stats(&first)["tightBounds"]), (&json!(false), &json!(false)));
    let read = lake.read("t").await;
    assert_eq!(read, before);
    assert_eq!((read.len(), read[&numbered_id(50)]["/new"].as_str()), (95, "x"));
    let versions = versions(&read);
    assert_eq!([0, 5, 10, 15, 100].map(|n| versions[numbered_id(n).as_str()]), [2, 1, 4, 3, 4]);
    assert_known(&lake, &store).await;
    // And after a start that knows the index of before, or none.
    drop((store, gate));
    assert_known(&lake, &lake.open(merging())).await;
    assert_known(&lake, &lake.open_elsewhere(merging())).await;
    assert_eq!(log.orphans(), BTreeSet::new());
}

#[tokio::test]
async fn a_new_file_whose_rows_are_all_gone_does_not_enter() {
    let lake = Lake::new().await;
    let store = lake.open(idle());
    let bytes = files_of_rows(&store, 6, 600).await;
    store.close().await;
    drop(store);
    let target_file_bytes = NonZeroU64::new(bytes).unwrap();
    let (store, gate) = lake.open_gated(DeltaOptions { overlap_max: 2, target_file_bytes, ..idle() });
    store.apply(batch(&[], vec![])).await.unwrap();
    let log = Log::of(&lake, "t");
    // All rows of the first months, so the first of the new files is dead when it is written; no old file is.
    let work = async {
        let gone = (0..3_600).filter(|n| n % 12 < 8).map(|n| tombstone(&numbered_id(n), None, 9)).collect();
        store.apply(batch(&[], gone)).await.unwrap();
        log.latest()
    };
    let (compacted, version) = meanwhile(&store, &gate, work).await;
    assert!(compacted.commits >= 1);
    let (removed, added) = (log.actions(version + 1, "remove"), log.actions(version + 1, "add"));
    assert!(removed.len() >= 3 && added.len() < compacted.files_after as usize, "{compacted:?}");
    // Reading asserts that no file is without rows.
    assert_eq!(lake.read("t").await.len(), 1_200);
    assert_known(&lake, &store).await;
    assert_eq!(log.orphans(), BTreeSet::new());
}

/// What makes a rewrite vain.
async fn given_up(options: DeltaOptions, work: impl AsyncFn(&DeltaTableStore) -> Applied) {
    let lake = Lake::new().await;
    let number = |n: usize| NewRow {
        cells: [("/n".to_owned(), Cell::Number(n as i64))].into(),
        ..new_row(&numbered_id(n), 1, &[])
    };
    let store = lake.open(idle());
    for part in 0..3 {
        store.apply(batch(&[("t", (part * 10..part * 10 + 10).map(number).collect())], vec![])).await.unwrap();
    }
    store.close().await;
    drop(store);
    let (store, gate) = lake.open_gated(options);
    store.apply(batch(&[], vec![])).await.unwrap();
    let log = Log::of(&lake, "t");
    let applying = async {
        let applied = work(&store).await;
        (applied.tables[0].version, lake.read("t").await)
    };
    let (compacted, (version, before)) = meanwhile(&store, &gate, applying).await;
    assert_eq!(lake.read("t").await, before);
    assert_eq!(log.orphans(), BTreeSet::new(), "files of a vain rewrite stay behind");
    // The next round begins anew.
    assert_eq!((compacted.commits, log.latest()), (0, version));
    assert_known(&lake, &store).await;
    assert_known(&lake, &lake.open_elsewhere(merging())).await;
}

#[tokio::test]
async fn a_type_change_makes_a_rewrite_vain() {
    given_up(merging(), async |store| {
        let text = vec![new_row(&numbered_id(5), 2, &[("/n", "007")])];
        store.apply(batch(&[("t", text)], vec![])).await.unwrap()
    })
    .await;
}

#[tokio::test]
async fn a_copy_on_write_makes_a_rewrite_vain() {
    let options = DeltaOptions { deletion_vectors: DeletionVectors::Off, ..merging() };
    given_up(options, async |store| store.apply(batch(&[("t", numbered(5..6, 2))], vec![])).await.unwrap()).await;
}

#[tokio::test]
async fn a_file_that_leaves_makes_a_rewrite_vain() {
    given_up(merging(), async |store| {
        let gone = (0..10).map(|n| tombstone(&numbered_id(n), None, 9)).collect();
        store.apply(batch(&[], gone)).await.unwrap()
    })
    .await;
}

#[tokio::test]
async fn a_row_that_changes_its_type_during_a_rewrite_is_in_one_table() {
    let lake = Lake::new().await;
    let (store, gate) = lake.open_gated(merging());
    files_of_rows(&store, 4, 25).await;
    let work = async {
        let remapped_deletes = (0..5).map(|n| new_row(&numbered_id(n), 2, &[("/remapped_deletes", "yes")])).collect();
        store.apply(batch(&[("u", remapped_deletes)], vec![])).await.unwrap();
        let back = vec![new_row(&numbered_id(0), 3, &[("/remapped_deletes", "back")])];
        store.apply(batch(&[("t", back)], vec![])).await.unwrap();
    };
    let (compacted, ()) = meanwhile(&store, &gate, work).await;
    assert!(compacted.commits >= 1);
    let all = read_all(&lake, &["t", "u"]).await;
    assert_eq!(all.len(), 100);
    let of = |n: usize| (all[&numbered_id(n)].0.as_str(), all[&numbered_id(n)].1["+_lake_version"].as_str());
    assert_eq!([of(0), of(1), of(4), of(5)], [("t", "3"), ("u", "2"), ("u", "2"), ("t", "1")]);
    assert_known(&lake, &store).await;
}

/// Rows that have to leave with the next commit are copied as long as readers see them, and leave from where they are then.
#[tokio::test]
async fn rows_that_have_to_leave_are_followed_through_a_rewrite() {
    let lake = Lake::new().await;
    let (store, gate) = lake.open_gated(merging());
    files_of_rows(&store, 4, 25).await;
    let (log, cell) = (Log::of(&lake, "t"), store.spaces.cell(&space()));
    gate.hold_next(TableFile::Commit);
    let racing = async {
        gate.held().await;
        log.duplicate(log.active().keys().next().unwrap());
        gate.release();
    };
    let (first, ()) = tokio::join!(store.compactor.compact(&cell, Scope::Space), racing);
    // Without the end of a round, which takes such rows away.
    let second = store.compactor.compact(&cell, Scope::Space).await.unwrap();
    assert_eq!(first.unwrap().commits + second.commits, 1);
    let rows: i64 = log.active().values().map(|add| stats(add)["numRecords"].as_i64().unwrap()).sum();
    assert_eq!((rows, log.active().len()), (125, 1));
    store.apply(batch(&[("t", numbered(100..101, 1))], vec![])).await.unwrap();
    assert_eq!((lake.read("t").await.len(), log.deleted_rows()), (101, 25));
    assert_known(&lake, &store).await;
}

/// The engine meets a foreign commit when it compacts, and fails while it reads that.
#[tokio::test]
async fn a_compaction_that_fails_half_way_leaves_nothing_wrong_behind() {
    let lake = Lake::new().await;
    let (store, gate) = lake.open_gated(merging());
    files_of_rows(&store, 3, 10).await;
    let (other, space) = (lake.open_elsewhere(idle()), space());
    gate.hold_next(TableFile::Commit);
    let racing = async {
        gate.held().await;
        other.apply(batch(&[("t", numbered(30..35, 4))], vec![])).await.unwrap();
        gate.is_blind.store(true, Ordering::Relaxed);
        gate.release();
    };
    let (compacted, ()) = tokio::join!(store.compact(&space), racing);
    compacted.unwrap_err();
    gate.is_blind.store(false, Ordering::Relaxed);
    store.apply(batch(&[("t", numbered(25..35, 5))], vec![])).await.unwrap();
    let read = lake.read("t").await;
    assert_eq!((read.len(), versions(&read)[numbered_id(30).as_str()]), (35, 5));
    assert_known(&lake, &store).await;
}

#[tokio::test]
async fn a_compaction_that_is_dropped_half_way_leaves_nothing_wrong_behind() {
    let lake = Lake::new().await;
    let (store, other, space) = (lake.open(merging()), lake.open_elsewhere(idle()), space());
    files_of_rows(&store, 3, 10).await;
    let mut finished = 0;
    for round in 0..40 {
        other.apply(batch(&[("t", numbered(30..32, 2 * i64::from(round)))], vec![])).await.unwrap();
        let future = Box::pin(store.compact(&space));
        finished += u32::from(Interrupted { future, polls_left: 3 * round }.await.is_some());
        store.apply(batch(&[("t", numbered(31..33, 2 * i64::from(round) + 1))], vec![])).await.unwrap();
        let read = lake.read("t").await;
        let versions = versions(&read);
        let of = |n: usize| versions[numbered_id(n).as_str()];
        let (theirs, ours) = (2 * i64::from(round), 2 * i64::from(round) + 1);
        assert_eq!((read.len(), of(29), of(30), of(31), of(32)), (33, 1, theirs, ours, ours), "round {round}");
    }
    assert!((1..40).contains(&finished), "{finished} of 40 were not dropped");
    assert_known(&lake, &store).await;
    store.close().await;
    drop(store);
    assert_known(&lake, &lake.open(merging())).await;
}

#[tokio::test]
async fn the_files_of_a_partition_stay_in_it() {
    let lake = Lake::new().await;
    let store = lake.open(DeltaOptions { partition_by: vec!["month".into()], ..merging() });
    for part in 0..4 {
        store.apply(batch(&[("t", numbered(part * 24..part * 24 + 24, 1))], vec![])).await.unwrap();
    }
    let (log, before) = (Log::of(&lake, "t"), lake.read("t").await);
    assert_eq!(log.active().len(), 48);
    let compacted = store.compact(&space()).await.unwrap();
    assert_eq!((compacted.commits, compacted.files_after), (1, 12));
    assert_eq!(lake.read("t").await, before);
    assert_eq!(log.active().len(), 12);
    for (path, add) in log.active() {
        let month = add["partitionValues"]["month"].as_str().unwrap();
        assert!(path.starts_with(&format!("month={month}/")), "{path}");
    }
    assert_known(&lake, &store).await;
}

/// The answer to the commit gets lost, and what became of it cannot be read at first: its files are not touched.
#[tokio::test]
async fn files_of_a_compaction_of_unknown_outcome_stay() {
    let lake = Lake::new().await;
    let (store, gate) = lake.open_gated(merging());
    files_of_rows(&store, 7, 10).await;
    let log = Log::of(&lake, "t");
    let before = log.latest();
    gate.loses_commit.store(true, Ordering::Relaxed);
    gate.hides_log.store(1, Ordering::Relaxed);
    let _ = store.compact(&space()).await;
    assert!(!gate.loses_commit.load(Ordering::Relaxed) && log.latest() > before, "the commit is there");
    for path in log.active().into_keys() {
        assert!(log.folder.join(&path).exists(), "{path}");
    }
    assert_eq!(lake.read("t").await.len(), 70);
    store.apply(batch(&[("t", numbered(10..12, 50))], vec![])).await.unwrap();
    assert_eq!(lake.read("t").await.len(), 70);
}

/// A file that is not there any more keeps its table from compaction: the table is left alone, as if a batch had met it.
#[tokio::test]
async fn a_table_whose_file_is_lost_is_set_aside_by_compaction() {
    let lake = Lake::new().await;
    let store = lake.open(DeltaOptions {
        small_files_max: 2,
        tiny_file_bytes: 0,
        deletion_vectors: DeletionVectors::On,
        ..DeltaOptions::default()
    });
    for n in 0..5 {
        store
            .apply(batch(&[("t", numbered(n * 10..n * 10 + 10, 1)), ("u", numbered(n + 100..n + 101, 1))], vec![]))
            .await
            .unwrap();
    }
    let log = Log::of(&lake, "t");
    std::fs::remove_file(log.folder.join(log.active().into_keys().next().unwrap())).unwrap();
    assert!(store.compact(&space()).await.is_err());
    let compacted = store.compact(&space()).await.unwrap();
    assert!(Log::of(&lake, "u").active().len() < 5, "{compacted:?}");
    let refused = store.apply(batch(&[("t", numbered(100..101, 2))], vec![])).await.unwrap_err();
    assert!(matches!(refused, StoreError::UnusableTable { .. }), "{refused:?}");
}

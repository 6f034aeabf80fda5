//! Many partitions under live ingest: files are folded by upserts, and one commit of compaction serves many partitions.

use std::collections::{BTreeMap, BTreeSet};

use lake_test_kit::table_file::TableFile;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use super::lake::{Lake, NewRow, batch, new_row, numbered_id, read_all, space, tombstone, versions};
use super::log::Log;
use crate::table_store::delta::{DeletionVectors, DeltaOptions, DeltaTableStore};
use crate::table_store::{SpaceBatch, TableStore};

const PARTITIONS: usize = 300;
const TYPES: [&str; 2] = ["t", "u"];

/// Rows are marked, and more than three tiny files of a partition are folded.
fn folding() -> DeltaOptions {
    DeltaOptions {
        deletion_vectors: DeletionVectors::On,
        partition_by: vec!["month".into(), "supervisor_id".into()],
        small_files_max: 3,
        deleted_share_max: 1.0,
        overlap_max: 1_000,
        ..DeltaOptions::default()
    }
}

/// The same, but each upsert leaves the files that are there alone.
fn piling_up() -> DeltaOptions {
    DeltaOptions { tiny_file_bytes: 0, ..folding() }
}

/// A row in one of the partitions.
fn row(n: usize, version_us: i64, partition: usize) -> NewRow {
    let (month, supervisor) = (format!("2024-{:02}-01", partition % 12 + 1), format!("s{}", partition / 12));
    let text = format!("{n} at {version_us}");
    let cells = [("+month", month.as_str()), ("+supervisor_id", &supervisor), ("/text", &text)];
    new_row(&numbered_id(n), version_us, &cells)
}

/// Numbers of files by partition.
fn files_of(lake: &Lake, document_type: &str) -> BTreeMap<String, usize> {
    let mut files = BTreeMap::new();
    for add in Log::of(lake, document_type).active().values() {
        let [month, supervisor] = ["month", "supervisor_id"].map(|column| &add["partitionValues"][column]);
        *files.entry(format!("{month} {supervisor}")).or_default() += 1;
    }
    files
}

/// What the source says: id to version, type and partition.
type Source = BTreeMap<usize, (i64, usize, usize)>;

async fn assert_equal(lake: &Lake, source: &Source) {
    let read = read_all(lake, &TYPES).await;
    assert_eq!(read.len(), source.len());
    for (n, (version, document_type, partition)) in source {
        let (found_in, found) = &read[&numbered_id(*n)];
        let expected = row(*n, *version, *partition);
        assert_eq!(found_in, TYPES[*document_type], "{n}");
        assert_eq!(found["+_lake_version"], version.to_string(), "{n}");
        for (cell, value) in &expected.cells {
            assert_eq!(found[cell], value.text(), "{n}");
        }
    }
}

/// The same rows once more change nothing: all of them are found.
async fn assert_known(store: &DeltaTableStore, source: &Source) {
    let again = rows_of(source.iter().map(|(n, state)| (*n, *state)));
    assert!(store.apply(batch(&again, vec![])).await.unwrap().tables.is_empty());
}

fn rows_of(rows: impl Iterator<Item = (usize, (i64, usize, usize))>) -> Vec<(&'static str, Vec<NewRow>)> {
    let mut of_type = [Vec::new(), Vec::new()];
    for (n, (version, document_type, partition)) in rows {
        of_type[document_type].push(row(n, version, partition));
    }
    TYPES.into_iter().zip(of_type).filter(|(_, rows)| !rows.is_empty()).collect()
}

/// New rows, changed ones, and a few that are deleted or go to another partition or table.
fn flush(random: &mut StdRng, source: &mut Source, version: i64, rows: usize) -> SpaceBatch {
    let (mut changed, mut gone) = (BTreeSet::new(), Vec::new());
    for _ in 0..rows {
        let n = random.random_range(0..1_500);
        if !changed.insert(n) {
            continue;
        }
        let (_, document_type, partition) = source.get(&n).copied().unwrap_or((0, 0, n % PARTITIONS));
        let state = match random.random_range(0..20) {
            0 | 1 => {
                source.remove(&n);
                gone.push(tombstone(&numbered_id(n), Some(version), version));
                continue;
            }
            2 => (version, 1 - document_type, partition),
            3 => (version, document_type, random.random_range(0..PARTITIONS)),
            _ => (version, document_type, partition),
        };
        source.insert(n, state);
    }
    let here = changed.into_iter().filter_map(|n| Some((n, *source.get(&n)?)));
    batch(&rows_of(here), gone)
}

#[tokio::test]
async fn files_stay_few_in_every_partition_without_compaction() {
    let lake = Lake::new().await;
    let (mut random, mut source) = (StdRng::seed_from_u64(1), Source::new());
    let mut store = lake.open(folding());
    let mut folded = 0;
    for version in 1..=40 {
        let before = Log::of(&lake, "t").folder.exists().then(|| Log::of(&lake, "t").latest());
        store.apply(flush(&mut random, &mut source, version, 60)).await.unwrap();
        let log = Log::of(&lake, "t");
        let most =
            TYPES.iter().filter(|of| lake.table_folder(of).exists()).flat_map(|of| files_of(&lake, of).into_values());
        assert!(most.max().unwrap() <= 3, "after flush {version}");
        for commit in before.map_or(0, |version| version + 1)..=log.latest() {
            let again: BTreeSet<String> =
                log.actions(commit, "add").iter().map(|add| add["path"].as_str().unwrap().to_owned()).collect();
            let removed = log.actions(commit, "remove");
            folded += removed.iter().filter(|remove| !again.contains(remove["path"].as_str().unwrap())).count();
        }
        match version {
            15 => {
                store.close().await;
                store = lake.open(folding());
            }
            25 => {
                drop(store);
                lake.lose_index().await;
                store = lake.open(folding());
            }
            // A crash: the index is that of its last checkpoint.
            35 => {
                drop(store);
                lake.free_index().await;
                store = lake.open(folding());
            }
            _ => {}
        }
    }
    assert!(folded > 300, "{folded} files were folded");
    assert!(Log::of(&lake, "t").deleted_rows() > 0);
    assert_equal(&lake, &source).await;
    assert_known(&store, &source).await;
    assert_known(&lake.open_elsewhere(folding()), &source).await;
}

#[tokio::test]
async fn one_call_compacts_all_partitions_in_few_commits() {
    let lake = Lake::new().await;
    let (mut random, mut source) = (StdRng::seed_from_u64(2), Source::new());
    let store = lake.open(piling_up());
    for version in 1..=5 {
        let rows = (0..PARTITIONS).map(|partition| {
            let n = partition + (version as usize - 1) % 4 * PARTITIONS;
            source.insert(n, (version, 0, partition));
            row(n, version, partition)
        });
        store.apply(batch(&[("t", rows.collect())], vec![])).await.unwrap();
    }
    store.apply(batch(&[], (0..20).map(|n| tombstone(&numbered_id(n + PARTITIONS), None, 9)).collect())).await.unwrap();
    (0..20).for_each(|n| assert!(source.remove(&(n + PARTITIONS)).is_some()));
    assert!(files_of(&lake, "t").values().all(|files| (3..=4).contains(files)));
    let version = Log::of(&lake, "t").latest();
    let compacted = store.compact(&space()).await.unwrap();
    // Twenty partitions have one file less than the others and need nothing.
    assert_eq!((compacted.commits, compacted.files_after, compacted.more), (3, 280, false), "{compacted:?}");
    assert_eq!(Log::of(&lake, "t").latest(), version + 3);
    let files = files_of(&lake, "t");
    assert!(files.len() == PARTITIONS && files.values().all(|files| *files <= 3), "{files:?}");
    assert_equal(&lake, &source).await;
    assert_known(&store, &source).await;
    // Compacted rows change, leave and move like any others, now and after a start.
    for version in 10..13 {
        store.apply(flush(&mut random, &mut source, version, 100)).await.unwrap();
    }
    assert_equal(&lake, &source).await;
    store.close().await;
    drop(store);
    let store = lake.open(folding());
    assert_known(&store, &source).await;
    store.apply(flush(&mut random, &mut source, 20, 200)).await.unwrap();
    drop(store);
    lake.lose_index().await;
    let store = lake.open(folding());
    assert_known(&store, &source).await;
    store.apply(flush(&mut random, &mut source, 21, 200)).await.unwrap();
    assert_equal(&lake, &source).await;
}

#[tokio::test]
async fn jobs_whose_files_are_folded_meanwhile_are_left_out_of_the_commit() {
    let lake = Lake::new().await;
    let mut source = Source::new();
    let store = lake.open(piling_up());
    for version in 1..=4 {
        let numbers = (version as usize - 1) * 60..version as usize * 60;
        source.extend(numbers.clone().map(|n| (n, (version, 0, n % 12))));
        let rows = numbers.map(|n| row(n, version, n % 12)).collect();
        store.apply(batch(&[("t", rows)], vec![])).await.unwrap();
    }
    store.close().await;
    drop(store);
    let (store, gate) = lake.open_gated(folding());
    store.apply(batch(&[], vec![])).await.unwrap();
    let (log, space) = (Log::of(&lake, "t"), space());
    gate.hold_next(TableFile::Data);
    let work = async {
        gate.held().await;
        // Folds partitions 2 and 3 and marks a row of 5; a row goes to another table; a file of 7 leaves with all its rows, and of 9
        // rows do.
        source.extend([(2, (10, 0, 2)), (500, (10, 0, 3)), (5, (10, 0, 2)), (6, (10, 1, 6))]);
        let rows = rows_of([2, 5, 6, 500].into_iter().map(|n| (n, source[&n])));
        let gone: Vec<usize> = (0..60).filter(|n| n % 12 == 7).chain([9, 69, 129]).collect();
        source.retain(|n, _| !gone.contains(n));
        let gone = gone.into_iter().map(|n| tombstone(&numbered_id(n), None, 20)).collect();
        store.apply(batch(&rows, gone)).await.unwrap();
        let version = log.latest();
        gate.release();
        version
    };
    let (compacted, version) = tokio::join!(store.compact(&space), work);
    let compacted = compacted.unwrap();
    assert_eq!((compacted.commits, compacted.files_before, compacted.files_after), (1, 36, 9), "{compacted:?}");
    let adds = log.actions(version + 1, "add");
    let months: BTreeSet<&str> = adds.iter().map(|add| add["partitionValues"]["month"].as_str().unwrap()).collect();
    let expected: Vec<String> =
        (0..12).filter(|n| ![2, 3, 7].contains(n)).map(|n| format!("2024-{:02}-01", n + 1)).collect();
    assert_eq!(months.into_iter().map(str::to_owned).collect::<Vec<_>>(), expected);
    let marked: i64 = adds.iter().filter_map(|add| add["deletionVector"]["cardinality"].as_i64()).sum();
    assert_eq!(marked, 5, "rows that were deleted meanwhile");
    assert_eq!(log.orphans(), BTreeSet::new(), "files of vain jobs stay behind");
    assert_equal(&lake, &source).await;
    assert_known(&store, &source).await;
    drop(store);
    lake.free_index().await;
    let store = lake.open(folding());
    assert_known(&store, &source).await;
    drop(store);
    lake.lose_index().await;
    let store = lake.open(folding());
    assert_known(&store, &source).await;
    let all: Source =
        source.iter().map(|(n, (_, document_type, partition))| (*n, (30, *document_type, *partition))).collect();
    store.apply(batch(&rows_of(all.clone().into_iter()), vec![])).await.unwrap();
    assert_equal(&lake, &all).await;
}

/// The batch that folds a file takes a row of it into another table, before or after.
#[tokio::test]
async fn a_row_of_a_folded_file_goes_to_another_table_with_the_same_batch() {
    for (deletion_vectors, is_first) in
        [DeletionVectors::On, DeletionVectors::Off].into_iter().flat_map(|vectors| [(vectors, false), (vectors, true)])
    {
        let options = || DeltaOptions { deletion_vectors, ..folding() };
        let lake = Lake::new().await;
        let store = lake.open(DeltaOptions { deletion_vectors, ..piling_up() });
        for n in 0..3 {
            let rows = vec![row(n, 1, 1), row(10 + n, 1, 1)];
            store.apply(batch(&[("t", rows), ("u", vec![row(100 + n, 1, 2)])], vec![])).await.unwrap();
        }
        store.close().await;
        drop(store);
        let store = lake.open(options());
        let mut rows = vec![("t", vec![row(20, 2, 1), row(100, 2, 1)]), ("u", vec![row(1, 2, 2), row(0, 2, 2)])];
        if is_first {
            rows.reverse();
        }
        store.apply(batch(&rows, vec![tombstone(&numbered_id(2), None, 9)])).await.unwrap();
        assert_eq!((files_of(&lake, "t").len(), files_of(&lake, "u").len()), (1, 1));
        let mut source = Source::new();
        source.extend([20, 100].map(|n| (n, (2, 0, 1))).into_iter().chain([1, 0].map(|n| (n, (2, 1, 2)))));
        source.extend([10, 11, 12].map(|n| (n, (1, 0, 1))).into_iter().chain([101, 102].map(|n| (n, (1, 1, 2)))));
        assert_equal(&lake, &source).await;
        assert_known(&store, &source).await;
        drop(store);
        lake.free_index().await;
        let store = lake.open(options());
        assert_known(&store, &source).await;
        // And back.
        source.extend([1, 0].map(|n| (n, (3, 0, 1))).into_iter().chain([10, 20].map(|n| (n, (3, 1, 2)))));
        let back = rows_of([0, 1, 10, 20].into_iter().map(|n| (n, source[&n])));
        store.apply(batch(&back, vec![])).await.unwrap();
        assert_equal(&lake, &source).await;
        assert_known(&lake.open_elsewhere(options()), &source).await;
    }
}

#[tokio::test]
async fn one_upsert_folds_only_so_many_files() {
    let lake = Lake::new().await;
    let store = lake.open(piling_up());
    for n in 0..40 {
        store.apply(batch(&[("t", vec![row(n, 1, 0)])], vec![])).await.unwrap();
    }
    for version in 1..=3 {
        let rows = (100..160).map(|n| row(1_000 * version + n, 1, n)).collect();
        store.apply(batch(&[("u", rows)], vec![])).await.unwrap();
    }
    store.close().await;
    drop(store);
    let store = lake.open(folding());
    let files = |applied: crate::table_store::Applied| applied.tables[0].files;
    let one = store.apply(batch(&[("t", vec![row(40, 1, 0)])], vec![])).await.unwrap();
    assert_eq!(files(one), 40 + 1 - 32);
    let two = store.apply(batch(&[("t", vec![row(41, 1, 0)])], vec![])).await.unwrap();
    assert_eq!(files(two), 1);
    // 60 partitions of three: as many as fit into 128 files.
    let many = (100..160).map(|n| row(9_000 + n, 1, n)).collect();
    let many = store.apply(batch(&[("u", many)], vec![])).await.unwrap();
    assert_eq!(files(many), 4 * 60 - 42 * 3);
    let (t, u) = (lake.read("t").await, lake.read("u").await);
    assert_eq!((t.len(), u.len()), (42, 240));
    // What is deleted only is not folded, and files that are not tiny are not either.
    store.apply(batch(&[], vec![tombstone(&numbered_id(0), None, 5)])).await.unwrap();
    assert_eq!((files_of(&lake, "t").into_values().sum::<usize>(), Log::of(&lake, "t").deleted_rows()), (1, 1));
}

#[tokio::test]
async fn an_unpartitioned_table_of_many_flushes_has_few_files() {
    let lake = Lake::new().await;
    let store =
        lake.open(DeltaOptions { partition_by: vec![], small_files_max: 4, tiny_file_bytes: 8_000, ..folding() });
    let large = (0..3_000).map(|n| row(n, 1, n % 12)).collect();
    store.apply(batch(&[("t", large)], vec![])).await.unwrap();
    let log = Log::of(&lake, "t");
    let path = log.active().into_keys().next().unwrap();
    for n in 0..30 {
        let rows = vec![row(n, 2, n), row(5_000 + n, 1, n)];
        let applied = store.apply(batch(&[("t", rows)], vec![])).await.unwrap();
        assert!(applied.tables[0].files <= 5, "flush {n}");
    }
    assert!(log.active().contains_key(&path), "the large file is only marked");
    let read = lake.read("t").await;
    assert_eq!((read.len(), versions(&read).values().filter(|version| **version == 2).count()), (3_030, 30));
}

/// Bounds of the instants in a folded file are those of all its rows.
#[tokio::test]
async fn the_older_of_two_observations_loses_in_a_folded_file() {
    let lake = Lake::new().await;
    let store = lake.open(folding());
    let observed = |n: usize, observed_us: i64| NewRow { observed_us, ..row(n, 1, 1) };
    for (n, observed_us) in [(0, 10), (1, 100), (2, 1_000), (3, 10_000)] {
        store.apply(batch(&[("t", vec![observed(n, observed_us)])], vec![])).await.unwrap();
    }
    assert_eq!(files_of(&lake, "t").into_values().sum::<usize>(), 1);
    let changed = |n: usize, observed_us: i64| {
        let mut row = observed(n, observed_us);
        row.cells.insert("/text".into(), super::lake::Cell::Text("later".into()));
        row
    };
    let rows = vec![changed(0, 50), changed(1, 50), changed(2, 1_001), changed(3, 9)];
    let applied = store.apply(batch(&[("t", rows)], vec![])).await.unwrap();
    assert_eq!(applied.tables[0].rows_upserted, 2);
    let read = lake.read("t").await;
    let texts: Vec<&str> = read.values().map(|row| row["/text"].as_str()).collect();
    assert_eq!(texts, ["later", "1 at 1", "later", "3 at 1"]);
    let removed: Vec<Value> = Log::of(&lake, "t").actions(3, "remove");
    assert_eq!(removed.len(), 3);
}

/// What some partitions have written is deleted when another one fails.
#[tokio::test]
async fn a_batch_that_fails_leaves_no_files() {
    let lake = Lake::new().await;
    let store = lake.open(folding());
    let rows = || (0..40).map(|n| row(n, 1, n)).collect::<Vec<_>>();
    *lake.faults.broken.lock().unwrap() = Some("supervisor_id=s2".to_owned());
    store.apply(batch(&[("t", rows())], vec![])).await.unwrap_err();
    assert!(lake.faults.refused.load(std::sync::atomic::Ordering::Relaxed) > 0);
    assert_eq!(Log::of(&lake, "t").files("parquet").len(), 0);
    *lake.faults.broken.lock().unwrap() = None;
    store.apply(batch(&[("t", rows())], vec![])).await.unwrap();
    assert_eq!(Log::of(&lake, "t").files("parquet").len(), 40);
}

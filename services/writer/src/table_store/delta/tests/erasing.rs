//! Records that are taken out of the tables wholly: no file of any version holds one, no log names one, and none comes back.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use arrow::util::display::{ArrayFormatter, FormatOptions};
use lake_test_kit::waiting::Interrupted;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::compaction::{assert_known, idle};
use super::lake::{Lake, batch, new_row, numbered, numbered_id, space, table, tombstone};
use super::log::Log;
use crate::consent::Consent;
use crate::key_index::id_hash;
use crate::table_store::delta::{DeletionVectors, DeltaOptions, DeltaTableStore};
use crate::table_store::erasure::{Erased, Erasure};
use crate::table_store::{StoreError, TableStore};

/// The least of all ids, so that statistics name it.
const ID: &str = "5ca13e2a-77b0-4e79-81be-64bd76c43a11";

fn erasure(ids: &[&str], operation_id: &str) -> Erasure {
    Erasure {
        space: space(),
        ids: ids.iter().map(|&id| id.to_owned()).collect(),
        asked_by: "ann".into(),
        operation_id: operation_id.into(),
    }
}

/// Plans, then does exactly that.
async fn erase_by_plan(store: &DeltaTableStore, asked: &Erasure) -> Erased {
    let planned = store.erase(asked, &Consent::DryRun).await.unwrap();
    assert!(!planned.done && planned.files_deleted == 0, "{planned:?}");
    let done = store.erase(asked, &Consent::ToPlan(planned.plan.clone())).await.unwrap();
    assert!(done.done && done.plan == planned.plan, "{done:?}");
    assert_eq!((done.rows, done.files_found), (planned.rows, planned.files_found));
    done
}

/// Both ways of replacing rows: rewritten files, and deletion vectors.
fn ways() -> [DeltaOptions; 2] {
    [DeltaOptions { deletion_vectors: DeletionVectors::Off, ..idle() }, idle()]
}

/// All files in a folder.
fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_in(&path)) } else { found.push(path) }
    }
    found
}

/// The files in a folder that name an id: in their bytes or their names, or in any cell of those that are Parquet.
fn naming(folder: &Path, id: &str) -> Vec<PathBuf> {
    let in_bytes = |path: &Path| fs::read(path).unwrap().windows(id.len()).any(|bytes| bytes == id.as_bytes());
    let in_cells = |path: &Path| {
        let file = File::open(path).unwrap();
        let batches = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
        batches.map(Result::unwrap).any(|batch| {
            batch.columns().iter().any(|column| {
                let cells = ArrayFormatter::try_new(column, &FormatOptions::default()).unwrap();
                (0..batch.num_rows()).any(|row| cells.value(row).to_string().contains(id))
            })
        })
    };
    let is_parquet = |path: &Path| path.extension().is_some_and(|extension| extension == "parquet");
    let names =
        |path: &Path| path.to_string_lossy().contains(id) || in_bytes(path) || (is_parquet(path) && in_cells(path));
    files_in(folder).into_iter().filter(|path| names(path)).collect()
}

/// A record with a past: in several files of two tables, hidden and live, in a checkpoint, and with other rows around it.
async fn past(store: &DeltaTableStore) {
    let versions = |version: i64, of: std::ops::Range<usize>| {
        let mut rows = numbered(of, version);
        rows.push(new_row(ID, version, &[("/text", "private")]));
        rows
    };
    store.apply(batch(&[("t", versions(1, 0..10))], vec![])).await.unwrap();
    store.apply(batch(&[("t", versions(2, 8..12))], vec![])).await.unwrap();
    store.checkpoint_table(&table("t")).await.unwrap();
    store.apply(batch(&[("t", numbered(0..3, 3))], vec![])).await.unwrap();
    // It moves to another type, and so leaves the first table.
    store.apply(batch(&[("u", versions(4, 30..34))], vec![tombstone(&numbered_id(9), None, 4)])).await.unwrap();
}

#[tokio::test]
async fn nothing_of_a_record_is_left_in_any_file_of_any_version() {
    for options in ways() {
        let lake = Lake::new().await;
        let store = lake.open(options.clone());
        past(&store).await;
        let (t, mut u) = (lake.read("t").await, lake.read("u").await);
        assert!(u.remove(ID).is_some() && !naming(lake.folder.path(), ID).is_empty());
        let done = erase_by_plan(&store, &erasure(&[ID], "o1")).await;
        assert!(done.files_found >= 3 && done.rows >= 3 && done.files_deleted >= done.rows.min(3), "{done:?}");
        assert_eq!((done.tables, done.logs_renewed, done.log_files_left), (2, 2, 0), "{done:?}");
        assert_eq!(naming(lake.folder.path(), ID), Vec::<PathBuf>::new());
        assert_eq!(naming(lake.index.path(), ID), Vec::<PathBuf>::new());
        assert_eq!((lake.read("t").await, lake.read("u").await), (t, u));
        assert_known(&lake, &store).await;
        let log = Log::of(&lake, "t");
        assert_eq!(log.versions().len(), 1, "the history begins anew: {:?}", log.versions());

        // Whatever comes of it later is taken and not let in; no deletion of it is remembered.
        let before = log.latest();
        let again = batch(&[("t", vec![new_row(ID, 5, &[])]), ("new", vec![new_row(ID, 5, &[])])], vec![]);
        assert!(store.apply(again).await.unwrap().tables.is_empty());
        store.apply(batch(&[], vec![tombstone(ID, None, 6)])).await.unwrap();
        assert!(log.latest() == before && !lake.table_folder("new").exists());
        assert_eq!(lake.metastore.tombstones_of(&space(), &[id_hash(ID)]).await.unwrap(), []);
        store.apply(batch(&[("t", numbered(40..42, 5))], vec![])).await.unwrap();

        // So it is after a start, until it is allowed.
        store.close().await;
        drop(store);
        lake.free_index().await;
        let store = lake.open(options);
        store.apply(batch(&[("t", vec![new_row(ID, 7, &[]), new_row("other", 7, &[])])], vec![])).await.unwrap();
        assert!(!lake.read("t").await.contains_key(ID) && lake.read("t").await.contains_key("other"));
        let hashes = erasure(&[ID], "").hashes();
        assert_eq!(store.allow_records(&space(), &hashes, "bob").await.unwrap(), 1);
        assert_eq!(store.allow_records(&space(), &hashes, "bob").await.unwrap(), 0);
        store.apply(batch(&[("t", vec![new_row(ID, 8, &[])])], vec![])).await.unwrap();
        assert!(lake.read("t").await.contains_key(ID));
        assert_known(&lake, &store).await;
    }
}

/// Its files go, and with them the versions that had them; the log says nothing of it and stays.
#[tokio::test]
async fn a_log_that_does_not_name_a_record_stays_as_it_is() {
    for options in ways() {
        let lake = Lake::new().await;
        let store = lake.open(options);
        let id = numbered_id(5);
        store.apply(batch(&[("t", numbered(20..30, 1))], vec![])).await.unwrap();
        let first = lake.read_at("t", Some(0)).await;
        store.apply(batch(&[("t", numbered(0..10, 1))], vec![])).await.unwrap();
        store.apply(batch(&[("t", numbered(3..8, 2))], vec![])).await.unwrap();
        store.apply(batch(&[], vec![tombstone("never-there", None, 3)])).await.unwrap();
        let mut rows = lake.read("t").await;
        rows.remove(&id).unwrap();
        let done = erase_by_plan(&store, &erasure(&[&id, "never-there", "no-such-id"], "o1")).await;
        assert_eq!((done.records, done.logs_renewed, done.log_files_found, done.tombstones), (3, 0, 0, 1), "{done:?}");
        assert!(done.files_deleted >= 2, "{done:?}");
        assert_eq!(naming(lake.folder.path(), &id), Vec::<PathBuf>::new());
        assert_eq!(lake.read("t").await, rows);
        assert_eq!(lake.metastore.tombstones_of(&space(), &[id_hash("never-there")]).await.unwrap(), []);
        assert!(Log::of(&lake, "t").versions().contains(&0));
        assert_eq!(lake.read_at("t", Some(0)).await, first, "a version that never had it");
        assert_known(&lake, &store).await;
    }
}

#[tokio::test]
async fn a_plan_is_kept_to_and_done_once() {
    let lake = Lake::new().await;
    let store = lake.open(idle());
    past(&store).await;
    let asked = erasure(&[ID], "o1");
    let planned = store.erase(&asked, &Consent::DryRun).await.unwrap();
    assert!(planned.rows >= 3 && planned.bytes > 0 && planned.log_files_found > 0, "{planned:?}");
    let consent = Consent::ToPlan(planned.plan.clone());
    let others = store.erase(&erasure(&[ID, "another"], "o1"), &consent).await.unwrap_err();
    assert!(matches!(others, StoreError::StalePlan { .. }), "the plan is about other records: {others}");
    store.apply(batch(&[("u", vec![new_row(ID, 9, &[])])], vec![])).await.unwrap();
    let stale = store.erase(&asked, &consent).await.unwrap_err();
    assert!(matches!(stale, StoreError::StalePlan { .. }), "{stale}");
    assert!(lake.read("u").await.contains_key(ID), "nothing was done");
    assert_eq!(lake.metastore.kept_out(&space()).await.unwrap(), Vec::<String>::new());
    let done = erase_by_plan(&store, &asked).await;
    // The writer ended before it could say so: whoever comes next keeps to the consent, and finds nothing any more.
    let again = store.erase(&asked, &Consent::ToPlan(done.plan)).await.unwrap();
    assert!(again.done && again.files_found == 0 && again.files_deleted == 0 && again.logs_renewed == 0, "{again:?}");
    // A space that has no table can have erased records, too.
    let empty = Lake::new().await;
    let elsewhere = empty.open(idle());
    assert_eq!(erase_by_plan(&elsewhere, &asked).await.tables, 0);
    elsewhere.apply(batch(&[("t", vec![new_row(ID, 1, &[])])], vec![])).await.unwrap();
    assert!(!empty.table_folder("t").exists());
}

/// A process that ends anywhere has left something that the next one finds.
#[tokio::test]
async fn what_was_interrupted_goes_on() {
    for options in ways() {
        let mut finished = false;
        for polls_left in (0..).step_by(23) {
            let lake = Lake::new().await;
            let store = lake.open(options.clone());
            past(&store).await;
            let mut rows = lake.read("u").await;
            rows.remove(ID);
            let asked = erasure(&[ID], "o1");
            let consent = Consent::ToPlan(store.erase(&asked, &Consent::DryRun).await.unwrap().plan);
            let erasing = store.erase(&asked, &consent);
            let outcome = Interrupted { future: Box::pin(erasing), polls_left }.await;
            finished = outcome.is_some();
            drop(store);
            lake.free_index().await;
            let store = lake.open(options.clone());
            let done = store.erase(&asked, &consent).await.unwrap();
            assert!(done.done, "{polls_left}: {done:?}");
            assert_eq!(naming(lake.folder.path(), ID), Vec::<PathBuf>::new(), "{polls_left}");
            assert_eq!(lake.read("u").await, rows, "{polls_left}");
            assert_eq!(lake.read("t").await.len(), 11, "{polls_left}");
            assert_known(&lake, &store).await;
            if finished {
                break;
            }
        }
        assert!(finished);
    }
}

#[tokio::test]
async fn a_store_that_fails_now_and_then_only_takes_longer() {
    for options in ways() {
        let lake = Lake::new().await;
        let store = lake.open(options);
        past(&store).await;
        let asked = erasure(&[ID], "o1");
        let consent = Consent::ToPlan(store.erase(&asked, &Consent::DryRun).await.unwrap().plan);
        lake.faults.one_in.store(3, Ordering::Relaxed);
        let mut tries = 0;
        while let Err(error) = store.erase(&asked, &consent).await {
            assert!(!matches!(error, StoreError::StalePlan { .. }), "what was begun is gone on with: {error:?}");
            tries += 1;
            assert!(tries < 500, "{error:?}");
        }
        lake.faults.one_in.store(0, Ordering::Relaxed);
        let again = store.erase(&asked, &consent).await.unwrap();
        assert!(again.done && again.files_found == 0, "{again:?}");
        assert_eq!(naming(lake.folder.path(), ID), Vec::<PathBuf>::new());
        assert_known(&lake, &store).await;
    }
}

/// Batches that come while files are read and written are neither lost nor waited for.
#[tokio::test]
async fn batches_go_on_beside_it() {
    let lake = Lake::new().await;
    let store = lake.open(idle());
    past(&store).await;
    let asked = erasure(&[ID], "o1");
    let consent = Consent::ToPlan(store.erase(&asked, &Consent::DryRun).await.unwrap().plan);
    let batches = async {
        for version in 10..20 {
            let rows = vec![new_row(ID, version, &[]), new_row(&numbered_id(31), version, &[])];
            store.apply(batch(&[("t", numbered(0..2, version)), ("u", rows)], vec![])).await.unwrap();
        }
    };
    // A batch may bring the record before it is kept out, so that the plan is stale: then it is planned again.
    let erasing = async {
        match store.erase(&asked, &consent).await {
            Err(StoreError::StalePlan { .. }) => store.erase(&asked, &Consent::Given).await.unwrap(),
            erased => erased.unwrap(),
        }
    };
    let (erased, ()) = tokio::join!(erasing, batches);
    assert!(erased.done);
    assert_eq!(naming(lake.folder.path(), ID), Vec::<PathBuf>::new());
    let rows = lake.read("u").await;
    assert!(!rows.contains_key(ID) && rows[&numbered_id(31)]["+_lake_version"] == "19");
    assert_known(&lake, &store).await;
}

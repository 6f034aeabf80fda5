//! What others do to tables is noticed: by the next commit, by a round of compaction, at the latest by a clean-up.

use std::collections::BTreeSet;
use std::fs;

use super::lake::{Lake, batch, numbered, numbered_id, read_all, space, table, tombstone, versions};
use super::log::Log;
use crate::table_store::TableStore;
use crate::table_store::delta::{DeletionVectors, DeltaOptions, DeltaTableStore};

/// Rows are marked, nothing is compacted.
fn options() -> DeltaOptions {
    DeltaOptions {
        deletion_vectors: DeletionVectors::On,
        small_files_max: 1_000,
        deleted_share_max: 1.0,
        overlap_max: 1_000,
        ..DeltaOptions::default()
    }
}

/// The version and the rows of a table in the metastore.
async fn recorded(lake: &Lake, document_type: &str) -> (Option<i64>, i64) {
    let records = lake.metastore.tables(Some(&space())).await.unwrap();
    let record = records.into_iter().find(|record| record.key == table(document_type)).unwrap();
    (record.state.version, record.state.rows)
}

/// Somebody drops the table and makes another one in its place, in so many commits.
async fn replace(lake: &Lake, commits: usize) {
    fs::remove_dir_all(lake.table_folder("t")).unwrap();
    let other = lake.open_elsewhere(options());
    for n in 0..commits {
        other.apply(batch(&[("t", numbered(10 + n..20, 7 + n as i64))], vec![])).await.unwrap();
    }
}

fn assert_whole(log: &Log) {
    let versions: Vec<u64> = log.versions().into_iter().collect();
    assert_eq!(versions, (0..versions.len() as u64).collect::<Vec<_>>(), "the log has no hole");
}

async fn three_versions(lake: &Lake, deletion_vectors: DeletionVectors) -> DeltaTableStore {
    let store = lake.open(DeltaOptions { deletion_vectors, ..options() });
    for version in 1..4 {
        store.apply(batch(&[("t", numbered(0..8, version))], vec![])).await.unwrap();
    }
    store
}

#[tokio::test]
async fn a_table_made_anew_with_fewer_versions_gets_no_commit_of_the_old_one() {
    for deletion_vectors in [DeletionVectors::On, DeletionVectors::Off] {
        for is_marked in [false, true] {
            let lake = Lake::new().await;
            let store = three_versions(&lake, deletion_vectors).await;
            replace(&lake, 1).await;
            // Rows that replace others of the old table, or none.
            let ids = if is_marked { 4..8 } else { 30..34 };
            let applied = store.apply(batch(&[("t", numbered(ids, 9))], vec![])).await.unwrap();
            assert_eq!((applied.tables[0].version, applied.tables[0].rows_total), (1, 14));
            assert_whole(&Log::of(&lake, "t"));
            assert_eq!(lake.read("t").await.len(), 14);
            assert_eq!(recorded(&lake, "t").await, (Some(1), 14));
        }
    }
}

#[tokio::test]
async fn a_table_made_anew_with_as_many_versions_is_noticed() {
    // By a round of compaction, by the commit after one, by a clean-up.
    for by in ["compaction", "commit", "clean-up"] {
        let lake = Lake::new().await;
        let store = three_versions(&lake, DeletionVectors::On).await;
        if by != "clean-up" {
            store.compact(&space()).await.unwrap();
        }
        replace(&lake, 3).await;
        match by {
            "compaction" => drop(store.compact(&space()).await.unwrap()),
            "commit" => {}
            _ => drop(store.maintain(&space()).await.unwrap()),
        }
        if by != "commit" {
            assert_eq!(recorded(&lake, "t").await.1, 10, "{by}");
        }
        let applied = store.apply(batch(&[("t", numbered(5..13, 8))], vec![])).await.unwrap();
        assert_eq!((applied.tables[0].version, applied.tables[0].rows_total), (3, 15), "{by}");
        let read = lake.read("t").await;
        let held = |n: usize| versions(&read)[numbered_id(n).as_str()];
        assert_eq!((read.len(), held(5), held(11), held(12), held(13)), (15, 8, 8, 9, 9), "{by}");
        assert_whole(&Log::of(&lake, "t"));
    }
}

#[tokio::test]
async fn a_table_that_was_dropped_is_made_anew() {
    for is_idle in [false, true] {
        let lake = Lake::new().await;
        let store = three_versions(&lake, DeletionVectors::On).await;
        fs::remove_dir_all(lake.table_folder("t")).unwrap();
        if is_idle {
            store.compact(&space()).await.unwrap();
            assert_eq!(recorded(&lake, "t").await, (None, 0));
        }
        // What was there is gone, so older rows enter once that is known; who only finds older rows has no reason to look.
        let version = if is_idle { 1 } else { 4 };
        let applied = store.apply(batch(&[("t", numbered(0..4, version))], vec![])).await.unwrap();
        assert_eq!((applied.tables[0].version, applied.tables[0].rows_total), (0, 4));
        assert_whole(&Log::of(&lake, "t"));
        assert_eq!(lake.read("t").await.len(), 4);
    }
}

#[tokio::test]
async fn a_log_that_was_cleaned_up_behind_a_checkpoint_goes_on() {
    let lake = Lake::new().await;
    let store = three_versions(&lake, DeletionVectors::On).await;
    let log = Log::of(&lake, "t");
    cut_behind_a_checkpoint(&lake, &store, &log).await;
    store.compact(&space()).await.unwrap();
    for version in 4..7 {
        let applied = store.apply(batch(&[("t", numbered(2..10, version))], vec![])).await.unwrap();
        assert_eq!((applied.tables[0].version, applied.tables[0].rows_total), (version as u64 - 1, 10));
    }
    assert_eq!(log.versions().into_iter().collect::<Vec<_>>(), [3, 4, 5]);
    assert_eq!(lake.read("t").await.len(), 10);
    store.maintain(&space()).await.unwrap();
}

/// A log without its first entries takes a new first entry that nobody would ever read.
#[tokio::test]
async fn a_table_that_was_away_for_a_moment_goes_on_where_it_was() {
    for is_noticed_again in [false, true] {
        let lake = Lake::new().await;
        let store = three_versions(&lake, DeletionVectors::On).await;
        let log = Log::of(&lake, "t");
        cut_behind_a_checkpoint(&lake, &store, &log).await;
        let mut ids: BTreeSet<String> = lake.read("t").await.into_keys().collect();
        let away = lake.folder.path().join("away");
        fs::rename(&log.folder, &away).unwrap();
        store.compact(&space()).await.unwrap();
        assert_eq!(recorded(&lake, "t").await, (None, 0));
        fs::rename(&away, &log.folder).unwrap();
        if is_noticed_again {
            store.compact(&space()).await.unwrap();
            assert_eq!(recorded(&lake, "t").await, (Some(2), ids.len() as i64));
        }
        ids.extend((5..12).map(numbered_id));
        let applied = store.apply(batch(&[("t", numbered(5..12, 4))], vec![])).await.unwrap();
        assert_eq!((applied.tables[0].version, applied.tables[0].rows_total), (3, ids.len() as u64));
        assert_eq!(log.versions().into_iter().collect::<Vec<_>>(), [3]);
        assert_eq!(lake.read("t").await.into_keys().collect::<BTreeSet<_>>(), ids);
    }
}

/// What the metastore has lost is registered again; when that breaks off half-way, no table is taken for a new one.
#[tokio::test]
async fn lost_records_and_a_failing_store_begin_no_table_again() {
    let lake = Lake::new().await;
    let types = ["t", "u"];
    let rows = |version: i64| types.map(|name| (name, numbered(if name == "t" { 0..10 } else { 20..30 }, version)));
    let store = lake.open(options());
    for version in 1..4 {
        store.apply(batch(&rows(version), vec![])).await.unwrap();
    }
    for name in types {
        cut_behind_a_checkpoint(&lake, &store, &Log::of(&lake, name)).await;
    }
    drop(store);
    lake.forget_tables().await;
    let store = lake.open(options());
    *lake.faults.unreadable.lock().unwrap() = Some("_delta_log".to_owned());
    store.apply(batch(&rows(4), vec![])).await.unwrap_err();
    *lake.faults.unreadable.lock().unwrap() = None;
    let applied = store.apply(batch(&rows(4), vec![])).await.unwrap();
    assert!(applied.tables.iter().all(|table| (table.version, table.rows_total) == (3, 10)), "{applied:?}");
    for name in types {
        assert!(!Log::of(&lake, name).versions().contains(&0), "{name} has begun again");
        assert_eq!(lake.read(name).await.len(), 10);
    }
}

/// The log begins with a checkpoint, as after a clean-up.
async fn cut_behind_a_checkpoint(lake: &Lake, store: &DeltaTableStore, log: &Log) {
    let tables = lake.metastore.tables(Some(&space())).await.unwrap();
    let path = &tables.iter().find(|table| log.folder.ends_with(&table.path)).unwrap().path;
    let mut table = store.access.unloaded(path).unwrap();
    table.load().await.unwrap();
    deltalake::checkpoints::create_checkpoint(&table, None).await.unwrap();
    for version in log.versions() {
        fs::remove_file(log.entry(version)).unwrap();
    }
}

#[tokio::test]
async fn rows_that_somebody_deletes_in_an_idle_table_are_noticed() {
    for by_clean_up in [false, true] {
        let lake = Lake::new().await;
        let store = lake.open(options());
        store.apply(batch(&[("t", numbered(0..20, 1)), ("u", numbered(50..60, 1))], vec![])).await.unwrap();
        let log = Log::of(&lake, "t");
        let path = log.active().into_keys().next().unwrap();
        log.rewrite(&[&path], true, |id| id != numbered_id(7) && id != numbered_id(8)).await;
        assert_eq!(recorded(&lake, "t").await, (Some(0), 20));
        if by_clean_up {
            store.maintain(&space()).await.unwrap();
        } else {
            store.compact(&space()).await.unwrap();
        }
        assert_eq!(recorded(&lake, "t").await, (Some(1), 18));
        // It is gone without a tombstone, so the same version enters again.
        let applied = store.apply(batch(&[("t", numbered(6..8, 1))], vec![])).await.unwrap();
        assert_eq!((applied.tables[0].rows_upserted, applied.tables[0].rows_total), (1, 19));
        assert_eq!(applied.tables[0].version, 2);
        // Nobody else since then: nothing to do.
        store.compact(&space()).await.unwrap();
        assert_eq!(log.latest(), 2);
    }
}

/// Rounds take turns: what lies beyond the first tables of a round is seen by the next.
#[tokio::test]
async fn every_table_has_its_turn() {
    let lake = Lake::new().await;
    let store = lake.open(options());
    let names: Vec<String> = (0..40).map(|n| format!("t{n:02}")).collect();
    let rows: Vec<_> =
        names.iter().enumerate().map(|(n, name)| (name.as_str(), numbered(2 * n..2 * n + 2, 1))).collect();
    store.apply(batch(&rows, vec![])).await.unwrap();
    for name in &names {
        let log = Log::of(&lake, name);
        let path = log.active().into_keys().next().unwrap();
        log.rewrite(&[&path], true, |id| id.bytes().last().unwrap() % 2 == 0).await;
    }
    let seen = async || {
        let records = lake.metastore.tables(Some(&space())).await.unwrap();
        records.iter().filter(|record| record.state.rows == 1).count()
    };
    store.compact(&space()).await.unwrap();
    let first = seen().await;
    assert!((1..40).contains(&first), "{first}");
    store.compact(&space()).await.unwrap();
    assert_eq!(seen().await, 40);
}

#[tokio::test]
async fn deleted_rows_that_a_restore_brings_back_leave_again() {
    for by_batch in [false, true] {
        let lake = Lake::new().await;
        let store = lake.open(options());
        store.apply(batch(&[("t", numbered(0..10, 1)), ("u", numbered(20..22, 1))], vec![])).await.unwrap();
        let gone = vec![tombstone(&numbered_id(3), None, 100), tombstone(&numbered_id(4), Some(1), 100)];
        store.apply(batch(&[], gone)).await.unwrap();
        // One row moves to another table.
        store.apply(batch(&[("u", numbered(5..6, 2))], vec![])).await.unwrap();
        assert_eq!(lake.read("t").await.len(), 7);
        Log::of(&lake, "t").restore(0);
        assert_eq!(lake.read("t").await.len(), 10);
        if by_batch {
            store.apply(batch(&[("t", numbered(0..1, 2))], vec![])).await.unwrap();
        } else {
            store.compact(&space()).await.unwrap();
        }
        let all = read_all(&lake, &["t", "u"]).await;
        assert!(!all.contains_key(&numbered_id(3)) && !all.contains_key(&numbered_id(4)), "by batch {by_batch}");
        assert_eq!((all[&numbered_id(5)].0.as_str(), all.len()), ("u", 10), "by batch {by_batch}");
        assert_eq!(recorded(&lake, "t").await.1, 7, "by batch {by_batch}");
        // They stay deleted.
        let again = batch(&[("t", numbered(3..5, 1))], vec![]);
        assert!(store.apply(again).await.unwrap().tables.is_empty(), "by batch {by_batch}");
    }
}

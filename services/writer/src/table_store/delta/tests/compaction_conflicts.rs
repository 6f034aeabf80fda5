//! Compaction beside commits of other programs.

use std::collections::BTreeSet;

use lake_test_kit::table_file::TableFile;

use super::compaction::{assert_known, files_of_rows, idle, meanwhile, merging};
use super::lake::{Lake, batch, numbered, numbered_id, space, table, tombstone, versions};
use super::log::Log;
use crate::table_store::{Compacted, TableStore};

#[tokio::test]
async fn a_commit_of_somebody_else_makes_a_rewrite_vain() {
    let lake = Lake::new().await;
    let (store, gate) = lake.open_gated(merging());
    files_of_rows(&store, 4, 25).await;
    let (log, other) = (Log::of(&lake, "t"), lake.open_elsewhere(idle()));
    let work = async { other.apply(batch(&[("t", numbered(0..10, 2))], vec![])).await.unwrap() };
    let (_, applied) = meanwhile(&store, &gate, work).await;
    assert_eq!(applied.tables[0].rows_upserted, 10);
    store.apply(batch(&[("t", numbered(5..15, 3))], vec![])).await.unwrap();
    store.compact(&space()).await.unwrap();
    let read = lake.read("t").await;
    let versions = versions(&read);
    assert_eq!(versions.len(), 100);
    assert_eq!([0, 5, 9, 14, 15].map(|n| versions[numbered_id(n).as_str()]), [2, 3, 3, 3, 1]);
    assert_eq!(log.orphans(), BTreeSet::new());
    assert_known(&lake, &store).await;
}

#[tokio::test]
async fn a_commit_of_somebody_else_between_check_and_commit_makes_a_rewrite_vain() {
    let lake = Lake::new().await;
    let (store, gate) = lake.open_gated(merging());
    files_of_rows(&store, 4, 25).await;
    let log = Log::of(&lake, "t");
    gate.hold_next(TableFile::Commit);
    let racing = async {
        gate.held().await;
        let paths = log.active();
        let paths: Vec<&str> = paths.keys().map(String::as_str).collect();
        log.rewrite(&paths, false, |_| true).await;
        gate.release();
    };
    let space = space();
    let (compacted, ()) = tokio::join!(store.compact(&space), racing);
    compacted.unwrap();
    assert_eq!(lake.read("t").await.len(), 100);
    assert_eq!(log.orphans(), BTreeSet::new());
    assert_known(&lake, &store).await;
}

#[tokio::test]
async fn a_requested_compaction_follows_another_program_first() {
    let lake = Lake::new().await;
    let store = lake.open(merging());
    files_of_rows(&store, 4, 25).await;
    let log = Log::of(&lake, "t");
    log.duplicate(log.active().keys().next().unwrap());
    let compacted = store.compact_table(&table("t")).await.unwrap();
    assert_eq!(compacted.commits, 1);
    assert_eq!(lake.read("t").await.len(), 100);
    assert_known(&lake, &store).await;
    assert_eq!(store.compact_table(&table("unknown")).await.unwrap(), Compacted::default());
}

#[tokio::test]
async fn vectors_of_a_rewrite_that_meets_another_commit_are_deleted() {
    let lake = Lake::new().await;
    let (store, gate) = lake.open_gated(merging());
    files_of_rows(&store, 4, 25).await;
    let log = Log::of(&lake, "t");
    gate.hold_next(TableFile::Data);
    let racing = async {
        gate.held().await;
        // So the new file gets a deletion vector when it is committed.
        store.apply(batch(&[], vec![tombstone(&numbered_id(3), None, 9)])).await.unwrap();
        gate.hold_next(TableFile::Commit);
        gate.release();
        gate.held().await;
        assert_eq!(log.orphaned_vectors().len(), 1);
        let active = log.active();
        let paths: Vec<&str> = active.keys().map(String::as_str).collect();
        log.rewrite(&paths, false, |_| true).await;
        gate.release();
    };
    let space = space();
    let (compacted, ()) = tokio::join!(store.compact(&space), racing);
    compacted.unwrap();
    assert_eq!(lake.read("t").await.len(), 99);
    assert_eq!((log.orphans(), log.orphaned_vectors()), (BTreeSet::new(), BTreeSet::new()));
    assert_known(&lake, &store).await;
}

//! Deletion vectors: what an upsert writes, what the log says of it, and what becomes of the vectors.

use std::collections::BTreeMap;

use lake_test_kit::table_file::TableFile;
use serde_json::{Value, json};

use super::lake::{Lake, batch, new_row, numbered, numbered_id, space, table, tombstone, versions};
use super::log::Log;
use crate::table_store::TableStore;
use crate::table_store::delta::{DeletionVectors, DeltaOptions};

/// Every table has deletion vectors, and nothing is compacted.
fn marking() -> DeltaOptions {
    DeltaOptions {
        deletion_vectors: DeletionVectors::On,
        small_files_max: 1_000,
        deleted_share_max: 1.0,
        overlap_max: 1_000,
        ..DeltaOptions::default()
    }
}

fn stats(add: &Value) -> Value {
    serde_json::from_str(add["stats"].as_str().unwrap()).unwrap()
}

#[tokio::test]
async fn an_upsert_adds_one_file_and_marks_what_it_replaces() {
    let lake = Lake::new().await;
    // A table that is above the limit of those that are rewritten.
    let options = DeltaOptions { deletion_vectors: DeletionVectors::Auto, copy_on_write_below_bytes: 0, ..marking() };
    let store = lake.open(options);
    for part in 0..3 {
        store.apply(batch(&[("t", numbered(part * 100..part * 100 + 100, 1))], vec![])).await.unwrap();
    }
    let log = Log::of(&lake, "t");
    let before: BTreeMap<String, Vec<u8>> = log
        .files("parquet")
        .into_iter()
        .map(|path| (path.clone(), std::fs::read(log.folder.join(path)).unwrap()))
        .collect();
    assert_eq!((before.len(), log.files("bin").len(), log.latest()), (3, 0, 2));

    // Rows of all three files, new ones and a deletion.
    let rows = numbered((0..300).step_by(10).chain(300..310), 2);
    let applied = store.apply(batch(&[("t", rows)], vec![tombstone(&numbered_id(7), Some(1), 2)])).await.unwrap();
    assert_eq!((applied.tables[0].rows_upserted, applied.tables[0].rows_deleted), (40, 1));
    assert_eq!((applied.tables[0].rows_total, applied.tables[0].files), (309, 4));
    assert_eq!((log.files("parquet").len(), log.files("bin").len(), log.latest()), (4, 1, 3));
    for (path, bytes) in &before {
        assert_eq!(&std::fs::read(log.folder.join(path)).unwrap(), bytes, "{path} was written again");
    }
    assert_eq!(log.actions(3, "remove").len(), 3);
    assert_eq!(log.actions(3, "add").len(), 4);
    let read = lake.read("t").await;
    assert_eq!(read.len(), 309);
    let is_new = |n: usize| n >= 300 || n.is_multiple_of(10);
    assert!((0..310).all(|n| n == 7 || versions(&read)[numbered_id(n).as_str()] == 1 + i64::from(is_new(n))));
}

#[tokio::test]
async fn the_log_names_the_old_vector_and_the_new_one() {
    let lake = Lake::new().await;
    let store = lake.open(marking());
    store.apply(batch(&[("t", numbered(0..100, 1))], vec![])).await.unwrap();
    let log = Log::of(&lake, "t");
    let first = log.actions(0, "add").remove(0);
    let mut held = Value::Null;
    for (version, ids, cardinality) in [(1, 0..10, 10), (2, 5..20, 20), (3, 90..91, 21)] {
        store.apply(batch(&[("t", numbered(ids, 1 + version))], vec![])).await.unwrap();
        let removed = log.actions(version as u64, "remove");
        let removed = removed.iter().find(|remove| remove["path"] == first["path"]).unwrap();
        assert_eq!(removed["deletionVector"], held, "version {version}");
        let added = log.active().remove(first["path"].as_str().unwrap()).unwrap();
        assert_eq!(added["deletionVector"]["cardinality"], json!(cardinality), "vectors are cumulative");
        assert_eq!((&removed["dataChange"], &added["dataChange"]), (&json!(true), &json!(true)));
        // The statistics are those of all rows, as bounds.
        let (before, after) = (stats(&first), stats(&added));
        assert_eq!(after["tightBounds"], json!(false));
        for which in ["numRecords", "minValues", "maxValues", "nullCount"] {
            assert_eq!(before[which], after[which], "{which}");
        }
        held = added["deletionVector"].clone();
    }
    assert_eq!(stats(&first)["numRecords"], json!(100));
    assert_eq!(stats(&first)["minValues"]["month"], json!("2024-01-01"));
    assert_eq!(stats(&first)["maxValues"]["supervisor_id"], json!("s6"));
    assert_eq!(stats(&first)["minValues"].get("text"), None, "statistics of few columns only");
    assert_eq!(lake.read("t").await.len(), 100);
}

#[tokio::test]
async fn all_vectors_of_a_commit_are_in_one_file() {
    let lake = Lake::new().await;
    let store = lake.open(marking());
    for part in 0..4 {
        store.apply(batch(&[("t", numbered(part * 10..part * 10 + 10, 1))], vec![])).await.unwrap();
    }
    store.apply(batch(&[("t", numbered((0..40).step_by(5), 2))], vec![])).await.unwrap();
    let log = Log::of(&lake, "t");
    let vectors: Vec<Value> = log.active().into_values().map(|add| add["deletionVector"].clone()).collect();
    let vectors: Vec<&Value> = vectors.iter().filter(|vector| !vector.is_null()).collect();
    assert_eq!((vectors.len(), log.files("bin").len()), (4, 1));
    let mut offsets: Vec<i64> = vectors.iter().map(|vector| vector["offset"].as_i64().unwrap()).collect();
    offsets.sort_unstable();
    offsets.dedup();
    assert_eq!((offsets.len(), offsets[0]), (4, 1));
    assert!(vectors.iter().all(|vector| vector["pathOrInlineDv"] == vectors[0]["pathOrInlineDv"]));
    assert_eq!(lake.read("t").await.len(), 40);
}

#[tokio::test]
async fn a_file_whose_rows_are_all_gone_leaves() {
    let lake = Lake::new().await;
    let store = lake.open(marking());
    store.apply(batch(&[("t", numbered(0..10, 1))], vec![])).await.unwrap();
    let log = Log::of(&lake, "t");
    let first = log.active().into_keys().next().unwrap();
    store.apply(batch(&[("t", numbered(0..6, 2))], vec![])).await.unwrap();
    assert_eq!(log.deleted_rows(), 6);
    // The rest of it, part replaced and part deleted.
    let dead = (8..10).map(|n| tombstone(&numbered_id(n), None, 3)).collect();
    let applied = store.apply(batch(&[("t", numbered(6..8, 3))], dead)).await.unwrap();
    assert_eq!((applied.tables[0].rows_total, applied.tables[0].files), (8, 2));
    assert!(!log.active().contains_key(&first));
    assert_eq!((log.deleted_rows(), log.files("bin").len()), (0, 1));
    let removed = log.actions(2, "remove").remove(0);
    assert_eq!(removed["deletionVector"]["cardinality"], json!(6));
    assert_eq!(lake.read("t").await.len(), 8);

    let all = (0..8).map(|n| tombstone(&numbered_id(n), None, 4)).collect();
    let applied = store.apply(batch(&[], all)).await.unwrap();
    assert_eq!((applied.tables[0].rows_total, applied.tables[0].files, applied.tables[0].bytes), (0, 0, 0));
    assert!(log.active().is_empty() && lake.read("t").await.is_empty());
    store.apply(batch(&[("t", numbered(0..1, 5))], vec![])).await.unwrap();
    assert_eq!(lake.read("t").await.len(), 1);
}

#[tokio::test]
async fn redelivery_writes_nothing() {
    let lake = Lake::new().await;
    let batches = || {
        let gone = vec![tombstone(&numbered_id(3), Some(1), 2), tombstone(&numbered_id(60), None, 2)];
        [batch(&[("t", numbered(0..50, 1))], vec![]), batch(&[("t", numbered(10..20, 2))], gone)]
    };
    let store = lake.open(marking());
    for batch in batches() {
        store.apply(batch).await.unwrap();
    }
    let log = Log::of(&lake, "t");
    let files = || (log.files("parquet"), log.files("bin"), log.versions());
    let before = files();
    for batch in batches().into_iter().rev().chain(batches()) {
        assert!(store.apply(batch).await.unwrap().tables.is_empty());
    }
    drop(store);
    let store = lake.open(marking());
    for batch in batches().into_iter().rev().chain(batches()) {
        assert!(store.apply(batch).await.unwrap().tables.is_empty());
    }
    assert_eq!(files(), before);
}

#[tokio::test]
async fn the_feature_comes_with_the_first_vector() {
    let lake = Lake::new().await;
    let store = lake.open(marking());
    let log = Log::of(&lake, "t");
    for part in 0..2 {
        store.apply(batch(&[("t", numbered(part * 10..part * 10 + 10, 1))], vec![])).await.unwrap();
        let protocol = log.newest("protocol");
        assert_eq!((&protocol["minReaderVersion"], &protocol["minWriterVersion"]), (&json!(1), &json!(2)));
        assert_eq!(log.newest("metaData")["configuration"].get("delta.enableDeletionVectors"), None);
    }
    for round in 2..5 {
        store.apply(batch(&[("t", numbered(0..3, round))], vec![])).await.unwrap();
        let protocol = log.newest("protocol");
        assert_eq!((&protocol["minReaderVersion"], &protocol["minWriterVersion"]), (&json!(3), &json!(7)));
        for features in ["readerFeatures", "writerFeatures"] {
            assert!(protocol[features].as_array().unwrap().contains(&json!("deletionVectors")), "{protocol}");
        }
        assert_eq!(log.newest("metaData")["configuration"]["delta.enableDeletionVectors"], json!("true"));
        let said = usize::from(round == 2);
        assert_eq!(
            (log.actions(round as u64, "protocol").len(), log.actions(round as u64, "metaData").len()),
            (said, said)
        );
    }
}

#[tokio::test]
async fn small_tables_stay_free_of_vectors() {
    let lake = Lake::new().await;
    let store = lake.open(DeltaOptions { deletion_vectors: DeletionVectors::Auto, ..marking() });
    store.apply(batch(&[("t", numbered(0..100, 1))], vec![])).await.unwrap();
    for round in 2..6 {
        let gone = vec![tombstone(&numbered_id(50 + round as usize), None, round)];
        store.apply(batch(&[("t", numbered(0..10, round))], gone)).await.unwrap();
    }
    let log = Log::of(&lake, "t");
    assert_eq!((log.files("bin").len(), log.newest("protocol")["minReaderVersion"].clone()), (0, json!(1)));
    assert_eq!(log.newest("metaData")["configuration"].get("delta.enableDeletionVectors"), None);
    assert!(log.active().values().all(|add| add.get("deletionVector").is_none_or(Value::is_null)));
    assert_eq!(lake.read("t").await.len(), 96);
}

/// What may be rewritten in a time bounds it, whatever the size of the table is.
#[tokio::test]
async fn small_tables_that_change_too_often_get_vectors() {
    for (bytes_per_second, vectors) in [(0, true), (1, true), (64 << 20, false)] {
        let lake = Lake::new().await;
        let auto = DeletionVectors::Auto;
        let options =
            DeltaOptions { deletion_vectors: auto, copy_on_write_bytes_per_second: bytes_per_second, ..marking() };
        let store = lake.open(options);
        store.apply(batch(&[("t", numbered(0..100, 1))], vec![])).await.unwrap();
        for round in 2..5 {
            store.apply(batch(&[("t", numbered(0..10, round))], vec![])).await.unwrap();
        }
        let log = Log::of(&lake, "t");
        assert_eq!(!log.files("bin").is_empty(), vectors, "{bytes_per_second} bytes a second");
        // A full budget covers one table of any size.
        let first = log.actions(1, "add").iter().any(|add| add["deletionVector"].is_object());
        assert_eq!(first, bytes_per_second == 0, "{bytes_per_second} bytes a second");
        assert_eq!(lake.read("t").await.len(), 100);
    }
}

#[tokio::test]
async fn vectors_are_switched_off_and_on_again() {
    let lake = Lake::new().await;
    let store = lake.open(marking());
    store.apply(batch(&[("t", numbered(0..100, 1))], vec![])).await.unwrap();
    store.apply(batch(&[("t", numbered(0..2, 2))], vec![])).await.unwrap();
    let log = Log::of(&lake, "t");
    assert_eq!(log.deleted_rows(), 2);
    store.close().await;
    drop(store);

    let off = DeltaOptions { deletion_vectors: DeletionVectors::Off, ..marking() };
    let store = lake.open(off);
    store.apply(batch(&[("t", numbered(100..101, 1))], vec![])).await.unwrap();
    let before = lake.read("t").await;
    assert_eq!(store.compact(&space()).await.unwrap().commits, 1);
    assert_eq!((log.deleted_rows(), lake.read("t").await), (0, before));
    assert_eq!(log.newest("metaData")["configuration"]["delta.enableDeletionVectors"], json!("false"));
    store.apply(batch(&[("t", numbered(3..5, 2))], vec![])).await.unwrap();
    assert_eq!(log.deleted_rows(), 0);
    assert_eq!(store.compact(&space()).await.unwrap().commits, 0);
    store.close().await;
    drop(store);

    let store = lake.open(marking());
    store.apply(batch(&[("t", numbered(50..52, 3))], vec![])).await.unwrap();
    assert_eq!(log.deleted_rows(), 2);
    assert_eq!(log.newest("metaData")["configuration"]["delta.enableDeletionVectors"], json!("true"));
    let read = lake.read("t").await;
    assert_eq!(read.len(), 101);
    let versions = versions(&read);
    let of = |n: usize| versions[numbered_id(n).as_str()];
    assert_eq!(([0, 2, 3, 5, 50, 100].map(of)), [2, 1, 2, 1, 3, 1]);
}

/// What somebody else commits between our plan and our commit.
#[derive(Clone, Copy, Debug)]
enum Foreign {
    Optimize,
    Delete,
    Mark,
    Duplicate,
    Upsert,
}

/// The trap: delta-rs lets a stale commit through when the other one says that it changed no data.
#[tokio::test]
async fn a_commit_of_somebody_else_never_makes_ours_wrong() {
    for deletion_vectors in [DeletionVectors::On, DeletionVectors::Off] {
        for foreign in [Foreign::Optimize, Foreign::Delete, Foreign::Mark, Foreign::Duplicate, Foreign::Upsert] {
            for is_racing in [false, true] {
                met_by(foreign, deletion_vectors, is_racing).await;
            }
        }
    }
}

async fn met_by(foreign: Foreign, deletion_vectors: DeletionVectors, is_racing: bool) {
    let what = format!("{foreign:?}, vectors {deletion_vectors:?}, racing {is_racing}");
    let lake = Lake::new().await;
    let (store, gate) = lake.open_gated(marking());
    store.apply(batch(&[("t", numbered(0..50, 1))], vec![])).await.unwrap();
    store.apply(batch(&[("t", numbered(50..100, 1))], vec![])).await.unwrap();
    // Now the table has the feature and a vector.
    store.apply(batch(&[("t", numbered(0..1, 2))], vec![])).await.unwrap();
    drop((store, gate));
    let (store, gate) = lake.open_gated(DeltaOptions { deletion_vectors, ..marking() });
    store.apply(batch(&[("t", numbered(100..101, 1))], vec![])).await.unwrap();

    let log = Log::of(&lake, "t");
    let interfere = async || {
        let active = log.active();
        let paths: Vec<&str> = active.keys().map(String::as_str).collect();
        let clean = active.iter().find(|(_, add)| add["deletionVector"].is_null() && rows_of(add) > 1);
        let clean = clean.unwrap().0.as_str();
        match foreign {
            Foreign::Optimize => log.rewrite(&paths, false, |_| true).await,
            Foreign::Delete => log.rewrite(&paths, true, |id| id != numbered_id(60)).await,
            Foreign::Mark => log.mark(clean, [1]).await,
            Foreign::Duplicate => log.duplicate(clean),
            Foreign::Upsert => {
                let other = lake.open_elsewhere(marking());
                other.apply(batch(&[("t", numbered(55..57, 7))], vec![])).await.unwrap();
            }
        }
    };
    let ours = || batch(&[("t", numbered((0..100).step_by(7), 5))], vec![tombstone(&numbered_id(99), None, 9)]);
    if is_racing {
        gate.hold_next(TableFile::Commit);
        let racing = async {
            gate.held().await;
            interfere().await;
            gate.release();
        };
        let (applied, ()) = tokio::join!(store.apply(ours()), racing);
        applied.unwrap();
    } else {
        interfere().await;
        store.apply(ours()).await.unwrap();
    }
    let read = lake.read("t").await;
    let gone = matches!(foreign, Foreign::Delete | Foreign::Mark);
    assert_eq!(read.len(), 100 - usize::from(gone), "{what}");
    for (id, version) in versions(&read) {
        let n: usize = id.trim_start_matches("id-").parse().unwrap();
        let theirs = matches!(foreign, Foreign::Upsert) && [55, 56].contains(&n);
        let expected = match n {
            _ if theirs => 7,
            100 => 1,
            _ if n.is_multiple_of(7) => 5,
            _ => 1,
        };
        assert_eq!(version, expected, "{what}: {id}");
    }
    assert!(store.apply(ours()).await.unwrap().tables.is_empty(), "{what}");
    let record = lake.metastore.tables(Some(&table("t").space)).await.unwrap().remove(0);
    assert_eq!(record.state.rows, read.len() as i64, "{what}");
}

fn rows_of(add: &Value) -> i64 {
    stats(add)["numRecords"].as_i64().unwrap()
}

#[tokio::test]
async fn a_row_that_moves_to_another_table_is_marked_in_its_old_one() {
    let lake = Lake::new().await;
    let store = lake.open(marking());
    store.apply(batch(&[("t", numbered(0..20, 1)), ("u", numbered(20..30, 1))], vec![])).await.unwrap();
    let remapped_deletes = vec![new_row(&numbered_id(4), 2, &[]), new_row(&numbered_id(5), 2, &[])];
    store.apply(batch(&[("u", remapped_deletes)], vec![])).await.unwrap();
    assert_eq!((Log::of(&lake, "t").deleted_rows(), Log::of(&lake, "u").deleted_rows()), (2, 0));
    assert_eq!((lake.read("t").await.len(), lake.read("u").await.len()), (18, 12));
    // A late copy of the old row changes nothing.
    store.apply(batch(&[("t", vec![new_row(&numbered_id(4), 1, &[])])], vec![])).await.unwrap();
    assert_eq!((lake.read("t").await.len(), lake.read("u").await.len()), (18, 12));
}

#[tokio::test]
async fn a_commit_that_meets_another_leaves_no_files_behind() {
    let lake = Lake::new().await;
    let (store, gate) = lake.open_gated(marking());
    store.apply(batch(&[("t", numbered(0..20, 1))], vec![])).await.unwrap();
    let log = Log::of(&lake, "t");
    gate.hold_next(TableFile::Commit);
    let racing = async {
        gate.held().await;
        log.commit(Vec::new());
        gate.release();
    };
    let (applied, ()) = tokio::join!(store.apply(batch(&[("t", numbered(0..5, 2))], vec![])), racing);
    assert_eq!(applied.unwrap().tables[0].rows_total, 20);
    assert_eq!((log.latest(), log.orphans().len(), log.files("bin").len()), (2, 0, 1));
    assert_eq!(lake.read("t").await.len(), 20);
}

//! One behaviour each.

use std::path::Path;
use std::sync::atomic::Ordering;

use super::lake::{Cell, Lake, NewRow, batch, new_row, read_all, record_batch, small, space, table, tombstone};
use super::log::Log;
use crate::key_index::id_hash;
use crate::metastore::StoredTombstone;
use crate::order_guard::TombstoneOrder;
use crate::table_store::delta::DeltaOptions;
use crate::table_store::{Applied, SpaceBatch, StoreError, TableRows, TableStore};

fn commits(folder: &Path) -> usize {
    let log = std::fs::read_dir(folder.join("_delta_log")).unwrap();
    log.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|ending| ending == "json")).count()
}

fn data_files(folder: &Path) -> usize {
    let files = std::fs::read_dir(folder).unwrap();
    files.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|ending| ending == "parquet")).count()
}

#[tokio::test]
async fn rows_enter_are_replaced_and_leave() {
    let lake = Lake::new().await;
    let store = lake.open(DeltaOptions::default());
    let rows = vec![new_row("a", 5, &[("/name", "A"), ("/odd name", "x")]), new_row("b", 5, &[("/name", "B")])];
    let applied = store.apply(batch(&[("person", rows)], vec![])).await.unwrap();
    assert_eq!(applied.tables.len(), 1);
    let person = &applied.tables[0];
    assert_eq!((person.version, person.rows_upserted, person.rows_total, person.files), (0, 2, 2, 1));
    assert_eq!((person.newest_published_us, person.newest_fetched_us), (Some(5), None));

    let newer = vec![new_row("a", 6, &[("/name", "A2")]), new_row("b", 4, &[("/name", "old")])];
    let applied = store.apply(batch(&[("person", newer)], vec![tombstone("nobody", None, 1)])).await.unwrap();
    assert_eq!((applied.tables[0].version, applied.tables[0].rows_upserted), (1, 1));
    let read = lake.read("person").await;
    assert_eq!(read["a"]["/name"], "A2");
    assert_eq!(read["a"].get("/odd name"), None);
    assert_eq!(read["b"]["/name"], "B");
    assert!(read["a"].contains_key("+_lake_committed_at"));

    let applied = store.apply(batch(&[], vec![tombstone("a", None, 7), tombstone("b", Some(9), 4)])).await.unwrap();
    assert_eq!((applied.tables[0].rows_deleted, applied.tables[0].rows_total), (1, 1));
    assert_eq!(lake.read("person").await.keys().collect::<Vec<_>>(), ["b"]);

    let late = vec![new_row("a", 7, &[("/name", "late")])];
    assert!(store.apply(batch(&[("person", late)], vec![])).await.unwrap().tables.is_empty());
    let back = vec![new_row("a", 8, &[("/name", "back")])];
    store.apply(batch(&[("person", back)], vec![])).await.unwrap();
    assert_eq!(lake.read("person").await["a"]["/name"], "back");
    // The tombstone of `a` is superseded; that of an id that never was stays.
    let held = lake.metastore.tombstones(&space(), None, 100).await.unwrap();
    assert_eq!(held.iter().map(|tombstone| tombstone.id.as_str()).collect::<Vec<_>>(), ["nobody"]);
    let record = lake.metastore.tables(Some(&space())).await.unwrap().remove(0);
    assert_eq!((record.state.version, record.state.rows, record.state.newest_published_us), (Some(3), 2, Some(8)));
    assert!(record.location.ends_with("/demo.2Espace.2F.2E.2E/case-sql/person"), "{}", record.location);
}

#[tokio::test]
async fn a_batch_that_brings_nothing_new_makes_no_commit() {
    let lake = Lake::new().await;
    let again = || {
        let rows = vec![new_row("a", 5, &[]), new_row("a", 6, &[("/x", "1")]), new_row("c", 6, &[])];
        batch(&[("person", rows)], vec![tombstone("b", None, 5), tombstone("c", Some(7), 1)])
    };
    lake.open(small()).apply(again()).await.unwrap();
    let folder = lake.table_folder("person");
    assert_eq!((commits(&folder), data_files(&folder)), (1, 1));
    let store = lake.open(small());
    for _ in 0..2 {
        assert!(store.apply(again()).await.unwrap().tables.is_empty());
    }
    assert_eq!((commits(&folder), data_files(&folder)), (1, 1));
    assert_eq!(lake.read("person").await["a"]["/x"], "1");
}

#[tokio::test]
async fn an_id_that_changes_its_type_is_in_one_table() {
    let lake = Lake::new().await;
    let store = lake.open(small());
    let one =
        batch(&[("x", vec![new_row("a", 1, &[]), new_row("b", 1, &[])]), ("y", vec![new_row("c", 1, &[])])], vec![]);
    store.apply(one).await.unwrap();
    let swap = batch(&[("y", vec![new_row("a", 2, &[])]), ("x", vec![new_row("c", 2, &[])])], vec![]);
    let Applied { tables } = store.apply(swap).await.unwrap();
    assert_eq!(tables.len(), 2);
    let all = read_all(&lake, &["x", "y"]).await;
    let of = |id: &str| all[id].0.as_str();
    assert_eq!((of("a"), of("b"), of("c"), all.len()), ("y", "x", "x", 3));
    // Back again, and the other table becomes empty.
    store.apply(batch(&[("x", vec![new_row("a", 3, &[])])], vec![])).await.unwrap();
    assert_eq!(read_all(&lake, &["x", "y"]).await.len(), 3);
    assert!(lake.read("y").await.is_empty());
}

#[tokio::test]
async fn a_column_that_cannot_take_a_value_becomes_text_and_nothing_is_lost() {
    let lake = Lake::new().await;
    let store = lake.open(small());
    let number = |id: &str, version, number| NewRow {
        cells: [("/n".to_owned(), Cell::Number(number))].into(),
        ..new_row(id, version, &[])
    };
    store.apply(batch(&[("t", vec![number("a", 1, 12), number("b", 1, -1)])], vec![])).await.unwrap();
    store.apply(batch(&[("t", vec![new_row("c", 1, &[("/n", "7")])])], vec![])).await.unwrap();
    let folder = lake.table_folder("t");
    assert_eq!(data_files(&folder), 2, "a number in a text fits and rewrites nothing");
    store.apply(batch(&[("t", vec![new_row("d", 1, &[("/n", "007")])])], vec![])).await.unwrap();
    store.apply(batch(&[("t", vec![number("e", 1, 3)])], vec![])).await.unwrap();
    let read = lake.read("t").await;
    let values: Vec<_> = read.iter().map(|(id, row)| (id.as_str(), row["/n"].as_str())).collect();
    assert_eq!(values, [("a", "12"), ("b", "-1"), ("c", "7"), ("d", "007"), ("e", "3")]);
}

#[tokio::test]
async fn text_beyond_the_column_limit_is_kept_in_one_column() {
    let lake = Lake::new().await;
    let options = DeltaOptions { columns_max: 8, ..small() };
    let cells: Vec<(String, String)> = (0..9).map(|n| (format!("/p{n}"), format!("v{n}"))).collect();
    let cells: Vec<(&str, &str)> = cells.iter().map(|(source, text)| (source.as_str(), text.as_str())).collect();
    let rows = vec![new_row("a", 1, &cells), new_row("b", 1, &cells[..2])];
    lake.open(options.clone()).apply(batch(&[("t", rows)], vec![])).await.unwrap();
    lake.open(options).apply(batch(&[("t", vec![new_row("c", 1, &cells)])], vec![])).await.unwrap();
    let read = lake.read("t").await;
    for id in ["a", "c"] {
        let overflow: serde_json::Value = serde_json::from_str(&read[id]["+_lake_overflow"]).unwrap();
        for (source, text) in &cells {
            let shown = read[id].get(*source).map(String::as_str).or(overflow[*source].as_str());
            assert_eq!(shown, Some(*text), "{source}");
        }
    }
    assert_eq!(read["b"].get("+_lake_overflow"), None);
}

#[tokio::test]
async fn files_are_folded_split_and_checkpointed() {
    let lake = Lake::new().await;
    let store = lake.open(small());
    for round in 0..70_i64 {
        // One id again and again among new ones: files are rewritten and appended.
        let text = format!("{round:x>40}");
        let rows = (0..12).map(|n| new_row(&format!("{round}-{n}"), 1, &[("/text", &text)]));
        let same = (round % 3 == 0).then(|| new_row("same", round, &[]));
        let rows = rows.chain(same).collect();
        let applied = store.apply(batch(&[("t", rows)], vec![])).await.unwrap();
        let table = &applied.tables[0];
        assert_eq!(table.rows_total, (round as u64 + 1) * 12 + 1);
        assert!(table.files <= 3 + 2 + table.bytes / 8_000, "{} files of {} bytes", table.files, table.bytes);
    }
    let folder = lake.table_folder("t");
    Log::of(&lake, "t").checkpointed(63).await;
    assert_eq!(lake.read("t").await.len(), 70 * 12 + 1);
    assert!(data_files(&folder) >= 70);
    let maintained = store.maintain(&space()).await.unwrap();
    assert!(maintained.files_deleted > 60, "{maintained:?}");
    assert_eq!(lake.read("t").await.len(), 70 * 12 + 1);
    assert_eq!(lake.open(small()).maintain(&space()).await.unwrap().files_deleted, 0);
}

#[tokio::test]
async fn big_tables_consist_of_several_files() {
    let lake = Lake::new().await;
    let store = lake.open(small());
    let text = |n: usize| uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, &n.to_be_bytes()).to_string();
    let rows = (0..40_000).map(|n| new_row(&text(n), 1, &[("/text", &text(n + 1))])).collect();
    let applied = store.apply(batch(&[("t", rows)], vec![])).await.unwrap();
    assert!(applied.tables[0].files > 1);
    // The index knows which file each row is in: replacing one row rewrites one file.
    let files = applied.tables[0].files;
    let applied =
        store.apply(batch(&[("t", vec![new_row(&text(39_999), 2, &[("/text", "new")])])], vec![])).await.unwrap();
    assert_eq!(applied.tables[0].rows_total, 40_000);
    assert!(applied.tables[0].files <= files + 1);
    let read = lake.read("t").await;
    assert_eq!(
        (read.len(), read[&text(39_999)]["/text"].as_str(), read[&text(0)]["/text"].clone()),
        (40_000, "new", text(1))
    );
}

#[tokio::test]
async fn commits_of_somebody_else_are_noticed() {
    let lake = Lake::new().await;
    let (one, other) = (lake.open(small()), lake.open_elsewhere(small()));
    for round in 0..6 {
        let row = |id: &str, version| vec![new_row(id, version, &[("/round", &version.to_string())])];
        one.apply(batch(&[("t", row("both", 2 * round))], vec![])).await.unwrap();
        other.apply(batch(&[("t", row("both", 2 * round + 1)), ("u", row("moves", 2 * round))], vec![])).await.unwrap();
        one.apply(batch(&[("v", row("moves", 2 * round + 1))], vec![])).await.unwrap();
    }
    // `one` has not seen `moves` in `u`: that table was made by the other. A start finds the pair and settles it.
    let fresh = lake.open_elsewhere(small());
    fresh.apply(batch(&[("t", vec![new_row("last", 1, &[])])], vec![])).await.unwrap();
    let all = read_all(&lake, &["t", "u", "v"]).await;
    assert_eq!(all["both"].1["/round"], "11");
    assert_eq!(all["moves"].0, "v");
    assert_eq!(all.len(), 3);
}

#[tokio::test]
async fn rows_that_can_never_be_stored_are_refused() {
    let lake = Lake::new().await;
    let store = lake.open(small());
    let no_id = record_batch(&[new_row("", 1, &[])]);
    let no_version = record_batch(&[new_row("a", 1, &[])]).project(&[0, 3]).unwrap();
    for rows in [no_id, no_version] {
        let upserts = vec![TableRows { document_type: "t".into(), rows: vec![rows] }];
        let error = store.apply(SpaceBatch { space: space(), upserts, tombstones: vec![] }).await.unwrap_err();
        assert!(matches!(error, StoreError::BadRows { .. }), "{error:?}");
    }
    assert!(lake.read("t").await.is_empty());
}

#[tokio::test]
async fn an_answer_that_got_lost_is_looked_up() {
    let lake = Lake::new().await;
    lake.faults.one_in.store(3, Ordering::Relaxed);
    let store = lake.open(small());
    for round in 0..30 {
        let rows = || vec![new_row("a", round, &[]), new_row(&round.to_string(), 1, &[])];
        let tries = async {
            while let Err(error) = store.apply(batch(&[("t", rows())], vec![])).await {
                assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), tries).await.unwrap();
    }
    assert_eq!(lake.read("t").await.len(), 31);
    let record = lake.metastore.tables(Some(&table("t").space)).await.unwrap().remove(0);
    assert_eq!(record.state.rows, 31);
}

/// It is not planned anew: then there would be nothing to do, and nothing to tell.
#[tokio::test]
async fn a_commit_whose_answer_got_lost_is_recognised_as_our_own() {
    let lake = Lake::new().await;
    let (store, gate) = lake.open_gated(small());
    for version in 0..3 {
        gate.loses_commit.store(true, Ordering::Relaxed);
        let applied = store.apply(batch(&[("t", vec![new_row("a", version, &[])])], vec![])).await.unwrap();
        assert!(!gate.loses_commit.load(Ordering::Relaxed));
        assert_eq!((applied.tables[0].version, applied.tables[0].rows_upserted), (version as u64, 1));
    }
}

#[tokio::test]
async fn old_tombstones_are_forgotten() {
    let lake = Lake::new().await;
    let store = lake.open(DeltaOptions { tombstone_retention_hours: 0, ..small() });
    store.apply(batch(&[], vec![tombstone("a", None, 5)])).await.unwrap();
    assert!(store.apply(batch(&[("t", vec![new_row("a", 4, &[])])], vec![])).await.unwrap().tables.is_empty());
    let forgotten = async { while store.maintain(&space()).await.unwrap().tombstones_forgotten == 0 {} };
    tokio::time::timeout(std::time::Duration::from_secs(30), forgotten).await.unwrap();
    assert_eq!(store.apply(batch(&[("t", vec![new_row("a", 4, &[])])], vec![])).await.unwrap().tables.len(), 1);
}

/// The process died between remembering a tombstone and the commit; when it is back, the id comes back in the first batch.
#[tokio::test]
async fn a_row_that_comes_back_is_not_taken_away_by_its_unfinished_deletion() {
    let lake = Lake::new().await;
    let rows = vec![new_row("a", 5, &[("/name", "A")]), new_row("b", 5, &[("/name", "B")])];
    lake.open(DeltaOptions::default()).apply(batch(&[("person", rows)], vec![])).await.unwrap();
    let order = TombstoneOrder { version_us: Some(5), observed_us: 9 };
    let remembered = StoredTombstone { id_hash: id_hash("a"), id: "a".into(), order, reason: String::new() };
    lake.metastore.remember_tombstones(&space(), &[remembered]).await.unwrap();

    let store = lake.open(DeltaOptions::default());
    let back = vec![new_row("a", 10, &[("/name", "back")])];
    store.apply(batch(&[("person", back)], vec![tombstone("a", Some(5), 9)])).await.unwrap();
    // Rewrites the file that the row came in.
    store.apply(batch(&[("person", vec![new_row("b", 6, &[("/name", "B2")])])], vec![])).await.unwrap();
    let read = lake.read("person").await;
    assert_eq!((read["a"]["/name"].as_str(), read["b"]["/name"].as_str()), ("back", "B2"));
}

//! Rows that do not bring all that HQ has: what they lack stays as it was.

use super::lake::{Cell, Lake, NewRow, ReadRow, batch, new_row, read_all, record_batch, small, space, tombstone};
use crate::table_store::delta::{DeletionVectors, DeltaOptions};
use crate::table_store::{SpaceBatch, StoreError, TableRows, TableStore};

/// A form without its answers.
fn incomplete(id: &str, version_us: i64, cells: &[(&str, &str)]) -> NewRow {
    let cells: Vec<_> = cells.iter().copied().chain([("+_lake_incomplete", "form_xml_missing")]).collect();
    new_row(id, version_us, &cells)
}

/// Forms in two tables, some with answers.
fn forms() -> SpaceBatch {
    let visit = vec![
        new_row("a", 1, &[("/state", "1"), ("/edited_on", "x"), ("/form/q", "A"), ("/form/r", "R"), ("+month", "5")]),
        new_row("b", 1, &[("/state", "1"), ("/form/q", "B"), ("+state_id", "s")]),
        new_row("c", 1, &[("/state", "1"), ("/form/q", "C")]),
    ];
    batch(&[("visit", visit), ("other", vec![new_row("d", 1, &[("/form/q", "D")])])], vec![])
}

/// A cell of the row of an id, wherever it stands; empty where there is none.
async fn cell(lake: &Lake, id: &str, source: &str) -> String {
    let all = read_all(lake, &["visit", "other"]).await;
    let row = &all[id].1;
    let overflow: ReadRow =
        row.get("+_lake_overflow").map(|json| serde_json::from_str(json).unwrap()).unwrap_or_default();
    row.get(source).or(overflow.get(source)).cloned().unwrap_or_default()
}

/// Many incomplete rows whose answers are long, as when a second blob store was forgotten, are not completed all at once.
#[tokio::test]
async fn incomplete_rows_are_completed_in_halves_where_their_answers_are_long() {
    let lake = Lake::new().await;
    let store = lake.open(DeltaOptions { deletion_vectors: DeletionVectors::On, ..DeltaOptions::default() });
    let (count, answer) = (200, "x".repeat(400_000));
    let ids: Vec<String> = (0..count).map(|number| format!("f{number}")).collect();
    for ids in ids.chunks(50) {
        let rows = ids.iter().map(|id| new_row(id, 1, &[("/state", "1"), ("/form/q", &answer)])).collect();
        store.apply(batch(&[("visit", rows)], vec![])).await.unwrap();
    }
    let without = |ids: &[String]| {
        let rows = ids.iter().map(|id| incomplete(id, 2, &[("/state", "2")])).collect();
        batch(&[("visit", rows)], vec![])
    };
    // What is refused so is halved until it fits, see ingest.
    let refused = store.apply(without(&ids)).await.unwrap_err();
    assert!(matches!(&refused, StoreError::BadRows { reason, .. } if reason.contains("of memory")), "{refused}");
    for half in ids.chunks(50) {
        store.apply(without(half)).await.unwrap();
    }
    assert_eq!((cell(&lake, "f7", "/state").await, cell(&lake, "f7", "/form/q").await), ("2".to_owned(), answer));
}

async fn check_what_stays(options: DeltaOptions) {
    let lake = Lake::new().await;
    let store = lake.open(options.clone());
    store.apply(forms()).await.unwrap();
    let again = || {
        let visit = vec![
            // Without a value here, and so in HQ.
            incomplete("a", 2, &[("/state", "2"), ("+month", "7")]),
            incomplete("b", 2, &[("/state", "2"), ("/edited_on", "today")]),
            incomplete("new", 2, &[("/state", "1")]),
            // Its type was another one before.
            incomplete("d", 2, &[("/state", "2")]),
        ];
        batch(&[("visit", visit)], vec![tombstone("c", None, 2)])
    };
    store.apply(again()).await.unwrap();
    for (id, state, edited_on, answer) in
        [("a", "2", "", "A"), ("b", "2", "today", "B"), ("d", "2", "", "D"), ("new", "1", "", "")]
    {
        let expected = [
            ("/state", state),
            ("/edited_on", edited_on),
            ("/form/q", answer),
            ("+_lake_incomplete", "form_xml_missing"),
            ("+_lake_version", "2"),
        ];
        for (source, shown) in expected {
            assert_eq!(cell(&lake, id, source).await, shown, "{source} of {id}");
        }
    }
    for (id, source, shown) in [("a", "/form/r", "R"), ("a", "+month", "5"), ("b", "+state_id", "s")] {
        assert_eq!(cell(&lake, id, source).await, shown, "{source} of {id}");
    }
    assert_eq!(lake.read("visit").await.len(), 4);
    assert!(lake.read("other").await.is_empty());
    // Twice changes nothing, also where nothing is in memory any more.
    assert!(store.apply(again()).await.unwrap().tables.is_empty());
    drop(store);
    let store = lake.open(options.clone());
    assert!(store.apply(again()).await.unwrap().tables.is_empty());
    // A second reading without the answers keeps them, too; one with answers replaces everything.
    store.apply(batch(&[("visit", vec![incomplete("a", 3, &[("/state", "3")])])], vec![])).await.unwrap();
    assert_eq!(cell(&lake, "a", "/form/q").await, "A");
    store
        .apply(batch(&[("visit", vec![new_row("a", 4, &[("/state", "4"), ("/form/r", "R2")])])], vec![]))
        .await
        .unwrap();
    for (source, shown) in [("/form/r", "R2"), ("/form/q", ""), ("+_lake_incomplete", ""), ("/state", "4")] {
        assert_eq!(cell(&lake, "a", source).await, shown, "{source}");
    }
}

#[tokio::test]
async fn answers_stay_in_rows_that_are_copied() {
    check_what_stays(small()).await;
}

#[tokio::test]
async fn answers_stay_beside_deletion_vectors() {
    check_what_stays(DeltaOptions { deletion_vectors: DeletionVectors::On, ..small() }).await;
}

#[tokio::test]
async fn answers_stay_that_stand_in_a_partition_or_found_no_column() {
    let partition_by = vec!["month".into(), "state_id".into()];
    check_what_stays(DeltaOptions { partition_by, ..small() }).await;
    check_what_stays(DeltaOptions { columns_max: 9, ..small() }).await;
}

#[tokio::test]
async fn the_answers_of_a_row_in_the_same_batch_stay() {
    let number = NewRow { cells: [("/form/n".to_owned(), Cell::Number(7))].into(), ..new_row("b", 2, &[]) };
    let complete = vec![new_row("a", 2, &[("/form/q", "newer")]), number];
    let incomplete = vec![
        incomplete("a", 3, &[("/state", "3")]),
        incomplete("b", 3, &[]),
        // Older than the complete one: not taken.
        incomplete("b", 1, &[("/state", "0")]),
    ];
    for rows in [vec![&incomplete, &complete], vec![&complete, &incomplete]] {
        let lake = Lake::new().await;
        let store = lake.open(small());
        store.apply(batch(&[("visit", vec![new_row("a", 1, &[("/form/q", "old")])])], vec![])).await.unwrap();
        // The enricher never puts complete and incomplete rows into one message.
        let rows = rows.into_iter().map(|rows| record_batch(rows)).collect();
        let upserts = vec![TableRows { document_type: "visit".into(), rows }];
        store.apply(SpaceBatch { space: space(), upserts, tombstones: Vec::new() }).await.unwrap();
        let read = lake.read("visit").await;
        assert_eq!((read["a"]["/form/q"].as_str(), read["a"]["/state"].as_str()), ("newer", "3"));
        assert_eq!((read["b"]["/form/n"].as_str(), read["b"].get("/state")), ("7", None));
        assert_eq!((read["a"]["+_lake_version"].as_str(), read["b"]["+_lake_version"].as_str()), ("3", "3"));
    }
}

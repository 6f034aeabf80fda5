//! Rows are compared with HQ as readers see them.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use chrono::DateTime;
use lake_shared::comparison::{BucketSums, ComparedDocument, bucket};

use super::lake::{Cell, Lake, NewRow, ReadRow, batch, new_row, numbered_id, space, tombstone};
use crate::table_store::TableStore;
use crate::table_store::compared_rows::{ComparedScope, RowState, WantedRows};
use crate::table_store::delta::{DeletionVectors, DeltaOptions};

const BUCKETS: u32 = 64;

fn options(deletion_vectors: DeletionVectors) -> DeltaOptions {
    DeltaOptions { deletion_vectors, small_files_max: 1_000, deleted_share_max: 1.0, ..DeltaOptions::default() }
}

/// Rows with the times by which cases are compared; some have only the first.
fn rows(ids: std::ops::Range<usize>, version: i64) -> Vec<NewRow> {
    let row = |number: usize| {
        let mut row = new_row(&numbered_id(number), version, &[("/name", "A")]);
        row.cells.insert("/server_modified_on".into(), Cell::Moment(version * 1_000 + number as i64));
        if !number.is_multiple_of(3) {
            row.cells.insert("/modified_on".into(), Cell::Moment(-(number as i64)));
        }
        row
    };
    ids.map(row).collect()
}

fn time(row: &ReadRow, source: &str) -> Option<i64> {
    Some(DateTime::parse_from_rfc3339(row.get(source)?).unwrap().timestamp_micros())
}

/// What a reader sees of some tables, summed up.
async fn seen(lake: &Lake, types: &[&str]) -> BucketSums {
    let mut sums = BucketSums::new(BUCKETS);
    for document_type in types {
        for (id, row) in lake.read(document_type).await {
            let times_us = [time(&row, "/server_modified_on"), time(&row, "/modified_on")];
            sums.add(&ComparedDocument { id: &id, document_type, times_us });
        }
    }
    sums
}

#[tokio::test]
async fn sums_are_those_of_the_rows_that_readers_see() {
    for deletion_vectors in [DeletionVectors::On, DeletionVectors::Off] {
        let lake = Lake::new().await;
        let store = lake.open(options(deletion_vectors));
        let whole = ComparedScope::whole(space());
        assert_eq!(store.bucket_sums(&whole, BUCKETS).await.unwrap().documents(), 0, "there is no table yet");
        store.apply(batch(&[("t", rows(0..300, 1)), ("u", rows(300..400, 1))], vec![])).await.unwrap();
        store.apply(batch(&[("t", rows(100..150, 2))], vec![tombstone(&numbered_id(7), None, 9)])).await.unwrap();
        let sums = store.bucket_sums(&whole, BUCKETS).await.unwrap();
        assert_eq!((&sums, sums.documents()), (&seen(&lake, &["t", "u"]).await, 399));
        let only = ComparedScope { types: Some(BTreeSet::from(["u".into()])), ..whole.clone() };
        assert_eq!(store.bucket_sums(&only, BUCKETS).await.unwrap(), seen(&lake, &["u"]).await);
        let range = ComparedScope { from_id: numbered_id(10), until_id: numbered_id(20), ..whole };
        let ids: BTreeSet<String> = (0..400).map(numbered_id).filter(|id| range.has_id(id)).collect();
        assert_eq!(store.bucket_sums(&range, BUCKETS).await.unwrap().documents(), ids.len() as u64);
    }
}

#[tokio::test]
async fn rows_of_buckets_and_of_ids_are_told_with_their_table() {
    let lake = Lake::new().await;
    let store = lake.open(options(DeletionVectors::On));
    store.apply(batch(&[("t", rows(0..50, 1)), ("u", rows(50..60, 1))], vec![])).await.unwrap();
    store.apply(batch(&[("t", rows(5..6, 2))], vec![tombstone(&numbered_id(6), None, 9)])).await.unwrap();
    let whole = ComparedScope::whole(space());
    let ids: HashSet<String> = [5, 6, 55, 99].map(numbered_id).into();
    let told = store.row_states(&whole, WantedRows::Ids(&ids)).await.unwrap();
    let told: BTreeMap<String, RowState> = told.into_iter().map(|state| (state.id.clone(), state)).collect();
    assert_eq!(told.keys().cloned().collect::<Vec<_>>(), [numbered_id(5), numbered_id(55)]);
    let state = &told[&numbered_id(5)];
    let document = ComparedDocument { id: &state.id, document_type: "t", times_us: [Some(2_005), Some(-5)] };
    assert_eq!((state.fingerprint, state.saved_us), (document.fingerprint(), Some(2_005)));
    assert_eq!(told[&numbered_id(55)].document_type.as_str(), "u");
    let buckets = BTreeSet::from([bucket(&numbered_id(3), BUCKETS)]);
    let told =
        store.row_states(&whole, WantedRows::Buckets { bucket_count: BUCKETS, buckets: &buckets }).await.unwrap();
    assert!(told.iter().any(|state| state.id == numbered_id(3)));
    assert!(told.iter().all(|state| buckets.contains(&bucket(&state.id, BUCKETS))));
}

#[tokio::test]
async fn what_another_program_did_is_seen_after_the_tables_were_followed() {
    let lake = Lake::new().await;
    let store = lake.open(options(DeletionVectors::Off));
    store.apply(batch(&[("t", rows(0..20, 1))], vec![])).await.unwrap();
    // With an index of its own, so that neither knows of the other.
    let index = tempfile::TempDir::new().unwrap();
    let other = lake
        .open_elsewhere(DeltaOptions { index_folder: Some(index.path().to_owned()), ..options(DeletionVectors::Off) });
    other.apply(batch(&[("t", rows(30..31, 1))], vec![tombstone(&numbered_id(4), None, 9)])).await.unwrap();
    store.follow_tables(&space()).await.unwrap();
    let sums = store.bucket_sums(&ComparedScope::whole(space()), BUCKETS).await.unwrap();
    assert_eq!((&sums, sums.documents()), (&seen(&lake, &["t"]).await, 20));
}

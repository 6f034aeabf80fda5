//! The table that tells of all tables.

use deltalake::DeltaTableBuilder;
use url::Url;

use super::lake::{Lake, batch, numbered, space};
use crate::metastore::{RecordedDelays, TableRecord};
use crate::table_store::delta::{DeltaOptions, DeltaTableStore};
use crate::table_store::{STATUS_TABLE, TableStatus, TableStore};

/// Names of its data files that readers open.
async fn active(lake: &Lake) -> (u64, Vec<String>, i64) {
    let url = Url::from_directory_path(lake.folder.path().join(STATUS_TABLE)).unwrap();
    let table = DeltaTableBuilder::from_url(url).unwrap().load().await.unwrap();
    let snapshot = table.snapshot().unwrap();
    let files = snapshot.log_data().iter().map(|view| view.path().into_owned()).collect();
    let rows: usize = snapshot.log_data().iter().filter_map(|view| view.num_records()).sum();
    (snapshot.version(), files, rows as i64)
}

async fn told(store: &DeltaTableStore, records: &[TableRecord]) {
    let rows: Vec<TableStatus> =
        records.iter().map(|record| TableStatus { record: record.clone(), paused: false }).collect();
    store.tell_status(&rows).await.unwrap();
}

#[tokio::test]
async fn it_has_one_row_for_each_table_and_is_cleaned_up() {
    let lake = Lake::new().await;
    let store = lake.open(DeltaOptions { retention_hours: 0, orphan_hours: 1, ..DeltaOptions::default() });
    assert_eq!(store.clean_up_status().await.unwrap().tables, 0, "it is not there yet");
    store.apply(batch(&[("t", numbered(0..5, 1)), ("u", numbered(10..13, 1))], vec![])).await.unwrap();
    let mut records = lake.metastore.tables(Some(&space())).await.unwrap();
    assert!(records[0].state.delays.is_some_and(|delays| delays.rows == 5), "{records:?}");
    told(&store, &records).await;
    assert_eq!(active(&lake).await.2, 2);
    records[0].state.delays = Some(RecordedDelays { p50_us: 1, p95_us: 2, p99_us: 3, rows: 4 });
    told(&store, &records).await;
    told(&store, &records[..1]).await;
    let (version, files, rows) = active(&lake).await;
    assert_eq!((version, files.len(), rows), (2, 1, 1));
    // Another writer goes on with it.
    let other = lake.open_elsewhere(DeltaOptions::default());
    told(&other, &records).await;
    let (version, files, rows) = active(&lake).await;
    assert_eq!((version, files.len(), rows), (3, 1, 2));
    let folder = lake.folder.path().join(STATUS_TABLE);
    let data =
        || std::fs::read_dir(&folder).unwrap().filter(|entry| entry.as_ref().unwrap().path().extension().is_some());
    assert_eq!(data().count(), 4);
    store.clean_up_status().await.unwrap();
    assert_eq!(data().count(), 1, "what is superseded goes");
    assert_eq!(active(&lake).await.1, files);
}

//! A lake that is not where the metastore knows it to be.

use std::fs;

use super::lake::{Lake, batch, numbered, space};
use crate::table_store::TableStore;
use crate::table_store::delta::{DeltaOptions, PresenceError};

#[tokio::test]
async fn a_lake_that_is_not_there_is_refused() {
    let lake = Lake::new().await;
    let store = lake.open(DeltaOptions::default());
    store.ensure_presence().await.unwrap();
    store.apply(batch(&[("t", numbered(0..3, 1)), ("u", numbered(5..8, 1))], vec![])).await.unwrap();
    lake.open_elsewhere(DeltaOptions::default()).ensure_presence().await.unwrap();

    // One of them may have been dropped.
    fs::remove_dir_all(lake.table_folder("t")).unwrap();
    lake.open_elsewhere(DeltaOptions::default()).ensure_presence().await.unwrap();

    // The volume is not mounted.
    let away = lake.folder.path().join("away");
    let of_space = lake.table_folder("u").parent().unwrap().parent().unwrap().to_owned();
    fs::rename(&of_space, &away).unwrap();
    let store = lake.open_elsewhere(DeltaOptions::default());
    let error = store.ensure_presence().await.unwrap_err();
    assert!(matches!(error, PresenceError::Missing { looked_for: 2, known: 2, .. }), "{error:?}");
    let root = lake.folder.path().to_str().unwrap();
    assert!(error.to_string().contains(root) && error.to_string().contains("start_without_tables"), "{error}");
    let willing = lake.open_elsewhere(DeltaOptions { start_without_tables: true, ..DeltaOptions::default() });
    willing.ensure_presence().await.unwrap();

    fs::rename(&away, &of_space).unwrap();
    store.ensure_presence().await.unwrap();
    assert_eq!(lake.read("u").await.len(), 3);
    assert!(store.apply(batch(&[("u", numbered(5..8, 1))], vec![])).await.unwrap().tables.is_empty());
    store.maintain(&space()).await.unwrap();
}

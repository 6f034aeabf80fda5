//! A lake that is not where the metastore knows it to be.

use std::fs;
use std::path::Path;

use lake_shared::error_chain::Chain;

use super::lake::{Lake, batch, numbered, space};
use super::log::Log;
use crate::table_store::TableStore;
use crate::table_store::delta::{DeltaOptions, StartupCheckError};

#[tokio::test]
async fn a_lake_that_is_not_there_is_refused() {
    let lake = Lake::new().await;
    let store = lake.open(DeltaOptions::default());
    store.check_at_startup().await.unwrap();
    store.apply(batch(&[("t", numbered(0..3, 1)), ("u", numbered(5..8, 1))], vec![])).await.unwrap();
    lake.open_elsewhere(DeltaOptions::default()).check_at_startup().await.unwrap();

    // One of them may have been dropped.
    fs::remove_dir_all(lake.table_folder("t")).unwrap();
    lake.open_elsewhere(DeltaOptions::default()).check_at_startup().await.unwrap();

    // The volume is not mounted.
    let away = lake.folder.path().join("away");
    let of_space = lake.table_folder("u").parent().unwrap().parent().unwrap().to_owned();
    fs::rename(&of_space, &away).unwrap();
    let store = lake.open_elsewhere(DeltaOptions::default());
    let error = store.check_at_startup().await.unwrap_err();
    assert!(matches!(error, StartupCheckError::Missing { looked_for: 2, known: 2, .. }), "{error:?}");
    let root = lake.folder.path().to_str().unwrap();
    assert!(error.to_string().contains(root) && error.to_string().contains("start_without_tables"), "{error}");
    let willing = lake.open_elsewhere(DeltaOptions { start_without_tables: true, ..DeltaOptions::default() });
    willing.check_at_startup().await.unwrap();

    fs::rename(&away, &of_space).unwrap();
    store.check_at_startup().await.unwrap();
    assert_eq!(lake.read("u").await.len(), 3);
    assert!(store.apply(batch(&[("u", numbered(5..8, 1))], vec![])).await.unwrap().tables.is_empty());
    store.maintain(&space()).await.unwrap();
}

/// Everything below the root goes elsewhere, as if the volume were not mounted any more, or comes back from there.
fn move_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::rename(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[tokio::test]
async fn a_lake_that_goes_away_later_is_not_made_anew() {
    let lake = Lake::new().await;
    let store = lake.open(DeltaOptions::default());
    store.check_at_startup().await.unwrap();
    store.apply(batch(&[("t", numbered(0..3, 1))], vec![])).await.unwrap();

    let elsewhere = tempfile::tempdir().unwrap();
    move_all(lake.folder.path(), elsewhere.path());
    let known = || batch(&[("t", numbered(2..5, 2))], vec![]);
    let new = || batch(&[("u", numbered(7..9, 1))], vec![]);
    for batch in [known(), new(), known()] {
        let error = Chain(&store.apply(batch).await.unwrap_err()).to_string();
        assert!(error.contains("_lake_root") && error.contains(lake.folder.path().to_str().unwrap()), "{error}");
    }
    for document_type in ["t", "u"] {
        let log = Log::of(&lake, document_type);
        assert!(!log.folder.join("_delta_log").exists(), "no table is made");
        assert!(!log.folder.exists() || log.files("parquet").is_empty(), "nothing is left behind with every try");
    }

    let mount_point = tempfile::tempdir().unwrap();
    move_all(lake.folder.path(), mount_point.path());
    move_all(elsewhere.path(), lake.folder.path());
    store.apply(known()).await.unwrap();
    store.apply(new()).await.unwrap();
    assert_eq!((lake.read("t").await.len(), lake.read("u").await.len()), (5, 2));
    assert_eq!(Log::of(&lake, "t").latest(), 1);

    // Emptied on purpose: a start begins anew, and marks the root again.
    fs::remove_file(lake.folder.path().join("_lake_root")).unwrap();
    fs::remove_dir_all(lake.table_folder("u")).unwrap();
    assert!(store.apply(batch(&[("u", numbered(7..9, 2))], vec![])).await.is_err());
    drop(store);
    let store = lake.open_elsewhere(DeltaOptions::default());
    store.check_at_startup().await.unwrap();
    store.apply(batch(&[("u", numbered(7..9, 2))], vec![])).await.unwrap();
    assert_eq!(lake.read("u").await.len(), 2);
}

#[tokio::test]
async fn a_root_that_cannot_be_marked_is_said_to_be_that() {
    let lake = Lake::new().await;
    let store = lake.open(DeltaOptions::default());
    *lake.faults.broken.lock().unwrap() = Some("_lake_root".into());
    let error = store.check_at_startup().await.unwrap_err();
    assert!(Chain(&error).to_string().contains("cannot mark the root"), "{}", Chain(&error));
    assert!(matches!(error, StartupCheckError::Unmarked(_)), "{error:?}");
}

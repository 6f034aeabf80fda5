//! Tables that are brought back to an earlier version on request, and what comes after.

use super::compaction::{assert_known, idle};
use super::lake::{Cell, Lake, NewRow, batch, new_row, numbered, numbered_id, space, table, tombstone, versions};
use super::log::Log;
use crate::consent::Consent;
use crate::metastore::steering::restore_point::RestorePoint;
use crate::table_store::delta::{DeletionVectors, DeltaOptions, DeltaTableStore};
use crate::table_store::{Restored, StoreError, TableStore};

async fn restored(store: &DeltaTableStore, to: RestorePoint, consent: Consent) -> Result<Restored, StoreError> {
    store.restore_table(&table("t"), to, &consent).await
}

/// Plans, then does exactly that.
async fn restore_by_plan(store: &DeltaTableStore, to: RestorePoint) -> Restored {
    let planned = restored(store, to, Consent::DryRun).await.unwrap();
    assert!(!planned.done);
    let done = restored(store, to, Consent::ToPlan(planned.plan.clone())).await.unwrap();
    assert_eq!(done, Restored { done: true, ..planned });
    done
}

/// Both ways of replacing rows: rewritten files, and deletion vectors.
fn ways() -> [DeltaOptions; 2] {
    [DeltaOptions { deletion_vectors: DeletionVectors::Off, ..idle() }, idle()]
}

#[tokio::test]
async fn a_table_has_the_rows_of_the_version_and_goes_on() {
    for options in ways() {
        let lake = Lake::new().await;
        let store = lake.open(options.clone());
        store.apply(batch(&[("t", numbered(0..10, 1))], vec![])).await.unwrap();
        store.apply(batch(&[("t", numbered(0..4, 2))], vec![])).await.unwrap();
        let then = lake.read("t").await;
        store.apply(batch(&[("t", numbered(2..6, 3))], vec![])).await.unwrap();
        store.apply(batch(&[("t", numbered(20..25, 3))], vec![])).await.unwrap();
        let done = restore_by_plan(&store, RestorePoint::Version(1)).await;
        assert_eq!((done.version, done.rows_before, done.rows_after), (1, 15, 10));
        assert_eq!(lake.read("t").await, then);
        assert_eq!(Log::of(&lake, "t").newest("commitInfo")["operation"], "RESTORE");
        assert_known(&lake, &store).await;
        // What comes from HQ later goes on from there; what was known before is told again by whoever reads it again.
        store.apply(batch(&[("t", numbered(2..6, 3))], vec![])).await.unwrap();
        store.apply(batch(&[("t", numbered(0..1, 4))], vec![])).await.unwrap();
        let rows = lake.read("t").await;
        let now = versions(&rows);
        assert_eq!(
            (now.len(), now[numbered_id(0).as_str()], now[numbered_id(3).as_str()], now[numbered_id(9).as_str()]),
            (10, 4, 3, 1)
        );
        store.close().await;
        drop(store);
        lake.free_index().await;
        let store = lake.open(options);
        assert_known(&lake, &store).await;
    }
}

#[tokio::test]
async fn what_was_deleted_since_then_stays_deleted() {
    for options in ways() {
        let lake = Lake::new().await;
        let store = lake.open(options);
        store.apply(batch(&[("t", numbered(0..10, 1))], vec![])).await.unwrap();
        store.apply(batch(&[], vec![tombstone(&numbered_id(4), Some(2), 2)])).await.unwrap();
        let done = restore_by_plan(&store, RestorePoint::Version(0)).await;
        assert_eq!((done.rows_before, done.rows_after), (9, 10));
        let rows = lake.read("t").await;
        assert!(rows.len() == 9 && !rows.contains_key(&numbered_id(4)), "{:?}", rows.keys());
    }
}

#[tokio::test]
async fn a_plan_is_kept_to_and_done_once() {
    let lake = Lake::new().await;
    let store = lake.open(idle());
    for version in 1..4 {
        store.apply(batch(&[("t", numbered(0..10, version))], vec![])).await.unwrap();
    }
    let planned = restored(&store, RestorePoint::Version(0), Consent::DryRun).await.unwrap();
    store.apply(batch(&[("t", numbered(0..1, 9))], vec![])).await.unwrap();
    let stale = restored(&store, RestorePoint::Version(0), Consent::ToPlan(planned.plan)).await.unwrap_err();
    assert!(matches!(stale, StoreError::StalePlan { .. }), "{stale}");
    assert_eq!(versions(&lake.read("t").await)[numbered_id(0).as_str()], 9, "nothing was done");
    let done = restore_by_plan(&store, RestorePoint::Version(0)).await;
    let log = Log::of(&lake, "t");
    let entries = log.versions();
    // The writer ended before it could say that it was done: the next one finds it so.
    let again = restored(&store, RestorePoint::Version(0), Consent::ToPlan(done.plan)).await.unwrap();
    assert!(again.done && again.is_nothing() && log.versions() == entries);
}

#[tokio::test]
async fn columns_come_back_as_they_were_and_new_ones_come_again() {
    for options in ways() {
        let lake = Lake::new().await;
        let store = lake.open(options);
        let row = |id: &str, version: i64, cells: &[(&str, Cell)]| {
            let cells = cells.iter().map(|(source, cell)| ((*source).to_owned(), cell.clone())).collect();
            NewRow { cells, ..new_row(id, version, &[]) }
        };
        let later = || vec![row("b", 2, &[("/n", Cell::Text("x".into())), ("/new", Cell::Text("y".into()))])];
        store.apply(batch(&[("t", vec![row("a", 1, &[("/n", Cell::Number(1))])])], vec![])).await.unwrap();
        store.apply(batch(&[("t", later())], vec![])).await.unwrap();
        let done = restore_by_plan(&store, RestorePoint::Version(0)).await;
        assert!(done.changes_columns);
        let rows = lake.read("t").await;
        assert_eq!((rows.len(), rows["a"]["/n"].as_str()), (1, "1"));
        assert_eq!(lake.read_at("t", Some(0)).await, rows);
        store.apply(batch(&[("t", later())], vec![])).await.unwrap();
        let rows = lake.read("t").await;
        assert_eq!((rows["a"]["/n"].as_str(), rows["b"]["/n"].as_str(), rows["b"]["/new"].as_str()), ("1", "x", "y"));
    }
}

#[tokio::test]
async fn what_is_gone_cannot_come_back() {
    let lake = Lake::new().await;
    let options =
        DeltaOptions { deletion_vectors: DeletionVectors::Off, retention_hours: 0, orphan_hours: 0, ..idle() };
    let store = lake.open(options);
    let refusal = async |to: RestorePoint| match restored(&store, to, Consent::DryRun).await {
        Err(StoreError::NotRestorable { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    for version in 1..4 {
        store.apply(batch(&[("t", numbered(0..10, version))], vec![])).await.unwrap();
    }
    assert!(refusal(RestorePoint::Version(7)).await.contains("the newest one is 2"));
    assert!(refusal(RestorePoint::Instant { at_us: 1 }).await.contains("no version from then"));
    store.vacuum_table(&table("t"), &Consent::Given).await.unwrap();
    assert!(refusal(RestorePoint::Version(0)).await.contains("deleted"));
    // The present one is there, at any instant since.
    let now = RestorePoint::Instant { at_us: chrono::Utc::now().timestamp_micros() };
    let found = restored(&store, now, Consent::DryRun).await.unwrap();
    assert!(found.version == 2 && found.is_nothing(), "{found:?}");
    let none = store.restore_table(&table("nothing"), now, &Consent::DryRun).await.unwrap_err();
    assert!(matches!(none, StoreError::NotRestorable { .. }), "{none}");
    assert_eq!(store.compact(&space()).await.unwrap().commits, 0);
}

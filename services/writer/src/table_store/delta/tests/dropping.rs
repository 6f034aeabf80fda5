//! Tables that are taken out of the lake on request, and the plan that has to be kept to.

use super::lake::{Lake, batch, new_row, numbered, numbered_id, space, table};
use crate::consent::{Consent, Destroyed};
use crate::metastore::steering::OperationTarget;
use crate::table_store::delta::{DeletionVectors, DeltaOptions, DeltaTableStore};
use crate::table_store::{StoreError, TableStore};

fn of_table(document_type: &str) -> OperationTarget {
    OperationTarget::table(&table(document_type))
}

async fn dropped(store: &DeltaTableStore, target: &OperationTarget, consent: Consent) -> Result<Destroyed, StoreError> {
    store.drop_tables(target, "ann", &consent).await
}

/// Plans, then does exactly that.
async fn drop_by_plan(store: &DeltaTableStore, target: &OperationTarget) -> Destroyed {
    let planned = dropped(store, target, Consent::DryRun).await.unwrap();
    assert!(!planned.done);
    let done = dropped(store, target, Consent::ToPlan(planned.plan.clone())).await.unwrap();
    assert_eq!(done, Destroyed { done: true, ..planned });
    done
}

#[tokio::test]
async fn a_dropped_table_goes_as_it_was_planned_and_is_not_made_anew() {
    let lake = Lake::new().await;
    let store = lake.open(DeltaOptions::default());
    store.apply(batch(&[("t", numbered(0..5, 1)), ("u", numbered(10..13, 1))], vec![])).await.unwrap();
    let stale = dropped(&store, &of_table("t"), Consent::DryRun).await.unwrap();
    assert_eq!((stale.tables, stale.rows, stale.done), (1, 5, false));
    assert!(stale.files >= 2 && stale.bytes > 0);
    store.apply(batch(&[("t", numbered(5..6, 1))], vec![])).await.unwrap();
    let refused = dropped(&store, &of_table("t"), Consent::ToPlan(stale.plan)).await.unwrap_err();
    assert!(matches!(refused, StoreError::StalePlan { .. }), "{refused}");
    assert_eq!(lake.read("t").await.len(), 6, "nothing was done");

    let done = drop_by_plan(&store, &of_table("t")).await;
    assert_eq!((done.tables, done.rows), (1, 6));
    assert!(!lake.table_folder("t").exists());
    let left = lake.metastore.tables(Some(&space())).await.unwrap();
    assert_eq!(left.iter().map(|record| record.key.document_type.as_str()).collect::<Vec<_>>(), ["u"]);

    // Its rows have no place any more; one that was in another table before leaves that one. So it is after a start, too.
    for (store, moved) in [(store, 10), (lake.open(DeltaOptions::default()), 11)] {
        store.apply(batch(&[("t", numbered([0, moved], 2)), ("u", numbered(20..21, 2))], vec![])).await.unwrap();
        assert!(!lake.table_folder("t").exists());
        let rows = lake.read("u").await;
        assert!(!rows.contains_key(&numbered_id(moved)) && rows.contains_key(&numbered_id(20)), "{rows:?}");
        store.close().await;
        drop(store);
        lake.free_index().await;
    }

    let store = lake.open(DeltaOptions::default());
    assert_eq!(store.allow_tables(&of_table("u")).await.unwrap(), 0, "it was not dropped");
    assert_eq!(store.allow_tables(&of_table("t")).await.unwrap(), 1);
    store.apply(batch(&[("t", numbered([0, 30], 3))], vec![])).await.unwrap();
    let rows = lake.read("t").await;
    assert_eq!(rows.keys().map(String::as_str).collect::<Vec<_>>(), [numbered_id(0), numbered_id(30)]);
    assert_eq!(lake.read("u").await.len(), 2, "{:?}", lake.read("u").await);
}

#[tokio::test]
async fn a_dropped_space_takes_no_type_at_all() {
    let lake = Lake::new().await;
    let store = lake.open(DeltaOptions::default());
    store.apply(batch(&[("t", numbered(0..5, 1)), ("u", numbered(10..13, 1))], vec![])).await.unwrap();
    let all = OperationTarget::space(space());
    let done = drop_by_plan(&store, &all).await;
    assert_eq!((done.tables, done.rows), (2, 8));
    store.apply(batch(&[("t", numbered(0..5, 2)), ("new", numbered(20..22, 2))], vec![])).await.unwrap();
    assert_eq!(lake.metastore.tables(Some(&space())).await.unwrap(), []);
    assert_eq!(store.allow_tables(&all).await.unwrap(), 3, "the space and its two tables");
    store.apply(batch(&[("t", numbered(0..5, 3))], vec![])).await.unwrap();
    assert_eq!(lake.read("t").await.len(), 5);
}

/// A process that ended in the middle has put the marks; whoever comes next finishes it, although the plan is not the same any more.
#[tokio::test]
async fn what_was_interrupted_goes_on() {
    let lake = Lake::new().await;
    let store = lake.open(DeltaOptions::default());
    store.apply(batch(&[("t", vec![new_row("a", 1, &[])])], vec![])).await.unwrap();
    lake.metastore.drop_tables(&of_table("t"), "ann").await.unwrap();
    assert_eq!(store.allow_tables(&of_table("t")).await.unwrap(), 0, "its files are still there");
    let planned = dropped(&store, &of_table("t"), Consent::DryRun).await.unwrap();
    assert!(!planned.done && planned.files > 0 && lake.table_folder("t").exists());
    let done = dropped(&store, &of_table("t"), Consent::ToPlan("another".into())).await.unwrap();
    assert!(done.done && !lake.table_folder("t").exists());
    let again = dropped(&store, &of_table("t"), Consent::ToPlan("another".into())).await.unwrap();
    assert_eq!((again.done, again.files), (true, 0), "it was done, which nobody has been told");
    assert!(lake.metastore.dropped(None).await.unwrap().iter().all(|record| record.files_gone));
}

#[tokio::test]
async fn one_table_is_vacuumed_as_it_was_planned() {
    let lake = Lake::new().await;
    // Small tables are rewritten, and what is superseded may go at once.
    let options = DeltaOptions {
        deletion_vectors: DeletionVectors::Off,
        retention_hours: 0,
        orphan_hours: 0,
        ..DeltaOptions::default()
    };
    let store = lake.open(options);
    for version in 1..4 {
        let tables = [("t", numbered(0..5, version)), ("u", numbered(5..10, version))];
        store.apply(batch(&tables, vec![])).await.unwrap();
    }
    let files = |of: &str| std::fs::read_dir(lake.table_folder(of)).unwrap().count();
    let before = (files("t"), files("u"));
    let planned = store.vacuum_table(&table("t"), &Consent::DryRun).await.unwrap();
    assert!(planned.files >= 2 && planned.bytes > 0 && !planned.done, "{planned:?}");
    assert_eq!((files("t"), files("u")), before);
    let stale = store.vacuum_table(&table("t"), &Consent::ToPlan("another".into())).await.unwrap_err();
    assert!(matches!(stale, StoreError::StalePlan { .. }));
    let done = store.vacuum_table(&table("t"), &Consent::ToPlan(planned.plan.clone())).await.unwrap();
    assert_eq!(done, Destroyed { done: true, ..planned });
    assert!(files("t") < before.0 && files("u") == before.1);
    assert_eq!(lake.read("t").await.len(), 5);
    assert_eq!(store.vacuum_table(&table("t"), &Consent::Given).await.unwrap().files, 0);
    assert_eq!(store.checkpoint_table(&table("t")).await.unwrap(), Some(2));
    assert!(lake.table_folder("t").join("_delta_log/_last_checkpoint").exists());
    assert_eq!(store.checkpoint_table(&table("nothing")).await.unwrap(), None);
}

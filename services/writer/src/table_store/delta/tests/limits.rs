//! Limits on what one project can make: types, and tombstones.

use std::collections::BTreeSet;

use lake_shared::escaped_names;
use lake_shared::identity::TableKey;

use super::clean_space;
use super::lake::{Lake, NewRow, batch, new_row, numbered_id, small, space, table, tombstone};
use crate::metastore::NewTable;
use crate::table_store::delta::{DeltaOptions, DeltaTableStore};
use crate::table_store::{SpaceBatch, StoreError, TableStore};

/// A row of its own for each of these types.
fn one_each(types: &[String]) -> SpaceBatch {
    let row = |n| vec![new_row(&numbered_id(n), 1, &[])];
    let rows: Vec<(&str, Vec<NewRow>)> = types.iter().enumerate().map(|(n, name)| (name.as_str(), row(n))).collect();
    batch(&rows, vec![])
}

async fn refused(store: &DeltaTableStore, types: &[String]) -> Vec<String> {
    match store.apply(one_each(types)).await {
        Err(StoreError::TooManyTypes { types_max: 10_000, refused, .. }) => {
            refused.iter().map(|name| name.as_str().to_owned()).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// Ten of the twenty thousand get tables by a batch; nearly ten thousand are registered without one, which costs no files.
#[tokio::test]
async fn a_project_with_twenty_thousand_types_has_as_many_tables_as_it_may() {
    let lake = Lake::new().await;
    let types: Vec<String> = (0..20_000).map(|n| format!("type {n}")).collect();
    let new = |name: &String| {
        let key: TableKey = table(name);
        let path = escaped_names::table_path(&key);
        NewTable { location: format!("file:///lake/{path}"), path, suffix: String::new(), key }
    };
    let registered: Vec<NewTable> = types[10..10_000].iter().map(new).collect();
    lake.metastore.register_tables(&registered).await.unwrap();
    let store = lake.open(DeltaOptions::default());

    // Nothing of the batch is applied or registered, and what is too much is named, whatever stands where.
    let first: Vec<String> = types[10_000..].iter().chain(&types[..10]).cloned().collect();
    assert_eq!(refused(&store, &first).await, first[10..]);
    assert_eq!(refused(&store, &types).await, types[10_000..]);
    assert_eq!(lake.metastore.tables(Some(&space())).await.unwrap().len(), 9_990);

    // Without them the others are: those that are new and one that is registered.
    store.apply(one_each(&types[..11])).await.unwrap();
    assert_eq!(refused(&store, &types[9_999..10_002]).await, types[10_000..10_002]);
    let known = lake.metastore.tables(Some(&space())).await.unwrap();
    let known: BTreeSet<&str> = known.iter().map(|record| record.key.document_type.as_str()).collect();
    assert_eq!(known, types[..10_000].iter().map(String::as_str).collect());
    assert_eq!(lake.read(&types[3]).await.len(), 1);
    // Rows of a project with fewer types are not concerned.
    let mut other = one_each(&types[..3]);
    other.space.domain = "another".into();
    store.apply(other).await.unwrap();
}

#[tokio::test]
async fn the_oldest_deletions_are_forgotten_beyond_a_number() {
    let lake = Lake::new().await;
    let store = lake.open(DeltaOptions { tombstones_max: 3, ..small() });
    for part in [[5, 1, 4], [3, 2, 0]] {
        let gone = part.map(|n| tombstone(&numbered_id(n), Some(9), 9));
        store.apply(batch(&[("t", vec![new_row("stays", 1, &[])])], gone.into())).await.unwrap();
        // SQLite tells milliseconds.
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(clean_space(&store).await.unwrap().tombstones_forgotten, 3);
    let left = lake.metastore.tombstones(&space(), None, 10).await.unwrap();
    assert_eq!(
        left.iter().map(|tombstone| &*tombstone.id).collect::<BTreeSet<_>>(),
        [0, 2, 3].map(numbered_id).iter().map(String::as_str).collect()
    );
    assert_eq!(clean_space(&store).await.unwrap().tombstones_forgotten, 0);
}

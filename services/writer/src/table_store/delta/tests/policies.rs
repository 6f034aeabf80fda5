//! What operators say about single tables, while the engine runs.

use std::collections::HashMap;

use lake_shared::escaped_names;

use super::compaction::{files_of_rows, merging};
use super::lake::{Lake, batch, numbered, space, table};
use super::log::Log;
use crate::metastore::steering::table_policy::{DeletionVectors, TablePolicy};
use crate::table_store::delta::{DeltaOptions, DeltaTableStore};
use crate::table_store::{PlannedCompaction, TableStore};

/// Says something about the table of the type `t`.
fn say(options: &DeltaOptions, policy: TablePolicy) {
    options.policies.replace(HashMap::from([(escaped_names::table_name(&table("t")), policy)]));
}

async fn deletion_vectors(store: &DeltaTableStore, lake: &Lake) -> u64 {
    let key = table("t");
    assert_eq!(lake.read("t").await.len(), 60);
    store.describe(&key).await.unwrap().files_with_deletion_vectors
}

#[tokio::test]
async fn rounds_of_compaction_leave_a_table_out_until_they_may_take_it_in() {
    let lake = Lake::new().await;
    let options = merging();
    let store = lake.open(options.clone());
    files_of_rows(&store, 6, 10).await;
    say(&options, TablePolicy { compaction: Some(false), ..TablePolicy::default() });
    assert_eq!(store.compact(&space()).await.unwrap().commits, 0);
    assert_eq!(Log::of(&lake, "t").active().len(), 6);
    // One that is asked for is done all the same.
    let key = table("t");
    assert_eq!(store.compact_table(&key).await.unwrap().files_before, 6);
    for part in 0..6 {
        store.apply(batch(&[("t", numbered(60 + part * 10..70 + part * 10, 1))], vec![])).await.unwrap();
    }
    assert_eq!(store.compact(&space()).await.unwrap().commits, 0);
    options.policies.replace(HashMap::new());
    assert!(store.compact(&space()).await.unwrap().commits > 0);
}

#[tokio::test]
async fn deletion_vectors_are_purged_where_they_are_switched_off() {
    let lake = Lake::new().await;
    let options = merging();
    let store = lake.open(options.clone());
    store.apply(batch(&[("t", numbered(0..60, 1))], vec![])).await.unwrap();
    store.apply(batch(&[("t", numbered(0..2, 2))], vec![])).await.unwrap();
    assert_eq!(store.compact(&space()).await.unwrap().commits, 0, "there is nothing to do for the policy of before");
    assert_eq!(deletion_vectors(&store, &lake).await, 1);
    say(&options, TablePolicy { deletion_vectors: Some(DeletionVectors::Off), ..TablePolicy::default() });
    assert!(store.compact(&space()).await.unwrap().commits > 0);
    assert_eq!(deletion_vectors(&store, &lake).await, 0);
    store.apply(batch(&[("t", numbered(0..2, 3))], vec![])).await.unwrap();
    assert_eq!(deletion_vectors(&store, &lake).await, 0, "files are rewritten instead");
}

#[tokio::test]
async fn the_properties_of_a_table_follow_its_retention() {
    let lake = Lake::new().await;
    let options = merging();
    let store = lake.open(options.clone());
    store.apply(batch(&[("t", numbered(0..60, 1))], vec![])).await.unwrap();
    let log = Log::of(&lake, "t");
    let retention = || log.newest("metaData")["configuration"]["delta.deletedFileRetentionDuration"].clone();
    // The log speaks of removed files for a day longer.
    assert_eq!(retention(), "interval 72 hours");
    say(&options, TablePolicy { retention_hours: Some(7), ..TablePolicy::default() });
    store.apply(batch(&[("t", numbered(0..60, 2))], vec![])).await.unwrap();
    assert_eq!(retention(), "interval 31 hours");
}

#[tokio::test]
async fn a_compaction_is_planned_without_being_done() {
    let lake = Lake::new().await;
    let store = lake.open(merging());
    let key = table("t");
    assert_eq!(store.plan_compaction(&key).await.unwrap(), PlannedCompaction::default(), "there is no such table");
    files_of_rows(&store, 6, 10).await;
    let planned = store.plan_compaction(&key).await.unwrap();
    assert!(planned.jobs == 1 && planned.files == 6 && planned.bytes > 0, "{planned:?}");
    assert_eq!(store.plan_compaction(&key).await.unwrap(), planned, "nothing was done");
    store.apply(batch(&[("t", numbered(60..70, 1))], vec![])).await.unwrap();
    assert_ne!(store.plan_compaction(&key).await.unwrap().plan, planned.plan);
    assert_eq!(store.compact_table(&key).await.unwrap().files_before, 7);
    assert_eq!(store.plan_compaction(&key).await.unwrap().jobs, 0);
}

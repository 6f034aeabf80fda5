//! A program that puts log entries without a condition, as Spark does on S3 unless it is told otherwise, and so overwrites a commit of the lake.

use std::collections::BTreeMap;

use serde_json::json;

use super::lake::{Lake, batch, numbered, numbered_id, space, tombstone, versions};
use super::log::Log;
use crate::table_store::TableStore;
use crate::table_store::delta::{DeletionVectors, DeltaOptions};

/// Puts an entry that changes nothing in place of the last one.
fn overwrite(log: &Log) {
    let foreign = json!({"commitInfo": {"timestamp": 1, "operation": "SET TBLPROPERTIES", "engineInfo": "Apache-Spark/3.5 Delta-Lake/3.3"}});
    std::fs::write(log.entry(log.latest()), format!("{foreign}\n")).unwrap();
}

#[tokio::test]
async fn a_commit_that_another_program_overwrites_is_made_again() {
    for deletion_vectors in [DeletionVectors::On, DeletionVectors::Off] {
        for partition_by in [vec![], vec!["month".to_owned(), "supervisor_id".to_owned()]] {
            for is_noticed_by_batch in [true, false] {
                let options =
                    DeltaOptions { deletion_vectors, partition_by: partition_by.clone(), ..DeltaOptions::default() };
                let what = format!("{deletion_vectors:?}, {partition_by:?}, by a batch: {is_noticed_by_batch}");
                let lake = Lake::new().await;
                let store = lake.open(options);
                store.apply(batch(&[("t", numbered(0..20, 1))], vec![])).await.unwrap();
                let gone = vec![tombstone(&numbered_id(3), None, 9)];
                store.apply(batch(&[("t", numbered(10..30, 2))], gone)).await.unwrap();
                overwrite(&Log::of(&lake, "t"));
                assert_eq!(lake.read("t").await.len(), 20, "{what}: readers see what the other program made of it");

                let mut wanted: BTreeMap<String, i64> =
                    (0..30).filter(|n| *n != 3).map(|n| (numbered_id(n), if n < 10 { 1 } else { 2 })).collect();
                if is_noticed_by_batch {
                    store.apply(batch(&[("t", numbered(100..101, 5))], vec![])).await.unwrap();
                    wanted.insert(numbered_id(100), 5);
                } else {
                    store.compact(&space()).await.unwrap();
                }
                let read = lake.read("t").await;
                let held: BTreeMap<String, i64> =
                    versions(&read).into_iter().map(|(id, version)| (id.to_owned(), version)).collect();
                assert_eq!(held, wanted, "{what}");
                assert!(read.values().all(|row| row.contains_key("/text") && row.contains_key("+month")), "{what}");
                // The index knows where they are.
                store.apply(batch(&[("t", numbered(12..14, 7))], vec![])).await.unwrap();
                let read = lake.read("t").await;
                assert_eq!((versions(&read)[numbered_id(12).as_str()], read.len()), (7, wanted.len()), "{what}");
            }
        }
    }
}

//! Two writers on one lake: one that held the lease and goes on late, and its successor.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use lake_test_kit::table_file::TableFile;

use super::lake::{Lake, batch, new_row, space, tombstone};
use super::log::Log;
use crate::boot_clock::BootInstant;
use crate::metastore::MetastoreError;
use crate::metastore::fence::{Fence, LeaseLost};
use crate::table_store::delta::{DeletionVectors, DeltaOptions, DeltaTableStore};
use crate::table_store::{StoreError, TableStore};

const NAME: &str = "writer";

/// Rows are marked, nothing is compacted.
fn options() -> DeltaOptions {
    DeltaOptions { deletion_vectors: DeletionVectors::On, small_files_max: 1_000, ..DeltaOptions::default() }
}

/// A writer takes the lease, which runs out at once so that the next one need not wait. By its own clock it has an hour, unless a test says
/// that it was suspended meanwhile.
async fn take_lease(lake: &Lake, owner: &str) -> Fence {
    let taking = async {
        loop {
            if let Some(lease) = lake.metastore.acquire_lease(NAME, owner, "", 1).await.unwrap() {
                return Fence::new(&lease, BootInstant::now().plus(Duration::from_secs(3_600)));
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), taking).await.unwrap()
}

/// A writer with the rows `a` and `b` in the table `t`.
async fn first_writer(lake: &Lake) -> (Fence, Arc<DeltaTableStore>, Arc<lake_test_kit::gate::Gate>) {
    let fence = take_lease(lake, "first").await;
    let (store, gate) = lake.open_under(&fence, options());
    let rows = vec![new_row("a", 1, &[("/x", "1")]), new_row("b", 1, &[("/x", "1")])];
    store.apply(batch(&[("t", rows)], vec![])).await.unwrap();
    (fence, Arc::new(store), gate)
}

/// Whether a batch was refused for the reason that the lease is lost.
fn is_lease_lost(outcome: Result<crate::table_store::Applied, StoreError>) -> bool {
    let error = outcome.unwrap_err();
    let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(error) = cause {
        if error.is::<LeaseLost>() || error.downcast_ref().is_some_and(MetastoreError::is_lease_lost) {
            return true;
        }
        cause = error.source();
    }
    false
}

async fn values(lake: &Lake, document_type: &str) -> Vec<(String, Option<String>)> {
    let rows = lake.read(document_type).await;
    rows.into_iter().map(|(id, mut row)| (id, row.remove("/x"))).collect()
}

fn value(id: &str, x: &str) -> (String, Option<String>) {
    (id.to_owned(), Some(x.to_owned()))
}

/// It was suspended before its commit, and goes on after its successor has committed.
#[tokio::test]
async fn a_writer_that_was_suspended_commits_nothing_afterwards() {
    let lake = Lake::new().await;
    let log = Log::of(&lake, "t");
    let (fence, first, gate) = first_writer(&lake).await;
    gate.hold_next(TableFile::Commit);
    let late = {
        let first = Arc::clone(&first);
        let late = batch(&[("t", vec![new_row("c", 2, &[("/x", "late")])])], vec![]);
        tokio::spawn(async move { first.apply(late).await })
    };
    gate.held().await;
    let (second, _) = lake.open_under(&take_lease(&lake, "second").await, options());
    let rows = || vec![new_row("c", 3, &[("/x", "3")])];
    second.apply(batch(&[("t", rows())], vec![tombstone("a", None, 9)])).await.unwrap();
    let versions = log.versions().len();
    // Its machine wakes up: the commit that was under way meets that of its successor, and there is no other one.
    fence.extend(BootInstant::now());
    gate.release();
    assert!(is_lease_lost(late.await.unwrap()));
    assert!(is_lease_lost(first.apply(batch(&[("new", rows())], vec![])).await));
    assert_eq!((log.versions().len(), lake.table_folder("new").join("_delta_log").exists()), (versions, false));
    assert_eq!(values(&lake, "t").await, [value("b", "1"), value("c", "3")]);
    let records = lake.metastore.tables(Some(&space())).await.unwrap();
    assert_eq!((records.len(), records[0].state.rows), (1, 2), "it registers nothing either");
}

/// It does not know by its clock that its lease is lost, so a commit under way succeeds: the metastore refuses what comes after it.
#[tokio::test]
async fn the_late_commit_of_a_predecessor_is_met_and_nothing_follows_it() {
    let lake = Lake::new().await;
    let (fence, first, gate) = first_writer(&lake).await;
    gate.hold_next(TableFile::Commit);
    let late = {
        let first = Arc::clone(&first);
        let rows = vec![new_row("b", 5, &[("/x", "5")]), new_row("c", 5, &[("/x", "5")])];
        let late = batch(&[("t", rows)], vec![tombstone("a", None, 5)]);
        tokio::spawn(async move { first.apply(late).await })
    };
    gate.held().await;
    // It has loaded the space, with the table as it is.
    let (second, _) = lake.open_under(&take_lease(&lake, "second").await, options());
    second.apply(batch(&[("u", vec![new_row("z", 1, &[("/x", "1")])])], vec![])).await.unwrap();
    gate.release();
    assert!(is_lease_lost(late.await.unwrap()), "what it committed is not recorded");
    assert!(fence.check().is_err());
    assert!(is_lease_lost(first.apply(batch(&[], vec![tombstone("b", None, 9)])).await));
    assert_eq!(lake.metastore.tombstones(&space(), None, 9).await.unwrap().len(), 1);
    // Older states of all three, and newer ones.
    let older = ["a", "b", "c"].map(|id| new_row(id, 4, &[("/x", "4")])).to_vec();
    second.apply(batch(&[("t", older)], vec![])).await.unwrap();
    assert_eq!(values(&lake, "t").await, [value("b", "5"), value("c", "5")]);
    let newer = vec![new_row("a", 6, &[("/x", "6")])];
    second.apply(batch(&[("t", newer)], vec![tombstone("c", None, 6)])).await.unwrap();
    assert_eq!(values(&lake, "t").await, [value("a", "6"), value("b", "5")]);
    let records = lake.metastore.tables(Some(&space())).await.unwrap();
    let record = records.iter().find(|record| record.key.document_type.as_str() == "t").unwrap();
    assert_eq!(record.state.rows, 2);
}

/// A writer whose metastore does not fence it, as one of an older version, deletes after its successor has read the tombstones.
#[tokio::test]
async fn who_meets_a_foreign_commit_learns_the_deletions_before_it() {
    for deletion_vectors in [DeletionVectors::On, DeletionVectors::Off] {
        let lake = Lake::new().await;
        let options = || DeltaOptions { deletion_vectors, ..options() };
        let first = lake.open_elsewhere(options());
        let rows = ["a", "b", "c"].map(|id| new_row(id, 1, &[("/x", "1")])).to_vec();
        first.apply(batch(&[("t", rows)], vec![])).await.unwrap();
        let (second, _) = lake.open_under(&take_lease(&lake, "second").await, options());
        second.apply(batch(&[("u", vec![new_row("z", 1, &[])])], vec![])).await.unwrap();
        first.apply(batch(&[], vec![tombstone("a", None, 7), tombstone("b", None, 7)])).await.unwrap();
        let older = vec![new_row("a", 5, &[("/x", "5")]), new_row("c", 5, &[("/x", "5")])];
        second.apply(batch(&[("t", older)], vec![])).await.unwrap();
        assert_eq!(values(&lake, "t").await, [value("c", "5")], "a deleted id came back");
        // A deletion that is remembered, but whose commit the other one did not come to, is done.
        first.apply(batch(&[("t", vec![new_row("d", 7, &[("/x", "7")])])], vec![])).await.unwrap();
        lake.metastore.remember_tombstones(&space(), &[remembered("c", 8)]).await.unwrap();
        second.apply(batch(&[("t", vec![new_row("e", 7, &[("/x", "7")])])], vec![])).await.unwrap();
        assert_eq!(values(&lake, "t").await, [value("d", "7"), value("e", "7")]);
    }
}

fn remembered(id: &str, observed_us: i64) -> crate::metastore::StoredTombstone {
    let order = crate::order_guard::TombstoneOrder { version_us: None, observed_us };
    crate::metastore::StoredTombstone {
        id_hash: crate::key_index::id_hash(id),
        id: id.into(),
        order,
        reason: String::new(),
    }
}

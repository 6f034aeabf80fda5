//! A lease on SQLite, kept and lost.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::atomic::{AtomicBool, Ordering};

use lake_shared::telemetry::Check;
use tempfile::TempDir;

use super::*;
use crate::lease::LeaseOptions;
use crate::metastore::sqlite::SqliteMetastore;

const HOUR: u64 = 3_600;

async fn metastore() -> Arc<dyn Metastore> {
    let metastore = SqliteMetastore::memory();
    metastore.migrate().await.unwrap();
    Arc::new(metastore)
}

fn claimant(seconds: u64) -> LeaseClaimant {
    LeaseOptions { seconds, owner: "a".into(), ..LeaseOptions::default() }.claimant()
}

async fn hold(metastore: &Arc<dyn Metastore>, claimant: &LeaseClaimant) -> HeldLease {
    HeldLease::acquire(metastore, claimant, &Reach::new(Vec::new()), &CancellationToken::new()).await.unwrap()
}

/// Something that a writer needs, there or not.
fn reach(is_there: &Arc<AtomicBool>) -> Reach {
    let is_there = Arc::clone(is_there);
    let ask = move || {
        let answer = if is_there.load(Ordering::SeqCst) { Ok(()) } else { Err("refused".to_owned()) };
        async move { answer }
    };
    Reach::new(vec![Check::new("store", ask)])
}

#[tokio::test]
async fn a_lease_is_kept_while_it_can_be_renewed_and_ends_when_it_was_taken() {
    let metastore = metastore().await;
    let claimant = claimant(3);
    let mut held = hold(&metastore, &claimant).await;
    let (first, until) = (held.lease().clone(), microseconds(Duration::from_secs(HOUR)));
    let renewed = async {
        while metastore.lease(LEASE_NAME).await.unwrap().unwrap().expires_us == first.expires_us {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        metastore.acquire_lease(LEASE_NAME, &claimant.owner, "", until).await.unwrap().unwrap()
    };
    let (end, taken_again) = tokio::join!(held.keep(), renewed);
    assert_eq!((end, taken_again.epoch), (taken(), first.epoch + 1));
    // It is not given back by those who have lost it.
    held.give_back().await;
    assert!(metastore.lease(LEASE_NAME).await.unwrap().is_some());
}

/// The next renewal is twenty minutes away.
#[tokio::test]
async fn a_refused_write_and_time_that_the_timers_did_not_see_end_it_before_the_next_renewal() {
    let metastore = metastore().await;
    let claimant = claimant(HOUR);
    let mut held = hold(&metastore, &claimant).await;
    held.fence().set_lost();
    assert_eq!(held.keep().await, taken());
    let mut held = hold(&metastore, &claimant).await;
    held.fence().extend(BootInstant::now());
    assert!(matches!(held.keep().await, LeaseEnd::Lost(reason) if reason.contains("metastore")));
}

/// Failures come at once, so the tries are a third of the lease's time apart.
#[tokio::test]
async fn a_lease_that_cannot_be_renewed_ends_before_it_runs_out() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("metastore.sqlite");
    let metastore: Arc<dyn Metastore> = Arc::new(SqliteMetastore::file(&file));
    metastore.migrate().await.unwrap();
    let mut held = hold(&metastore, &claimant(3)).await;
    let database = sqlx::SqlitePool::connect(&format!("sqlite:{}", file.display())).await.unwrap();
    sqlx::query("ALTER TABLE writer_lease RENAME TO hidden").execute(&database).await.unwrap();
    assert!(matches!(held.keep().await, LeaseEnd::Lost(reason) if reason.contains("metastore")));
    let lasts = "SELECT expires_us > CAST(unixepoch('subsec') * 1000000 AS INTEGER) FROM hidden";
    assert!(sqlx::query_scalar::<_, bool>(lasts).fetch_one(&database).await.unwrap(), "nobody else could take it yet");
    assert!(held.fence().check().is_err());
}

#[tokio::test]
async fn who_misses_something_does_not_ask_for_the_lease() {
    let metastore = metastore().await;
    let claimant = claimant(HOUR);
    let is_there = Arc::new(AtomicBool::new(false));
    assert!(Claiming::default().claim(&metastore, &claimant, &reach(&is_there)).await.is_err());
    assert_eq!(metastore.lease(LEASE_NAME).await.unwrap(), None);
    is_there.store(true, Ordering::SeqCst);
    let held = Claiming::default().claim(&metastore, &claimant, &reach(&is_there)).await.ok().unwrap();
    assert_eq!(metastore.lease(LEASE_NAME).await.unwrap().as_ref(), Some(held.lease()));
}

#[tokio::test]
async fn a_holder_that_misses_something_gives_way_to_those_who_want_the_lease() {
    let metastore = metastore().await;
    let is_there = Arc::new(AtomicBool::new(true));
    let mut held = hold(&metastore, &claimant(HOUR)).await;
    held.reach = reach(&is_there);
    let renewed_us = held.lease.expires_us - microseconds(held.duration);
    let ways = async |held: &mut HeldLease, is_missing: bool, wanted_us: i64| {
        is_there.store(!is_missing, Ordering::SeqCst);
        held.reach.look().await;
        held.lease.wanted_us = wanted_us;
        // What has been missing for a moment has been missing for long enough.
        let (duration, expires_us) = (held.duration, held.lease.expires_us);
        (held.duration, held.lease.expires_us) = (Duration::ZERO, renewed_us);
        let way = held.gives_way();
        (held.duration, held.lease.expires_us) = (duration, expires_us);
        way
    };
    assert_eq!(ways(&mut held, false, renewed_us).await, None, "nothing is missing");
    assert_eq!(ways(&mut held, true, 0).await, None, "nobody else wants it");
    assert_eq!(ways(&mut held, true, renewed_us - WANTED_WITHIN_US - 1).await, None, "nobody has wanted it lately");
    assert_eq!(ways(&mut held, true, renewed_us).await, Some(LeaseEnd::GivesWay("store: refused".into())));
    is_there.store(false, Ordering::SeqCst);
    held.reach.look().await;
    assert_eq!(held.gives_way(), None, "it has not been missing for long");
}

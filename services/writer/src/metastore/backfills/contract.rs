//! The contract of [`super::Backfills`], run on every adapter as a part of the metastore's.
#![allow(clippy::unwrap_used, reason = "a suite of assertions")]

use std::time::Duration;

use lake_shared::identity::{Kind, Space};

use super::{BackfillPart, BackfillProgress, StretchRead, Wish};
use crate::boot_clock::BootInstant;
use crate::consent::Consent;
use crate::metastore::Metastore;
use crate::metastore::fence::Fence;
use crate::metastore::steering::{NewOperation, OperationEnd, OperationKind, OperationState, OperationTarget};

/// Runs the suite on a migrated metastore without open operations.
pub(in crate::metastore) async fn holds(metastore: &dyn Metastore) {
    a_backfill_rests_and_goes_on_where_it_was(metastore).await;
    a_stretch_counts_once(metastore).await;
    what_is_taken_is_known_since_when(metastore).await;
}

fn asked(request_id: &str, consent: Consent) -> NewOperation {
    let space = Space { domain: "filled".into(), kind: Kind::Case };
    NewOperation {
        request_id: request_id.into(),
        kind: OperationKind::Backfill,
        target: OperationTarget::space(space),
        asked_by: "ann".into(),
        consent,
        details: "{\"types\":[\"t\"]}".into(),
    }
}

/// The metastore as a new holding of the lease sees it.
async fn held(metastore: &dyn Metastore) -> std::sync::Arc<dyn Metastore> {
    let lease = metastore.acquire_lease("backfills", "a", "", 3_600_000_000).await.unwrap().unwrap();
    metastore.fenced(Fence::new(&lease, BootInstant::now().plus(Duration::from_secs(3_600))))
}

fn ended(state: OperationState) -> OperationEnd {
    OperationEnd { state, reason: String::new(), result: "{}".into(), plan: String::new() }
}

async fn a_backfill_rests_and_goes_on_where_it_was(metastore: &dyn Metastore) {
    let first = held(metastore).await;
    while let Some(begun) = first.begin_operation().await.unwrap() {
        first.end_operation(&begun.id, &ended(OperationState::Succeeded)).await.unwrap();
    }
    let new = metastore.ask_operation(&asked("b1", Consent::Given)).await.unwrap();
    assert_eq!(new.asked.details, asked("b1", Consent::Given).details);
    assert_eq!(first.begin_operation().await.unwrap(), None, "other work does not wait for it");
    // It can be paused before it begins.
    let paused = metastore.pause_backfill(&new.id).await.unwrap().unwrap();
    assert_eq!((paused.state, paused.paused), (OperationState::Paused, true));
    assert_eq!(first.begin_backfill().await.unwrap(), None);
    assert_eq!(metastore.open_operations(None).await.unwrap(), 1, "it is still to be done");
    assert_eq!(metastore.resume_backfill(&new.id).await.unwrap().unwrap().state, OperationState::Pending);
    let begun = first.begin_backfill().await.unwrap().unwrap();
    assert_eq!((begun.id.as_str(), begun.state, begun.attempts), (new.id.as_str(), OperationState::Running, 1));
    let progress = BackfillProgress { done: 7, total: Some(9), per_second: Some(2.5) };
    assert_eq!(first.backfill_goes_on(&new.id, &progress).await.unwrap(), Wish::GoOn);
    let seen = metastore.operation(&new.id).await.unwrap().unwrap();
    assert_eq!((seen.done, seen.total, seen.per_second), (7, Some(9), Some(2.5)));
    assert!(!first.rest_backfill(&new.id).await.unwrap(), "nobody wants it to");
    metastore.pause_backfill(&new.id).await.unwrap();
    assert_eq!(first.backfill_goes_on(&new.id, &progress).await.unwrap(), Wish::Rest);
    assert!(first.rest_backfill(&new.id).await.unwrap());
    assert_eq!(first.begin_backfill().await.unwrap(), None);
    metastore.resume_backfill(&new.id).await.unwrap();
    let again = first.begin_backfill().await.unwrap().unwrap();
    assert_eq!((again.attempts, again.done, again.total, again.per_second), (2, 7, Some(9), None));
    // Another holding takes over what runs.
    let second = held(metastore).await;
    assert_eq!(second.begin_backfill().await.unwrap().unwrap().attempts, 3);
    assert!(first.backfill_goes_on(&new.id, &progress).await.unwrap_err().is_lease_lost());
    assert!(first.rest_backfill(&new.id).await.unwrap_err().is_lease_lost());
    metastore.cancel_operation(&new.id).await.unwrap();
    assert_eq!(second.backfill_goes_on(&new.id, &progress).await.unwrap(), Wish::End);
    second.end_operation(&new.id, &ended(OperationState::Cancelled)).await.unwrap();
    assert_eq!(metastore.resume_backfill(&new.id).await.unwrap().unwrap().state, OperationState::Cancelled);
    // One that rests can be cancelled.
    let resting = metastore.ask_operation(&asked("b2", Consent::Given)).await.unwrap();
    metastore.pause_backfill(&resting.id).await.unwrap();
    assert_eq!(metastore.cancel_operation(&resting.id).await.unwrap().unwrap().state, OperationState::Cancelled);
    // Only backfills rest.
    let other = NewOperation { kind: OperationKind::CleanUpSpace, ..asked("b3", Consent::Given) };
    let other = metastore.ask_operation(&other).await.unwrap();
    assert_eq!(metastore.pause_backfill(&other.id).await.unwrap(), None);
    assert_eq!(metastore.pause_backfill("nothing").await.unwrap(), None);
    assert_eq!(second.begin_operation().await.unwrap().unwrap().id, other.id);
    second.end_operation(&other.id, &ended(OperationState::Succeeded)).await.unwrap();
}

async fn a_stretch_counts_once(metastore: &dyn Metastore) {
    let fenced = held(metastore).await;
    let part = |name: &str, number| BackfillPart {
        part: name.into(),
        number,
        estimate: 5,
        reached: i64::MIN,
        ..BackfillPart::default()
    };
    let parts = [part("p2", 0), part("p1", 1)];
    fenced.keep_backfill_parts("o", &parts).await.unwrap();
    let first = StretchRead {
        operation_id: "o".into(),
        part: "p1".into(),
        after: i64::MIN,
        reached: 40,
        documents: 3,
        ..StretchRead::default()
    };
    assert!(metastore.stretch_was_read(&first).await.unwrap());
    assert!(!metastore.stretch_was_read(&first).await.unwrap(), "told twice");
    // The writer may have been killed before it knew that it had kept the parts.
    fenced.keep_backfill_parts("o", &parts).await.unwrap();
    let last = StretchRead { after: 40, reached: 90, documents: 2, finished: true, ..first.clone() };
    assert!(metastore.stretch_was_read(&last).await.unwrap());
    assert!(!metastore.stretch_was_read(&StretchRead { after: 90, ..last.clone() }).await.unwrap(), "it has ended");
    let refused = StretchRead { part: "p2".into(), reached: i64::MIN, documents: 0, refused: "no".into(), ..first };
    assert!(metastore.stretch_was_read(&refused).await.unwrap());
    let kept = metastore.backfill_parts("o").await.unwrap();
    let seen: Vec<_> = kept
        .iter()
        .map(|part| (part.part.as_str(), part.reached, part.documents, part.finished, part.refused.as_str()))
        .collect();
    assert_eq!(seen, [("p2", i64::MIN, 0, false, "no"), ("p1", 90, 5, true, "")]);
    assert_eq!(metastore.backfill_parts("nothing").await.unwrap(), []);
    held(metastore).await;
    assert!(fenced.keep_backfill_parts("o", &parts).await.unwrap_err().is_lease_lost());
}

async fn what_is_taken_is_known_since_when(metastore: &dyn Metastore) {
    let fenced = held(metastore).await;
    let entries = |of: &[(&'static str, &str)]| -> Vec<(&'static str, String)> {
        of.iter().map(|&(list, entry)| (list, entry.to_owned())).collect()
    };
    let both = entries(&[("domains", "a"), ("case_types", "t")]);
    assert_eq!(fenced.note_taken(&both).await.unwrap(), both);
    assert_eq!(fenced.note_taken(&both).await.unwrap(), []);
    let before = metastore.taken().await.unwrap();
    assert!(before.len() == 2 && before.iter().all(|entry| entry.since_us > 1_600_000_000_000_000));
    let other = entries(&[("domains", "a"), ("domains", "b")]);
    assert_eq!(fenced.note_taken(&other).await.unwrap(), entries(&[("domains", "b")]));
    let now = metastore.taken().await.unwrap();
    assert_eq!(now.iter().map(|of| of.entry.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(now[0].since_us, before[1].since_us, "it was known");
    // Those that only plan, have failed or were cancelled fill nothing.
    for (request_id, consent) in [("t1", Consent::Given), ("t2", Consent::DryRun), ("t3", Consent::Given)] {
        metastore.ask_operation(&asked(request_id, consent)).await.unwrap();
    }
    let cancelled = metastore.requested_operation("t3").await.unwrap().unwrap();
    metastore.cancel_operation(&cancelled.id).await.unwrap();
    let asked = metastore.backfills_asked().await.unwrap();
    assert_eq!(asked.iter().map(|record| record.asked.request_id.as_str()).collect::<Vec<_>>(), ["t1"]);
}

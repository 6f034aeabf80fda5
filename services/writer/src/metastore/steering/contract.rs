//! The contract of [`super::Steering`], run on every adapter as a part of the metastore's.
#![allow(clippy::unwrap_used, reason = "a suite of assertions")]

use std::time::Duration;

use lake_shared::identity::{Kind, Space, TableKey};

use super::{
    Behind, NewOperation, OperationEnd, OperationFilter, OperationKind, OperationState, OperationTarget, TableFilter,
};
use crate::boot_clock::BootInstant;
use crate::consent::Consent;
use crate::metastore::fence::Fence;
use crate::metastore::steering::table_policy::{DeletionVectors, TablePolicy};
use crate::metastore::{Metastore, NewTable};

const HOUR_US: i64 = 3_600_000_000;

/// Runs the suite on a migrated metastore that nobody has steered yet.
pub(in crate::metastore) async fn holds(metastore: &dyn Metastore) {
    an_operation_is_one_request(metastore).await;
    operations_are_listed_in_pages(metastore).await;
    operations_are_done_by_the_holder_of_the_lease(metastore).await;
    an_operation_may_be_asked_to_end(metastore).await;
    pauses_last(metastore).await;
    what_was_asked_for_is_written_down(metastore).await;
    tables_are_listed_in_pages(metastore).await;
    dropped_tables_are_remembered(metastore).await;
    policies_are_kept_by_table(metastore).await;
}

fn asked(request_id: &str, domain: &str, document_type: Option<&str>) -> NewOperation {
    let space = Space { domain: domain.into(), kind: Kind::Form };
    let kind = if document_type.is_some() { OperationKind::CompactTable } else { OperationKind::CleanUpSpace };
    let target = OperationTarget { space, document_type: document_type.map(Into::into) };
    let consent = Consent::ToPlan("p\u{0}lan".into());
    let details = String::new();
    NewOperation { request_id: request_id.into(), kind, target, asked_by: "ann\u{0}".into(), consent, details }
}

/// The metastore as one holding of the lease sees it, with the lease.
async fn held(metastore: &dyn Metastore, owner: &str) -> std::sync::Arc<dyn Metastore> {
    let lease = metastore.acquire_lease("steering", owner, "", HOUR_US).await.unwrap().unwrap();
    metastore.fenced(Fence::new(&lease, BootInstant::now().plus(Duration::from_secs(3_600))))
}

/// Has all that waits done, so that the next part begins with nothing.
async fn finish_all(fenced: &dyn Metastore) {
    while let Some(begun) = fenced.begin_operation().await.unwrap() {
        fenced.end_operation(&begun.id, &end(OperationState::Succeeded)).await.unwrap();
    }
}

/// Whether two instants of one statement are the same; the clock of the database goes on in between.
fn is_now(one_us: i64, other_us: Option<i64>) -> bool {
    other_us.is_some_and(|other_us| one_us.abs_diff(other_us) < 1_000_000)
}

fn end(state: OperationState) -> OperationEnd {
    OperationEnd { state, reason: String::new(), result: "{}".into(), plan: String::new() }
}

async fn an_operation_is_one_request(metastore: &dyn Metastore) {
    let first = metastore.ask_operation(&asked("r1", "demo", Some("person"))).await.unwrap();
    assert_eq!((first.state, first.attempts, first.done, first.total), (OperationState::Pending, 0, 0, None));
    assert!(first.created_us > 1_600_000_000_000_000 && is_now(first.since_us, Some(first.created_us)));
    assert_eq!(first.asked.target.to_string(), "demo/form-sql/person");
    assert_eq!(first.asked.asked_by, "ann\u{fffd}");
    assert_eq!(first.asked.consent, Consent::ToPlan("p\u{fffd}lan".into()));
    // The same request again, with something else asked for: the first one counts.
    let again = metastore.ask_operation(&asked("r1", "demo", None)).await.unwrap();
    assert_eq!(again, first);
    let other = metastore.ask_operation(&asked("r2", "demo", None)).await.unwrap();
    assert!(other.id != first.id && other.asked.target.document_type.is_none());
    assert_eq!(metastore.requested_operation("r2").await.unwrap(), Some(other));
    assert_eq!(metastore.requested_operation("nothing").await.unwrap(), None);
    assert_eq!(metastore.operation(&first.id).await.unwrap(), Some(first));
    assert_eq!(metastore.operation("nothing").await.unwrap(), None);
    assert_eq!(metastore.open_operations(None).await.unwrap(), 2);
    assert_eq!(metastore.open_operations(Some(&["other".to_owned()])).await.unwrap(), 0);
}

async fn operations_are_listed_in_pages(metastore: &dyn Metastore) {
    for number in 0..7 {
        metastore.ask_operation(&asked(&format!("p{number}"), ["demo", "other"][number % 2], None)).await.unwrap();
    }
    let everything = OperationFilter::default();
    let all = metastore.operations(&everything, None, 100).await.unwrap();
    assert_eq!(all.len(), 9);
    assert!(all.is_sorted_by(|newer, older| newer.created_us >= older.created_us));
    let (mut read, mut behind) = (Vec::new(), None);
    loop {
        let page = metastore.operations(&everything, behind.as_ref(), 4).await.unwrap();
        let Some(last) = page.last() else { break };
        behind = Some(Behind { at_us: last.created_us, id: last.id.clone() });
        read.extend(page);
    }
    assert_eq!(read, all, "every one once, whatever times they share");
    let count = async |filter: OperationFilter| metastore.operations(&filter, None, 100).await.unwrap().len();
    let of = |domains: &[&str]| OperationFilter {
        domains: Some(domains.iter().map(|domain| (*domain).to_owned()).collect()),
        ..OperationFilter::default()
    };
    assert_eq!((count(of(&["other"])).await, count(of(&["other", "demo"])).await, count(of(&[])).await), (3, 9, 0));
    let ended = OperationFilter { states: vec![OperationState::Failed, OperationState::Cancelled], domains: None };
    assert_eq!(count(ended).await, 0);
}

async fn operations_are_done_by_the_holder_of_the_lease(metastore: &dyn Metastore) {
    let first = held(metastore, "a").await;
    finish_all(&*first).await;
    let wanted = metastore.ask_operation(&asked("d1", "demo", Some("person"))).await.unwrap();
    let begun = first.begin_operation().await.unwrap().unwrap();
    assert_eq!((begun.id.as_str(), begun.state, begun.attempts), (wanted.id.as_str(), OperationState::Running, 1));
    assert!(begun.started_us.is_some() && begun.heartbeat_us.is_some() && begun.finished_us.is_none());
    assert_eq!(first.begin_operation().await.unwrap(), None, "it is being worked on");
    assert!(!first.operation_goes_on(&begun.id, 3, Some(9)).await.unwrap());
    let seen = metastore.operation(&begun.id).await.unwrap().unwrap();
    assert_eq!((seen.done, seen.total), (3, Some(9)));

    // The lease is taken by another holding: it begins anew what was under way, and the earlier one changes nothing any more.
    let second = held(metastore, "a").await;
    let again = second.begin_operation().await.unwrap().unwrap();
    assert_eq!((again.id.as_str(), again.attempts, again.done, again.total), (begun.id.as_str(), 2, 0, None));
    assert_eq!((again.since_us, again.started_us), (begun.since_us, begun.started_us));
    assert!(first.begin_operation().await.unwrap_err().is_lease_lost());
    assert!(first.operation_goes_on(&begun.id, 8, None).await.unwrap_err().is_lease_lost());
    assert!(first.end_operation(&begun.id, &end(OperationState::Failed)).await.unwrap_err().is_lease_lost());
    let failed = OperationEnd {
        reason: "disk\u{0} full".into(),
        result: "{\"commits\":2}".into(),
        plan: "p\u{0}".into(),
        ..end(OperationState::Failed)
    };
    second.end_operation(&again.id, &failed).await.unwrap();
    let ended = metastore.operation(&begun.id).await.unwrap().unwrap();
    assert_eq!((ended.state, ended.reason.as_str()), (OperationState::Failed, "disk\u{fffd} full"));
    assert_eq!(ended.result, "{\"commits\":2}");
    assert!(is_now(ended.since_us, ended.finished_us));
    assert_eq!(ended.plan, "p\u{fffd}");
    // An end is the end.
    second.end_operation(&again.id, &end(OperationState::Succeeded)).await.unwrap();
    assert_eq!(metastore.operation(&begun.id).await.unwrap().unwrap(), ended);
    assert_eq!(second.forget_old_operations(HOUR_US).await.unwrap(), 0);
    assert!(second.forget_old_operations(-HOUR_US).await.unwrap() > 0);
    assert_eq!(metastore.operation(&begun.id).await.unwrap(), None);
    assert!(first.forget_old_operations(HOUR_US).await.unwrap_err().is_lease_lost());
}

async fn an_operation_may_be_asked_to_end(metastore: &dyn Metastore) {
    let fenced = held(metastore, "a").await;
    for (request_id, consent) in [("dry", Consent::DryRun), ("any", Consent::Given)] {
        let asked = NewOperation { consent: consent.clone(), ..asked(request_id, "demo", None) };
        let kept = metastore.ask_operation(&asked).await.unwrap();
        assert_eq!(kept.asked.consent, consent);
        metastore.cancel_operation(&kept.id).await.unwrap();
    }
    let waiting = metastore.ask_operation(&asked("c1", "demo", None)).await.unwrap();
    let cancelled = metastore.cancel_operation(&waiting.id).await.unwrap().unwrap();
    assert_eq!(cancelled.state, OperationState::Cancelled);
    assert!(is_now(cancelled.since_us, cancelled.finished_us));
    assert_eq!(fenced.begin_operation().await.unwrap(), None);

    let running = metastore.ask_operation(&asked("c2", "demo", None)).await.unwrap();
    fenced.begin_operation().await.unwrap().unwrap();
    let told = metastore.cancel_operation(&running.id).await.unwrap().unwrap();
    assert!(told.state == OperationState::Running && told.cancel_requested && told.finished_us.is_none());
    assert!(fenced.operation_goes_on(&running.id, 1, None).await.unwrap(), "who works on it is told");
    fenced.end_operation(&running.id, &end(OperationState::Cancelled)).await.unwrap();
    let ended = metastore.operation(&running.id).await.unwrap();
    assert_eq!(metastore.cancel_operation(&running.id).await.unwrap(), ended, "that changes nothing any more");
    assert_eq!(metastore.cancel_operation("nothing").await.unwrap(), None);
}

async fn pauses_last(metastore: &dyn Metastore) {
    let fenced = held(metastore, "a").await;
    let space = Space { domain: "demo".into(), kind: Kind::Case };
    metastore.pause(Some(&space), "ann", "a migration").await.unwrap();
    metastore.pause(Some(&space), "bob", "another reason").await.unwrap();
    metastore.pause(None, "bob", "").await.unwrap();
    let pauses = metastore.pauses().await.unwrap();
    assert_eq!(pauses.len(), 2);
    assert_eq!((pauses[0].space.as_ref(), pauses[1].space.as_ref()), (None, Some(&space)));
    assert_eq!((pauses[1].asked_by.as_str(), pauses[1].reason.as_str()), ("ann", "a migration"));
    assert!(pauses[1].since_us > 1_600_000_000_000_000 && pauses[1].in_force_us.is_none());
    fenced.pause_in_force(Some(&space)).await.unwrap();
    let pauses = metastore.pauses().await.unwrap();
    assert!(pauses[0].in_force_us.is_none() && pauses[1].in_force_us.is_some());
    held(metastore, "a").await;
    assert!(fenced.pause_in_force(None).await.unwrap_err().is_lease_lost());
    metastore.resume(Some(&space)).await.unwrap();
    metastore.resume(Some(&space)).await.unwrap();
    assert_eq!(metastore.pauses().await.unwrap().len(), 1);
    metastore.pause(Some(&space), "ann", "").await.unwrap();
    metastore.resume(None).await.unwrap();
    assert_eq!(metastore.pauses().await.unwrap(), []);
}

async fn what_was_asked_for_is_written_down(metastore: &dyn Metastore) {
    for number in 0..5 {
        metastore.audit("ann", "Pause", &format!("target\u{0} {number}"), "r").await.unwrap();
    }
    let all = metastore.audited(None, 10).await.unwrap();
    assert_eq!(all.len(), 5);
    assert_eq!((all[0].asked_by.as_str(), all[0].call.as_str(), all[0].request_id.as_str()), ("ann", "Pause", "r"));
    assert!(all.iter().any(|record| record.target == "target\u{fffd} 4"));
    let (mut read, mut behind) = (Vec::new(), None);
    loop {
        let page = metastore.audited(behind.as_ref(), 2).await.unwrap();
        let Some(last) = page.last() else { break };
        behind = Some(Behind { at_us: last.at_us, id: last.id.clone() });
        read.extend(page);
    }
    assert_eq!(read, all);
}

async fn tables_are_listed_in_pages(metastore: &dyn Metastore) {
    let before = metastore.table_count(None).await.unwrap();
    let new = |document_type: &str| {
        let space = Space { domain: "paged".into(), kind: Kind::Case };
        let key = TableKey { space, document_type: document_type.into() };
        NewTable { key, path: format!("p/{document_type}"), location: "file:///p".into(), suffix: String::new() }
    };
    let tables: Vec<NewTable> = ["person", "house", "a_b", "axb"].map(new).into();
    let registered = metastore.register_tables(&tables).await.unwrap();
    assert_eq!(metastore.table_count(None).await.unwrap(), before + 4);
    assert_eq!(metastore.table_count(Some(&["paged".to_owned()])).await.unwrap(), 4);
    let of = |domain: &str| TableFilter { domains: Some(vec![domain.to_owned()]), ..TableFilter::default() };
    let all = metastore.table_page(&of("paged"), "", 10).await.unwrap();
    let names: Vec<&str> = all.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(all.len(), 4);
    let (first, second) = (
        metastore.table_page(&of("paged"), "", 3).await.unwrap(),
        metastore.table_page(&of("paged"), names[2], 3).await.unwrap(),
    );
    assert_eq!((&first[..], &second[..]), (&all[..3], &all[3..]));
    let contains = |text: &str| TableFilter { name_contains: text.to_owned(), ..of("paged") };
    let found = metastore.table_page(&contains("a_b"), "", 10).await.unwrap();
    assert_eq!(found.iter().map(|table| table.key.document_type.as_str()).collect::<Vec<_>>(), ["a_b"]);
    assert_eq!(metastore.table_page(&TableFilter { kind: Some(Kind::Form), ..of("paged") }, "", 9).await.unwrap(), []);
    assert_eq!(metastore.table_page(&of("nobody's"), "", 9).await.unwrap(), []);
    assert_eq!(
        metastore.table_named(&registered[0].name).await.unwrap(),
        metastore.table(&tables[0].key).await.unwrap()
    );
    assert_eq!(metastore.table_named("nothing").await.unwrap(), None);
    let counted = metastore.quarantined_by_reason(None).await.unwrap();
    let entries: u64 = counted.iter().map(|(_, entries)| entries).sum();
    assert_eq!(entries, metastore.quarantined_count(&Default::default()).await.unwrap());
    assert_eq!(metastore.quarantined_by_reason(Some(&["nobody's".to_owned()])).await.unwrap(), []);
}

async fn dropped_tables_are_remembered(metastore: &dyn Metastore) {
    let fenced = held(metastore, "a").await;
    let new = |kind: Kind, document_type: &str| {
        let key = TableKey { space: Space { domain: "dropping".into(), kind }, document_type: document_type.into() };
        let path = format!("d/{}/{document_type}", kind.name());
        NewTable { key, path, location: "file:///d".into(), suffix: String::new() }
    };
    let tables = [new(Kind::Case, "person"), new(Kind::Case, "house"), new(Kind::Form, "person")];
    let registered = metastore.register_tables(&tables).await.unwrap();
    let space = tables[0].key.space.clone();
    let (person, all) = (OperationTarget::table(&tables[0].key), OperationTarget::space(space.clone()));
    let left = async || metastore.tables(Some(&space)).await.unwrap().len();

    fenced.drop_tables(&person, "ann\u{0}").await.unwrap();
    fenced.drop_tables(&person, "bob").await.unwrap();
    let dropped = metastore.dropped(Some(&space)).await.unwrap();
    assert_eq!(
        (dropped.len(), left().await, metastore.tables(Some(&tables[2].key.space)).await.unwrap().len()),
        (1, 1, 1)
    );
    let record = &dropped[0];
    assert_eq!((&record.target, record.asked_by.as_str(), record.files_gone), (&person, "ann\u{fffd}", false));
    assert_eq!((&record.name, &record.path), (&registered[0].name, &registered[0].path));
    assert!(record.since_us > 1_600_000_000_000_000);
    assert_eq!(fenced.allow_tables(&person).await.unwrap(), 0, "its files are still being deleted");
    fenced.dropped_files_gone(&person).await.unwrap();
    assert!(metastore.dropped(None).await.unwrap().iter().all(|record| record.files_gone));
    assert_eq!(fenced.allow_tables(&person).await.unwrap(), 1);
    assert_eq!(metastore.dropped(Some(&space)).await.unwrap(), []);

    // Made anew and dropped again, with all of its space.
    metastore.register_tables(&tables[..1]).await.unwrap();
    fenced.drop_tables(&all, "ann").await.unwrap();
    let dropped = metastore.dropped(Some(&space)).await.unwrap();
    let types: Vec<Option<&str>> =
        dropped.iter().map(|record| record.target.document_type.as_ref().map(|name| name.as_str())).collect();
    assert_eq!((types, left().await), (vec![None, Some("house"), Some("person")], 0));
    fenced.dropped_files_gone(&all).await.unwrap();
    assert_eq!(fenced.allow_tables(&person).await.unwrap(), 1);
    assert_eq!(metastore.dropped(Some(&space)).await.unwrap().len(), 2, "the space is still dropped");
    assert_eq!(fenced.allow_tables(&all).await.unwrap(), 2);

    held(metastore, "a").await;
    let refused = [
        fenced.drop_tables(&all, "ann").await,
        fenced.dropped_files_gone(&all).await,
        fenced.allow_tables(&all).await.map(drop),
    ];
    assert!(refused.into_iter().all(|refused| refused.unwrap_err().is_lease_lost()));
}

async fn policies_are_kept_by_table(metastore: &dyn Metastore) {
    assert!(metastore.policies().await.unwrap().is_empty());
    let whole = TablePolicy {
        deletion_vectors: Some(DeletionVectors::Off),
        compaction: Some(false),
        retention_hours: Some(72),
    };
    let part = TablePolicy { retention_hours: Some(u64::MAX), ..TablePolicy::default() };
    metastore.set_policy("demo_b", &part, "ann").await.unwrap();
    metastore.set_policy("demo_a", &part, "ann").await.unwrap();
    metastore.set_policy("demo_a", &whole, "bob").await.unwrap();
    let kept = metastore.policies().await.unwrap();
    let kept: Vec<_> =
        kept.iter().map(|kept| (&*kept.table, kept.policy, &*kept.asked_by, kept.since_us > 0)).collect();
    let longest = TablePolicy { retention_hours: Some(i64::MAX.unsigned_abs()), ..part };
    assert_eq!(kept, [("demo_a", whole, "bob", true), ("demo_b", longest, "ann", true)]);
    // What says nothing is forgotten.
    for table in ["demo_a", "demo_b"] {
        metastore.set_policy(table, &TablePolicy::default(), "ann").await.unwrap();
    }
    assert!(metastore.policies().await.unwrap().is_empty());
}

//! The contract of [`super::Erasures`], run on every adapter as a part of the metastore's.
#![allow(clippy::unwrap_used, reason = "a suite of assertions")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lake_proto::queue::v1::Quarantined;
use lake_shared::identity::{Kind, Space};

use super::ErasureRecord;
use super::record_ids::{RecordIds, erasure_hash};
use crate::boot_clock::BootInstant;
use crate::consent::Consent;
use crate::metastore::comparisons::{Difference, DifferenceClass};
use crate::metastore::fence::Fence;
use crate::metastore::steering::{
    Behind, NewOperation, OperationEnd, OperationFilter, OperationKind, OperationState, OperationTarget,
};
use crate::metastore::{Metastore, QuarantineFilter};

/// Runs the suite on a migrated metastore without open operations.
pub(in crate::metastore) async fn holds(metastore: &dyn Metastore) {
    records_are_kept_out_until_they_are_allowed(metastore).await;
    erasures_are_listed_in_pages(metastore).await;
    nothing_of_a_record_that_is_kept_out_comes_into_quarantine(metastore).await;
    ids_go_with_the_end_of_their_operation(metastore).await;
    ids_are_masked_wherever_they_were_named(metastore).await;
}

fn space(domain: &str, kind: Kind) -> Space {
    Space { domain: domain.into(), kind }
}

/// The metastore as a new holding of the lease sees it.
async fn held(metastore: &dyn Metastore) -> Arc<dyn Metastore> {
    let lease = metastore.acquire_lease("erasures", "a", "", 3_600_000_000).await.unwrap().unwrap();
    metastore.fenced(Fence::new(&lease, BootInstant::now().plus(Duration::from_secs(3_600))))
}

fn hashes(of: &Space, ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| erasure_hash(of, id)).collect()
}

async fn the_one(metastore: &dyn Metastore, hash: &str) -> ErasureRecord {
    let mut found = metastore.erasures_of(&[hash.to_owned()]).await.unwrap();
    assert_eq!(found.len(), 1);
    found.remove(0)
}

async fn records_are_kept_out_until_they_are_allowed(metastore: &dyn Metastore) {
    let fenced = held(metastore).await;
    let (cases, forms) = (space("er\u{0}ased", Kind::Case), space("er\u{0}ased", Kind::Form));
    let (two, form) = (hashes(&cases, &["1", "2"]), hashes(&forms, &["1"]));
    assert_eq!(metastore.kept_out(&cases).await.unwrap(), Vec::<String>::new());
    fenced.keep_out(&cases, &two, "ann\u{0}", "o1").await.unwrap();
    fenced.keep_out(&forms, &form, "ann", "o2").await.unwrap();
    fenced.records_erased("o1", "{\"rows\":2}").await.unwrap();
    let begun = the_one(metastore, &two[0]).await;
    assert!(begun.since_us > 1_600_000_000_000_000 && begun.erased_us.is_some() && begun.allowed_us.is_none());
    assert_eq!((begun.asked_by.as_str(), begun.operation_id.as_str()), ("ann\u{fffd}", "o1"));
    assert_eq!((begun.report.as_str(), begun.space.kind), ("{\"rows\":2}", Kind::Case));
    assert_eq!(the_one(metastore, &form[0]).await.erased_us, None);
    // The writer was killed before it knew that it had kept them out.
    fenced.keep_out(&cases, &two, "ann", "o1").await.unwrap();
    assert_eq!(the_one(metastore, &two[0]).await, begun);
    // Another operation finds out again whether anything is left.
    fenced.keep_out(&cases, &two[..1], "bob", "o3").await.unwrap();
    let again = the_one(metastore, &two[0]).await;
    assert_eq!((again.since_us, again.erased_us, again.operation_id.as_str()), (begun.since_us, None, "o3"));
    let kept: BTreeSet<String> = metastore.kept_out(&cases).await.unwrap().into_iter().collect();
    assert_eq!(kept, two.iter().cloned().collect());
    assert_eq!(fenced.let_in(&forms, &two, "eve").await.unwrap(), 0, "they are of another space");
    assert_eq!(fenced.let_in(&cases, &two[..1], "eve").await.unwrap(), 1);
    assert_eq!(fenced.let_in(&cases, &two[..1], "eve").await.unwrap(), 0);
    assert_eq!(metastore.kept_out(&cases).await.unwrap(), two[1..]);
    let allowed = the_one(metastore, &two[0]).await;
    assert!(allowed.allowed_us.is_some() && allowed.allowed_by == "eve");
    fenced.keep_out(&cases, &two[..1], "ann", "o3").await.unwrap();
    let once_more = the_one(metastore, &two[0]).await;
    assert!(once_more.allowed_us.is_none() && once_more.since_us >= allowed.allowed_us.unwrap());
    assert_eq!(metastore.erasures_of(&[]).await.unwrap(), []);
    held(metastore).await;
    assert!(fenced.keep_out(&cases, &two, "ann", "o4").await.unwrap_err().is_lease_lost());
    assert!(fenced.records_erased("o1", "{}").await.unwrap_err().is_lease_lost());
    assert!(fenced.let_in(&cases, &two, "ann").await.unwrap_err().is_lease_lost());
}

async fn erasures_are_listed_in_pages(metastore: &dyn Metastore) {
    let fenced = held(metastore).await;
    let other = space("pages", Kind::Location);
    fenced.keep_out(&other, &hashes(&other, &["a", "b", "c", "d", "e"]), "ann", "o5").await.unwrap();
    let all = metastore.erasures(None, None, 100).await.unwrap();
    assert_eq!(all.len(), 8);
    let (mut read, mut behind) = (Vec::new(), None);
    loop {
        let page = metastore.erasures(None, behind.as_ref(), 3).await.unwrap();
        let Some(last) = page.last() else { break };
        behind = Some(Behind { at_us: last.since_us, id: last.id_hash.clone() });
        read.extend(page);
    }
    assert_eq!(read, all, "every one once, whatever times they share");
    let of = async |domain: &str| metastore.erasures(Some(&[domain.to_owned()]), None, 100).await.unwrap().len();
    assert_eq!((of("pages").await, of("nothing").await), (5, 0));
}

async fn nothing_of_a_record_that_is_kept_out_comes_into_quarantine(metastore: &dyn Metastore) {
    let fenced = held(metastore).await;
    let forms = space("put-aside", Kind::Form);
    fenced.keep_out(&forms, &hashes(&forms, &["1"]), "ann", "o6").await.unwrap();
    let entry = |id: &str, kind: i32| Quarantined {
        reason: "row_impossible".into(),
        domain: "put-aside".into(),
        kind,
        id: id.into(),
        payload: b"x".to_vec().into(),
        quarantined_us: 5,
        ..Quarantined::default()
    };
    let form = Kind::Form.to_proto() as i32;
    for (id, kind) in [("1", form), ("1", 0), ("2", form), ("2", 0), ("1", Kind::Case.to_proto() as i32), ("", form)] {
        metastore.quarantine("writer", &entry(id, kind)).await.unwrap();
    }
    let filter = QuarantineFilter { domain: Some("put-aside".into()), ..QuarantineFilter::default() };
    let count = async || metastore.quarantined_count(&filter).await.unwrap();
    assert_eq!(count().await, 4, "of the form neither, whether its kind is known or not");
    fenced.let_in(&forms, &hashes(&forms, &["1"]), "ann").await.unwrap();
    metastore.quarantine("writer", &entry("1", form)).await.unwrap();
    assert_eq!(count().await, 5);
}

async fn ids_go_with_the_end_of_their_operation(metastore: &dyn Metastore) {
    let fenced = held(metastore).await;
    let records = RecordIds { ids: vec!["secret-id".into()], hashes: Vec::new() };
    let asked = |request_id: &str, kind| NewOperation {
        request_id: request_id.into(),
        kind,
        target: OperationTarget::space(space("erased", Kind::Case)),
        asked_by: "ann".into(),
        consent: Consent::DryRun,
        details: records.details(),
    };
    let ended = OperationEnd {
        state: OperationState::Succeeded,
        reason: String::new(),
        result: "{}".into(),
        plan: String::new(),
    };
    for (request_id, kind) in [("e1", OperationKind::EraseRecords), ("e2", OperationKind::AllowRecords)] {
        let new = metastore.ask_operation(&asked(request_id, kind)).await.unwrap();
        assert_eq!(new.asked.subject(), "erased/case-sql, 1 records");
        let begun = fenced.begin_operation().await.unwrap().unwrap();
        assert_eq!((begun.id.as_str(), begun.asked.records()), (new.id.as_str(), Some(records.clone())));
        fenced.end_operation(&new.id, &ended).await.unwrap();
        let kept = metastore.operation(&new.id).await.unwrap().unwrap();
        assert_eq!((kept.asked.details.as_str(), kept.asked.records()), ("", None));
    }
    let cancelled = metastore.ask_operation(&asked("e3", OperationKind::EraseRecords)).await.unwrap();
    assert_eq!(metastore.cancel_operation(&cancelled.id).await.unwrap().unwrap().asked.details, "");
    let all = metastore.operations(&OperationFilter::default(), None, 1_000).await.unwrap();
    assert!(!format!("{all:?}").contains("secret-id"));
}

async fn ids_are_masked_wherever_they_were_named(metastore: &dyn Metastore) {
    let fenced = held(metastore).await;
    let cases = space("masked", Kind::Case);
    let backfill = NewOperation {
        request_id: "m1".into(),
        kind: OperationKind::Backfill,
        target: OperationTarget::space(cases.clone()),
        asked_by: "ann".into(),
        consent: Consent::Given,
        details: "{\"ids\":[\"told-id\",\"told-id-2\"]}".into(),
    };
    let backfill = metastore.ask_operation(&backfill).await.unwrap();
    metastore.cancel_operation(&backfill.id).await.unwrap();
    metastore.audit("ann", "replay_quarantine", "domain=masked id=told-id", "").await.unwrap();
    let difference = |id: &str| Difference {
        id: id.into(),
        class: DifferenceClass::Missing,
        lake_type: String::new(),
        hq_type: "t".into(),
        lake_saved_us: None,
        hq_saved_us: Some(1),
    };
    fenced.keep_differences(&backfill.id, &[difference("told-id"), difference("told-id-2")]).await.unwrap();
    let ids = ["told-id".to_owned()];
    assert_eq!(fenced.mask_ids(&cases, &ids).await.unwrap(), 3);
    assert_eq!(fenced.mask_ids(&cases, &ids).await.unwrap(), 0);
    let details = metastore.operation(&backfill.id).await.unwrap().unwrap().asked.details;
    assert!(details.starts_with("{\"ids\":[\"erased ") && details.ends_with("\"told-id-2\"]}"), "{details}");
    let audited = metastore.audited(None, 1).await.unwrap();
    assert!(audited[0].target.starts_with("domain=masked id=erased "), "{audited:?}");
    let left = metastore.differences(&backfill.id, "", 10).await.unwrap();
    assert_eq!(left, [difference("told-id-2")]);
    held(metastore).await;
    assert!(fenced.mask_ids(&cases, &ids).await.unwrap_err().is_lease_lost());
}

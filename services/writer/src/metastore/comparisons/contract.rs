//! The contract of [`super::Comparisons`], run on every adapter as a part of the metastore's.
#![allow(clippy::unwrap_used, reason = "a suite of assertions")]

use std::time::Duration;

use lake_shared::identity::{Kind, Space};

use super::{Difference, DifferenceClass};
use crate::boot_clock::BootInstant;
use crate::consent::Consent;
use crate::metastore::Metastore;
use crate::metastore::backfills::{BackfillProgress, Wish};
use crate::metastore::fence::Fence;
use crate::metastore::steering::{NewOperation, OperationEnd, OperationKind, OperationState, OperationTarget};

/// Runs the suite on a migrated metastore without open operations.
pub(in crate::metastore) async fn holds(metastore: &dyn Metastore) {
    let lease = metastore.acquire_lease("comparisons", "a", "", 3_600_000_000).await.unwrap().unwrap();
    let first = metastore.fenced(Fence::new(&lease, BootInstant::now().plus(Duration::from_secs(3_600))));
    let asked = metastore.ask_operation(&reconcile("r1")).await.unwrap();
    assert_eq!(first.begin_operation().await.unwrap(), None, "other work does not wait for it");
    let begun = first.begin_reconcile().await.unwrap().unwrap();
    assert_eq!((begun.id.as_str(), begun.attempts, begun.asked), (asked.id.as_str(), 1, reconcile("r1")));
    assert_eq!(first.begin_reconcile().await.unwrap(), None);
    let progress = BackfillProgress { done: 1, total: Some(2), per_second: None };
    assert_eq!(first.backfill_goes_on(&begun.id, &progress).await.unwrap(), Wish::GoOn);
    let found: Vec<Difference> = DifferenceClass::ALL.into_iter().enumerate().map(difference).collect();
    first.keep_differences(&begun.id, &found[..1]).await.unwrap();
    first.keep_differences(&begun.id, &found).await.unwrap();
    first.keep_differences("other", &[]).await.unwrap();
    let page = |behind: &'static str, limit| metastore.differences(&asked.id, behind, limit);
    assert_eq!(page("", 1_000).await.unwrap(), found);
    assert_eq!(page("", 2).await.unwrap(), found[..2]);
    assert_eq!(page("id 1", 2).await.unwrap(), found[2..]);
    assert_eq!(metastore.differences("other", "", 9).await.unwrap(), []);
    // Nobody makes it rest.
    assert_eq!(metastore.pause_backfill(&begun.id).await.unwrap(), None);
    let lease = metastore.acquire_lease("comparisons", "a", "", 3_600_000_000).await.unwrap().unwrap();
    let second = metastore.fenced(Fence::new(&lease, BootInstant::now().plus(Duration::from_secs(3_600))));
    assert_eq!(second.begin_reconcile().await.unwrap().unwrap().attempts, 2);
    assert!(first.keep_differences(&begun.id, &[]).await.unwrap_err().is_lease_lost());
    let end = OperationEnd {
        state: OperationState::Succeeded,
        reason: String::new(),
        result: "{}".into(),
        plan: String::new(),
    };
    second.end_operation(&begun.id, &end).await.unwrap();
    assert!(second.forget_old_operations(-1_000_000).await.unwrap() > 0);
    assert_eq!(page("", 9).await.unwrap(), [], "they are forgotten with their operation");
}

fn reconcile(request_id: &str) -> NewOperation {
    NewOperation {
        request_id: request_id.into(),
        kind: OperationKind::Reconcile,
        target: OperationTarget::space(Space { domain: "compared".into(), kind: Kind::Form }),
        asked_by: "ann".into(),
        consent: Consent::Given,
        details: "{}".into(),
    }
}

fn difference((number, class): (usize, DifferenceClass)) -> Difference {
    Difference {
        id: format!("id {number}"),
        class,
        lake_type: if class == DifferenceClass::Missing { String::new() } else { "t".into() },
        hq_type: if class == DifferenceClass::Extra { String::new() } else { "t".into() },
        lake_saved_us: (class != DifferenceClass::Missing).then_some(1),
        hq_saved_us: (class != DifferenceClass::Extra).then_some(-2),
    }
}

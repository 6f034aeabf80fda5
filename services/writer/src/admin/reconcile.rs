//! What the service of trust does about comparisons with HQ.

use lake_proto::admin::v1 as proto;
use lake_shared::identity::Kind;
use tonic::Status;

use super::access::Caller;
use super::convert;
use super::problem::Problem;
use super::services::{self, Services};
use crate::consent::Consent;
use crate::metastore::comparisons::{Difference, DifferenceClass};
use crate::metastore::steering::{NewOperation, OperationKind, OperationTarget};
use crate::operations::reconcile::scope::ReconcileScope;

/// Most types of a comparison.
const TYPES_MAX: usize = 1_000;
/// Longest id or type, bytes; HQ's columns hold 255 letters.
const NAME_BYTES_MAX: usize = 1_020;

impl Services {
    pub(super) async fn ask_to_reconcile(
        &self,
        caller: &Caller,
        asked: proto::StartReconcileRequest,
    ) -> Result<proto::StartReconcileResponse, Status> {
        let space = services::space(asked.space.clone())?;
        if !caller.sees(space.domain.as_str()) {
            let (what, id, list) = ("project", space.domain.to_string(), "ListTables");
            return Err(Problem::NotFound { what, id, list }.into());
        }
        let scope = scope(&asked, space.kind)?;
        let new = NewOperation {
            request_id: asked.request_id,
            kind: OperationKind::Reconcile,
            target: OperationTarget::space(space),
            asked_by: caller.name.clone(),
            consent: Consent::Given,
            details: scope.details(),
        };
        let operation = Some(convert::operation(&self.ask_for(new).await?));
        Ok(proto::StartReconcileResponse { operation })
    }

    pub(super) async fn reconciled(
        &self,
        caller: &Caller,
        asked: proto::GetReconcileRequest,
    ) -> Result<proto::GetReconcileResponse, Problem> {
        let found = self.metastore.operation(&asked.id).await?;
        let seen = found.filter(|record| {
            record.asked.kind == OperationKind::Reconcile && caller.sees(record.asked.target.space.domain.as_str())
        });
        let (what, id, list) = ("comparison", asked.id, "ListOperations");
        let record = seen.ok_or(Problem::NotFound { what, id, list })?;
        let page_size = services::page_size(asked.page_size)?;
        let differences = self.metastore.differences(&record.id, &asked.page_token, page_size).await?;
        let scope = ReconcileScope::of_details(&record.asked.details).unwrap_or_default();
        let last = differences.last().filter(|_| differences.len() >= page_size as usize);
        Ok(proto::GetReconcileResponse {
            operation: Some(convert::operation(&record)),
            types: scope.types,
            from_id: scope.from_id,
            until_id: scope.until_id,
            heal: scope.heal,
            next_page_token: last.map(|last| last.id.clone()).unwrap_or_default(),
            differences: differences.into_iter().map(difference).collect(),
        })
    }
}

/// What is asked for, if it can be.
fn scope(asked: &proto::StartReconcileRequest, kind: Kind) -> Result<ReconcileScope, Problem> {
    let wrong = |field: &'static str, reason: &str| Problem::Field { field, reason: reason.to_owned() };
    let scope = ReconcileScope {
        types: asked.types.clone(),
        from_id: asked.from_id.clone(),
        until_id: asked.until_id.clone(),
        heal: asked.heal,
    };
    if kind == Kind::Location && !scope.types.is_empty() {
        return Err(wrong("types", "locations have none"));
    }
    if scope.types.len() > TYPES_MAX {
        return Err(wrong("types", "at most 1,000 are taken"));
    }
    if scope.types.iter().any(|name| name.len() > NAME_BYTES_MAX) {
        return Err(wrong("types", "a type is longer than HQ can have it"));
    }
    for (field, id) in [("from_id", &scope.from_id), ("until_id", &scope.until_id)] {
        if id.len() > NAME_BYTES_MAX || id.contains('\0') {
            return Err(wrong(field, "HQ has no such id"));
        }
    }
    if !scope.until_id.is_empty() && scope.from_id >= scope.until_id {
        return Err(wrong("until_id", "it is not behind from_id, in the order of their bytes"));
    }
    Ok(scope)
}

fn difference(of: Difference) -> proto::Difference {
    let class = match of.class {
        DifferenceClass::Missing => proto::DifferenceClass::Missing,
        DifferenceClass::Stale => proto::DifferenceClass::Stale,
        DifferenceClass::Extra => proto::DifferenceClass::Extra,
        DifferenceClass::Moved => proto::DifferenceClass::Moved,
    };
    proto::Difference {
        id: of.id,
        class: class.into(),
        lake_type: of.lake_type,
        hq_type: of.hq_type,
        lake_saved_at: of.lake_saved_us.map(convert::timestamp),
        hq_saved_at: of.hq_saved_us.map(convert::timestamp),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn what_cannot_be_compared_is_refused_by_its_field() {
        let whole = proto::StartReconcileRequest { heal: true, ..Default::default() };
        let kept = scope(&whole, Kind::Location).unwrap();
        assert_eq!(kept, ReconcileScope { heal: true, ..ReconcileScope::default() });
        let range = |from_id: &str, until_id: &str| {
            let (from_id, until_id) = (from_id.to_owned(), until_id.to_owned());
            proto::StartReconcileRequest { from_id, until_id, ..whole.clone() }
        };
        assert!(scope(&range("b", ""), Kind::Case).is_ok() && scope(&range("Z", "a"), Kind::Case).is_ok());
        let refused = |asked: proto::StartReconcileRequest, kind| match scope(&asked, kind) {
            Err(Problem::Field { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(range("b", "b"), Kind::Case), "until_id");
        assert_eq!(refused(range("a\0", ""), Kind::Case), "from_id");
        let typed = |types: Vec<String>| proto::StartReconcileRequest { types, ..whole.clone() };
        assert_eq!(refused(typed(vec!["t".into()]), Kind::Location), "types");
        assert_eq!(refused(typed(vec!["t".into(); TYPES_MAX + 1]), Kind::Case), "types");
        assert_eq!(refused(typed(vec!["t".repeat(2_000)]), Kind::Form), "types");
    }

    #[test]
    fn a_difference_says_what_both_have() {
        for (class, of) in DifferenceClass::ALL.into_iter().zip(1..) {
            let told = difference(Difference {
                id: "a".into(),
                class,
                lake_type: "t".into(),
                hq_type: "u".into(),
                lake_saved_us: Some(1_000_000),
                hq_saved_us: None,
            });
            assert_eq!((told.class, told.lake_type.as_str(), told.hq_type.as_str()), (of, "t", "u"));
            assert_eq!((told.lake_saved_at.unwrap().seconds, told.hq_saved_at), (1, None));
        }
    }
}

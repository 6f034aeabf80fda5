//! The service of what makes the lake equal to HQ.

use lake_proto::admin::v1 as proto;
use lake_proto::admin::v1::trust_service_server::TrustService;
use lake_shared::identity::Kind;
use prost_types::Timestamp;
use tonic::{Request, Response, Status, async_trait};

use super::access::Caller;
use super::convert;
use super::options::Role;
use super::problem::Problem;
use super::services::{self, Services};
use crate::consent::Consent;
use crate::metastore::backfills::BackfillPart;
use crate::metastore::steering::{NewOperation, OperationKind, OperationRecord, OperationTarget};
use crate::operations::backfill::offers;
use crate::operations::backfill::scope::BackfillScope;

/// Most ids of a backfill.
const IDS_MAX: usize = 10_000;
/// Most types of a backfill.
const TYPES_MAX: usize = 1_000;
/// Longest id or type, bytes; HQ's columns hold 255 letters.
const NAME_BYTES_MAX: usize = 1_020;

impl Services {
    /// A backfill that the caller may see.
    async fn visible_backfill(&self, caller: &Caller, id: &str) -> Result<OperationRecord, Problem> {
        let found = self.metastore.operation(id).await?;
        let seen = found.filter(|record| {
            record.asked.kind == OperationKind::Backfill && caller.sees(record.asked.target.space.domain.as_str())
        });
        seen.ok_or_else(|| absent(id))
    }

    async fn audit_backfill(&self, caller: &Caller, call: &str, found: &OperationRecord) -> Result<(), Problem> {
        Ok(self.metastore.audit(&caller.name, call, &found.id, &found.asked.request_id).await?)
    }
}

fn absent(id: &str) -> Problem {
    Problem::NotFound { what: "backfill", id: id.to_owned(), list: "ListOperations" }
}

fn part(of: BackfillPart) -> proto::BackfillPart {
    let BackfillPart { part, estimate, reached, documents, finished, .. } = of;
    proto::BackfillPart { name: part, estimate, documents, reached, finished }
}

/// What is asked for, if it can be.
fn scope(asked: &proto::StartBackfillRequest, kind: Kind) -> Result<BackfillScope, Problem> {
    let wrong = |field: &'static str, reason: &str| Problem::Field { field, reason: reason.to_owned() };
    let scope = BackfillScope {
        types: asked.types.clone(),
        from_us: microseconds("from", asked.from)?,
        until_us: microseconds("until", asked.until)?,
        ids: asked.ids.clone(),
    };
    let is_timed = scope.from_us.is_some() || scope.until_us.is_some();
    if !scope.ids.is_empty() && (is_timed || !scope.types.is_empty()) {
        return Err(wrong("ids", "with ids neither types nor times are given"));
    }
    if scope.ids.len() > IDS_MAX {
        return Err(wrong("ids", "at most 10,000 are taken; ask again for the others"));
    }
    if kind == Kind::Location && !scope.types.is_empty() {
        return Err(wrong("types", "locations have none"));
    }
    if scope.types.len() > TYPES_MAX {
        return Err(wrong("types", "at most 1,000 are taken"));
    }
    if scope.ids.iter().chain(&scope.types).any(|name| name.len() > NAME_BYTES_MAX) {
        return Err(wrong("ids", "an id or type is longer than HQ can have it"));
    }
    if scope.ids.iter().any(String::is_empty) {
        return Err(wrong("ids", "one of them is empty"));
    }
    if scope.from_us.zip(scope.until_us).is_some_and(|(from_us, until_us)| from_us >= until_us) {
        return Err(wrong("until", "it is not later than from"));
    }
    Ok(scope)
}

fn microseconds(field: &'static str, at: Option<Timestamp>) -> Result<Option<i64>, Problem> {
    let Some(at) = at else { return Ok(None) };
    let seconds = at.seconds.checked_mul(1_000_000);
    let all = seconds.and_then(|seconds| seconds.checked_add(i64::from(at.nanos / 1_000)));
    // Years 1 to 9999, which every database can hold.
    let all = all.filter(|all| (-62_135_596_800_000_000..253_402_300_800_000_000).contains(all));
    all.map(Some).ok_or_else(|| Problem::Field { field, reason: "it is no time that HQ can have".into() })
}

#[async_trait]
impl TrustService for Services {
    async fn start_backfill(
        &self,
        request: Request<proto::StartBackfillRequest>,
    ) -> Result<Response<proto::StartBackfillResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Operator).await?;
        let asked = request.into_inner();
        let space = services::space(asked.space.clone())?;
        if !caller.sees(space.domain.as_str()) {
            let (what, id, list) = ("project", space.domain.to_string(), "ListTables");
            return Err(Problem::NotFound { what, id, list }.into());
        }
        let scope = scope(&asked, space.kind)?;
        let new = NewOperation {
            request_id: asked.request_id,
            kind: OperationKind::Backfill,
            target: OperationTarget::space(space),
            asked_by: caller.name.clone(),
            consent: if asked.dry_run { Consent::DryRun } else { Consent::Given },
            details: scope.details(),
        };
        let operation = Some(convert::operation(&self.ask_for(new).await?));
        Ok(Response::new(proto::StartBackfillResponse { operation }))
    }

    async fn get_backfill(
        &self,
        request: Request<proto::GetBackfillRequest>,
    ) -> Result<Response<proto::GetBackfillResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Viewer).await?;
        let found = self.visible_backfill(&caller, &request.into_inner().id).await?;
        let parts = self.metastore.backfill_parts(&found.id).await.map_err(Problem::from)?;
        let scope = BackfillScope::of_details(&found.asked.details).unwrap_or_default();
        Ok(Response::new(proto::GetBackfillResponse {
            operation: Some(convert::operation(&found)),
            types: scope.types,
            from: scope.from_us.map(convert::timestamp),
            until: scope.until_us.map(convert::timestamp),
            ids: scope.ids.len() as i64,
            parts: parts.into_iter().map(part).collect(),
        }))
    }

    async fn pause_backfill(
        &self,
        request: Request<proto::PauseBackfillRequest>,
    ) -> Result<Response<proto::PauseBackfillResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Operator).await?;
        let found = self.visible_backfill(&caller, &request.into_inner().id).await?;
        self.audit_backfill(&caller, "pause_backfill", &found).await?;
        let paused = self.metastore.pause_backfill(&found.id).await.map_err(Problem::from)?;
        let operation = Some(convert::operation(&paused.ok_or_else(|| absent(&found.id))?));
        Ok(Response::new(proto::PauseBackfillResponse { operation }))
    }

    async fn resume_backfill(
        &self,
        request: Request<proto::ResumeBackfillRequest>,
    ) -> Result<Response<proto::ResumeBackfillResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Operator).await?;
        let found = self.visible_backfill(&caller, &request.into_inner().id).await?;
        self.audit_backfill(&caller, "resume_backfill", &found).await?;
        let resumed = self.metastore.resume_backfill(&found.id).await.map_err(Problem::from)?;
        let operation = Some(convert::operation(&resumed.ok_or_else(|| absent(&found.id))?));
        Ok(Response::new(proto::ResumeBackfillResponse { operation }))
    }

    async fn list_backfill_offers(
        &self,
        request: Request<proto::ListBackfillOffersRequest>,
    ) -> Result<Response<proto::ListBackfillOffersResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Viewer).await?;
        let taken = self.metastore.taken().await.map_err(Problem::from)?;
        let backfills = self.metastore.backfills_asked().await.map_err(Problem::from)?;
        let offers = offers::offers(&taken, &backfills);
        let seen = offers.into_iter().filter(|offer| match offer.domain.as_str() {
            // Of every project: for those who see them all.
            "" => caller.domains().is_none(),
            domain => caller.sees(domain),
        });
        let offer = |offer: offers::Offer| proto::BackfillOffer {
            domain: offer.domain,
            kind: convert::kind_or_all(offer.kind).into(),
            r#type: offer.document_type,
            since: Some(convert::timestamp(offer.since_us)),
        };
        Ok(Response::new(proto::ListBackfillOffersResponse { offers: seen.map(offer).collect() }))
    }

    async fn start_reconcile(
        &self,
        request: Request<proto::StartReconcileRequest>,
    ) -> Result<Response<proto::StartReconcileResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Operator).await?;
        Ok(Response::new(self.ask_to_reconcile(&caller, request.into_inner()).await?))
    }

    async fn get_reconcile(
        &self,
        request: Request<proto::GetReconcileRequest>,
    ) -> Result<Response<proto::GetReconcileResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Viewer).await?;
        Ok(Response::new(self.reconciled(&caller, request.into_inner()).await?))
    }

    async fn erase_records(
        &self,
        request: Request<proto::EraseRecordsRequest>,
    ) -> Result<Response<proto::EraseRecordsResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Admin).await?;
        let operation = Some(self.ask_erasure(&caller, request.into_inner()).await?);
        Ok(Response::new(proto::EraseRecordsResponse { operation }))
    }

    async fn allow_records(
        &self,
        request: Request<proto::AllowRecordsRequest>,
    ) -> Result<Response<proto::AllowRecordsResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Admin).await?;
        let operation = Some(self.ask_record_allowance(&caller, request.into_inner()).await?);
        Ok(Response::new(proto::AllowRecordsResponse { operation }))
    }

    async fn list_erased_records(
        &self,
        request: Request<proto::ListErasedRecordsRequest>,
    ) -> Result<Response<proto::ListErasedRecordsResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Viewer).await?;
        Ok(Response::new(self.erased_records(&caller, request.into_inner()).await?))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn what_cannot_be_filled_is_refused_by_its_field() {
        let names = |of: &[&str]| of.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let at = |seconds| Some(Timestamp { seconds, nanos: 5_000 });
        let whole = proto::StartBackfillRequest::default();
        let timed = proto::StartBackfillRequest { from: at(1), until: at(2), ..whole.clone() };
        let kept = scope(&timed, Kind::Case).unwrap();
        assert_eq!((kept.from_us, kept.until_us), (Some(1_000_005), Some(2_000_005)));
        let refused = |asked: proto::StartBackfillRequest, kind| match scope(&asked, kind) {
            Err(Problem::Field { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        let ids = names(&["a"]);
        assert_eq!(refused(proto::StartBackfillRequest { ids: ids.clone(), ..timed.clone() }, Kind::Case), "ids");
        let both = proto::StartBackfillRequest { ids, types: names(&["t"]), ..whole.clone() };
        assert_eq!(refused(both, Kind::Case), "ids");
        let many = proto::StartBackfillRequest { ids: vec!["x".into(); IDS_MAX + 1], ..whole.clone() };
        assert_eq!(refused(many, Kind::Form), "ids");
        let typed = proto::StartBackfillRequest { types: names(&["t"]), ..whole.clone() };
        assert_eq!(refused(typed, Kind::Location), "types");
        assert_eq!(refused(proto::StartBackfillRequest { until: at(1), ..timed }, Kind::Case), "until");
        let odd = proto::StartBackfillRequest { from: at(i64::MAX), ..whole };
        assert_eq!(refused(odd, Kind::Case), "from");
    }
}

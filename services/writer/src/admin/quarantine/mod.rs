//! The service of the quarantine.
//!
//! Bytes and details of entries are people's data: documents, rows, values that an error quotes. Who only looks sees which records are concerned and
//! why; one entry as a whole needs the role of an operator, and each look at one is written down.

use lake_proto::admin::v1 as proto;
use lake_proto::admin::v1::quarantine_service_server::QuarantineService;
use tonic::{Request, Response, Status, async_trait};

use super::access::Caller;
use super::options::Role;
use super::problem::Problem;
use super::services::{self, Services};
use super::table_work;
use crate::consent::Consent;
use crate::metastore::QuarantineFilter;
use crate::metastore::steering::{NewOperation, OperationKind, OperationRecord, OperationTarget};

pub(super) mod convert;

/// Most groups of a summary.
const GROUPS_MAX: u32 = 1_000;

/// Bytes of a payload where none are asked for.
const PAYLOAD_BYTES: u32 = 64 << 10;

/// Most bytes of a payload in an answer.
const PAYLOAD_BYTES_MAX: u32 = 1 << 20;

impl Services {
    /// A filter that selects nothing but what the caller may see.
    pub(super) fn visible_filter(
        caller: &Caller,
        asked: Option<proto::QuarantineFilter>,
    ) -> Result<QuarantineFilter, Problem> {
        let asked = asked.unwrap_or_default();
        let domains = caller.domains_among(&asked.domain);
        Ok(QuarantineFilter { domains, ..convert::filter(asked)? })
    }

    async fn ask_of_quarantine(
        &self,
        caller: &Caller,
        kind: OperationKind,
        request_id: String,
        asked: Option<proto::QuarantineFilter>,
        consent: Consent,
    ) -> Result<OperationRecord, Status> {
        let filter = convert::filter(asked.unwrap_or_default())?;
        match filter.domain.as_deref() {
            None => caller.whole_lake("ask for what concerns the quarantine of all projects")?,
            Some(domain) if !caller.sees(domain) => {
                let (what, id, list) = ("project", domain.to_owned(), "SummarizeQuarantine");
                return Err(Problem::NotFound { what, id, list }.into());
            }
            Some(_) => {}
        }
        let new = NewOperation {
            request_id,
            kind,
            target: OperationTarget::quarantine(&filter),
            asked_by: caller.name.clone(),
            consent,
            details: filter.to_json(),
        };
        self.ask_for(new).await
    }
}

#[async_trait]
impl QuarantineService for Services {
    async fn summarize_quarantine(
        &self,
        request: Request<proto::SummarizeQuarantineRequest>,
    ) -> Result<Response<proto::SummarizeQuarantineResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Viewer).await?;
        let filter = Self::visible_filter(&caller, request.into_inner().filter)?;
        let groups = self.metastore.quarantine_groups(&filter, GROUPS_MAX).await.map_err(Problem::from)?;
        Ok(Response::new(proto::SummarizeQuarantineResponse {
            groups: groups.into_iter().map(convert::group).collect(),
            bounds: Some(convert::bounds(&self.quarantine_bounds)),
        }))
    }

    async fn list_quarantine_entries(
        &self,
        request: Request<proto::ListQuarantineEntriesRequest>,
    ) -> Result<Response<proto::ListQuarantineEntriesResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Viewer).await?;
        let asked = request.into_inner();
        let page_size = services::page_size(asked.page_size)?;
        let behind = services::behind(&asked.page_token)?;
        let filter = Self::visible_filter(&caller, asked.filter)?;
        let found = self.metastore.quarantine_page(&filter, behind.as_ref(), page_size).await.map_err(Problem::from)?;
        let last = found.last().map(|last| (last.entry.quarantined_us, last.fingerprint.as_str()));
        Ok(Response::new(proto::ListQuarantineEntriesResponse {
            next_page_token: services::next_page_token(last, found.len(), page_size),
            entries: found.iter().map(convert::entry).collect(),
        }))
    }

    async fn get_quarantine_entry(
        &self,
        request: Request<proto::GetQuarantineEntryRequest>,
    ) -> Result<Response<proto::GetQuarantineEntryResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Operator).await?;
        let asked = request.into_inner();
        let bytes_max = match u32::try_from(asked.payload_bytes_max) {
            Ok(0) => PAYLOAD_BYTES,
            Ok(asked) => asked.min(PAYLOAD_BYTES_MAX),
            Err(_) => return Err(Problem::Field { field: "payload_bytes_max", reason: "it is negative".into() }.into()),
        };
        // All of them: whether it can be read again is seen from the whole.
        let found = self.metastore.quarantine_entry(&asked.id, u32::MAX).await.map_err(Problem::from)?;
        let found = found.filter(|record| caller.sees(&record.entry.domain));
        let found = found.ok_or_else(|| {
            let (what, list) = ("quarantine entry", "ListQuarantineEntries");
            Problem::NotFound { what, id: asked.id.clone(), list }
        })?;
        let audited = self.metastore.audit(&caller.name, "get_quarantine_entry", &asked.id, "").await;
        audited.map_err(Problem::from)?;
        Ok(Response::new(convert::whole_entry(&found, bytes_max)))
    }

    async fn replay_quarantine(
        &self,
        request: Request<proto::ReplayQuarantineRequest>,
    ) -> Result<Response<proto::ReplayQuarantineResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Operator).await?;
        let proto::ReplayQuarantineRequest { request_id, filter, dry_run, plan_id } = request.into_inner();
        let (kind, consent) = (OperationKind::ReplayQuarantine, table_work::consent(dry_run, &plan_id)?);
        let asked = self.ask_of_quarantine(&caller, kind, request_id, filter, consent).await?;
        let operation = Some(super::convert::operation(&asked));
        Ok(Response::new(proto::ReplayQuarantineResponse { operation }))
    }

    async fn discard_quarantine(
        &self,
        request: Request<proto::DiscardQuarantineRequest>,
    ) -> Result<Response<proto::DiscardQuarantineResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Admin).await?;
        let proto::DiscardQuarantineRequest { request_id, filter, dry_run, plan_id } = request.into_inner();
        let (kind, consent) = (OperationKind::DiscardQuarantine, table_work::consent(dry_run, &plan_id)?);
        if consent == Consent::Given {
            let reason = "entries are discarded by a plan only; ask with dry_run for one first".into();
            return Err(Problem::Field { field: "plan_id", reason }.into());
        }
        let asked = self.ask_of_quarantine(&caller, kind, request_id, filter, consent).await?;
        let operation = Some(super::convert::operation(&asked));
        Ok(Response::new(proto::DiscardQuarantineResponse { operation }))
    }
}

//! The service of the lake as a whole.

use std::time::{Duration, Instant, SystemTime};

use lake_proto::admin::v1 as proto;
use lake_proto::admin::v1::lake_service_server::LakeService;
use lake_shared::identity::Space;
use lake_shared::quarantine::Reason;
use lake_shared::queue::Stream;
use tonic::{Request, Response, Status, async_trait};

use super::access::Caller;
use super::options::Role;
use super::problem::Problem;
use super::services::{self, Services};
use super::{convert, convert_pipeline};
use crate::handle::{WriterRole, WriterStatus};
use crate::metastore::steering::PauseRecord;

/// How long the answer to a pause waits until it is in force.
const IN_FORCE_WITHIN: Duration = Duration::from_secs(15);

/// Time between two looks whether it is.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Longest reason of a pause, bytes.
const REASON_BYTES_MAX: usize = 1_000;

impl Services {
    /// The pauses that concern what the caller may see.
    async fn visible_pauses(&self, caller: &Caller) -> Result<Vec<proto::Pause>, Problem> {
        Ok(self.pauses(caller).await?.iter().map(convert::pause).collect())
    }

    async fn pauses(&self, caller: &Caller) -> Result<Vec<PauseRecord>, Problem> {
        let mut pauses = self.metastore.pauses().await?;
        pauses.retain(|pause| pause.space.as_ref().is_none_or(|space| caller.sees(space.domain.as_str())));
        Ok(pauses)
    }

    /// What is to be paused or resumed, if the caller may do so; `None`: everything.
    fn scope(caller: &Caller, asked: Option<proto::Space>, action: &str) -> Result<Option<Space>, Status> {
        let Some(asked) = asked else {
            caller.whole_lake(action)?;
            return Ok(None);
        };
        let space = services::space(Some(asked))?;
        if caller.sees(space.domain.as_str()) {
            return Ok(Some(space));
        }
        let (what, id, list) = ("project", space.domain.to_string(), "ListTables");
        Err(Problem::NotFound { what, id, list }.into())
    }

    async fn quarantined(&self, domains: Option<&[String]>) -> Result<Vec<proto::QuarantinedReason>, Problem> {
        let counted = self.metastore.quarantined_by_reason(domains).await?;
        let told = counted.into_iter().map(|(code, entries)| {
            let known = Reason::from_code(&code);
            proto::QuarantinedReason {
                entries: i64::try_from(entries).unwrap_or(i64::MAX),
                meaning: known.map(|reason| reason.meaning().to_owned()).unwrap_or_default(),
                next_action: known.map(|reason| reason.next_step().to_owned()).unwrap_or_default(),
                reason: code,
            }
        });
        Ok(told.collect())
    }
}

#[async_trait]
impl LakeService for Services {
    async fn get_status(
        &self,
        request: Request<proto::GetStatusRequest>,
    ) -> Result<Response<proto::GetStatusResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Viewer).await?;
        let domains = caller.domains();
        let status = self.handle.status().await;
        let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let tables = self.metastore.table_count(domains.as_deref()).await.map_err(Problem::from)?;
        let open = self.metastore.open_operations(domains.as_deref()).await.map_err(Problem::from)?;
        let holder = status.holder.as_ref().ok().and_then(Option::as_ref).map(|lease| proto::LeaseHolder {
            name: lease.owner.clone(),
            address: lease.address.clone(),
            epoch: lease.epoch,
            since: Some(convert::timestamp(lease.acquired_us)),
        });
        Ok(Response::new(proto::GetStatusResponse {
            asked: Some(writer(&status)),
            holder,
            pauses: self.visible_pauses(&caller).await?,
            tables: count(tables),
            operations_open: count(open),
            quarantined: self.quarantined(domains.as_deref()).await?,
            ingest: ingest(&status, &caller),
        }))
    }

    async fn pause(&self, request: Request<proto::PauseRequest>) -> Result<Response<proto::PauseResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Operator).await?;
        let asked = request.into_inner();
        let space = Self::scope(&caller, asked.space, "pause everything")?;
        if asked.reason.len() > REASON_BYTES_MAX {
            let reason = format!("it is longer than {REASON_BYTES_MAX} bytes");
            return Err(Problem::Field { field: "reason", reason }.into());
        }
        let target = space.as_ref().map(ToString::to_string).unwrap_or_default();
        self.metastore.audit(&caller.name, "pause", &target, "").await.map_err(Problem::from)?;
        let kept = self.metastore.pause(space.as_ref(), &caller.name, &asked.reason).await;
        kept.map_err(Problem::from)?;
        let in_force = async {
            loop {
                let pauses = self.pauses(&caller).await?;
                // Resumed meanwhile, or in force.
                if !pauses.iter().any(|pause| pause.space == space && pause.in_force_us.is_none()) {
                    return Ok::<_, Problem>(());
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        // After that time the answer says that it is not in force yet: no writer holds the lease, or a commit takes long.
        if let Ok(outcome) = tokio::time::timeout(IN_FORCE_WITHIN, in_force).await {
            outcome?;
        }
        Ok(Response::new(proto::PauseResponse { pauses: self.visible_pauses(&caller).await? }))
    }

    async fn resume(&self, request: Request<proto::ResumeRequest>) -> Result<Response<proto::ResumeResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Operator).await?;
        let space = Self::scope(&caller, request.into_inner().space, "resume everything")?;
        let target = space.as_ref().map(ToString::to_string).unwrap_or_default();
        self.metastore.audit(&caller.name, "resume", &target, "").await.map_err(Problem::from)?;
        self.metastore.resume(space.as_ref()).await.map_err(Problem::from)?;
        Ok(Response::new(proto::ResumeResponse { pauses: self.visible_pauses(&caller).await? }))
    }

    async fn get_pipeline(
        &self,
        request: Request<proto::GetPipelineRequest>,
    ) -> Result<Response<proto::GetPipelineResponse>, Status> {
        self.gate.enter(&request, Role::Viewer).await?;
        let present = self.pipeline.present(Instant::now());
        let partitions = self.pipeline.partitions(Instant::now(), SystemTime::now());
        let asked = Stream::ALL.map(async |stream| convert_pipeline::stream(stream, self.queue.backlog(stream).await));
        Ok(Response::new(proto::GetPipelineResponse {
            replicas: present.iter().map(|heard| convert_pipeline::replica(heard, SystemTime::now())).collect(),
            partitions: partitions.into_iter().map(convert_pipeline::partition).collect(),
            streams: futures::future::join_all(asked).await.into_iter().flatten().collect(),
        }))
    }

    async fn list_audit_records(
        &self,
        request: Request<proto::ListAuditRecordsRequest>,
    ) -> Result<Response<proto::ListAuditRecordsResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Admin).await?;
        caller.whole_lake("see what was asked for")?;
        let asked = request.into_inner();
        let page_size = services::page_size(asked.page_size)?;
        let behind = services::behind(&asked.page_token)?;
        let found = self.metastore.audited(behind.as_ref(), page_size).await.map_err(Problem::from)?;
        let last = found.last().map(|last| (last.at_us, last.id.as_str()));
        Ok(Response::new(proto::ListAuditRecordsResponse {
            next_page_token: services::next_page_token(last, found.len(), page_size),
            records: found.iter().map(convert::audit).collect(),
        }))
    }
}

fn writer(status: &WriterStatus) -> proto::Writer {
    let role = match status.role {
        WriterRole::Holding { .. } => proto::WriterRole::Holding,
        WriterRole::StandingBy => proto::WriterRole::StandingBy,
        WriterRole::Ended => proto::WriterRole::Ended,
    };
    proto::Writer { name: status.owner.clone(), role: role.into(), version: env!("CARGO_PKG_VERSION").into() }
}

/// What the writer holds, of the projects that the caller may see where it can be told apart.
fn ingest(status: &WriterStatus, caller: &Caller) -> Option<proto::Ingest> {
    let leased = status.leased.as_ref()?;
    let seen = |space: &&Space| caller.sees(space.domain.as_str());
    Some(proto::Ingest {
        rows_waiting: leased.ingest.rows_waiting as u64,
        bytes_held: leased.ingest.bytes_held as u64,
        failing: leased.ingest.failing.iter().filter(seen).map(convert::space).collect(),
        spaces_in_use: leased.spaces_in_use.iter().filter(seen).count() as u64,
    })
}

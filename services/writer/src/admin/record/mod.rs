//! The service of single records.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures::StreamExt;
use lake_proto::admin::v1 as proto;
use lake_proto::admin::v1::record_service_server::RecordService;
use lake_shared::error_chain::Chain;
use lake_shared::identity::Space;
use tonic::{Request, Response, Status, async_trait};

use self::rules::Rules;
use self::traced::{Traced, Unsearched};
use super::access::Caller;
use super::options::Role;
use super::problem::Problem;
use super::services::{self, Services};
use crate::handle_error::HandleError;
use crate::key_index::id_hash;
use crate::metastore::QuarantineFilter;
use crate::metastore::erasures::record_ids::erasure_hash;
use crate::metastore::steering::{OperationFilter, OperationState};

mod rules;
mod traced;

/// Longest id, bytes.
const ID_BYTES_MAX: usize = 4_096;

/// Spaces that are searched at the same time.
const SEARCHED_AT_ONCE: usize = 8;

/// How long rows are searched: a space that is not in memory has to be loaded, and one that is being committed to is waited for.
const SEARCHED_WITHIN: Duration = Duration::from_secs(20);

/// Most entries of the quarantine, and most operations, of an answer.
const LISTED_MAX: u32 = 1_000;

impl Services {
    async fn trace(&self, caller: &Caller, asked: proto::TraceRecordRequest) -> Result<Traced, Problem> {
        let (domains, kind) = (caller.domains_among(&asked.domain), services::kind(asked.kind)?);
        let is_meant = |space: &Space| {
            let is_of_domain =
                domains.as_ref().is_none_or(|names| names.iter().any(|name| *name == space.domain.as_str()));
            is_of_domain && kind.is_none_or(|kind| kind == space.kind)
        };
        let dropped = self.metastore.dropped(None).await?;
        let dropped: Vec<_> = dropped.into_iter().filter(|record| is_meant(&record.target.space)).collect();
        let with_tables: BTreeSet<Space> = self.metastore.spaces().await?.into_iter().filter(is_meant).collect();
        // An id may be deleted that never had a row.
        let mut spaces = with_tables.clone();
        spaces.extend(dropped.iter().map(|record| record.target.space.clone()));
        if let (Some([domain]), Some(kind)) = (domains.as_deref(), kind) {
            spaces.insert(Space { domain: domain.as_str().into(), kind });
        }
        let filter = QuarantineFilter {
            document_id: Some(asked.id.clone()),
            kind,
            domains: domains.clone(),
            ..QuarantineFilter::default()
        };
        let ids: Vec<_> = spaces.iter().map(|space| (space.clone(), id_hash(&asked.id))).collect();
        let hashes: Vec<String> = spaces.iter().map(|space| erasure_hash(space, &asked.id)).collect();
        let open = OperationFilter {
            states: vec![OperationState::Pending, OperationState::Running, OperationState::Paused],
            domains,
        };
        let (searched, tombstones, quarantined, operations, erasures) = tokio::join!(
            self.search(&asked.id, with_tables),
            self.metastore.tombstones_in_spaces(&ids),
            self.metastore.quarantine_page(&filter, None, LISTED_MAX),
            self.metastore.operations(&open, None, LISTED_MAX),
            self.metastore.erasures_of(&hashes),
        );
        let heard = self.pipeline.present(Instant::now());
        let rules = Rules::of(heard.iter().filter_map(|heard| heard.announcement.taken.as_ref()));
        let traced = Traced {
            tombstones: tombstones?,
            quarantined: quarantined?,
            operations: operations?,
            erasures: erasures?,
            dropped,
            left_out_by: if caller.sees(&asked.domain) { rules.leave_out(&asked.domain) } else { Vec::new() },
            rules_unknown: rules.unknown(&asked.domain, kind, |domain| caller.sees(domain)),
            ..searched
        };
        Ok(traced.about(&asked.id))
    }

    /// Looks for the row in each of these spaces.
    async fn search(&self, id: &str, spaces: BTreeSet<Space>) -> Traced {
        let mut left = spaces.clone();
        let mut traced = Traced::default();
        let handle = &self.handle;
        let looking = futures::stream::iter(spaces).map(move |space| async move {
            let found = handle.locate(space.clone(), id.to_owned()).await;
            (space, found)
        });
        let looking = looking.buffer_unordered(SEARCHED_AT_ONCE);
        let gathering = async {
            let mut looking = std::pin::pin!(looking);
            while let Some((space, found)) = looking.next().await {
                left.remove(&space);
                match found {
                    Ok(row) => {
                        traced.spaces_searched += 1;
                        traced.rows.extend(row);
                    }
                    Err(error @ (HandleError::NotLeaseHolder { .. } | HandleError::Stopping)) => {
                        traced.elsewhere = Some(Chain(&error).to_string());
                        left.clear();
                        return;
                    }
                    Err(error) => {
                        traced.not_searched.push(Unsearched { space, reason: Chain(&error).to_string() });
                    }
                }
            }
        };
        let is_late = tokio::time::timeout(SEARCHED_WITHIN, gathering).await.is_err();
        let late =
            "it was not loaded, or a commit to it had not ended, within 20 s; ask again, or for this project alone";
        let late = left.into_iter().filter(|_| is_late).map(|space| Unsearched { space, reason: late.into() });
        traced.not_searched.extend(late);
        traced
    }
}

#[async_trait]
impl RecordService for Services {
    async fn trace_record(
        &self,
        request: Request<proto::TraceRecordRequest>,
    ) -> Result<Response<proto::TraceRecordResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Viewer).await?;
        let asked = request.into_inner();
        if asked.id.is_empty() || asked.id.len() > ID_BYTES_MAX {
            let reason = format!("give 1 to {ID_BYTES_MAX} bytes: a case id, form id or location id");
            return Err(Problem::Field { field: "id", reason }.into());
        }
        Ok(Response::new(self.trace(&caller, asked).await?.into_message()))
    }
}

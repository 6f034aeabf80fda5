//! What may be asked for about records that are taken out of the lake wholly.

use std::collections::{BTreeSet, HashMap};

use lake_proto::admin::v1 as proto;
use lake_shared::identity::Space;
use tonic::Status;

use super::access::Caller;
use super::convert::{self, timestamp};
use super::problem::Problem;
use super::services::{self, Services};
use super::table_work;
use crate::consent::Consent;
use crate::metastore::erasures::ErasureRecord;
use crate::metastore::erasures::record_ids::{RecordIds, is_erasure_hash};
use crate::metastore::steering::{NewOperation, OperationKind, OperationTarget};

/// Most records of one operation.
const RECORDS_MAX: usize = 1_000;

/// Longest id, bytes; HQ's columns hold 255 letters.
const ID_BYTES_MAX: usize = 1_020;

impl Services {
    pub(super) async fn ask_erasure(
        &self,
        caller: &Caller,
        asked: proto::EraseRecordsRequest,
    ) -> Result<proto::Operation, Status> {
        let consent = table_work::consent(asked.dry_run, &asked.plan_id)?;
        if consent == Consent::Given {
            let reason = "ask with dry_run first, look at what would be erased, then give the id of that plan".into();
            return Err(Problem::Field { field: "plan_id", reason }.into());
        }
        let records = record_ids(asked.ids, Vec::new())?;
        self.ask_of_records(caller, OperationKind::EraseRecords, asked.request_id, asked.space, records, consent).await
    }

    pub(super) async fn ask_record_allowance(
        &self,
        caller: &Caller,
        asked: proto::AllowRecordsRequest,
    ) -> Result<proto::Operation, Status> {
        let (kind, records) = (OperationKind::AllowRecords, record_ids(asked.ids, asked.id_hashes)?);
        self.ask_of_records(caller, kind, asked.request_id, asked.space, records, Consent::Given).await
    }

    async fn ask_of_records(
        &self,
        caller: &Caller,
        kind: OperationKind,
        request_id: String,
        space: Option<proto::Space>,
        records: RecordIds,
        consent: Consent,
    ) -> Result<proto::Operation, Status> {
        let space: Space = services::space(space)?;
        if !caller.sees(space.domain.as_str()) {
            let (what, id, list) = ("project", space.domain.to_string(), "ListTables");
            return Err(Problem::NotFound { what, id, list }.into());
        }
        let new = NewOperation {
            request_id,
            kind,
            target: OperationTarget::space(space),
            asked_by: caller.name.clone(),
            consent,
            details: records.details(),
        };
        Ok(convert::operation(&self.ask_for(new).await?))
    }

    pub(super) async fn erased_records(
        &self,
        caller: &Caller,
        asked: proto::ListErasedRecordsRequest,
    ) -> Result<proto::ListErasedRecordsResponse, Problem> {
        let page_size = services::page_size(asked.page_size)?;
        let behind = services::behind(&asked.page_token)?;
        let domains = caller.domains_among(&asked.domain);
        let found = self.metastore.erasures(domains.as_deref(), behind.as_ref(), page_size).await?;
        let last = found.last().map(|last| (last.since_us, last.id_hash.as_str()));
        Ok(proto::ListErasedRecordsResponse {
            next_page_token: services::next_page_token(last, found.len(), page_size),
            records: found.iter().map(erased).collect(),
        })
    }
}

/// Which records are meant, each once.
fn record_ids(ids: Vec<String>, hashes: Vec<String>) -> Result<RecordIds, Problem> {
    let wrong = |field: &'static str, reason: &str| Problem::Field { field, reason: reason.to_owned() };
    let once = |texts: Vec<String>| texts.into_iter().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>();
    let records = RecordIds { ids: once(ids), hashes: once(hashes) };
    if records.is_empty() {
        return Err(wrong("ids", "give at least one"));
    }
    if records.len() > RECORDS_MAX {
        return Err(wrong("ids", "at most 1,000 are taken; ask again for the others"));
    }
    if records.ids.iter().any(String::is_empty) {
        return Err(wrong("ids", "one of them is empty"));
    }
    if records.ids.iter().any(|id| id.len() > ID_BYTES_MAX) {
        return Err(wrong("ids", "one of them is longer than HQ can have it"));
    }
    if !records.hashes.iter().all(|hash| is_erasure_hash(hash)) {
        return Err(wrong("id_hashes", "one of them is no 64 hexadecimal digits in small letters"));
    }
    Ok(records)
}

fn erased(of: &ErasureRecord) -> proto::ErasedRecord {
    let report: HashMap<String, i64> = serde_json::from_str(&of.report).unwrap_or_default();
    proto::ErasedRecord {
        space: Some(convert::space(&of.space)),
        id_hash: of.id_hash.clone(),
        since: Some(timestamp(of.since_us)),
        asked_by: of.asked_by.clone(),
        operation_id: of.operation_id.clone(),
        erased_at: of.erased_us.map(timestamp),
        report,
        allowed_at: of.allowed_us.map(timestamp),
        allowed_by: of.allowed_by.clone(),
    }
}

/// The same as a trace tells it.
pub(super) fn traced(of: &ErasureRecord) -> proto::TracedErasure {
    proto::TracedErasure {
        space: Some(convert::space(&of.space)),
        since: Some(timestamp(of.since_us)),
        erased_at: of.erased_us.map(timestamp),
        operation_id: of.operation_id.clone(),
        allowed_at: of.allowed_us.map(timestamp),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn what_cannot_be_erased_is_refused_by_its_field() {
        let names = |of: &[&str]| of.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let refused = |ids: Vec<String>, hashes: Vec<String>| match record_ids(ids, hashes) {
            Err(Problem::Field { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(record_ids(names(&["b", "a", "b"]), Vec::new()).unwrap().ids, ["a", "b"]);
        assert_eq!(refused(Vec::new(), Vec::new()), "ids");
        assert_eq!(refused(names(&["a", ""]), Vec::new()), "ids");
        assert_eq!(refused(vec!["x".repeat(ID_BYTES_MAX + 1)], Vec::new()), "ids");
        assert_eq!(refused((0..=RECORDS_MAX).map(|id| id.to_string()).collect(), Vec::new()), "ids");
        assert_eq!(refused(Vec::new(), names(&["no hash"])), "id_hashes");
        assert_eq!(record_ids(Vec::new(), vec!["0".repeat(64)]).unwrap().len(), 1);
    }
}

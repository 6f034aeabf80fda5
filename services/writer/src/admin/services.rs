//! What the services share: who may ask, the metastore, the handle of the writer, and reading of requests.

use std::sync::Arc;

use lake_proto::admin::v1 as proto;
use lake_shared::identity::{Kind, Space};
use lake_shared::queue::Queue;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::access::{Caller, Gate};
use super::convert;
use super::problem::Problem;
use crate::consent::Consent;
use crate::handle::WriterHandle;
use crate::metastore::steering::{Behind, NewOperation, OperationKind, OperationRecord, OperationTarget};
use crate::metastore::{Metastore, QuarantineBounds};
use crate::pipeline_watch::PipelineWatch;
use crate::table_store::delta::inspect::TableInspector;
use crate::table_store::lake_store::LakeStore;

/// Entries of a page where none are asked for.
const PAGE_SIZE: u32 = 100;

/// Most entries of a page.
const PAGE_SIZE_MAX: u32 = 1_000;

/// Longest request id, bytes.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Most operations that wait or run; further ones are refused.
const OPEN_OPERATIONS_MAX: u64 = 1_000;

/// Most streams at the same time.
const WATCHERS_MAX: usize = 64;

/// The parts of a writer that answer.
pub(crate) struct ServedParts {
    /// The writer itself.
    pub(crate) handle: WriterHandle,
    /// Its metastore.
    pub(crate) metastore: Arc<dyn Metastore>,
    /// The root of its tables.
    pub(crate) lake: Arc<LakeStore>,
    /// The queue that it takes rows from.
    pub(crate) queue: Arc<dyn Queue>,
    /// The other processes of the lake.
    pub(crate) pipeline: PipelineWatch,
    /// How much the quarantine keeps.
    pub(crate) quarantine_bounds: QuarantineBounds,
}

/// The services.
pub(super) struct Services {
    pub(super) gate: Gate,
    pub(super) handle: WriterHandle,
    pub(super) metastore: Arc<dyn Metastore>,
    pub(super) inspector: TableInspector,
    pub(super) queue: Arc<dyn Queue>,
    pub(super) pipeline: PipelineWatch,
    pub(super) quarantine_bounds: QuarantineBounds,
    pub(super) watchers: Arc<Semaphore>,
    /// Ends streams.
    pub(super) shutdown: CancellationToken,
}

impl Services {
    pub(super) fn new(gate: Gate, parts: ServedParts, shutdown: CancellationToken) -> Self {
        let ServedParts { handle, metastore, lake, queue, pipeline, quarantine_bounds } = parts;
        let (inspector, watchers) = (TableInspector::new(lake), Arc::new(Semaphore::new(WATCHERS_MAX)));
        Self { gate, handle, metastore, inspector, queue, pipeline, quarantine_bounds, watchers, shutdown }
    }

    /// Writes down that an operation is asked for, then keeps it to be done.
    pub(super) async fn ask(
        &self,
        caller: &Caller,
        kind: OperationKind,
        target: OperationTarget,
        request_id: &str,
        consent: Consent,
    ) -> Result<OperationRecord, Status> {
        let (request_id, asked_by, details) = (request_id.to_owned(), caller.name.clone(), String::new());
        self.ask_for(NewOperation { request_id, kind, target, asked_by, consent, details }).await
    }

    /// The same for one that is told in full.
    pub(super) async fn ask_for(&self, new: NewOperation) -> Result<OperationRecord, Status> {
        let NewOperation { request_id, kind, target, asked_by, consent, details } = &new;
        let request_id = checked_request_id(request_id)?;
        if self.metastore.open_operations(None).await.map_err(Problem::from)? >= OPEN_OPERATIONS_MAX {
            return Err(Problem::Busy { what: "operations" }.into());
        }
        let call = if *consent == Consent::DryRun { format!("{} (dry run)", kind.code()) } else { kind.code().into() };
        let audited = self.metastore.audit(asked_by, &call, &new.subject(), request_id).await;
        audited.map_err(Problem::from)?;
        let asked = self.metastore.ask_operation(&new).await.map_err(Problem::from)?;
        let kept = &asked.asked;
        // Ids of erased records are not kept any longer than their operation is open.
        let are_gone = kind.is_about_records() && asked.state.is_end();
        let is_same = are_gone || kept.details == *details;
        if (kept.kind, &kept.target, &kept.consent) != (*kind, target, consent) || !is_same {
            let reason = "another operation was asked for with it; make a new one for each request".to_owned();
            return Err(Problem::Field { field: "request_id", reason }.into());
        }
        Ok(asked)
    }
}

pub(super) fn checked_request_id(request_id: &str) -> Result<&str, Problem> {
    if request_id.is_empty() || request_id.len() > REQUEST_ID_BYTES_MAX {
        let reason = format!(
            "give 1 to {REQUEST_ID_BYTES_MAX} bytes, for instance a UUID; the same request twice is one operation"
        );
        return Err(Problem::Field { field: "request_id", reason });
    }
    Ok(request_id)
}

/// How many entries are asked for.
pub(super) fn page_size(asked: i32) -> Result<u32, Problem> {
    match u32::try_from(asked) {
        Ok(0) => Ok(PAGE_SIZE),
        Ok(asked) => Ok(asked.min(PAGE_SIZE_MAX)),
        Err(_) => Err(Problem::Field { field: "page_size", reason: "it is negative".into() }),
    }
}

/// Where a page of a list by time begins.
pub(super) fn behind(page_token: &str) -> Result<Option<Behind>, Problem> {
    if page_token.is_empty() {
        return Ok(None);
    }
    let parsed = page_token.split_once('_').and_then(|(at_us, id)| Some((at_us.parse().ok()?, id)));
    let (at_us, id) = parsed.ok_or_else(wrong_page_token)?;
    Ok(Some(Behind { at_us, id: id.to_owned() }))
}

/// A page token that no list has given.
pub(super) fn wrong_page_token() -> Problem {
    Problem::Field { field: "page_token", reason: "it is none that a list has given; begin without one".into() }
}

/// The token of the page behind an entry, where a page is full.
pub(super) fn next_page_token(last: Option<(i64, &str)>, found: usize, page_size: u32) -> String {
    let last = last.filter(|_| found >= page_size as usize);
    last.map_or_else(String::new, |(at_us, id)| format!("{at_us}_{id}"))
}

/// A kind as it is asked for; unspecified is none.
pub(super) fn kind(asked: i32) -> Result<Option<Kind>, Problem> {
    let known = proto::Kind::try_from(asked)
        .map_err(|_| Problem::Field { field: "kind", reason: format!("{asked} is no kind that this version knows") })?;
    Ok(convert::kind_of(known))
}

/// A space that has to be given.
pub(super) fn space(asked: Option<proto::Space>) -> Result<Space, Problem> {
    let missing = |reason: &str| Problem::Field { field: "space", reason: reason.into() };
    let asked = asked.ok_or_else(|| missing("give a project and a kind"))?;
    let kind = kind(asked.kind)?.ok_or_else(|| missing("give a kind: case, form or location"))?;
    if asked.domain.is_empty() {
        return Err(missing("give a project"));
    }
    Ok(Space { domain: asked.domain.into(), kind })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn pages_are_bounded_and_tokens_are_read_back() {
        assert_eq!(page_size(0).unwrap(), 100);
        assert_eq!((page_size(7).unwrap(), page_size(i32::MAX).unwrap()), (7, 1_000));
        assert!(matches!(page_size(-1), Err(Problem::Field { field: "page_size", .. })));
        let token = next_page_token(Some((17, "a_b")), 5, 5);
        assert_eq!(behind(&token).unwrap(), Some(Behind { at_us: 17, id: "a_b".into() }));
        assert_eq!(next_page_token(Some((17, "a")), 4, 5), "");
        assert_eq!(behind("").unwrap(), None);
        for wrong in ["x", "x_y", "_", "99999999999999999999_a"] {
            assert!(matches!(behind(wrong), Err(Problem::Field { field: "page_token", .. })), "{wrong}");
        }
    }

    #[test]
    fn spaces_are_complete() {
        let given = |domain: &str, kind: i32| Some(proto::Space { domain: domain.into(), kind });
        assert_eq!(space(given("demo", 2)).unwrap(), Space { domain: "demo".into(), kind: Kind::Form });
        for wrong in [None, given("", 1), given("demo", 0), given("demo", 9)] {
            assert!(matches!(space(wrong), Err(Problem::Field { .. })));
        }
        assert!(checked_request_id("").is_err() && checked_request_id(&"x".repeat(129)).is_err());
        assert_eq!(checked_request_id("r").unwrap(), "r");
    }
}

//! A page for people on the writer's HTTP port: read only, one file, nothing from outside. What it shows is asked of the writer every few seconds.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use lake_shared::error_chain::Chain;
use lake_shared::quarantine::Reason;
use serde::Deserialize;
use serde_json::{Value, json};

pub(crate) use self::samples::Samples;
use crate::handle::{WriterHandle, WriterRole};
use crate::metastore::steering::{OperationFilter, OperationRecord, OperationState, PauseRecord, TableFilter};
use crate::metastore::{Metastore, MetastoreError, TableRecord};
use crate::pipeline_watch::{Heard, PipelineWatch};

mod samples;
#[cfg(test)]
mod tests;

/// The page itself.
const PAGE: &str = include_str!("page.html");

/// It loads nothing from elsewhere, and nobody else may show it within a page of theirs.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Tables that are shown at once.
const TABLES: u32 = 100;

/// Operations that are shown: those that are open, and the last ones.
const OPERATIONS: u32 = 12;

/// Longest part of a name that is looked for, bytes.
const CONTAINS_BYTES_MAX: usize = 500;

/// What the page asks.
#[derive(Clone)]
pub(crate) struct StatusPage {
    pub(crate) handle: WriterHandle,
    pub(crate) metastore: Arc<dyn Metastore>,
    pub(crate) pipeline: PipelineWatch,
    pub(crate) samples: Samples,
}

impl StatusPage {
    /// The page and what it asks, below `/`.
    pub(crate) fn router(self) -> Router {
        Router::new()
            .route("/", get(page))
            .route("/status.json", get(status))
            .route("/tables.json", get(tables))
            .with_state(self)
    }

    async fn status(&self) -> Result<Value, MetastoreError> {
        let (status, pauses, quarantined) =
            tokio::join!(self.handle.status(), self.metastore.pauses(), self.metastore.quarantined_by_reason(None));
        let operations = self.metastore.operations(&OperationFilter::default(), None, OPERATIONS).await?;
        let role = match status.role {
            WriterRole::Holding { .. } => "holds the lease",
            WriterRole::StandingBy => "stands by",
            WriterRole::Ended => "is ending",
        };
        let holder = status.holder?.map(|held| json!({"name": held.owner, "since_us": held.acquired_us}));
        let ingest = status.leased.as_ref().map(|leased| &leased.ingest);
        let failing = ingest.into_iter().flat_map(|ingest| &ingest.failing).map(ToString::to_string);
        let (lag, samples) = (self.pipeline.lag(Instant::now(), SystemTime::now()), self.samples.all());
        let now_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        Ok(json!({
            "now_us": i64::try_from(now_us).unwrap_or(i64::MAX),
            "writer": {"name": status.owner, "role": role, "version": env!("CARGO_PKG_VERSION")},
            "holder": holder,
            "failing": failing.collect::<Vec<String>>(),
            "rows_waiting": ingest.map(|ingest| ingest.rows_waiting),
            "lag": lag.messages,
            "lag_seconds": lag.seconds,
            "queued": samples.last().and_then(|sample| sample.queued),
            "samples": samples,
            "pauses": pauses?.iter().map(pause).collect::<Vec<Value>>(),
            "operations": operations.iter().map(operation).collect::<Vec<Value>>(),
            "quarantined": quarantined?.iter().map(quarantine).collect::<Vec<Value>>(),
            "replicas": self.pipeline.present(Instant::now()).iter().map(replica).collect::<Vec<Value>>(),
        }))
    }

    async fn tables(&self, asked: &TablesAsked) -> Result<Value, MetastoreError> {
        let filter = TableFilter { name_contains: asked.contains.to_lowercase(), ..TableFilter::default() };
        let (found, total) =
            tokio::join!(self.metastore.table_page(&filter, &asked.behind, TABLES), self.metastore.table_count(None));
        let found = found?;
        let next = found.last().filter(|_| found.len() >= TABLES as usize).map(|last| last.name.clone());
        Ok(json!({
            "tables": found.iter().map(table).collect::<Vec<Value>>(),
            "next": next.unwrap_or_default(),
            "total": total?,
        }))
    }
}

/// Which tables are shown.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TablesAsked {
    /// With this text in the name.
    contains: String,
    /// Behind the table of this name.
    behind: String,
}

async fn page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, PAGE).into_response()
}

async fn status(State(page): State<StatusPage>) -> Response {
    answer(page.status().await)
}

async fn tables(State(page): State<StatusPage>, Query(asked): Query<TablesAsked>) -> Response {
    if asked.contains.len() > CONTAINS_BYTES_MAX {
        return (StatusCode::BAD_REQUEST, "the name that is looked for is too long\n").into_response();
    }
    answer(page.tables(&asked).await)
}

fn answer(found: Result<Value, MetastoreError>) -> Response {
    match found {
        Ok(found) => ([(header::CACHE_CONTROL, "no-store")], axum::Json(found)).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, Chain(&error).to_string()).into_response(),
    }
}

fn pause(record: &PauseRecord) -> Value {
    let (scope, command) = match &record.space {
        Some(space) => {
            let command = format!("lakectl lake resume --domain {} --kind {}", space.domain, space.kind.name());
            (space.to_string(), command)
        }
        None => ("everything".into(), "lakectl lake resume --all".into()),
    };
    json!({
        "scope": scope, "since_us": record.since_us, "asked_by": record.asked_by, "reason": record.reason,
        "command": command,
    })
}

fn operation(record: &OperationRecord) -> Value {
    let is_open = !record.state.is_end();
    let command = is_open.then(|| format!("lakectl operation cancel {}", record.id));
    let reason = if record.state == OperationState::Failed { record.reason.as_str() } else { "" };
    json!({
        "kind": record.asked.kind.code(), "target": record.asked.target.to_string(), "state": record.state.code(),
        "reason": reason, "since_us": record.since_us, "done": record.done, "total": record.total,
        "asked_by": record.asked.asked_by, "command": command,
    })
}

fn quarantine((code, entries): &(String, u64)) -> Value {
    let known = Reason::from_code(code);
    json!({
        "reason": code, "entries": entries,
        "meaning": known.map(Reason::meaning), "next_action": known.map(Reason::next_step),
    })
}

fn replica(heard: &Heard) -> Value {
    let of = &heard.announcement;
    json!({
        "service": of.service, "name": of.instance, "version": of.version, "started_us": of.started_us,
        "partitions": of.partitions.len(), "passed_per_second": of.passed_per_second,
        "held_back": of.paces.iter().any(|pace| pace.held_back_since_us.is_some()),
    })
}

fn table(record: &TableRecord) -> Value {
    let state = &record.state;
    json!({
        "name": record.name, "rows": state.rows, "files": state.files, "bytes": state.bytes, "version": state.version,
        "newest_change_us": state.newest_published_us, "last_commit_us": state.last_commit_us,
    })
}

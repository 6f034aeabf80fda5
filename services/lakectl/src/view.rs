//! What the interface answers, as it is shown: plain names and values, times as RFC 3339, one form for all outputs.

use std::collections::BTreeMap;

use lake_proto::admin::v1 as proto;
use serde::Serialize;

use crate::catalog_view::CatalogEntry;
use crate::words::{instant, kind, space};

#[derive(Debug, Serialize)]
pub(crate) struct Table {
    pub(crate) name: String,
    domain: String,
    kind: &'static str,
    r#type: String,
    version: Option<i64>,
    rows: i64,
    files: i64,
    bytes: i64,
    newest_change_at: Option<String>,
    newest_read_at: Option<String>,
    delay_p50_seconds: Option<f64>,
    delay_p95_seconds: Option<f64>,
    delay_p99_seconds: Option<f64>,
    delay_rows: Option<i64>,
    last_commit_at: Option<String>,
    created_at: Option<String>,
    location: String,
}

impl From<proto::Table> for Table {
    fn from(table: proto::Table) -> Self {
        let key = table.key.unwrap_or_default();
        let space = key.space.unwrap_or_default();
        let delays = table.delays;
        Self {
            name: table.name,
            domain: space.domain,
            kind: kind(space.kind),
            r#type: key.r#type,
            version: table.version,
            rows: table.rows,
            files: table.files,
            bytes: table.bytes,
            newest_change_at: instant(table.newest_change_at),
            newest_read_at: instant(table.newest_read_at),
            delay_p50_seconds: delays.map(|delays| delays.p50_seconds),
            delay_p95_seconds: delays.map(|delays| delays.p95_seconds),
            delay_p99_seconds: delays.map(|delays| delays.p99_seconds),
            delay_rows: delays.map(|delays| delays.rows),
            last_commit_at: instant(table.last_commit_at),
            created_at: instant(table.created_at),
            location: table.location,
        }
    }
}

/// One table with all that is known of it.
#[derive(Debug, Serialize)]
pub(crate) struct TableDetail {
    #[serde(flatten)]
    table: Table,
    /// What the holder of the lease has in memory.
    in_memory: Option<InMemory>,
    /// What an operator has said about it.
    policy: Option<TablePolicy>,
    /// The table in the catalog.
    catalog: Option<CatalogEntry>,
    columns: Vec<Column>,
}

#[derive(Debug, Serialize)]
struct InMemory {
    rows_hidden: u64,
    files_with_deletion_vectors: u64,
    rows_waiting: u64,
    deletions_waiting: u64,
    committing: bool,
    paused: bool,
    unusable_reason: String,
    not_compacted_reason: String,
}

#[derive(Debug, Serialize)]
struct Column {
    name: String,
    r#type: String,
    source: String,
}

impl From<proto::GetTableResponse> for TableDetail {
    fn from(answer: proto::GetTableResponse) -> Self {
        let in_memory = |of: proto::TableInMemory| InMemory {
            rows_hidden: of.rows_hidden,
            files_with_deletion_vectors: of.files_with_deletion_vectors,
            rows_waiting: of.rows_waiting,
            deletions_waiting: of.deletions_waiting,
            committing: of.committing,
            paused: of.paused,
            unusable_reason: of.unusable_reason,
            not_compacted_reason: of.not_compacted_reason,
        };
        let column = |of: proto::Column| Column { name: of.name, r#type: of.r#type, source: of.source };
        Self {
            table: answer.table.unwrap_or_default().into(),
            in_memory: answer.in_memory.map(in_memory),
            policy: answer.policy.map(Into::into),
            catalog: answer.catalog.map(CatalogEntry::from),
            columns: answer.columns.into_iter().map(column).collect(),
        }
    }
}

/// How a table is treated.
#[derive(Debug, Serialize)]
pub(crate) struct TablePolicy {
    deletion_vectors: &'static str,
    compaction: &'static str,
    retention_hours: Option<i64>,
}

/// How the table of a name is treated.
#[derive(Debug, Serialize)]
pub(crate) struct PolicyOfTable {
    pub(crate) name: String,
    #[serde(flatten)]
    pub(crate) policy: TablePolicy,
}

impl From<proto::TablePolicy> for TablePolicy {
    fn from(policy: proto::TablePolicy) -> Self {
        let configured = "as configured";
        Self {
            deletion_vectors: match policy.deletion_vectors() {
                proto::DeletionVectors::Unspecified => configured,
                proto::DeletionVectors::Auto => "auto",
                proto::DeletionVectors::On => "on",
                proto::DeletionVectors::Off => "off",
            },
            compaction: policy.compaction.map_or(configured, |is_on| if is_on { "on" } else { "off" }),
            retention_hours: policy.retention_hours,
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Operation {
    pub(crate) id: String,
    kind: &'static str,
    pub(crate) target: String,
    pub(crate) state: &'static str,
    since: Option<String>,
    pub(crate) reason: String,
    next_action: String,
    attempts: i32,
    pub(crate) done: i64,
    total: Option<i64>,
    pub(crate) unit: String,
    per_second: Option<f64>,
    seconds_left: Option<f64>,
    asked_by: String,
    created_at: Option<String>,
    started_at: Option<String>,
    heartbeat_at: Option<String>,
    finished_at: Option<String>,
    cancel_requested: bool,
    request_id: String,
    dry_run: bool,
    pub(crate) plan_id: String,
    selection: String,
    pub(crate) result: BTreeMap<String, i64>,
}

impl Operation {
    /// What it does.
    pub(crate) const fn kind(&self) -> &'static str {
        self.kind
    }

    /// Units in all, where that is known.
    pub(crate) const fn total(&self) -> Option<i64> {
        self.total
    }

    /// How far it is, in a line for people.
    pub(crate) fn progress_line(&self) -> String {
        let Self { state, done, total, unit, per_second, seconds_left, reason, .. } = self;
        let mut line = match total {
            Some(total) => format!("{state}, {done} of about {total} {unit}"),
            None => format!("{state}, {done} {unit}"),
        };
        if let Some(rate) = per_second {
            line += &format!(", {rate:.0} a second");
        }
        if let Some(seconds) = seconds_left {
            line += &format!(", {seconds:.0} seconds left");
        }
        if !reason.is_empty() {
            line += &format!("; {reason}");
        }
        line
    }

    /// Whether it has ended otherwise than it should.
    pub(crate) fn has_failed(&self) -> bool {
        matches!(self.state, "failed" | "cancelled")
    }
}

impl From<proto::Operation> for Operation {
    fn from(operation: proto::Operation) -> Self {
        let state = match operation.state() {
            proto::OperationState::Pending => "pending",
            proto::OperationState::Running => "running",
            proto::OperationState::Succeeded => "succeeded",
            proto::OperationState::Failed => "failed",
            proto::OperationState::Cancelled => "cancelled",
            proto::OperationState::Paused => "paused",
            proto::OperationState::Unspecified => "unknown",
        };
        let operation_kind = match operation.kind() {
            proto::OperationKind::CompactTable => "compact-table",
            proto::OperationKind::CleanUpSpace => "clean-up-space",
            proto::OperationKind::VacuumTable => "vacuum-table",
            proto::OperationKind::CheckpointTable => "checkpoint-table",
            proto::OperationKind::DropTables => "drop-tables",
            proto::OperationKind::AllowTables => "allow-tables",
            proto::OperationKind::RestoreTable => "restore-table",
            proto::OperationKind::Backfill => "backfill",
            proto::OperationKind::Reconcile => "reconcile",
            proto::OperationKind::EraseRecords => "erase-records",
            proto::OperationKind::AllowRecords => "allow-records",
            proto::OperationKind::ReplayQuarantine => "replay-quarantine",
            proto::OperationKind::DiscardQuarantine => "discard-quarantine",
            proto::OperationKind::SyncCatalog => "sync-catalog",
            proto::OperationKind::Unspecified => "unknown",
        };
        let target = operation.target.unwrap_or_default();
        let mut target_text = space(target.space);
        if !target.r#type.is_empty() {
            target_text = format!("{target_text}/{}", target.r#type);
        }
        let progress = operation.progress.unwrap_or_default();
        Self {
            id: operation.id,
            kind: operation_kind,
            target: target_text,
            state,
            since: instant(operation.since),
            reason: operation.reason,
            next_action: operation.next_action,
            attempts: operation.attempts,
            done: progress.done,
            total: progress.total,
            unit: progress.unit,
            per_second: progress.per_second,
            seconds_left: progress.seconds_left,
            asked_by: operation.asked_by,
            created_at: instant(operation.created_at),
            started_at: instant(operation.started_at),
            heartbeat_at: instant(operation.heartbeat_at),
            finished_at: instant(operation.finished_at),
            cancel_requested: operation.cancel_requested,
            request_id: operation.request_id,
            dry_run: operation.dry_run,
            plan_id: operation.plan_id,
            selection: operation.selection,
            result: operation.result.into_iter().collect(),
        }
    }
}

/// A table, or a whole project, that was dropped.
#[derive(Debug, Serialize)]
pub(crate) struct DroppedTable {
    target: String,
    name: String,
    since: Option<String>,
    asked_by: String,
    files_gone: bool,
}

impl From<proto::DroppedTable> for DroppedTable {
    fn from(table: proto::DroppedTable) -> Self {
        let mut target = space(table.space);
        if let Some(document_type) = table.r#type {
            target = format!("{target}/{document_type}");
        }
        Self {
            target,
            name: table.name,
            since: instant(table.since),
            asked_by: table.asked_by,
            files_gone: table.files_gone,
        }
    }
}

/// What one commit did.
#[derive(Debug, Serialize)]
pub(crate) struct TableVersion {
    version: i64,
    at: Option<String>,
    operation: String,
    by_lake: bool,
    engine: String,
    rows_written: i64,
    bytes_written: i64,
    files_added: i64,
    files_removed: i64,
    files_with_new_deletion_vectors: i64,
}

impl From<proto::TableVersion> for TableVersion {
    fn from(version: proto::TableVersion) -> Self {
        Self {
            version: version.version,
            at: instant(version.at),
            operation: version.operation,
            by_lake: version.by_lake,
            engine: version.engine,
            rows_written: version.rows_written,
            bytes_written: version.bytes_written,
            files_added: version.files_added,
            files_removed: version.files_removed,
            files_with_new_deletion_vectors: version.files_with_new_deletion_vectors,
        }
    }
}

/// A data file.
#[derive(Debug, Serialize)]
pub(crate) struct TableFile {
    path: String,
    bytes: i64,
    rows: Option<i64>,
    rows_hidden: i64,
    written_at: Option<String>,
}

impl From<proto::TableFile> for TableFile {
    fn from(file: proto::TableFile) -> Self {
        Self {
            path: file.path,
            bytes: file.bytes,
            rows: file.rows,
            rows_hidden: file.rows_hidden,
            written_at: instant(file.written_at),
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Status {
    writer: String,
    role: &'static str,
    version: String,
    pub(crate) holder: Option<String>,
    holder_address: Option<String>,
    epoch: Option<i64>,
    holder_since: Option<String>,
    tables: i64,
    operations_open: i64,
    rows_waiting: Option<u64>,
    bytes_held: Option<u64>,
    spaces_in_use: Option<u64>,
    pub(crate) failing: Vec<String>,
    pub(crate) pauses: Vec<Pause>,
    pub(crate) quarantined: Vec<Quarantined>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Quarantined {
    reason: String,
    pub(crate) entries: i64,
    meaning: String,
    next_action: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct Pause {
    pub(crate) scope: String,
    since: Option<String>,
    in_force_at: Option<String>,
    asked_by: String,
    reason: String,
}

impl Pause {
    /// Whether it is certain that nothing of its scope is committed.
    pub(crate) const fn is_in_force(&self) -> bool {
        self.in_force_at.is_some()
    }
}

impl From<proto::Pause> for Pause {
    fn from(pause: proto::Pause) -> Self {
        Self {
            scope: space(pause.space),
            since: instant(pause.since),
            in_force_at: instant(pause.in_force_at),
            asked_by: pause.asked_by,
            reason: pause.reason,
        }
    }
}

impl From<proto::GetStatusResponse> for Status {
    fn from(answer: proto::GetStatusResponse) -> Self {
        let asked = answer.asked.unwrap_or_default();
        let role = match asked.role() {
            proto::WriterRole::Holding => "holding",
            proto::WriterRole::StandingBy => "standing by",
            proto::WriterRole::Ended => "ending",
            proto::WriterRole::Unspecified => "unknown",
        };
        let quarantined = |of: proto::QuarantinedReason| Quarantined {
            reason: of.reason,
            entries: of.entries,
            meaning: of.meaning,
            next_action: of.next_action,
        };
        let (holder, ingest) = (answer.holder, answer.ingest);
        let address = holder.as_ref().map(|holder| holder.address.clone());
        Self {
            writer: asked.name,
            role,
            version: asked.version,
            holder: holder.as_ref().map(|holder| holder.name.clone()),
            holder_address: address.filter(|address| !address.is_empty()),
            epoch: holder.as_ref().map(|holder| holder.epoch),
            holder_since: holder.and_then(|holder| instant(holder.since)),
            tables: answer.tables,
            operations_open: answer.operations_open,
            rows_waiting: ingest.as_ref().map(|ingest| ingest.rows_waiting),
            bytes_held: ingest.as_ref().map(|ingest| ingest.bytes_held),
            spaces_in_use: ingest.as_ref().map(|ingest| ingest.spaces_in_use),
            failing: ingest.into_iter().flat_map(|ingest| ingest.failing).map(|of| space(Some(of))).collect(),
            pauses: answer.pauses.into_iter().map(Into::into).collect(),
            quarantined: answer.quarantined.into_iter().map(quarantined).collect(),
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct AuditRecord {
    at: Option<String>,
    asked_by: String,
    call: String,
    target: String,
    request_id: String,
}

impl From<proto::AuditRecord> for AuditRecord {
    fn from(record: proto::AuditRecord) -> Self {
        Self {
            at: instant(record.at),
            asked_by: record.asked_by,
            call: record.call,
            target: record.target,
            request_id: record.request_id,
        }
    }
}

/// A context, without its token.
#[derive(Debug, Serialize)]
pub(crate) struct Context {
    pub(crate) name: String,
    pub(crate) server: String,
    pub(crate) selected: bool,
    pub(crate) has_token: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_name_what_they_are_about() {
        let target = |r#type: &str| proto::TableKey {
            space: Some(proto::Space { domain: "demo".into(), kind: proto::Kind::Form.into() }),
            r#type: r#type.into(),
        };
        let operation = |r#type: &str, state: proto::OperationState| {
            let target = Some(target(r#type));
            Operation::from(proto::Operation { target, state: state.into(), ..Default::default() })
        };
        assert_eq!(operation("visit", proto::OperationState::Running).target, "demo/form/visit");
        assert_eq!(operation("", proto::OperationState::Running).target, "demo/form");
        assert!(operation("", proto::OperationState::Cancelled).has_failed());
        assert!(!operation("", proto::OperationState::Succeeded).has_failed());
    }
}

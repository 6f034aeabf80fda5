//! The lake's values as messages of the interface. Pure.

use std::collections::HashMap;

use lake_proto::admin::v1 as proto;
use lake_shared::identity::{Kind, Space, TableKey};
use prost_types::Timestamp;
use serde_json::Value;

use crate::consent::Consent;
use crate::metastore::steering::table_policy::{DeletionVectors, TablePolicy};
use crate::metastore::steering::{
    AuditRecord, DroppedRecord, OperationKind, OperationRecord, OperationState, PauseRecord,
};
use crate::metastore::{RecordedDelays, TableRecord};
use crate::operations::TableDescription;
use crate::table_store::delta::inspect::{TableFile, TableVersion};

/// An instant, from microseconds since 1970.
pub(super) fn timestamp(at_us: i64) -> Timestamp {
    let (seconds, micros) = (at_us.div_euclid(1_000_000), at_us.rem_euclid(1_000_000));
    Timestamp { seconds, nanos: i32::try_from(micros * 1_000).unwrap_or_default() }
}

/// Microseconds since 1970; `None`: out of their range.
pub(super) fn micros(at: &Timestamp) -> Option<i64> {
    at.seconds.checked_mul(1_000_000)?.checked_add(i64::from(at.nanos) / 1_000)
}

pub(super) const fn kind(kind: Kind) -> proto::Kind {
    match kind {
        Kind::Case => proto::Kind::Case,
        Kind::Form => proto::Kind::Form,
        Kind::Location => proto::Kind::Location,
    }
}

pub(super) fn kind_or_all(of: Option<Kind>) -> proto::Kind {
    of.map_or(proto::Kind::Unspecified, kind)
}

pub(super) const fn kind_of(asked: proto::Kind) -> Option<Kind> {
    match asked {
        proto::Kind::Unspecified => None,
        proto::Kind::Case => Some(Kind::Case),
        proto::Kind::Form => Some(Kind::Form),
        proto::Kind::Location => Some(Kind::Location),
    }
}

pub(super) fn space(of: &Space) -> proto::Space {
    proto::Space { domain: of.domain.to_string(), kind: kind(of.kind).into() }
}

pub(super) fn key(of: &TableKey) -> proto::TableKey {
    proto::TableKey { space: Some(space(&of.space)), r#type: of.document_type.to_string() }
}

pub(super) fn table(record: &TableRecord) -> proto::Table {
    let state = &record.state;
    proto::Table {
        name: record.name.clone(),
        key: Some(key(&record.key)),
        location: record.location.clone(),
        version: state.version,
        rows: state.rows,
        files: state.files,
        bytes: state.bytes,
        created_at: Some(timestamp(record.created_us)),
        last_commit_at: state.last_commit_us.map(timestamp),
        newest_change_at: state.newest_published_us.map(timestamp),
        newest_read_at: state.newest_fetched_us.map(timestamp),
        delays: state.delays.map(delays),
    }
}

pub(super) fn policy(of: &TablePolicy) -> proto::TablePolicy {
    let deletion_vectors = match of.deletion_vectors {
        None => proto::DeletionVectors::Unspecified,
        Some(DeletionVectors::Auto) => proto::DeletionVectors::Auto,
        Some(DeletionVectors::On) => proto::DeletionVectors::On,
        Some(DeletionVectors::Off) => proto::DeletionVectors::Off,
    };
    proto::TablePolicy {
        deletion_vectors: deletion_vectors.into(),
        compaction: of.compaction,
        retention_hours: of.retention_hours.map(count),
    }
}

fn delays(of: RecordedDelays) -> proto::Delays {
    let seconds = |us: i64| us as f64 / 1e6;
    proto::Delays {
        p50_seconds: seconds(of.p50_us),
        p95_seconds: seconds(of.p95_us),
        p99_seconds: seconds(of.p99_us),
        rows: of.rows,
    }
}

/// The columns that a schema as JSON describes; a schema that cannot be read has none.
pub(super) fn columns(schema: Option<&str>) -> Vec<proto::Column> {
    let schema: Value = schema.and_then(|schema| serde_json::from_str(schema).ok()).unwrap_or_default();
    let fields = schema["fields"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let column = |field: &Value| proto::Column {
        name: text(&field["name"]),
        r#type: text(&field["type"]),
        source: field["metadata"]["lake.source"].as_str().unwrap_or_default().to_owned(),
    };
    fields.iter().map(column).collect()
}

pub(super) fn in_memory(described: &TableDescription) -> proto::TableInMemory {
    let (pending, loaded) = (&described.pending, described.loaded.clone().unwrap_or_default());
    proto::TableInMemory {
        rows_hidden: loaded.rows_hidden,
        files_with_deletion_vectors: loaded.files_with_deletion_vectors,
        rows_waiting: pending.rows as u64,
        deletions_waiting: pending.tombstones as u64,
        committing: pending.committing,
        paused: pending.paused,
        unusable_reason: loaded.unusable.unwrap_or_default(),
        not_compacted_reason: loaded.not_compacted.unwrap_or_default(),
    }
}

pub(super) fn operation(record: &OperationRecord) -> proto::Operation {
    let target = &record.asked.target;
    let document_type = target.document_type.as_ref().map(ToString::to_string).unwrap_or_default();
    let result: HashMap<String, i64> = serde_json::from_str(&record.result).unwrap_or_default();
    proto::Operation {
        id: record.id.clone(),
        request_id: record.asked.request_id.clone(),
        kind: operation_kind(record.asked.kind).into(),
        target: Some(proto::TableKey { space: Some(operation_space(record)), r#type: document_type }),
        state: operation_state(record.state).into(),
        since: Some(timestamp(record.since_us)),
        reason: reason(record),
        next_action: next_action(record).to_owned(),
        attempts: i32::try_from(record.attempts).unwrap_or(i32::MAX),
        progress: Some(progress(record)),
        asked_by: record.asked.asked_by.clone(),
        created_at: Some(timestamp(record.created_us)),
        started_at: record.started_us.map(timestamp),
        heartbeat_at: record.heartbeat_us.map(timestamp),
        finished_at: record.finished_us.map(timestamp),
        cancel_requested: record.cancel_requested,
        result,
        dry_run: record.asked.consent == Consent::DryRun,
        plan_id: record.plan.clone(),
        selection: selection(record),
    }
}

/// Which entries or how many records it is about. Ids of records are not told: they are not to be kept by whoever reads this.
fn selection(record: &OperationRecord) -> String {
    if let Some(records) = record.asked.records() {
        return format!("{} records", records.len());
    }
    record.asked.selection().map(|selection| selection.to_string()).unwrap_or_default()
}

/// What an operation is about; of one on the quarantine as much as its filter names.
fn operation_space(record: &OperationRecord) -> proto::Space {
    let of_target = space(&record.asked.target.space);
    let Some(filter) = record.asked.selection() else { return of_target };
    proto::Space { domain: of_target.domain, kind: filter.kind.map_or(proto::Kind::Unspecified, kind).into() }
}

const fn operation_kind(kind: OperationKind) -> proto::OperationKind {
    match kind {
        OperationKind::CompactTable => proto::OperationKind::CompactTable,
        OperationKind::CleanUpSpace => proto::OperationKind::CleanUpSpace,
        OperationKind::VacuumTable => proto::OperationKind::VacuumTable,
        OperationKind::CheckpointTable => proto::OperationKind::CheckpointTable,
        OperationKind::DropTables => proto::OperationKind::DropTables,
        OperationKind::AllowTables => proto::OperationKind::AllowTables,
        OperationKind::RestoreTable => proto::OperationKind::RestoreTable,
        OperationKind::Backfill => proto::OperationKind::Backfill,
        OperationKind::Reconcile => proto::OperationKind::Reconcile,
        OperationKind::EraseRecords => proto::OperationKind::EraseRecords,
        OperationKind::AllowRecords => proto::OperationKind::AllowRecords,
        OperationKind::ReplayQuarantine => proto::OperationKind::ReplayQuarantine,
        OperationKind::DiscardQuarantine => proto::OperationKind::DiscardQuarantine,
        OperationKind::SyncCatalog => proto::OperationKind::SyncCatalog,
    }
}

const fn operation_state(state: OperationState) -> proto::OperationState {
    match state {
        OperationState::Pending => proto::OperationState::Pending,
        OperationState::Running => proto::OperationState::Running,
        OperationState::Succeeded => proto::OperationState::Succeeded,
        OperationState::Failed => proto::OperationState::Failed,
        OperationState::Cancelled => proto::OperationState::Cancelled,
        OperationState::Paused => proto::OperationState::Paused,
    }
}

/// The states that are asked for.
///
/// # Errors
/// One that this version does not know.
pub(super) fn states_of(asked: &[i32]) -> Result<Vec<OperationState>, i32> {
    let known = |state: &i32| {
        let known = OperationState::ALL.into_iter().find(|known| i32::from(operation_state(*known)) == *state);
        known.ok_or(*state)
    };
    asked.iter().map(known).collect()
}

fn reason(record: &OperationRecord) -> String {
    match record.state {
        OperationState::Pending => "it waits for its turn in the writer that holds the lease".into(),
        OperationState::Running if record.cancel_requested => "it ends after its present step".into(),
        OperationState::Paused => "it rests, as it was asked to".into(),
        OperationState::Running if record.paused => "it rests after its present step".into(),
        OperationState::Running if reads_hq(record) && record.total.is_none() => {
            "it waits for a fetcher to say how much there is".into()
        }
        OperationState::Running if record.asked.kind == OperationKind::Backfill && record.attempts > 1 => {
            "it was taken up again where it was".into()
        }
        OperationState::Running if record.attempts > 1 => {
            "a writer ended in the middle of it; it was begun anew".into()
        }
        _ => record.reason.clone(),
    }
}

/// Whether it goes over HQ's tables.
const fn reads_hq(record: &OperationRecord) -> bool {
    matches!(record.asked.kind, OperationKind::Backfill | OperationKind::Reconcile)
}

fn next_action(record: &OperationRecord) -> &'static str {
    match record.state {
        OperationState::Succeeded
            if record.asked.kind == OperationKind::Backfill && record.asked.consent == Consent::DryRun =>
        {
            "look at the figures; to have it done, ask for it without dry run"
        }
        OperationState::Succeeded if record.asked.consent == Consent::DryRun => {
            "look at the figures; to have it done, ask for it with the id of this plan"
        }
        OperationState::Succeeded if record.asked.kind == OperationKind::RestoreTable => {
            "what was changed in HQ since that version has to be read from HQ again"
        }
        OperationState::Succeeded if record.asked.kind == OperationKind::Reconcile && !record.reason.is_empty() => {
            "look at what differs: lakectl reconcile get"
        }
        OperationState::Succeeded if record.asked.kind == OperationKind::AllowRecords => {
            "they come with their next change in HQ, or by a backfill of their ids"
        }
        OperationState::Paused => "resume it when it may go on: lakectl backfill resume",
        OperationState::Failed => "mend the cause, then ask for it again with a new request id",
        OperationState::Pending => "if it waits for long, see whether a writer holds the lease: lakectl lake status",
        _ => "",
    }
}

fn progress(record: &OperationRecord) -> proto::Progress {
    let unit = match record.asked.kind {
        OperationKind::CompactTable => "commits",
        OperationKind::CleanUpSpace
        | OperationKind::DropTables
        | OperationKind::AllowTables
        | OperationKind::SyncCatalog
        | OperationKind::RestoreTable => "tables",
        OperationKind::VacuumTable => "files",
        OperationKind::CheckpointTable => "checkpoints",
        OperationKind::Backfill | OperationKind::Reconcile => "documents",
        OperationKind::EraseRecords | OperationKind::AllowRecords => "records",
        OperationKind::ReplayQuarantine | OperationKind::DiscardQuarantine => "entries",
    };
    let at_rate = || {
        let (total, rate) = (record.total?, record.per_second.filter(|rate| *rate > 0.0)?);
        (total >= record.done).then(|| (total - record.done) as f64 / rate)
    };
    let left = || {
        let (total, began_us) = (record.total?, record.started_us?);
        let spent = (record.heartbeat_us? - began_us) as f64 / 1e6;
        (record.done > 0 && total >= record.done).then(|| spent / record.done as f64 * (total - record.done) as f64)
    };
    // A backfill may have rested, so only its rate lately tells.
    let seconds_left = if reads_hq(record) { at_rate() } else { left() };
    proto::Progress {
        done: record.done,
        total: record.total,
        unit: unit.into(),
        seconds_left,
        per_second: record.per_second,
    }
}

pub(super) fn pause(record: &PauseRecord) -> proto::Pause {
    proto::Pause {
        space: record.space.as_ref().map(space),
        since: Some(timestamp(record.since_us)),
        asked_by: record.asked_by.clone(),
        reason: record.reason.clone(),
        in_force_at: record.in_force_us.map(timestamp),
    }
}

pub(super) fn dropped(record: &DroppedRecord) -> proto::DroppedTable {
    proto::DroppedTable {
        space: Some(space(&record.target.space)),
        r#type: record.target.document_type.as_ref().map(ToString::to_string),
        name: record.name.clone(),
        since: Some(timestamp(record.since_us)),
        asked_by: record.asked_by.clone(),
        files_gone: record.files_gone,
    }
}

pub(super) fn version(of: TableVersion) -> proto::TableVersion {
    proto::TableVersion {
        version: count(of.version),
        at: of.at_ms.map(|at_ms| timestamp(at_ms.saturating_mul(1_000))),
        operation: of.operation,
        engine: of.engine,
        by_lake: of.by_lake,
        files_added: count(of.files_added),
        files_removed: count(of.files_removed),
        files_with_new_deletion_vectors: count(of.files_with_new_vectors),
        rows_written: count(of.rows_written),
        bytes_written: count(of.bytes_written),
    }
}

pub(super) fn file(of: TableFile) -> proto::TableFile {
    proto::TableFile {
        path: of.path,
        bytes: count(of.bytes),
        rows: of.rows.map(count),
        rows_hidden: count(of.rows_hidden),
        written_at: Some(timestamp(of.written_ms.saturating_mul(1_000))),
    }
}

/// A number of things as the interface has it.
pub(super) fn count(of: u64) -> i64 {
    i64::try_from(of).unwrap_or(i64::MAX)
}

pub(super) fn audit(record: &AuditRecord) -> proto::AuditRecord {
    proto::AuditRecord {
        at: Some(timestamp(record.at_us)),
        asked_by: record.asked_by.clone(),
        call: record.call.clone(),
        target: record.target.clone(),
        request_id: record.request_id.clone(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::metastore::steering::{NewOperation, OperationTarget};

    #[test]
    fn instants_before_1970_keep_their_fraction() {
        assert_eq!(timestamp(-1), Timestamp { seconds: -1, nanos: 999_999_000 });
        assert_eq!(timestamp(1_500_000), Timestamp { seconds: 1, nanos: 500_000_000 });
        assert_eq!((micros(&timestamp(-1)), micros(&timestamp(1_500_000))), (Some(-1), Some(1_500_000)));
        assert_eq!(micros(&Timestamp { seconds: i64::MAX, nanos: 0 }), None);
    }

    #[test]
    fn columns_say_where_their_values_come_from() {
        let schema = r#"{"type":"struct","fields":[
            {"name":"age","type":"string","nullable":true,"metadata":{"lake.source":"/form/age"}},
            {"name":"theirs","type":{"type":"array","elementType":"long","containsNull":true},"nullable":true,"metadata":{}}]}"#;
        let found = columns(Some(schema));
        assert_eq!(
            (found[0].name.as_str(), found[0].r#type.as_str(), found[0].source.as_str()),
            ("age", "string", "/form/age")
        );
        assert!(found[1].r#type.contains("array") && found[1].source.is_empty());
        assert_eq!((columns(None), columns(Some("{"))), (Vec::new(), Vec::new()));
    }

    fn record(state: OperationState) -> OperationRecord {
        let space = Space { domain: "demo".into(), kind: Kind::Case };
        OperationRecord {
            id: "i".into(),
            asked: NewOperation {
                request_id: "r".into(),
                kind: OperationKind::CompactTable,
                target: OperationTarget { space, document_type: Some("person".into()) },
                asked_by: "ann".into(),
                consent: Consent::Given,
                details: String::new(),
            },
            state,
            since_us: 0,
            reason: "disk full".into(),
            attempts: 1,
            done: 2,
            total: Some(6),
            created_us: 0,
            started_us: Some(0),
            heartbeat_us: Some(4_000_000),
            finished_us: None,
            cancel_requested: false,
            result: r#"{"commits":3}"#.into(),
            plan: "0a".into(),
            paused: false,
            per_second: None,
        }
    }

    #[test]
    fn operations_say_why_and_what_next() {
        let failed = operation(&record(OperationState::Failed));
        assert_eq!((failed.reason.as_str(), failed.result["commits"]), ("disk full", 3));
        assert!(failed.next_action.contains("new request id"));
        let running = operation(&record(OperationState::Running));
        assert_eq!(running.progress.unwrap().seconds_left, Some(8.0));
        let again = operation(&OperationRecord { attempts: 2, ..record(OperationState::Running) });
        assert!(again.reason.contains("begun anew"));
        let mut dry = record(OperationState::Succeeded);
        dry.asked.consent = Consent::DryRun;
        let dry = operation(&dry);
        assert!(dry.dry_run && dry.plan_id == "0a" && dry.next_action.contains("plan"));
        assert!(operation(&record(OperationState::Pending)).reason.contains("waits"));
        assert_eq!(states_of(&[1, 5]), Ok(vec![OperationState::Pending, OperationState::Cancelled]));
        assert_eq!((states_of(&[0]), states_of(&[9])), (Err(0), Err(9)));
    }
}

//! Translates rows of either database into operations, pauses and audit records.

use super::{
    AuditRecord, DroppedRecord, NewOperation, OperationKind, OperationRecord, OperationState, OperationTarget,
    PauseRecord, PolicyRecord,
};
use crate::consent::Consent;
use crate::metastore::rows::{Fields, corrupt, kind};
use crate::metastore::steering::table_policy::{DeletionVectors, TablePolicy};
use lake_shared::identity::Space;

pub(in crate::metastore) fn operation(row: &impl Fields) -> Result<OperationRecord, sqlx::Error> {
    let (code, state) = (row.text("kind")?, row.text("state")?);
    let document_type = row.text("type")?;
    let operation_kind = OperationKind::ALL.into_iter().find(|kind| kind.code() == code);
    let operation_kind = operation_kind.ok_or_else(|| corrupt(format!("{code} is no kind of operation")))?;
    let state = OperationState::ALL
        .into_iter()
        .find(|known| known.code() == state)
        .ok_or_else(|| corrupt(format!("{state} is no state of an operation")))?;
    let space = Space { domain: row.text("domain")?.into(), kind: kind(&row.text("target_kind")?)? };
    let is_of_table = row.number("of_table")? != 0;
    let consent = Consent::of(row.number("dry_run")? != 0, &row.text("to_plan")?);
    Ok(OperationRecord {
        id: row.text("id")?,
        asked: NewOperation {
            request_id: row.text("request_id")?,
            kind: operation_kind,
            target: OperationTarget { space, document_type: is_of_table.then(|| document_type.into()) },
            asked_by: row.text("asked_by")?,
            consent,
            details: row.text("details")?,
        },
        state,
        since_us: row.number("since_us")?,
        reason: row.text("reason")?,
        attempts: row.number("attempts")?,
        done: row.number("done")?,
        total: row.maybe("total")?,
        created_us: row.number("created_us")?,
        started_us: row.maybe("started_us")?,
        heartbeat_us: row.maybe("heartbeat_us")?,
        finished_us: row.maybe("finished_us")?,
        per_second: row.maybe("rate_milli")?.map(|rate| rate as f64 / 1_000.0),
        cancel_requested: row.number("cancel_requested")? != 0,
        paused: row.number("paused")? != 0,
        result: row.text("result")?,
        plan: row.text("plan")?,
    })
}

/// The space of a pause as it is stored: of everything both are empty.
pub(in crate::metastore) fn stored_space(space: Option<&Space>) -> (String, &'static str) {
    space.map_or((String::new(), ""), |space| {
        (crate::metastore::rows::storable(space.domain.as_str()).into_owned(), space.kind.name())
    })
}

pub(in crate::metastore) fn pause(row: &impl Fields) -> Result<PauseRecord, sqlx::Error> {
    let stored_kind = row.text("kind")?;
    let space = if stored_kind.is_empty() {
        None
    } else {
        Some(Space { domain: row.text("domain")?.into(), kind: kind(&stored_kind)? })
    };
    Ok(PauseRecord {
        space,
        since_us: row.number("since_us")?,
        asked_by: row.text("asked_by")?,
        reason: row.text("reason")?,
        in_force_us: row.maybe("in_force_us")?,
    })
}

pub(in crate::metastore) fn dropped(row: &impl Fields) -> Result<DroppedRecord, sqlx::Error> {
    let space = Space { domain: row.text("domain")?.into(), kind: kind(&row.text("kind")?)? };
    let document_type = row.text("type")?;
    let is_of_table = row.number("whole_space")? == 0;
    Ok(DroppedRecord {
        target: OperationTarget { space, document_type: is_of_table.then(|| document_type.into()) },
        name: row.text("name")?,
        path: row.text("path")?,
        since_us: row.number("since_us")?,
        asked_by: row.text("asked_by")?,
        files_gone: row.number("files_gone")? != 0,
    })
}

pub(in crate::metastore) fn policy(row: &impl Fields) -> Result<PolicyRecord, sqlx::Error> {
    let known = |name: String| {
        let found = DeletionVectors::ALL.into_iter().find(|known| known.name() == name);
        found.ok_or_else(|| corrupt(format!("{name} says nothing about deletion vectors")))
    };
    Ok(PolicyRecord {
        table: row.text("table_name")?,
        policy: TablePolicy {
            deletion_vectors: row.maybe_text("deletion_vectors")?.map(known).transpose()?,
            compaction: row.maybe("compaction")?.map(|compaction| compaction != 0),
            retention_hours: row.maybe("retention_hours")?.map(i64::unsigned_abs),
        },
        since_us: row.number("since_us")?,
        asked_by: row.text("asked_by")?,
    })
}

pub(in crate::metastore) fn audit(row: &impl Fields) -> Result<AuditRecord, sqlx::Error> {
    Ok(AuditRecord {
        id: row.text("id")?,
        at_us: row.number("at_us")?,
        asked_by: row.text("asked_by")?,
        call: row.text("call")?,
        target: row.text("target")?,
        request_id: row.text("request_id")?,
    })
}

//! What the interface answers about the quarantine and about single records, as it is shown.

use std::collections::BTreeMap;

use lake_proto::admin::v1 as proto;
use serde::Serialize;

use crate::view;
use crate::words::{self, instant};

/// Entries with one reason, of one service and one project.
#[derive(Debug, Serialize)]
pub(crate) struct Group {
    reason: String,
    stage: String,
    domain: String,
    pub(crate) entries: i64,
    replayed: i64,
    bytes: i64,
    oldest_at: Option<String>,
    newest_at: Option<String>,
    next_action: String,
    meaning: String,
}

impl From<proto::QuarantineGroup> for Group {
    fn from(group: proto::QuarantineGroup) -> Self {
        Self {
            reason: group.reason,
            stage: group.stage,
            domain: group.domain,
            entries: group.entries,
            replayed: group.replayed,
            bytes: group.payload_bytes,
            oldest_at: instant(group.oldest_at),
            newest_at: instant(group.newest_at),
            next_action: group.next_action,
            meaning: group.meaning,
        }
    }
}

/// A record or message that could not be handled.
#[derive(Debug, Serialize)]
pub(crate) struct Entry {
    id: String,
    reason: String,
    stage: String,
    domain: String,
    kind: &'static str,
    r#type: String,
    document_id: String,
    attempts: i64,
    first_at: Option<String>,
    last_at: Option<String>,
    topic: String,
    partition: i32,
    offset: i64,
    fetched_at: Option<String>,
    bytes: i64,
    replayed_at: Option<String>,
    replay: String,
    next_action: String,
}

impl From<proto::QuarantineEntry> for Entry {
    fn from(entry: proto::QuarantineEntry) -> Self {
        Self {
            kind: words::kind(entry.kind),
            id: entry.id,
            reason: entry.reason,
            stage: entry.stage,
            domain: entry.domain,
            r#type: entry.r#type,
            document_id: entry.document_id,
            attempts: entry.attempts,
            first_at: instant(entry.first_at),
            last_at: instant(entry.last_at),
            topic: entry.topic,
            partition: entry.partition,
            offset: entry.offset,
            fetched_at: instant(entry.fetched_at),
            bytes: entry.payload_bytes,
            replayed_at: instant(entry.replayed_at),
            replay: entry.replay,
            next_action: entry.next_action,
        }
    }
}

/// An entry with what could not be handled.
#[derive(Debug, Serialize)]
pub(crate) struct WholeEntry {
    #[serde(flatten)]
    entry: Entry,
    meaning: String,
    detail: String,
    /// As text; `None` where it is none.
    payload: Option<String>,
    /// Otherwise in hexadecimal digits.
    payload_hex: Option<String>,
    payload_cut: bool,
}

impl WholeEntry {
    /// `is_shown`: whether the bytes are.
    pub(crate) fn of(answer: proto::GetQuarantineEntryResponse, is_shown: bool) -> Self {
        let text = std::str::from_utf8(&answer.payload).ok().map(str::to_owned);
        let hex = text.is_none().then(|| answer.payload.iter().map(|byte| format!("{byte:02x}")).collect());
        Self {
            entry: answer.entry.unwrap_or_default().into(),
            meaning: answer.meaning,
            detail: answer.detail,
            payload: text.filter(|_| is_shown),
            payload_hex: hex.filter(|_| is_shown),
            payload_cut: answer.payload_cut,
        }
    }
}

/// Where a record is or was.
#[derive(Debug, Serialize)]
pub(crate) struct Trace {
    id: String,
    pub(crate) state: String,
    spaces_searched: i64,
    left_out_by: Vec<String>,
    unknown: Vec<String>,
    rows: Vec<Row>,
    deletions: Vec<Deletion>,
    erasures: Vec<Erasure>,
    quarantined: Vec<Entry>,
    operations: Vec<view::Operation>,
    dropped: Vec<view::DroppedTable>,
    not_searched: Vec<Unsearched>,
}

#[derive(Debug, Serialize)]
struct Row {
    table: String,
    domain: String,
    kind: &'static str,
    r#type: String,
    version: Option<i64>,
    file: String,
    row: i64,
    topic: Option<String>,
    partition: Option<i32>,
    offset: Option<i64>,
    published_at: Option<String>,
    fetched_at: Option<String>,
    committed_at: Option<String>,
    saved_at: Option<String>,
    observed_at: Option<String>,
    incomplete: String,
}

#[derive(Debug, Serialize)]
struct Deletion {
    space: String,
    reason: String,
    meaning: String,
    is_left_out: bool,
    observed_at: Option<String>,
    saved_at: Option<String>,
    remembered_at: Option<String>,
}

/// That a record was erased.
#[derive(Debug, Serialize)]
struct Erasure {
    space: String,
    kept_out: bool,
    since: Option<String>,
    erased_at: Option<String>,
    allowed_at: Option<String>,
    operation: String,
}

#[derive(Debug, Serialize)]
struct Unsearched {
    space: String,
    reason: String,
}

impl Trace {
    pub(crate) fn of(id: String, answer: proto::TraceRecordResponse) -> Self {
        let unsearched = |of: proto::UnsearchedSpace| Unsearched { space: words::space(of.space), reason: of.reason };
        Self {
            id,
            state: answer.state,
            spaces_searched: answer.spaces_searched,
            left_out_by: answer.left_out_by,
            unknown: answer.unknown,
            rows: answer.rows.into_iter().map(Row::from).collect(),
            deletions: answer.deletions.into_iter().map(Deletion::from).collect(),
            erasures: answer.erasures.into_iter().map(Erasure::from).collect(),
            quarantined: answer.quarantined.into_iter().map(Entry::from).collect(),
            operations: answer.operations.into_iter().map(Into::into).collect(),
            dropped: answer.dropped.into_iter().map(Into::into).collect(),
            not_searched: answer.not_searched.into_iter().map(unsearched).collect(),
        }
    }
}

impl From<proto::TracedRow> for Row {
    fn from(row: proto::TracedRow) -> Self {
        let key = row.key.unwrap_or_default();
        let space = key.space.unwrap_or_default();
        Self {
            table: row.table,
            domain: space.domain,
            kind: words::kind(space.kind),
            r#type: key.r#type,
            version: row.version,
            file: row.file,
            row: row.row,
            topic: row.topic,
            partition: row.partition,
            offset: row.offset,
            published_at: instant(row.published_at),
            fetched_at: instant(row.fetched_at),
            committed_at: instant(row.committed_at),
            saved_at: instant(row.saved_at),
            observed_at: instant(row.observed_at),
            incomplete: row.incomplete,
        }
    }
}

impl From<proto::TracedDeletion> for Deletion {
    fn from(deletion: proto::TracedDeletion) -> Self {
        Self {
            space: words::space(deletion.space),
            reason: deletion.reason,
            meaning: deletion.meaning,
            is_left_out: deletion.is_left_out,
            observed_at: instant(deletion.observed_at),
            saved_at: instant(deletion.saved_at),
            remembered_at: instant(deletion.remembered_at),
        }
    }
}

impl From<proto::TracedErasure> for Erasure {
    fn from(erasure: proto::TracedErasure) -> Self {
        Self {
            space: words::space(erasure.space),
            kept_out: erasure.allowed_at.is_none(),
            since: instant(erasure.since),
            erased_at: instant(erasure.erased_at),
            allowed_at: instant(erasure.allowed_at),
            operation: erasure.operation_id,
        }
    }
}

/// A record that was erased.
#[derive(Debug, Serialize)]
pub(crate) struct ErasedRecord {
    id_hash: String,
    space: String,
    kept_out: bool,
    since: Option<String>,
    asked_by: String,
    erased_at: Option<String>,
    allowed_at: Option<String>,
    allowed_by: String,
    operation: String,
    report: BTreeMap<String, i64>,
}

impl From<proto::ErasedRecord> for ErasedRecord {
    fn from(record: proto::ErasedRecord) -> Self {
        Self {
            id_hash: record.id_hash,
            space: words::space(record.space),
            kept_out: record.allowed_at.is_none(),
            since: instant(record.since),
            asked_by: record.asked_by,
            erased_at: instant(record.erased_at),
            allowed_at: instant(record.allowed_at),
            allowed_by: record.allowed_by,
            operation: record.operation_id,
            report: record.report.into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_text_where_they_can_be_and_are_left_out_where_they_are_saved() {
        let answer =
            |payload: &[u8]| proto::GetQuarantineEntryResponse { payload: payload.to_vec(), ..Default::default() };
        let text = WholeEntry::of(answer(b"{}"), true);
        assert_eq!((text.payload.as_deref(), text.payload_hex), (Some("{}"), None));
        let bytes = WholeEntry::of(answer(&[0xff, 0]), true);
        assert_eq!((bytes.payload, bytes.payload_hex.as_deref()), (None, Some("ff00")));
        let saved = WholeEntry::of(answer(b"{}"), false);
        assert_eq!((saved.payload, saved.payload_hex), (None, None));
    }
}

//! The record decides, not the message: what a row that was just read (or is not there) means for the lake.
//!
//! In the lake live cases that are not deleted, forms of state *normal* that are not deleted, and every location row, archived ones included.
//! Everything else leaves it. Messages have no say: delete messages are replayed after an undelete, archived forms arrive
//! as ordinary saves, and delete messages carry no type.
//!
//! The tests list every operation of HQ: what its message says, what the row says, what the lake does.

use lake_shared::identity::{DocumentType, Domain};
use serde_json::Value;

use crate::source::{CaseRows, Columns, FormRows, LocationRow};
use crate::timestamp;

/// `state` of a form that is live data.
const FORM_STATE_NORMAL: i64 = 1;
/// Bit that marked deleted forms before `deleted_on` existed.
const FORM_STATE_DELETED_BIT: i64 = 64;

/// What a record that was read, or its absence, means for the lake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// The record is live: its row goes into the table of its type.
    Upsert {
        /// Project space, from the row.
        domain: Domain,
        /// Type, from the row; decides the table.
        document_type: DocumentType,
        /// Greater replaces smaller, microseconds: `server_modified_on` of a case, `server_modified_on` or else `received_on` of a form,
        /// `last_modified` of a location.
        version_us: i64,
        /// The user whose location the row gets: a case's `user_id` (that is, `modified_by`), a form's `user_id`. `None` where the row has none or an
        /// empty one (a form's XML may still name one) and for locations.
        user_id: Option<String>,
    },
    /// The id leaves every table of its space.
    Tombstone {
        /// Why the record is not in the lake.
        reason: TombstoneReason,
        /// Version of the row that is no longer live; `None` where there is no row. Not the time of the deletion: order by the
        /// clock at the reading.
        version_us: Option<i64>,
        /// Project space, from the row; `None` where there is no row.
        domain: Option<Domain>,
        /// Type, from the row; `None` where there is no row.
        document_type: Option<DocumentType>,
    },
}

/// Why a record is not in the lake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TombstoneReason {
    /// HQ has no such row: hard-deleted, purged, or never there.
    Missing,
    /// HQ has a row that is marked as deleted.
    Deleted,
    /// A form that was archived; may come back.
    Archived,
    /// The old version of an edited form.
    Deprecated,
    /// The second copy of a form.
    Duplicate,
    /// A form that HQ could not process; may be reprocessed.
    Error,
    /// A submission that HQ could not read.
    SubmissionError,
    /// A form in a state this version does not know.
    UnknownState,
}

impl TombstoneReason {
    /// Stable code, for logs and metrics.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Deleted => "deleted",
            Self::Archived => "archived",
            Self::Deprecated => "deprecated",
            Self::Duplicate => "duplicate",
            Self::Error => "error",
            Self::SubmissionError => "submission_error",
            Self::UnknownState => "unknown_state",
        }
    }
}

/// Nothing was found under the id.
const MISSING: Disposition =
    Disposition::Tombstone { reason: TombstoneReason::Missing, version_us: None, domain: None, document_type: None };

/// What a case, or its absence, means.
pub fn of_case(rows: Option<&CaseRows>) -> Disposition {
    let Some(CaseRows { case, .. }) = rows else { return MISSING };
    let document_type = DocumentType::from(text(case, "type").unwrap_or_default());
    // `server_modified_on` is NOT NULL; the others only guard against an installation that is odd.
    let version_us = instant(case, "server_modified_on").or_else(|| instant(case, "modified_on"));
    let gone = case_is_deleted(case).then_some(TombstoneReason::Deleted);
    disposition(case, document_type, version_us, text(case, "modified_by"), gone)
}

/// Whether a row of the case table is soft-deleted.
pub(crate) fn case_is_deleted(case: &Columns) -> bool {
    case.get("deleted").and_then(Value::as_bool).unwrap_or(false)
}

/// What a form, or its absence, means.
pub fn of_form(rows: Option<&FormRows>) -> Disposition {
    let Some(FormRows { form, .. }) = rows else { return MISSING };
    let document_type = DocumentType::of_form(text(form, "xmlns").unwrap_or_default());
    let version_us = instant(form, "server_modified_on").or_else(|| instant(form, "received_on"));
    disposition(form, document_type, version_us, text(form, "user_id"), form_is_gone(form))
}

/// Why a row of the form table is not live; `None` for a live one.
pub(crate) fn form_is_gone(form: &Columns) -> Option<TombstoneReason> {
    let state = form.get("state").and_then(Value::as_i64).unwrap_or(FORM_STATE_NORMAL);
    if form.get("deleted_on").is_some_and(|at| !at.is_null()) || state & FORM_STATE_DELETED_BIT != 0 {
        return Some(TombstoneReason::Deleted);
    }
    match state {
        FORM_STATE_NORMAL => None,
        2 => Some(TombstoneReason::Archived),
        4 => Some(TombstoneReason::Deprecated),
        8 => Some(TombstoneReason::Duplicate),
        16 => Some(TombstoneReason::Error),
        32 => Some(TombstoneReason::SubmissionError),
        _ => Some(TombstoneReason::UnknownState),
    }
}

/// What a location, or its absence, means. An archived one is live.
pub fn of_location(row: Option<&LocationRow>) -> Disposition {
    let Some(row) = row else { return MISSING };
    Disposition::Upsert {
        domain: Domain::from(row.domain.as_str()),
        document_type: DocumentType::location(),
        version_us: row.last_modified_us,
        user_id: None,
    }
}

fn disposition(
    row: &Columns,
    document_type: DocumentType,
    version_us: Option<i64>,
    user_id: Option<&str>,
    gone: Option<TombstoneReason>,
) -> Disposition {
    let domain = Domain::from(text(row, "domain").unwrap_or_default());
    match gone {
        Some(reason) => {
            Disposition::Tombstone { reason, version_us, domain: Some(domain), document_type: Some(document_type) }
        }
        None => Disposition::Upsert {
            domain,
            document_type,
            version_us: version_us.unwrap_or(0),
            user_id: user_id.filter(|id| !id.is_empty()).map(str::to_owned),
        },
    }
}

fn text<'c>(row: &'c Columns, column: &str) -> Option<&'c str> {
    row.get(column).and_then(Value::as_str)
}

fn instant(row: &Columns, column: &str) -> Option<i64> {
    text(row, column).and_then(timestamp::parse_us)
}

#[cfg(test)]
mod tests;

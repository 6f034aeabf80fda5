//! Tests of [`super`]: every operation of HQ as its message, its row, and what the lake does.

#![allow(clippy::unwrap_used)]

use lake_shared::identity::Kind;
use serde_json::json;

use super::*;
use crate::change_meta::ChangeMeta;

const SERVER_US: i64 = 1_767_607_872_240_000;
const SERVER: &str = "2026-01-05T10:11:12.240000Z";
const LATER: &str = "2026-01-06T00:00:00.000000Z";
const XMLNS: &str = "http://openrosa.org/formdesigner/AAAA";

fn columns(of: Value) -> Columns {
    of.as_object().unwrap().clone()
}

fn case(changes: Value) -> CaseRows {
    let mut case =
        columns(json!({"case_id": "c1", "domain": "demo", "type": "person", "modified_by": "u1", "deleted": false,
        "modified_on": "2026-01-05T10:11:00.120000Z", "server_modified_on": SERVER}));
    case.extend(columns(changes));
    CaseRows { case, ..CaseRows::default() }
}

fn form(changes: Value) -> FormRows {
    let mut form = columns(json!({"form_id": "f1", "domain": "demo", "user_id": "u1", "state": 1, "deleted_on": null,
        "xmlns": XMLNS, "received_on": "2026-01-05T10:11:10.000000Z", "server_modified_on": SERVER}));
    form.extend(columns(changes));
    FormRows { form, ..FormRows::default() }
}

fn upsert(document_type: &str, version_us: i64, user_id: Option<&str>) -> Disposition {
    let (domain, document_type) = ("demo".into(), document_type.into());
    Disposition::Upsert { domain, document_type, version_us, user_id: user_id.map(str::to_owned) }
}

/// Into the table of the type, in place of what is in any other.
fn enters(document_type: &str) -> Disposition {
    upsert(document_type, SERVER_US, Some("u1"))
}

/// Out of every table, whatever its type was.
fn leaves(reason: TombstoneReason, document_type: &str) -> Disposition {
    let (domain, document_type) = (Some("demo".into()), Some(document_type.into()));
    Disposition::Tombstone { reason, version_us: Some(SERVER_US), domain, document_type }
}

/// What a message says: doc_type, subtype, whether it speaks of a deletion. Nothing of it is in the decision.
type Says = (&'static str, Option<&'static str>, bool);

const SAVED_FORM: Says = ("XFormInstance", Some(XMLNS), false);
const DELETED_FORM: Says = ("XFormInstance-Deleted", None, true);
const SAVED_CASE: Says = ("CommCareCase", Some("person"), false);
const SAVED_DELETED_CASE: Says = ("CommCareCase", Some("person"), true);
const DELETED_CASE: Says = ("CommCareCase-Deleted", None, true);

/// A message as HQ writes it.
fn assert_readable(operation: &str, kind: Kind, (document_type, subtype, is_deletion): Says) {
    let source = kind.topic();
    let message = json!({"document_id": "x1", "document_rev": null, "data_source_type": "sql", "data_source_name": source,
        "document_type": document_type, "document_subtype": subtype, "domain": "demo", "is_deletion": is_deletion,
        "publish_timestamp": SERVER, "attempts": 0, "original_publication_datetime": SERVER, "associated_document_id": null});
    let meta = ChangeMeta::parse(message.to_string().as_bytes()).unwrap();
    assert_eq!(
        (meta.document_id.as_str(), meta.kind(), meta.is_deletion),
        ("x1", Some(kind), is_deletion),
        "{operation}"
    );
    assert_eq!((meta.document_type.as_deref(), meta.document_subtype.as_deref()), (Some(document_type), subtype));
}

/// An operation, its message, its row, and what the lake does.
type Operation<R> = (&'static str, Option<Says>, Option<R>, Disposition);

fn saved_as(document_type: &'static str) -> Option<Says> {
    Some((document_type, Some(XMLNS), false))
}

fn submissions_and_edits() -> Vec<Operation<FormRows>> {
    use TombstoneReason::*;
    vec![
        ("new form", Some(SAVED_FORM), Some(form(json!({}))), enters("AAAA")),
        (
            "edit: the live form, same id",
            Some(SAVED_FORM),
            Some(form(json!({"edited_on": LATER, "deprecated_form_id": "f0"}))),
            enters("AAAA"),
        ),
        (
            "edit: the old version, under a new id, not announced; a scan of the table meets it",
            None,
            Some(form(json!({"state": 4, "orig_id": "f1"}))),
            leaves(Deprecated, "AAAA"),
        ),
        (
            "edit: the old version, announced by a republish command",
            saved_as("XFormDeprecated"),
            Some(form(json!({"state": 4, "orig_id": "f1"}))),
            leaves(Deprecated, "AAAA"),
        ),
        (
            "exact duplicate, under a new id",
            saved_as("XFormDuplicate"),
            Some(form(json!({"state": 8, "orig_id": "f1"}))),
            leaves(Duplicate, "AAAA"),
        ),
        (
            "processing error",
            saved_as("XFormError"),
            Some(form(json!({"state": 16, "problem": "x"}))),
            leaves(Error, "AAAA"),
        ),
        ("error, reprocessed", Some(SAVED_FORM), Some(form(json!({"problem": "x"}))), enters("AAAA")),
        (
            "unparsable submission",
            Some(("SubmissionErrorLog", Some(""), false)),
            Some(form(json!({"state": 32, "xmlns": ""}))),
            leaves(SubmissionError, ""),
        ),
        (
            "unparsable submission without xmlns",
            Some(("SubmissionErrorLog", None, false)),
            Some(form(json!({"state": 32, "xmlns": null}))),
            leaves(SubmissionError, ""),
        ),
    ]
}

fn archives_and_deletions_of_forms() -> Vec<Operation<FormRows>> {
    use TombstoneReason::*;
    vec![
        ("archive", saved_as("XFormArchived"), Some(form(json!({"state": 2}))), leaves(Archived, "AAAA")),
        ("unarchive", Some(SAVED_FORM), Some(form(json!({"state": 1}))), enters("AAAA")),
        (
            "soft delete",
            Some(DELETED_FORM),
            Some(form(json!({"deleted_on": LATER, "deletion_id": "d"}))),
            leaves(Deleted, "AAAA"),
        ),
        (
            "soft delete, announced as saved",
            Some(("XFormInstance-Deleted", Some(XMLNS), true)),
            Some(form(json!({"deleted_on": LATER}))),
            leaves(Deleted, "AAAA"),
        ),
        (
            "soft delete of an archived one",
            Some(DELETED_FORM),
            Some(form(json!({"state": 2, "deleted_on": LATER}))),
            leaves(Deleted, "AAAA"),
        ),
        (
            "soft delete, historic bit, beside normal and archived",
            Some(DELETED_FORM),
            Some(form(json!({"state": 65}))),
            leaves(Deleted, "AAAA"),
        ),
        (
            "soft delete, historic bit alone",
            Some(DELETED_FORM),
            Some(form(json!({"state": 64}))),
            leaves(Deleted, "AAAA"),
        ),
        (
            "undelete",
            Some(SAVED_FORM),
            Some(form(json!({"deleted_on": null, "problem": "Restored on 2026"}))),
            enters("AAAA"),
        ),
        ("old delete message after an undelete", Some(DELETED_FORM), Some(form(json!({}))), enters("AAAA")),
        (
            "old save message after a delete",
            Some(SAVED_FORM),
            Some(form(json!({"deleted_on": LATER}))),
            leaves(Deleted, "AAAA"),
        ),
        ("hard delete with a message", Some(DELETED_FORM), None, MISSING),
        ("hard delete without, seen by a replayed message", Some(SAVED_FORM), None, MISSING),
        ("purge of soft-deleted data, seen by reconciliation", None, None, MISSING),
        ("whole domain deleted", None, None, MISSING),
    ]
}

fn messages_and_states_of_other_times() -> Vec<Operation<FormRows>> {
    use TombstoneReason::*;
    vec![
        (
            "resave_form, republish_doc_changes, stale_data_in_es",
            Some(SAVED_FORM),
            Some(form(json!({}))),
            enters("AAAA"),
        ),
        ("pillow retry of an old change", Some(SAVED_FORM), Some(form(json!({"state": 2}))), leaves(Archived, "AAAA")),
        ("message of 2015, numeric state as type", Some(("1", None, false)), Some(form(json!({}))), enters("AAAA")),
        ("a state of the future", Some(SAVED_FORM), Some(form(json!({"state": 128}))), leaves(UnknownState, "AAAA")),
        ("two states at once", Some(SAVED_FORM), Some(form(json!({"state": 3}))), leaves(UnknownState, "AAAA")),
    ]
}

#[test]
fn every_operation_of_hq_on_forms() {
    let operations = [submissions_and_edits(), archives_and_deletions_of_forms(), messages_and_states_of_other_times()];
    for (operation, says, row, expected) in operations.into_iter().flatten() {
        says.into_iter().for_each(|says| assert_readable(operation, Kind::Form, says));
        assert_eq!(of_form(row.as_ref()), expected, "{operation}");
    }
}

fn saves_of_cases() -> Vec<Operation<CaseRows>> {
    use TombstoneReason::Deleted;
    vec![
        ("created by a form", Some(SAVED_CASE), Some(case(json!({}))), enters("person")),
        ("updated by a form", Some(SAVED_CASE), Some(case(json!({"case_json": "{\"a\": \"1\"}"}))), enters("person")),
        ("closed", Some(SAVED_CASE), Some(case(json!({"closed": true, "closed_on": LATER}))), enters("person")),
        ("reopened by a rebuild", Some(SAVED_CASE), Some(case(json!({"closed": false}))), enters("person")),
        (
            "type changed: the new table, and out of the old one",
            Some(("CommCareCase", Some("child"), false)),
            Some(case(json!({"type": "child"}))),
            enters("child"),
        ),
        ("type changed since the message", Some(SAVED_CASE), Some(case(json!({"type": "child"}))), enters("child")),
        ("rebuilt after archive, edit or delete of a form", Some(SAVED_CASE), Some(case(json!({}))), enters("person")),
        (
            "rebuilt, no form left",
            Some(SAVED_DELETED_CASE),
            Some(case(json!({"deleted": true}))),
            leaves(Deleted, "person"),
        ),
        ("its form unarchived", Some(SAVED_CASE), Some(case(json!({"deleted": false}))), enters("person")),
    ]
}

fn deletions_of_cases() -> Vec<Operation<CaseRows>> {
    use TombstoneReason::Deleted;
    vec![
        (
            "soft delete keeps the row's own version, as older HQ does not touch it",
            Some(DELETED_CASE),
            Some(case(json!({"deleted": true, "deleted_on": "2027-01-01T00:00:00.000000Z"}))),
            leaves(Deleted, "person"),
        ),
        (
            "soft delete, announced as saved",
            Some(SAVED_DELETED_CASE),
            Some(case(json!({"deleted": true, "deleted_on": LATER}))),
            leaves(Deleted, "person"),
        ),
        ("undelete", Some(SAVED_CASE), Some(case(json!({"deleted": false, "deleted_on": null}))), enters("person")),
        ("old delete message after an undelete", Some(DELETED_CASE), Some(case(json!({}))), enters("person")),
        (
            "old save message after a delete",
            Some(SAVED_CASE),
            Some(case(json!({"deleted": true}))),
            leaves(Deleted, "person"),
        ),
        ("hard delete with a message", Some(DELETED_CASE), None, MISSING),
        ("hard delete without, seen by a replayed message", Some(SAVED_CASE), None, MISSING),
        ("purge of soft-deleted data, seen by reconciliation", None, None, MISSING),
        ("whole domain deleted", None, None, MISSING),
    ]
}

fn odd_messages_and_rows_of_cases() -> Vec<Operation<CaseRows>> {
    use TombstoneReason::Deleted;
    vec![
        ("a repair by SQL, without a message", None, Some(case(json!({}))), enters("person")),
        ("republished", Some(SAVED_CASE), Some(case(json!({}))), enters("person")),
        (
            "message of 2015, always no deletion",
            Some(("CommCareCaseSql", Some("person"), false)),
            Some(case(json!({"deleted": true}))),
            leaves(Deleted, "person"),
        ),
        (
            "no type, no user",
            Some(("CommCareCase", Some(""), false)),
            Some(case(json!({"type": "", "modified_by": ""}))),
            upsert("", SERVER_US, None),
        ),
        (
            "user case, supply point, claim: as any other",
            Some(("CommCareCase", Some("commcare-user"), false)),
            Some(case(json!({"type": "commcare-user"}))),
            enters("commcare-user"),
        ),
    ]
}

#[test]
fn every_operation_of_hq_on_cases() {
    let operations = [saves_of_cases(), deletions_of_cases(), odd_messages_and_rows_of_cases()];
    for (operation, says, row, expected) in operations.into_iter().flatten() {
        says.into_iter().for_each(|says| assert_readable(operation, Kind::Case, says));
        assert_eq!(of_case(row.as_ref()), expected, "{operation}");
    }
}

#[test]
fn locations_stay_while_their_row_exists() {
    let mut row =
        LocationRow { domain: "demo".into(), location_id: "l".into(), last_modified_us: 7, ..LocationRow::default() };
    let says: Says = ("Location", None, false);
    assert_readable("saved", Kind::Location, says);
    assert_eq!(of_location(Some(&row)), upsert("Location", 7, None), "saved, renamed, moved");
    row.is_archived = true;
    assert_eq!(of_location(Some(&row)), upsert("Location", 7, None), "archived");
    assert_readable("deleted", Kind::Location, ("Location", None, true));
    assert_eq!(of_location(None), MISSING, "deleted");
}

#[test]
fn the_domain_of_the_row_counts() {
    let elsewhere = of_case(Some(&case(json!({"domain": "elsewhere"}))));
    assert!(matches!(elsewhere, Disposition::Upsert { domain, .. } if domain.as_str() == "elsewhere"));
    let gone = of_form(Some(&form(json!({"domain": "elsewhere", "state": 2}))));
    assert!(matches!(gone, Disposition::Tombstone { domain: Some(domain), .. } if domain.as_str() == "elsewhere"));
}

#[test]
fn a_form_without_server_modified_on_counts_from_its_receipt() {
    let row = form(json!({"server_modified_on": null, "user_id": null, "xmlns": "http://commcarehq.org/case"}));
    assert_eq!(of_form(Some(&row)), upsert("http://commcarehq.org/case", 1_767_607_870_000_000, None));
}

//! HQ's rows of what the world holds (reference §2.2, 3.1, 3.3, 3.4, 6.1).

use lake_hq::source::Columns;
use serde_json::{Value, json};

use crate::case_blocks::{case_json, instant};
use crate::moment;
use crate::turn::{Mutation, Table};
use crate::world::{Case, Domain, Ending, Form, Health, Link, Person, Place, Presence, Sender, Transaction, World};

fn row<const N: usize>(cells: [(&str, Value); N]) -> Columns {
    let mut columns = Columns::with_capacity(N);
    for (name, value) in cells {
        columns.insert(name.to_owned(), value);
    }
    columns
}

fn text(value: impl AsRef<str>) -> Value {
    Value::String(value.as_ref().to_owned())
}

fn optional(value: Option<impl AsRef<str>>) -> Value {
    value.map_or(Value::Null, text)
}

fn put(table: Table, row: Columns) -> Mutation {
    Mutation::Put { table, row }
}

/// Removes the rows of a table that have these values.
pub fn remove<const N: usize>(table: Table, cells: [(&str, &str); N]) -> Mutation {
    Mutation::Remove { table, matching: row(cells.map(|(name, value)| (name, text(value)))) }
}

/// Row of a case.
pub fn case(domain: &Domain, case: &Case) -> Mutation {
    let deleted = case.presence != Presence::Live;
    let (deleted_on, deletion_id) = match &case.presence {
        Presence::SoftDeleted { on, deletion_id } => (Some(*on), Some(deletion_id)),
        _ => (None, None),
    };
    let columns = row([
        ("case_id", text(&case.id)),
        ("domain", text(&domain.name)),
        ("type", text(&case.case_type)),
        ("name", optional(case.name.as_ref())),
        ("owner_id", text(&case.owner_id)),
        ("opened_on", instant(case.opened_on)),
        ("opened_by", optional(case.opened_by.as_ref())),
        ("modified_on", instant(Some(case.modified_on))),
        ("server_modified_on", instant(Some(case.server_modified_on))),
        ("modified_by", text(&case.modified_by)),
        ("closed", Value::Bool(case.closed.is_some())),
        ("closed_on", instant(case.closed.as_ref().map(|(on, _)| *on))),
        ("closed_by", optional(case.closed.as_ref().map(|(_, by)| by))),
        ("deleted", Value::Bool(deleted)),
        ("deleted_on", instant(deleted_on)),
        ("deletion_id", optional(deletion_id)),
        ("external_id", optional(case.external_id.as_ref())),
        ("location_id", Value::Null),
        ("case_json", Value::String(case_json(case))),
    ]);
    put(Table::Case, columns)
}

/// Row of a link.
pub fn case_index(domain: &Domain, case: &Case, link: &Link) -> Mutation {
    let columns = row([
        ("case_id", text(&case.id)),
        ("domain", text(&domain.name)),
        ("identifier", text(link.identifier)),
        ("referenced_id", text(&link.referenced_id)),
        ("referenced_type", text(&link.referenced_type)),
        ("relationship_id", json!(if link.extension { 2 } else { 1 })),
    ]);
    put(Table::CaseIndex, columns)
}

/// Row of a transaction.
pub fn case_transaction(case: &Case, transaction: &Transaction) -> Mutation {
    let columns = row([
        ("case_id", text(&case.id)),
        ("form_id", optional(transaction.form_id.as_ref())),
        ("sync_log_id", sync_log_id(transaction)),
        ("server_date", instant(Some(transaction.server_date))),
        ("client_date", instant(transaction.client_date)),
        ("type", json!(transaction.bits)),
        ("revoked", Value::Bool(transaction.revoked)),
        ("details", text("{}")),
    ]);
    put(Table::CaseTransaction, columns)
}

/// Phones give the log of their last synchronisation; HQ's own changes have none.
pub fn sync_log_id(transaction: &Transaction) -> Value {
    transaction.client_date.map_or(Value::Null, |date| Value::String(format!("sync-{}", date.div_euclid(moment::DAY))))
}

/// Row of a form.
pub fn form(world: &World, domain: &Domain, form: &Form) -> Mutation {
    let submission = &form.submission;
    let (deleted_on, deletion_id) = match &form.presence {
        Presence::SoftDeleted { on, deletion_id } => (Some(*on), Some(deletion_id)),
        _ => (None, None),
    };
    let ended = (submission.ending == Ending::Ordinary).then_some(submission.ended);
    let (auth_context, openrosa_headers) = form_headers(world, domain, form);
    let columns = row([
        ("form_id", text(&form.id)),
        ("domain", text(&domain.name)),
        ("app_id", text(&domain.app_id)),
        ("xmlns", text(form_xmlns(domain, form))),
        ("user_id", optional(form.user_id.as_ref())),
        ("orig_id", optional(form.orig_id.as_ref())),
        ("deprecated_form_id", optional(form.deprecated_form_id.as_ref())),
        ("server_modified_on", instant(Some(form.server_modified_on))),
        ("received_on", instant(Some(form.received_on))),
        ("edited_on", instant(form.edited_on)),
        ("deleted_on", instant(deleted_on)),
        ("deletion_id", optional(deletion_id)),
        ("auth_context", Value::String(auth_context.to_string())),
        ("openrosa_headers", Value::String(openrosa_headers.to_string())),
        ("partial_submission", Value::Bool(false)),
        ("submit_ip", submit_ip(form)),
        ("last_sync_token", last_sync_token(form)),
        ("problem", optional(form.problem)),
        ("date_header", instant(form.date_header)),
        ("build_id", text(&domain.build_id)),
        ("state", json!(form.state)),
        ("initial_processing_complete", Value::Bool(form.state != 16)),
        ("time_end", instant(ended)),
        ("time_start", instant(Some(submission.started))),
        ("commcare_version", text("2.53.0")),
        ("app_version", json!(17)),
    ]);
    put(Table::Form, columns)
}

/// The column `xmlns`.
pub fn form_xmlns<'a>(domain: &'a Domain, form: &Form) -> &'a str {
    if form.state == 32 { "" } else { &domain.designs[form.submission.design].xmlns }
}

/// `auth_context` and `openrosa_headers`.
pub fn form_headers(world: &World, domain: &Domain, form: &Form) -> (Value, Value) {
    let sender = world.sender_id(form.submission.sender);
    let auth_context = if matches!(form.submission.sender, Sender::Person(_)) {
        json!({"doc_type": "AuthContext", "user_id": &*sender, "authenticated": true, "domain": &*domain.name})
    } else {
        json!({"doc_type": "DefaultAuthContext"})
    };
    let headers = form
        .date_header
        .map_or_else(|| json!({}), |date| json!({"HTTP_DATE": moment::date(date), "HTTP_X_OPENROSA_VERSION": "2.1"}));
    (auth_context, headers)
}

/// Address of the phone.
pub fn submit_ip(form: &Form) -> Value {
    let seed = form.submission.seed;
    if seed.is_multiple_of(11) {
        Value::Null
    } else {
        Value::String(format!("10.{}.{}.7", seed % 250, seed / 250 % 250))
    }
}

/// What the phone had synchronised last.
pub fn last_sync_token(form: &Form) -> Value {
    let day = form.submission.started.div_euclid(moment::DAY);
    if form.submission.seed.is_multiple_of(7) { Value::Null } else { Value::String(format!("sync-{day}")) }
}

/// Row of one operation on a form.
pub fn form_operation(form: &Form, (operation, date, user_id): &(&'static str, i64, std::sync::Arc<str>)) -> Mutation {
    let columns = row([
        ("form_id", text(&form.id)),
        ("user_id", text(user_id)),
        ("operation", text(operation)),
        ("date", instant(Some(*date))),
    ]);
    put(Table::FormOperation, columns)
}

/// Row that says where a form's XML is; `None` where it is to be missing.
pub fn blob_meta(domain: &Domain, form: &Form) -> Option<Mutation> {
    let (key, size) = &form.blob;
    let compressed = is_compressed(form).then_some(size / 4 + 60);
    let columns = row([
        ("domain", text(&domain.name)),
        ("parent_id", text(&form.id)),
        ("name", text("form.xml")),
        ("key", text(key)),
        ("type_code", json!(2)),
        ("content_length", json!(size)),
        ("compressed_length", json!(compressed)),
        ("content_type", text("text/xml")),
        ("properties", text("{}")),
        ("created_on", instant(Some(form.received_on))),
        ("expires_on", Value::Null),
    ]);
    (form.health != Health::ReferenceMissing).then(|| put(Table::BlobMeta, columns))
}

/// Newer blobs are compressed, older ones are not.
pub fn is_compressed(form: &Form) -> bool {
    !form.submission.seed.is_multiple_of(5)
}

/// Row of a level of the location tree.
pub fn place_type(domain: &Domain, level: usize, modified: i64) -> Mutation {
    let place_type = &domain.place_types[level];
    let columns = row([
        ("id", json!(place_type.id)),
        ("domain", text(&domain.name)),
        ("name", text(&place_type.name)),
        ("code", optional(place_type.code.as_ref())),
        ("parent_type_id", json!(place_type.parent)),
        ("administrative", Value::Bool(level == 0)),
        ("shares_cases", Value::Bool(level > 1)),
        ("view_descendants", Value::Bool(level < 2)),
        ("expand_from_id", Value::Null),
        ("expand_to_id", Value::Null),
        ("include_without_expanding_id", Value::Null),
        ("expand_from_root", Value::Bool(false)),
        ("restrict_cases_to_id", Value::Null),
        ("has_users", Value::Bool(true)),
        ("emergency_level", text("0.5")),
        ("understock_threshold", text("1.5")),
        ("overstock_threshold", text("3.0")),
        ("last_modified", instant(Some(modified))),
    ]);
    put(Table::LocationType, columns)
}

/// Row of a location.
pub fn place(world: &World, domain: &Domain, place: &Place) -> Mutation {
    let degrees = |millionths: i32| Value::String(format!("{:.10}", f64::from(millionths) / 1e6));
    let metadata: serde_json::Map<String, Value> =
        place.metadata.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    let columns = row([
        ("id", json!(place.id)),
        ("domain", text(&domain.name)),
        ("name", optional(place.name.as_ref())),
        ("location_id", text(&place.location_id)),
        ("location_type_id", json!(domain.place_types[place.level].id)),
        ("site_code", text(&place.site_code)),
        ("external_id", optional(place.external_id.as_ref())),
        ("metadata", Value::String(Value::Object(metadata).to_string())),
        ("created_at", instant(Some(place.created_at))),
        ("last_modified", instant(Some(place.last_modified))),
        ("is_archived", Value::Bool(place.archived.is_some())),
        ("archived_on", instant(place.archived.flatten())),
        ("latitude", place.position.map_or(Value::Null, |(latitude, _)| degrees(latitude))),
        ("longitude", place.position.map_or(Value::Null, |(_, longitude)| degrees(longitude))),
        ("parent_id", json!(place.parent.map(|parent| world.places[parent as usize].id))),
        ("stocks_all_products", Value::Bool(true)),
        ("supply_point_id", Value::Null),
        ("user_id", text("")),
    ]);
    put(Table::Location, columns)
}

/// A user's document in CouchDB.
pub fn person(world: &World, person: &Person) -> Mutation {
    let domain = &world.domains[person.domain].name;
    let place = person.place.map(|place| world.places[place as usize].location_id.to_string());
    let assigned: Vec<&String> = place.iter().collect();
    let membership = json!({"doc_type": "DomainMembership", "domain": &**domain, "location_id": place, "assigned_location_ids": assigned,
        "role_id": "r1", "is_admin": false, "timezone": "UTC", "override_global_tz": false, "program_id": null});
    let base = if person.retired { "CouchUser-Deleted" } else { "CouchUser" };
    let mut document = json!({"_id": &*person.id, "base_doc": base, "first_name": person.username, "last_name": "", "email": "",
        "is_active": !person.retired, "devices": [], "created_on": "2020-01-01T00:00:00.000000Z",
        "reporting_metadata": {"last_sync_for_user": {"saves": person.revision}}});
    let members = if person.web {
        let elsewhere =
            json!({"doc_type": "DomainMembership", "domain": "somewhere-else", "location_id": "loc-elsewhere"});
        json!({"doc_type": "WebUser", "username": format!("{}@example.org", person.username),
            "domains": ["somewhere-else", &**domain], "domain_memberships": [elsewhere, membership]})
    } else {
        json!({"doc_type": "CommCareUser", "domain": &**domain, "username": format!("{}@{domain}.commcarehq.org", person.username),
            "location_id": place, "assigned_location_ids": assigned, "domain_membership": membership,
            "user_data": {"commcare_project": &**domain, "commcare_location_id": place}})
    };
    if let (Some(document), Value::Object(members)) = (document.as_object_mut(), members) {
        document.extend(members);
    }
    Mutation::PutUser { document }
}

/// The text of a form as HQ stored it; what is wrong with it is done to it here.
pub fn blob_content(mut xml: String, health: Health) -> Vec<u8> {
    match health {
        Health::Broken => {
            let half = (0..=xml.len() / 2).rev().find(|at| xml.is_char_boundary(*at)).unwrap_or(0);
            xml.truncate(half);
        }
        Health::Raises => {
            if let Some(end) = xml.rfind("</") {
                xml.insert_str(end, "<?instruction inside?>");
            }
        }
        Health::Fine | Health::BlobMissing | Health::ReferenceMissing => {}
    }
    xml.into_bytes()
}

/// The instant that the form says it ended at, for its month; `None` where it says nothing usable.
pub fn usable_end(submission: &crate::world::Submission) -> Option<i64> {
    matches!(submission.ending, Ending::Ordinary | Ending::DateOnly).then_some(submission.ended)
}

//! The cells of expected rows: source path → value. A source path is a JSON pointer into HQ's document, or `+name` for a column that
//! the lake adds. Documents are made here by the reference's rules (§2.3, 3.5, 6.3) from the world, not from rows.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::case_blocks::all_properties;
use crate::moment;
use crate::questionnaire::fill_in;
use crate::rows;
use crate::world::{Case, Domain, Form, Health, Place, World};

/// Source path → value; what is missing is NULL.
pub(crate) type Cells = Map<String, Value>;

/// Keys of a case's document that win over properties of the same name.
const FIXED_CASE_KEYS: &[&str] = &[
    "_id",
    "doc_type",
    "user_id",
    "case_json",
    "case_id",
    "domain",
    "type",
    "name",
    "owner_id",
    "opened_on",
    "modified_on",
    "server_modified_on",
    "closed_on",
    "opened_by",
    "modified_by",
    "closed_by",
    "closed",
    "deleted",
    "external_id",
    "location_id",
    "indices",
    "actions",
    "xform_ids",
    "case_attachments",
    "backend_id",
];

fn timestamp(us: i64) -> Value {
    json!({"timestamp": moment::text(us)})
}

fn text_json(value: Value) -> Value {
    json!({ "json": value })
}

/// Adds cells; null adds none.
fn extend<const N: usize>(cells: &mut Cells, added: [(&str, Value); N]) {
    for (path, value) in added {
        if !value.is_null() {
            cells.insert(path.to_owned(), value);
        }
    }
}

/// Objects recurse, arrays become JSON text, scalars text; null and empty objects leave no cell.
fn flatten(cells: &mut Cells, path: String, value: Value) {
    match value {
        Value::Null => {}
        Value::Object(members) => {
            for (name, value) in members {
                flatten(cells, format!("{path}/{}", escaped(&name)), value);
            }
        }
        Value::Array(_) => {
            cells.insert(path, text_json(value));
        }
        Value::String(_) => {
            cells.insert(path, value);
        }
        Value::Bool(_) | Value::Number(_) => {
            cells.insert(path, Value::String(value.to_string()));
        }
    }
}

fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// Whether the lake has a column of this name beside the document's.
fn is_lake_column(domain: &Domain, name: &str) -> bool {
    matches!(name, "month" | "supervisor_id")
        || name.starts_with("_lake_")
        || domain.place_types.iter().any(|place_type| name.strip_suffix("_id") == Some(place_type.key()))
}

/// Cells of a case.
pub(crate) fn case_cells(domain: &Domain, case: &Case) -> Cells {
    let mut cells = Cells::new();
    for (name, value) in all_properties(case) {
        let hidden = FIXED_CASE_KEYS.contains(&name.as_ref()) || is_lake_column(domain, name);
        let above = if hidden { "/case_json" } else { "" };
        flatten(&mut cells, format!("{above}/{}", escaped(name)), value.clone());
    }
    let month = case.opened_on.and_then(moment::month);
    extend(
        &mut cells,
        [
            ("/_id", json!(&*case.id)),
            ("/doc_type", json!("CommCareCase")),
            ("/user_id", json!(&*case.modified_by)),
            ("/case_id", json!(&*case.id)),
            ("/domain", json!(&*domain.name)),
            ("/name", json!(case.name)),
            ("/owner_id", json!(&*case.owner_id)),
            ("/opened_on", case.opened_on.map_or(Value::Null, timestamp)),
            ("/opened_by", json!(case.opened_by.as_deref())),
            ("/modified_on", timestamp(case.modified_on)),
            ("/server_modified_on", timestamp(case.server_modified_on)),
            ("/modified_by", json!(&*case.modified_by)),
            ("/closed", json!(case.closed.is_some())),
            ("/closed_on", case.closed.as_ref().map_or(Value::Null, |(on, _)| timestamp(*on))),
            ("/closed_by", json!(case.closed.as_ref().map(|(_, by)| &**by))),
            ("/deleted", json!(false)),
            ("/external_id", json!(case.external_id)),
            ("/backend_id", json!("sql")),
            ("/indices", text_json(indices(case))),
            ("+type", json!(case.case_type)),
            ("+month", month.map_or(Value::Null, |month| json!({ "date": month }))),
        ],
    );
    let (actions, xform_ids) = actions(case);
    extend(&mut cells, [("/actions", text_json(actions)), ("/xform_ids", text_json(xform_ids))]);
    cells
}

fn indices(case: &Case) -> Value {
    let index = |link: &crate::world::Link| {
        json!({"case_id": &*case.id, "identifier": link.identifier, "referenced_id": &*link.referenced_id,
            "referenced_type": link.referenced_type, "relationship": if link.extension { "extension" } else { "child" }})
    };
    case.links.iter().map(index).collect()
}

fn actions(case: &Case) -> (Value, Value) {
    let mut held: Vec<_> = case.transactions.iter().filter(|transaction| !transaction.revoked).collect();
    held.sort_by_key(|transaction| transaction.server_date);
    let actions = held.iter().map(|transaction| {
        let date = transaction.client_date.unwrap_or(transaction.server_date);
        json!({"xform_id": transaction.form_id.as_deref(), "server_date": moment::text(transaction.server_date),
            "date": moment::text(date), "sync_log_id": rows::sync_log_id(transaction)})
    });
    let forms = held
        .iter()
        .filter(|transaction| transaction.bits & 1 == 1)
        .map(|transaction| json!(transaction.form_id.as_deref()));
    (actions.collect(), forms.collect())
}

/// The user of a form: the column, else what the form says.
pub(crate) fn form_user(world: &World, form: &Form) -> Option<Arc<str>> {
    let written = || (form.health == Health::Fine).then(|| world.sender_id(form.submission.sender));
    form.user_id.clone().filter(|user| !user.is_empty()).or_else(written)
}

/// Cells of a form.
pub(crate) fn form_cells(world: &World, domain: &Domain, form: &Form) -> Cells {
    let mut cells = Cells::new();
    let readable = form.health == Health::Fine;
    if readable {
        flatten(&mut cells, "/form".into(), form_json(world, domain, form));
    }
    let (auth_context, openrosa_headers) = rows::form_headers(world, domain, form);
    flatten(&mut cells, "/auth_context".into(), auth_context);
    flatten(&mut cells, "/openrosa_headers".into(), openrosa_headers);
    let xmlns = rows::form_xmlns(domain, form);
    let dated = if readable { rows::usable_end(&form.submission) } else { None };
    let month = moment::month(dated.unwrap_or(form.received_on));
    let history: Value = form
        .history
        .iter()
        .map(|(operation, date, user)| json!({"operation": operation, "date": moment::text(*date), "user": &**user}))
        .collect();
    extend(
        &mut cells,
        [
            ("/_id", json!(&*form.id)),
            ("/doc_type", json!("XFormInstance")),
            ("/domain", json!(&*domain.name)),
            ("/app_id", json!(domain.app_id)),
            ("/xmlns", json!(xmlns)),
            ("/user_id", json!(form.user_id.as_deref())),
            ("/orig_id", json!(form.orig_id.as_deref())),
            ("/deprecated_form_id", json!(form.deprecated_form_id.as_deref())),
            ("/server_modified_on", timestamp(form.server_modified_on)),
            ("/received_on", timestamp(form.received_on)),
            ("/edited_on", form.edited_on.map_or(Value::Null, timestamp)),
            ("/date_header", form.date_header.map_or(Value::Null, timestamp)),
            ("/partial_submission", json!(false)),
            ("/initial_processing_complete", json!(true)),
            ("/submit_ip", rows::submit_ip(form)),
            ("/last_sync_token", rows::last_sync_token(form)),
            ("/problem", json!(form.problem)),
            ("/build_id", json!(domain.build_id)),
            ("/state", json!(form.state)),
            ("/history", text_json(history)),
            ("/backend_id", json!("sql")),
            ("+type", json!(lake_shared::identity::DocumentType::of_form(xmlns).as_str())),
            ("+month", month.map_or(Value::Null, |month| json!({ "date": month }))),
        ],
    );
    cells
}

/// The member `form` of a form's document.
pub(crate) fn form_json(world: &World, domain: &Domain, form: &Form) -> Value {
    let root = fill_in(world, domain, &form.submission).root;
    let mut value = root.value(None);
    if let Value::Object(members) = &mut value {
        members.insert("#type".into(), Value::String(root.name.to_string()));
        if let Some(meta) = members.remove("Meta") {
            members.insert("meta".into(), meta);
        }
        if let Some(Value::Object(meta)) = members.get_mut("meta") {
            for (old, new) in [
                ("TimeStart", "timeStart"),
                ("TimeEnd", "timeEnd"),
                ("chw_id", "userID"),
                ("DeviceID", "deviceID"),
                ("uid", "instanceID"),
            ] {
                if let Some(moved) = meta.remove(old) {
                    meta.insert(new.into(), moved);
                }
            }
        }
    }
    value
}

/// Cells of a location.
pub(crate) fn place_cells(world: &World, domain: &Domain, place: &Place) -> Cells {
    let mut cells = Cells::new();
    let above = ancestors(world, place);
    let (latitude, longitude) = degrees(place);
    let metadata: Map<String, Value> =
        place.metadata.iter().map(|(name, value)| (name.to_string(), json!(value))).collect();
    flatten(&mut cells, "/metadata".into(), Value::Object(metadata));
    let lineage: Value = above.iter().map(|place| json!(&*place.location_id)).collect();
    let place_type = &domain.place_types[place.level];
    extend(
        &mut cells,
        [
            ("/_id", json!(&*place.location_id)),
            ("/location_id", json!(&*place.location_id)),
            ("/doc_type", json!("Location")),
            ("/domain", json!(&*domain.name)),
            ("/name", json!(place.name)),
            ("/site_code", json!(place.site_code)),
            ("/external_id", json!(place.external_id)),
            ("/is_archived", json!(place.archived.is_some())),
            ("/archived_on", place.archived.flatten().map_or(Value::Null, timestamp)),
            ("/last_modified", timestamp(place.last_modified)),
            ("/latitude", latitude),
            ("/longitude", longitude),
            ("/location_type", json!(place_type.name)),
            ("/location_type_code", json!(place_type.code)),
            ("/parent_location_id", json!(above.first().map(|parent| &*parent.location_id))),
            ("/lineage", text_json(lineage)),
            ("+type", json!("Location")),
        ],
    );
    // The farthest first, so that the nearest of a type wins.
    for place in above.into_iter().rev().chain([place]) {
        let prefix = format!("+{}", domain.place_types[place.level].key());
        let (latitude, longitude) = degrees(place);
        for (suffix, value) in [
            ("id", json!(&*place.location_id)),
            ("name", json!(place.name)),
            ("site_code", json!(place.site_code)),
            ("latitude", latitude),
            ("longitude", longitude),
            ("is_archived", json!(place.archived.is_some())),
        ] {
            let path = format!("{prefix}_{suffix}");
            if value.is_null() {
                cells.remove(&path)
            } else {
                cells.insert(path, value)
            };
        }
    }
    cells
}

/// From the parent up to the root.
fn ancestors<'a>(world: &'a World, place: &Place) -> Vec<&'a Place> {
    let mut found = Vec::new();
    let mut at = place.parent;
    while let Some(parent) = at.map(|index| &world.places[index as usize]) {
        found.push(parent);
        at = parent.parent;
    }
    found
}

/// Latitude and longitude; 0 is unknown, too.
fn degrees(place: &Place) -> (Value, Value) {
    let one = |millionths: i32| if millionths == 0 { Value::Null } else { json!(f64::from(millionths) / 1e6) };
    place.position.map_or((Value::Null, Value::Null), |(latitude, longitude)| (one(latitude), one(longitude)))
}

#[cfg(test)]
mod tests;

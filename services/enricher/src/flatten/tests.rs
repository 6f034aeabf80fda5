#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use serde_json::json;

use super::*;

fn cells_of(kind: Kind, case_json: CaseJson, document: &Value) -> BTreeMap<String, Cell<'static>> {
    let lake_columns = LakeColumnNames::of_location_types(["district", "supervisor"]);
    let flattening = Flattening { kind, lake_columns: &lake_columns, case_json };
    let mut cells = BTreeMap::new();
    flattening.cells(document.as_object().unwrap(), |path, cell| {
        let cell = match cell {
            Cell::Text(text) => Cell::Text(Cow::Owned(text.into_owned())),
            Cell::Timestamp(micros) => Cell::Timestamp(micros),
            Cell::Boolean(truth) => Cell::Boolean(truth),
            Cell::Integer(number) => Cell::Integer(number),
            Cell::Double(number) => Cell::Double(number),
        };
        assert!(cells.insert(path.to_owned(), cell).is_none(), "{path} twice");
    });
    cells
}

fn cells(kind: Kind, document: &Value) -> BTreeMap<String, Cell<'static>> {
    cells_of(kind, CaseJson::Hidden, document)
}

fn shown(cells: &BTreeMap<String, Cell<'_>>) -> BTreeMap<String, String> {
    let show = |cell: &Cell<'_>| match cell {
        Cell::Text(text) => format!("'{text}'"),
        Cell::Timestamp(micros) => format!("@{micros}"),
        Cell::Boolean(truth) => truth.to_string(),
        Cell::Integer(number) => format!("#{number}"),
        Cell::Double(number) => format!("~{number}"),
    };
    cells.iter().map(|(path, cell)| (path.clone(), show(cell))).collect()
}

#[track_caller]
fn assert_cells(cells: &BTreeMap<String, Cell<'_>>, expected: &[(&str, &str)]) {
    let expected: BTreeMap<String, String> =
        expected.iter().map(|(path, cell)| ((*path).to_owned(), (*cell).to_owned())).collect();
    assert_eq!(shown(cells), expected);
}

#[test]
fn a_case_becomes_typed_and_text_cells() {
    let case = json!({
        "village": "Rampur", "visit_count": 4, "ok": true, "empty": "", "nothing": null, "none": {},
        "_id": "c1", "doc_type": "CommCareCase", "user_id": "u1",
        "case_json": {"village": "Rampur", "visit_count": 4, "ok": true, "empty": "", "nothing": null, "none": {}},
        "case_id": "c1", "domain": "demo", "type": "person", "name": "Asha", "owner_id": "loc9",
        "opened_on": "1970-01-01T00:00:01.000000Z", "opened_by": "u1", "modified_on": "1970-01-01T00:00:02.500000Z",
        "server_modified_on": "1970-01-01T00:00:03Z", "modified_by": "u1", "closed": false, "closed_on": null,
        "closed_by": null, "deleted": false, "external_id": "", "location_id": null,
        "indices": [{"identifier": "parent"}], "actions": [], "xform_ids": ["f1", "f2"],
        "case_attachments": {"photo.jpg": {"content_type": "image/jpeg", "content_length": 7}}, "backend_id": "sql"
    });
    assert_cells(
        &cells(Kind::Case, &case),
        &[
            ("/village", "'Rampur'"),
            ("/visit_count", "'4'"),
            ("/ok", "'true'"),
            ("/empty", "''"),
            ("/_id", "'c1'"),
            ("/doc_type", "'CommCareCase'"),
            ("/user_id", "'u1'"),
            ("/case_id", "'c1'"),
            ("/domain", "'demo'"),
            ("/name", "'Asha'"),
            ("/owner_id", "'loc9'"),
            ("/opened_on", "@1000000"),
            ("/opened_by", "'u1'"),
            ("/modified_on", "@2500000"),
            ("/server_modified_on", "@3000000"),
            ("/modified_by", "'u1'"),
            ("/closed", "false"),
            ("/deleted", "false"),
            ("/external_id", "''"),
            ("/indices", "'[{\"identifier\":\"parent\"}]'"),
            ("/actions", "'[]'"),
            ("/xform_ids", "'[\"f1\",\"f2\"]'"),
            ("/case_attachments/photo.jpg/content_type", "'image/jpeg'"),
            ("/case_attachments/photo.jpg/content_length", "'7'"),
            ("/backend_id", "'sql'"),
        ],
    );
}

#[test]
fn a_form_becomes_typed_and_text_cells() {
    let form = json!({
        "_id": "f2", "doc_type": "XFormInstance", "domain": "demo", "app_id": null,
        "form": {"@uiVersion": "1", "weight": "3.1", "group": {"q": ["1", {"a": null}], "deep": {"x": 1.5}},
                 "meta": {"appVersion": {"@xmlns": "http://x", "#text": "CommCare"}}, "#type": "data"},
        "auth_context": {"authenticated": true}, "openrosa_headers": {}, "xmlns": "http://openrosa.org/formdesigner/A",
        "received_on": "1970-01-01T00:00:01Z", "server_modified_on": "1970-01-01T00:00:02Z", "edited_on": null,
        "date_header": "garbage", "partial_submission": false, "initial_processing_complete": true, "state": 1,
        "history": [], "form_load_time": 12, "type": "x", "month": "m"
    });
    assert_cells(
        &cells(Kind::Form, &form),
        &[
            ("/_id", "'f2'"),
            ("/doc_type", "'XFormInstance'"),
            ("/domain", "'demo'"),
            ("/form/@uiVersion", "'1'"),
            ("/form/weight", "'3.1'"),
            ("/form/group/q", "'[\"1\",{\"a\":null}]'"),
            ("/form/group/deep/x", "'1.5'"),
            ("/form/meta/appVersion/@xmlns", "'http://x'"),
            ("/form/meta/appVersion/#text", "'CommCare'"),
            ("/form/#type", "'data'"),
            ("/auth_context/authenticated", "'true'"),
            ("/xmlns", "'http://openrosa.org/formdesigner/A'"),
            ("/received_on", "@1000000"),
            ("/server_modified_on", "@2000000"),
            ("/partial_submission", "false"),
            ("/initial_processing_complete", "true"),
            ("/state", "#1"),
            ("/history", "'[]'"),
            ("/form_load_time", "'12'"),
            ("/type", "'x'"),
            ("/month", "'m'"),
        ],
    );
}

#[test]
fn a_location_becomes_typed_and_text_cells() {
    let location = json!({
        "_id": "l1", "location_id": "l1", "doc_type": "Location", "domain": "demo", "name": "North", "site_code": "n",
        "external_id": null, "is_archived": true, "archived_on": "1970-01-01T00:00:01", "last_modified": "1970-01-01T00:00:02.5",
        "latitude": 12.5, "longitude": "-7", "metadata": {"beds": 4, "note": {"x": ""}}, "location_type": "district",
        "location_type_code": "d", "parent_location_id": null, "lineage": ["l0"]
    });
    assert_cells(
        &cells(Kind::Location, &location),
        &[
            ("/_id", "'l1'"),
            ("/location_id", "'l1'"),
            ("/doc_type", "'Location'"),
            ("/domain", "'demo'"),
            ("/name", "'North'"),
            ("/site_code", "'n'"),
            ("/is_archived", "true"),
            ("/archived_on", "@1000000"),
            ("/last_modified", "@2500000"),
            ("/latitude", "~12.5"),
            ("/longitude", "~-7"),
            ("/metadata/beds", "'4'"),
            ("/metadata/note/x", "''"),
            ("/location_type", "'district'"),
            ("/location_type_code", "'d'"),
            ("/lineage", "'[\"l0\"]'"),
        ],
    );
}

#[test]
fn the_nested_copy_shows_what_is_hidden_at_the_top() {
    let properties = json!({
        "closed": "yes", "type": "x", "indices": "a", "note": "n", "deleted_on": "2020-01-01", "month": "May",
        "supervisor_id": "s", "district_id": "d", "district": "D", "_lake_version": "7", "case_json": "j", "name": null,
        "case_attachments": "p", "user_id": {"a": "b"}
    });
    // What HQ does: properties first, then its own keys over them.
    let mut case = properties.clone();
    for (key, value) in json!({"closed": false, "type": "person", "indices": [], "name": "Asha", "case_attachments": {}, "user_id": "u"})
        .as_object()
        .unwrap()
    {
        case[key] = value.clone();
    }
    case["case_json"] = properties;
    let top = [
        ("/closed", "false"),
        ("/indices", "'[]'"),
        ("/note", "'n'"),
        ("/deleted_on", "'2020-01-01'"),
        ("/district", "'D'"),
        ("/name", "'Asha'"),
        ("/user_id", "'u'"),
    ];
    let hidden = [
        ("/case_json/closed", "'yes'"),
        ("/case_json/type", "'x'"),
        ("/case_json/indices", "'a'"),
        ("/case_json/month", "'May'"),
        ("/case_json/supervisor_id", "'s'"),
        ("/case_json/district_id", "'d'"),
        ("/case_json/_lake_version", "'7'"),
        ("/case_json/case_json", "'j'"),
        ("/case_json/case_attachments", "'p'"),
        ("/case_json/user_id/a", "'b'"),
    ];
    let twice = [("/case_json/note", "'n'"), ("/case_json/deleted_on", "'2020-01-01'"), ("/case_json/district", "'D'")];
    assert_cells(&cells_of(Kind::Case, CaseJson::None, &case), &top);
    assert_cells(&cells_of(Kind::Case, CaseJson::Hidden, &case), &[&top[..], &hidden[..]].concat());
    assert_cells(&cells_of(Kind::Case, CaseJson::All, &case), &[&top[..], &hidden[..], &twice[..]].concat());
    case["case_json"] = json!("no object");
    assert_cells(&cells_of(Kind::Case, CaseJson::All, &case), &top);
}

#[test]
fn paths_are_json_pointers() {
    let case = json!({"a/b": "1", "a~b": "2", "": "3", "a": {"": {"~1": "4"}}, "a__b": "5", "+month": "6", "घर": "7"});
    let expected = [
        ("/a~1b", "'1'"),
        ("/a~0b", "'2'"),
        ("/", "'3'"),
        ("/a//~01", "'4'"),
        ("/a__b", "'5'"),
        ("/+month", "'6'"),
        ("/घर", "'7'"),
    ];
    assert_cells(&cells(Kind::Case, &case), &expected);
    for (path, cell) in expected {
        let pointed = case.pointer(path).unwrap().as_str().unwrap();
        assert_eq!(format!("'{pointed}'"), cell);
    }
}

#[test]
fn fixed_fields_of_a_wrong_type_are_null_or_still_text() {
    let case = json!({
        "closed": "maybe", "deleted": "true", "opened_on": 7, "modified_on": "2026-02-30T00:00:00Z", "closed_on": {"a": 1},
        "name": {"#text": "n"}, "owner_id": ["o"], "indices": {}, "actions": null
    });
    let expected = [("/deleted", "true"), ("/name/#text", "'n'"), ("/owner_id", "'[\"o\"]'"), ("/indices", "'{}'")];
    assert_cells(&cells(Kind::Case, &case), &expected);
    assert_cells(&cells(Kind::Form, &json!({"state": "2", "edited_on": ""})), &[("/state", "#2")]);
    assert_cells(&cells(Kind::Form, &json!({"state": 1.5})), &[]);
    assert_cells(&cells(Kind::Location, &json!({"latitude": null, "longitude": "NaN"})), &[]);
}

/// The predecessor replaced `': []'` in the text of the whole record.
#[test]
fn text_that_looks_like_json_stays_as_it_is() {
    let form = json!({"form": {"note": "allergies: []", "other": "x: {}", "list": ["a: []"], "quote": "\"a\": []"}});
    assert_cells(
        &cells(Kind::Form, &form),
        &[
            ("/form/note", "'allergies: []'"),
            ("/form/other", "'x: {}'"),
            ("/form/list", "'[\"a: []\"]'"),
            ("/form/quote", "'\"a\": []'"),
        ],
    );
}

#[test]
fn documents_as_deep_as_they_come_are_flattened() {
    let deep = format!("{{\"form\": {}\"x\"{}}}", "{\"a\": ".repeat(5_000), "}".repeat(5_000));
    let document = Value::Object(crate::document::parse(deep.as_bytes()).unwrap());
    let cells = cells(Kind::Form, &document);
    assert_eq!(cells.len(), 1);
    let (path, cell) = cells.iter().next().unwrap();
    assert_eq!(path.matches("/a").count(), crate::document::DEPTH_MAX - 1);
    assert!(matches!(cell, Cell::Text(text) if text.starts_with("{\"a\": ") && text.contains("\"x\"")));
}

#[test]
fn the_count_of_cells_is_an_upper_bound() {
    let case = json!({"a": {"b": 1, "c": [1, 2, 3], "d": {}}, "e": null, "case_json": {"a": 1}});
    assert_eq!(cells_max(case.as_object().unwrap()), 3);
    assert!(cells(Kind::Case, &case).len() <= 3);
}

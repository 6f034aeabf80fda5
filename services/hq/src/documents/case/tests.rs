//! Tests of [`super`]: every key of the document.

#![allow(clippy::unwrap_used)]

use lake_shared::error_chain::Chain;

use super::*;

fn columns(of: Value) -> Columns {
    of.as_object().unwrap().clone()
}

fn person() -> CaseRows {
    CaseRows {
        case: columns(json!({
            "id": 12, "case_id": "c1", "domain": "demo-space", "type": "person", "name": "Asha", "owner_id": "loc9",
            "opened_on": "2026-01-02T04:30:00.000000Z", "opened_by": "u1",
            "modified_on": "2026-01-05T10:11:00.120000Z", "server_modified_on": "2026-01-05T10:11:12.240000Z",
            "modified_by": "u1", "closed": false, "closed_on": null, "closed_by": null, "deleted": false,
            "deleted_on": null, "deletion_id": null, "external_id": "", "location_id": null,
            "case_json": "{\"village\": \"Rampur\", \"dob\": \"1990-02-03\", \"visit_count\": \"4\"}"
        })),
        indices: vec![columns(json!({"id": 1, "case_id": "c1", "domain": "demo-space", "identifier": "parent",
            "referenced_id": "h1", "referenced_type": "household", "relationship_id": 1}))],
        transactions: vec![
            columns(json!({"case_id": "c1", "form_id": "f1", "sync_log_id": "s1", "type": 129, "revoked": false,
                "server_date": "2026-01-02T04:31:07.500000Z", "client_date": "2026-01-02T04:30:00.000000Z"})),
            columns(json!({"case_id": "c1", "form_id": "f2", "sync_log_id": "s1", "type": 1, "revoked": false,
                "server_date": "2026-01-05T10:11:12.240000Z", "client_date": "2026-01-05T10:11:00.120000Z"})),
        ],
        attachments: Vec::new(),
        ledger_values: None,
    }
}

#[test]
fn the_document_is_the_one_hq_makes() {
    let expected = json!({
        "village": "Rampur", "dob": "1990-02-03", "visit_count": "4",
        "_id": "c1", "doc_type": "CommCareCase", "user_id": "u1",
        "case_json": {"village": "Rampur", "dob": "1990-02-03", "visit_count": "4"},
        "case_id": "c1", "domain": "demo-space", "type": "person", "name": "Asha", "owner_id": "loc9",
        "opened_on": "2026-01-02T04:30:00.000000Z", "opened_by": "u1",
        "modified_on": "2026-01-05T10:11:00.120000Z", "server_modified_on": "2026-01-05T10:11:12.240000Z",
        "modified_by": "u1", "closed": false, "closed_on": null, "closed_by": null, "deleted": false,
        "external_id": "", "location_id": null,
        "indices": [{"case_id": "c1", "identifier": "parent", "referenced_id": "h1",
                     "referenced_type": "household", "relationship": "child"}],
        "actions": [
          {"xform_id": "f1", "server_date": "2026-01-02T04:31:07.500000Z",
           "date": "2026-01-02T04:30:00.000000Z", "sync_log_id": "s1"},
          {"xform_id": "f2", "server_date": "2026-01-05T10:11:12.240000Z",
           "date": "2026-01-05T10:11:00.120000Z", "sync_log_id": "s1"}],
        "xform_ids": ["f1", "f2"], "case_attachments": {}, "backend_id": "sql"
    });
    assert_eq!(Value::Object(to_json(&person(), CaseOptions::default()).unwrap()), expected);
}

#[test]
fn fixed_keys_win_and_hidden_properties_stay_nested() {
    let mut rows = person();
    let properties = json!({"closed": "yes", "type": "x", "indices": "a", "note": "n", "deleted_on": "2020-01-01",
        "_id": "p", "backend_id": "p", "case_json": "p", "user_id": "p", "actions": "p"});
    rows.case.insert("case_json".into(), properties.to_string().into());
    let document = to_json(&rows, CaseOptions::default()).unwrap();
    assert_eq!(document["closed"], json!(false));
    assert_eq!(document["type"], "person");
    assert!(document["indices"].is_array() && document["actions"].is_array());
    assert_eq!(document["note"], "n");
    assert_eq!(document["deleted_on"], "2020-01-01");
    assert_eq!(
        (&document["_id"], &document["user_id"], &document["backend_id"]),
        (&json!("c1"), &json!("u1"), &json!("sql"))
    );
    assert_eq!(document["case_json"], properties);
}

#[test]
fn a_deleted_case_shows_when() {
    let mut rows = person();
    rows.case.insert("deleted".into(), true.into());
    rows.case.insert("deleted_on".into(), "2026-02-01T00:00:00.000000Z".into());
    let document = to_json(&rows, CaseOptions::default()).unwrap();
    assert_eq!(document["doc_type"], "CommCareCase-Deleted");
    assert_eq!(document["deleted_on"], "2026-02-01T00:00:00.000000Z");
    assert_eq!(document["deletion_id"], Value::Null);
}

#[test]
fn columns_of_other_versions_pass_through() {
    let mut rows = person();
    rows.case.insert("new_column".into(), 5.into());
    rows.case.shift_remove("location_id");
    let document = to_json(&rows, CaseOptions::default()).unwrap();
    assert_eq!(document["new_column"], 5);
    assert!(!document.contains_key("location_id") && !document.contains_key("id"));
}

#[test]
fn related_rows_have_their_oddities() {
    let mut rows = person();
    rows.indices
        .push(columns(json!({"case_id": "c1", "domain": "demo-space", "identifier": "host", "referenced_id": "",
        "referenced_type": "household", "relationship_id": 2})));
    rows.indices
        .push(columns(json!({"case_id": "c1", "domain": "elsewhere", "identifier": "x", "relationship_id": 1})));
    // A rebuild has no form; a ledger transaction of a form without bit 1 is not among the forms.
    rows.transactions.push(columns(json!({"form_id": null, "sync_log_id": null, "type": 2, "server_date": "S"})));
    rows.transactions.push(columns(json!({"form_id": "f3", "sync_log_id": null, "type": 64, "server_date": "S"})));
    rows.attachments.push(columns(
        json!({"id": 1, "name": "photo", "content_type": "image/jpeg", "content_length": 3, "md5": "m"}),
    ));
    let document = to_json(&rows, CaseOptions::default()).unwrap();
    assert_eq!(document["indices"].as_array().unwrap().len(), 2);
    assert_eq!(document["indices"][1]["relationship"], "extension");
    assert_eq!(document["indices"][1]["referenced_id"], "");
    assert_eq!(document["actions"][2], json!({"xform_id": null, "server_date": "S", "date": "S", "sync_log_id": null}));
    assert_eq!(document["actions"].as_array().unwrap().len(), 4);
    assert_eq!(document["xform_ids"], json!(["f1", "f2"]));
    let photo = json!({"photo": {"content_type": "image/jpeg", "content_length": 3, "name": "photo"}});
    assert_eq!(document["case_attachments"], photo);
}

#[test]
fn what_is_left_out_has_no_key() {
    let document = to_json(&person(), CaseOptions { transactions: false, attachments: false }).unwrap();
    assert!(["actions", "xform_ids", "case_attachments"].iter().all(|key| !document.contains_key(*key)));
    assert!(document.contains_key("indices"));
}

#[test]
fn odd_case_json_is_empty_kept_or_an_error_that_names_the_case() {
    for empty in [json!(""), json!("  "), json!("null"), json!("{}"), json!("[]"), Value::Null] {
        let mut rows = person();
        rows.case.insert("case_json".into(), empty.clone());
        assert_eq!(to_json(&rows, CaseOptions::default()).unwrap()["case_json"], json!({}), "{empty}");
    }
    let mut rows = person();
    rows.case.insert("case_json".into(), r#"{"a": "x\u0000y"}"#.into());
    assert_eq!(to_json(&rows, CaseOptions::default()).unwrap()["a"], "x\0y");
    for broken in ["{", "[1]", "3", "{\"a\": nan}"] {
        rows.case.insert("case_json".into(), broken.into());
        let error = to_json(&rows, CaseOptions::default()).unwrap_err();
        assert!(
            Chain(&error).to_string().starts_with("case c1: column case_json does not hold a JSON object"),
            "{broken}"
        );
        assert_eq!(error.column, "case_json");
        let rest = read(&rows, CaseOptions::default());
        assert_eq!((&rest.members["name"], &rest.members["case_json"]), (&json!("Asha"), &json!({})));
        assert_eq!(rest.unreadable.unwrap().column, "case_json");
    }
}

/// What HQ writes for each column, by value in the row and whether the case is deleted. Datetimes are text already, of six digits.
#[test]
fn every_column_has_its_key() {
    for (column, key, value) in [
        ("case_id", "case_id", json!(" C/1 ")),
        ("case_id", "_id", json!(" C/1 ")),
        ("domain", "domain", json!("other")),
        ("type", "type", json!("")),
        ("name", "name", Value::Null),
        ("owner_id", "owner_id", json!("-")),
        ("opened_on", "opened_on", Value::Null),
        ("opened_on", "opened_on", json!("1970-01-01T00:00:00.000000Z")),
        ("opened_by", "opened_by", Value::Null),
        ("opened_by", "opened_by", json!("u7")),
        ("modified_on", "modified_on", json!("2099-12-31T23:59:59.999999Z")),
        ("server_modified_on", "server_modified_on", json!("2026-01-05T10:11:12.000000Z")),
        ("modified_by", "modified_by", json!("")),
        ("modified_by", "user_id", json!("u8")),
        ("closed", "closed", json!(true)),
        ("closed_on", "closed_on", json!("2026-01-05T10:11:12.000000Z")),
        ("closed_by", "closed_by", json!("u9")),
        ("deleted", "deleted", json!(true)),
        ("external_id", "external_id", Value::Null),
        ("location_id", "location_id", json!("loc1")),
    ] {
        let mut rows = person();
        rows.case.insert(column.into(), value.clone());
        assert_eq!(to_json(&rows, CaseOptions::default()).unwrap()[key], value, "{column} as {key}");
    }
}

/// A property of every fixed name is hidden at the top and stays in `case_json`; of a live case the two keys of deletion are no fixed ones.
#[test]
fn no_property_hides_a_fixed_key() {
    let plain = |rows: &CaseRows| to_json(rows, CaseOptions::default()).unwrap();
    for deleted in [false, true] {
        let mut rows = person();
        rows.ledger_values = Some(Vec::new());
        rows.case.insert("deleted".into(), deleted.into());
        rows.case.insert("case_json".into(), "{}".into());
        let fixed = plain(&rows);
        let expected = if deleted { 28 } else { 26 };
        assert_eq!(fixed.len(), expected, "{:?}", fixed.keys());
        for key in fixed.keys() {
            let properties = json!({key: "property"});
            rows.case.insert("case_json".into(), properties.to_string().into());
            let mut document = plain(&rows);
            assert_eq!(document.insert("case_json".into(), json!({})), Some(properties), "{key}");
            assert_eq!(document, fixed, "{key}");
        }
        for shown in ["deleted_on", "deletion_id", "Name", "date_opened", "xform_id"] {
            rows.case.insert("case_json".into(), json!({shown: "property"}).to_string().into());
            let is_shown = plain(&rows).get(shown) == Some(&json!("property"));
            assert_eq!(is_shown, !(deleted && shown.starts_with("delet")), "{shown}");
        }
    }
}

#[test]
fn values_stay_what_they_are() {
    let mut rows = person();
    let properties = json!({"empty": "", "number": "04", "object": {"@k": "v", "#text": "1"}, "list": ["a", "b"], "null": null,
        "true": true, "7": "digit", "a-b.c": "marks", "घर": "letters", "a__b": "x"});
    rows.case.insert("case_json".into(), properties.to_string().into());
    let document = to_json(&rows, CaseOptions::default()).unwrap();
    for (key, value) in properties.as_object().unwrap() {
        assert_eq!(&document[key], value);
    }
    assert_eq!(document["case_json"], properties);
}

#[test]
fn a_property_given_twice_has_its_last_value_as_in_python() {
    let mut rows = person();
    rows.case.insert("case_json".into(), r#"{"a": "1", "a": "2"}"#.into());
    assert_eq!(to_json(&rows, CaseOptions::default()).unwrap()["a"], "2");
}

#[test]
fn half_a_surrogate_pair_does_not_cost_the_case() {
    let mut rows = person();
    rows.case.insert("case_json".into(), r#"{"note": "a\ud800b", "\udfff": "k", "smile": "\ud83d\ude00"}"#.into());
    let document = to_json(&rows, CaseOptions::default()).unwrap();
    assert_eq!((&document["note"], &document["\u{fffd}"]), (&json!("a\u{fffd}b"), &json!("k")));
    assert_eq!(document["case_json"]["smile"], "\u{1f600}");
}

#[test]
fn indices_of_another_domain_are_not_shown() {
    let mut rows = person();
    let index = |domain: Value, identifier: &str, relationship_id: i64| {
        columns(
            json!({"case_id": "c1", "domain": domain, "identifier": identifier, "referenced_id": "h", "referenced_type": "t",
            "relationship_id": relationship_id}),
        )
    };
    rows.indices = vec![
        index(json!("elsewhere"), "no", 1),
        index(json!("demo-space"), "host", 2),
        index(json!("demo-space"), "old", 0),
    ];
    let document = to_json(&rows, CaseOptions::default()).unwrap();
    let shown: Vec<(&str, &str)> = document["indices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|index| (index["identifier"].as_str().unwrap(), index["relationship"].as_str().unwrap()))
        .collect();
    assert_eq!(shown, [("host", "extension"), ("old", "child")]);
}

/// The bits of a transaction, and whether its form is among `xform_ids`. All of them are among the actions.
#[test]
fn only_transactions_of_forms_give_form_ids() {
    for (bits, form_id, expected) in [
        (1, json!("f"), true),
        (1 | 128, json!("f"), true),
        (1 | 64 | 256 | 512 | 1024, json!("f"), true),
        (0, json!("f"), false),
        (2, Value::Null, false),
        (4, Value::Null, false),
        (8, json!("f"), false),
        (16, json!("f"), false),
        (32, json!("f"), false),
        (2048, json!("f"), false),
        (1, Value::Null, false),
    ] {
        let mut rows = person();
        rows.transactions = vec![columns(
            json!({"case_id": "c1", "form_id": form_id, "sync_log_id": null, "type": bits, "revoked": false, "server_date": "S"}),
        )];
        let document = to_json(&rows, CaseOptions::default()).unwrap();
        assert_eq!(document["xform_ids"].as_array().unwrap().len(), usize::from(expected), "{bits}");
        assert_eq!(document["actions"][0]["xform_id"], form_id, "{bits}");
    }
}

#[test]
fn ledger_values_are_those_of_hq_where_they_were_asked_for() {
    let mut rows = person();
    assert!(!to_json(&rows, CaseOptions::default()).unwrap().contains_key("ledger_values"));
    rows.case.insert("location_id".into(), "loc1".into());
    rows.ledger_values = Some(vec![
        columns(
            json!({"part": 1, "case_id": "c1", "domain": "demo-space", "entry_id": "p1", "section_id": "stock", "balance": -3,
            "last_modified": "2026-01-05T10:11:12.240000Z", "last_modified_form_id": "f2", "daily_consumption": "1.50000"}),
        ),
        columns(json!({"case_id": "c1", "domain": "demo-space", "entry_id": "p2", "section_id": "stock", "balance": 0,
            "last_modified": "2026-01-05T10:11:12.240000Z"})),
    ]);
    let document = to_json(&rows, CaseOptions::default()).unwrap();
    let expected = json!([
        {"_id": "c1/stock/p1", "location_id": "loc1", "case_id": "c1", "domain": "demo-space", "entry_id": "p1", "section_id": "stock",
         "balance": -3, "last_modified": "2026-01-05T10:11:12.240000Z", "last_modified_form_id": "f2", "daily_consumption": "1.50000"},
        {"_id": "c1/stock/p2", "location_id": "loc1", "case_id": "c1", "domain": "demo-space", "entry_id": "p2", "section_id": "stock",
         "balance": 0, "last_modified": "2026-01-05T10:11:12.240000Z", "last_modified_form_id": null, "daily_consumption": null},
    ]);
    assert_eq!(document["ledger_values"], expected);
    rows.ledger_values = Some(Vec::new());
    assert_eq!(to_json(&rows, CaseOptions::default()).unwrap()["ledger_values"], json!([]));
}

/// The case of a project that has objects, lists and numbers among its properties.
#[test]
fn properties_that_are_no_texts_keep_all_that_they_say() {
    let mut rows = person();
    let stored = r##"{"dob": {"@calendar": "ethiopian", "#text": "2013-04-05"}, "phones": ["a", {"@k": "v"}, ""], "flag": true, "count": 12,
        "nothing": null, "empty": {}, "big": 123456789012345678901234567890, "ratio": 0.1, "exp": 1e400, "nan": NaN}"##;
    rows.case.insert("case_json".into(), stored.into());
    let document = to_json(&rows, CaseOptions::default()).unwrap();
    let properties = json!({
        "dob": {"@calendar": "ethiopian", "#text": "2013-04-05"}, "phones": ["a", {"@k": "v"}, ""], "flag": true, "count": 12,
        "nothing": null, "empty": {}, "big": "123456789012345678901234567890", "ratio": 0.1, "exp": "Infinity", "nan": "NaN"
    });
    assert_eq!(document["case_json"], properties);
    assert_eq!((&document["big"], &document["exp"]), (&properties["big"], &properties["exp"]));
}

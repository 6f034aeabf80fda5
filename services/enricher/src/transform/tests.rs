#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::json;

use super::*;

fn rules(rules: Value) -> Vec<Rule> {
    serde_json::from_value(rules).unwrap()
}

fn applied(kind: Kind, actions: Value, mut document: Value) -> Value {
    let rules = rules(json!([{ "actions": actions }]));
    validate(&rules).unwrap();
    let transforms = Transforms::of_table(&rules, &"demo".into(), kind, &"person".into());
    transforms.apply(document.as_object_mut().unwrap());
    document
}

#[test]
fn fields_are_dropped_renamed_set_and_copied() {
    let form = json!({"form": {"a": "1", "b": {"c": "2"}, "meta": {"deviceID": "d"}}});
    let actions = json!([
        {"drop": "/form/meta/deviceID"}, {"drop": "/form/nothing/here"}, {"drop": "/form/a/deeper"},
        {"rename": {"path": "/form/a", "to": "A"}}, {"rename": {"path": "/form/none", "to": "B"}},
        {"set": {"path": "/source/name", "value": "hq"}}, {"set": {"path": "/form/A/x", "value": 1}},
        {"copy": {"from": "/form/b", "to": "/copies/b"}}, {"copy": {"from": "/form/none", "to": "/copies/none"}},
    ]);
    assert_eq!(
        applied(Kind::Form, actions, form),
        json!({"form": {"A": "1", "b": {"c": "2"}, "meta": {}}, "source": {"name": "hq"}, "copies": {"b": {"c": "2"}}})
    );
}

#[test]
fn hashes_hide_values_and_stay_joinable() {
    let document = json!({"a": "abc", "b": "abc", "n": 7, "none": null, "empty": "", "list": ["x"]});
    let actions = json!([
        {"hash": {"path": "/a"}}, {"hash": {"path": "/b", "salt": "s"}}, {"hash": {"path": "/n"}}, {"hash": {"path": "/none"}},
        {"hash": {"path": "/absent"}}, {"hash": {"path": "/list"}}
    ]);
    let hashed = applied(Kind::Form, actions, document);
    assert_eq!(hashed["a"], "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_ne!(hashed["a"], hashed["b"]);
    assert_eq!(hashed["n"].as_str().unwrap().len(), 64);
    assert_eq!(hashed["list"].as_str().unwrap().len(), 64);
    assert_eq!((&hashed["none"], hashed.get("absent")), (&Value::Null, None));
}

#[test]
fn an_array_on_the_way_stands_for_its_items() {
    let repeats = json!({"form": {"child": [{"name": "x", "age": "1"}, {"age": "2"}, "text", [{"name": "y"}]]}});
    assert_eq!(
        applied(
            Kind::Form,
            json!([{"drop": "/form/child/name"}, {"rename": {"path": "/form/child/age", "to": "years"}}]),
            repeats
        ),
        json!({"form": {"child": [{"years": "1"}, {"years": "2"}, "text", [{}]]}})
    );
}

#[test]
fn both_copies_of_a_case_property_change() {
    let case = json!({"phone": "1", "name": "n", "case_json": {"phone": "1", "district_id": "d"}});
    let actions = json!([
        {"drop": "/phone"}, {"hash": {"path": "/district_id"}}, {"set": {"path": "/added", "value": true}},
        {"rename": {"path": "/name", "to": "label"}}
    ]);
    let changed = applied(Kind::Case, actions, case);
    assert_eq!(changed["case_json"]["district_id"].as_str().unwrap().len(), 64);
    assert_eq!(changed["case_json"].as_object().unwrap().len(), 1);
    assert_eq!(changed["added"], true);
    assert_eq!((changed.get("phone"), &changed["label"]), (None, &json!("n")));
}

#[test]
fn rules_apply_to_their_tables_only_and_in_order() {
    let rules = rules(json!([
        {"domain": "demo", "actions": [{"set": {"path": "/a", "value": 1}}]},
        {"kind": "case", "type": "person", "actions": [{"copy": {"from": "/a", "to": "/b"}}]},
        {"kind": "form", "actions": [{"drop": "/a"}]},
        {"domain": "other", "actions": [{"drop": "/a"}]},
        {"type": "household", "actions": [{"drop": "/a"}]},
    ]));
    let mut document = Map::new();
    Transforms::of_table(&rules, &"demo".into(), Kind::Case, &"person".into()).apply(&mut document);
    assert_eq!(Value::Object(document), json!({"a": 1, "b": 1}));
    let mut document = Map::new();
    Transforms::of_table(&rules, &"new".into(), Kind::Location, &"Location".into()).apply(&mut document);
    assert!(document.is_empty());
}

#[test]
fn a_rename_keeps_order_and_replaces() {
    let renamed =
        applied(Kind::Form, json!([{"rename": {"path": "/b", "to": "c"}}]), json!({"a": 1, "b": 2, "c": 3, "d": 4}));
    assert_eq!(renamed.to_string(), r#"{"a":1,"c":2,"d":4}"#);
}

#[test]
fn rules_that_cannot_be_meant_are_refused() {
    let trouble = |rule: Value| match serde_json::from_value::<Vec<Rule>>(json!([rule])) {
        Err(error) => error.to_string(),
        Ok(rules) => validate(&rules).unwrap_err(),
    };
    assert!(trouble(json!({"actions": [{"drop": "phone"}]})).contains("must begin with `/`"));
    assert!(trouble(json!({"actions": [{"drop": "/_id"}]})).contains("no action may change"));
    assert!(trouble(json!({"actions": [{"rename": {"path": "/x", "to": "domain"}}]})).contains("no action may change"));
    assert!(trouble(json!({"actions": [{"set": {"path": "/x", "value": []}}]})).contains("value must be"));
    assert!(trouble(json!({"actions": [{"drop": "/x".repeat(31)}]})).contains("too many steps"));
    assert!(trouble(json!({"kind": "user", "actions": []})).contains("case, form or location"));
    assert!(trouble(json!({"actions": []})).contains("transforms[0]"));
    assert!(trouble(json!({"domian": "x", "actions": []})).contains("unknown field"));
    assert!(
        !format!("{:?}", rules(json!([{"actions": [{"hash": {"path": "/x", "salt": "hunter2"}}]}])))
            .contains("hunter2")
    );
}

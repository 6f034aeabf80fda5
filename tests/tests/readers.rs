//! The judge of the lake is judged: it must pass a right table and find each kind of wrong one, with both readers.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use lake_tests::package_file;
use lake_tests::parts::{ObjectStore, parts_dir};
use lake_tests::readers::compare;
use serde_json::{Value, json};

/// What a domain or a case type may do to a path, and a little more. (Not `%`, blanks or non-ASCII letters: the lake escapes those, and
/// deltalake and Polars mistake them.)
const ODD_PATH: &str = "demo.2Eorg/case-sql/.C3.89..0a1b=c+d'e&f";

fn write_table(uri: &str, s3: Option<&ObjectStore>, rows: &[Value]) {
    let options: serde_json::Map<String, Value> =
        s3.iter().flat_map(|s3| s3.environment()).map(|(key, value)| (key.to_owned(), value.into())).collect();
    let script = package_file("readers/write_table.py");
    let mut writer = Command::new(parts_dir().unwrap().join("python/bin/python"))
        .arg(script)
        .stdin(Stdio::piped())
        .spawn()
        .expect("run tests/set-up first");
    let order = json!({"uri": uri, "storage_options": options, "rows": rows});
    writer.stdin.take().unwrap().write_all(order.to_string().as_bytes()).unwrap();
    assert!(writer.wait().unwrap().success());
}

/// The row as the lake holds it.
fn row(number: i64) -> Value {
    json!({
        "_id": format!("case-{number}"),
        "village": format!("Ödön {number}"),
        "tags": "[{\"b\": 1, \"a\": true}]",
        "opened_on": "2024-02-29T23:59:59.000001Z",
        "month": "2024-02-01",
        "closed": number % 2 == 0,
        "visits": number,
        "weight": 0.1,
        "_lake_version": 1_700_000_000_000_000_i64,
    })
}

/// The row as HQ means it.
fn expected(number: i64) -> Value {
    json!({
        "id": format!("case-{number}"),
        "cells": {
            "/case_json/village": format!("Ödön {number}"),
            "/case_json/tags": {"json": [{"a": true, "b": 1}]},
            "/opened_on": {"timestamp": "2024-02-29T23:59:59.000001Z"},
            "+month": {"date": "2024-02-01"},
            "/closed": number % 2 == 0,
            "/weight": 0.1,
            "/gone": null,
        },
        "either": [{"/visits": 0}, {"/visits": number}],
    })
}

fn write_expectation(folder: &Path, path: &str, rows: &[Value]) {
    let tables = json!([
        {"domain": "demo.org", "topic": "case-sql", "type": "village", "path": path, "rows": "village.ndjson"},
        {"domain": "demo.org", "topic": "case-sql", "type": "empty", "path": "demo/case-sql/empty", "rows": "empty.ndjson"},
    ]);
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(folder.join("tables.json"), tables.to_string()).unwrap();
    std::fs::write(folder.join("village.ndjson"), lines).unwrap();
    std::fs::write(folder.join("empty.ndjson"), "").unwrap();
}

/// Runs the comparison, which must fail, and checks that each reader tells exactly `differences`, with `told` among them.
fn assert_finds(folder: &Path, root: &Path, differences: usize, told: &[&str]) {
    let error = format!("{:#}", compare(folder, root.to_str().unwrap(), None).unwrap_err());
    for reader in ["duckdb", "polars"] {
        assert!(error.contains(&format!("{reader}: tables ")), "{reader} is missing in {error}");
    }
    assert_eq!(error.matches(&format!("differences {differences}\n")).count(), 2, "{error}");
    for text in told {
        assert_eq!(error.matches(text).count(), 2, "{text:?} in {error}");
    }
}

#[test]
fn finds_what_is_wrong_and_nothing_else() {
    let lake = tempfile::tempdir().unwrap();
    let expectation = tempfile::tempdir().unwrap();
    let (root, folder) = (lake.path(), expectation.path());
    write_table(root.join(ODD_PATH).to_str().unwrap(), None, &[row(1), row(2), row(3)]);

    write_expectation(folder, ODD_PATH, &[expected(3), expected(1), expected(2)]);
    let summary = compare(folder, root.to_str().unwrap(), None).unwrap();
    assert_eq!(
        summary.lines().collect::<Vec<_>>(),
        ["duckdb: tables 1 rows 3 differences 0", "polars: tables 1 rows 3 differences 0"]
    );

    for (source, right, wrong, told) in [
        ("/case_json/village", "'Ödön 2'", json!("Odon 2"), "'Odon 2'"),
        ("/case_json/village", "'Ödön 2'", json!(null), "NULL"),
        (
            "/case_json/tags",
            "'[{\"b\": 1, \"a\": true}]'",
            json!({"json": [{"a": 1, "b": 1}]}),
            "JSON [{\"a\": 1, \"b\": 1}]",
        ),
        (
            "/opened_on",
            "2024-02-29T23:59:59.000001Z",
            json!({"timestamp": "2024-02-29T23:59:59.000002Z"}),
            "2024-02-29T23:59:59.000002Z",
        ),
        ("+month", "2024-02-01", json!({"date": "2024-03-01"}), "2024-03-01"),
        ("/closed", "True", json!(1), "1"),
        ("/weight", "0.1", json!("0.1"), "'0.1'"),
        ("/gone", "no such column", json!("here"), "'here'"),
    ] {
        let mut changed = expected(2);
        changed["cells"][source] = wrong;
        write_expectation(folder, ODD_PATH, &[expected(1), changed, expected(3)]);
        assert_finds(folder, root, 1, &["id 'case-2'", source, &format!("expected {told}, found {right}\n")]);
    }

    let mut no_alternative = expected(2);
    no_alternative["either"] = json!([{"/visits": 7}, {"/visits": 2, "/gone": "here"}]);
    write_expectation(folder, ODD_PATH, &[expected(1), no_alternative, expected(3)]);
    assert_finds(folder, root, 1, &["id 'case-2'", "/visits"]);

    let mut unnamed = expected(2);
    unnamed["either"] = json!([]);
    write_expectation(folder, ODD_PATH, &[expected(1), unnamed, expected(3)]);
    assert_finds(folder, root, 1, &["column visits (/visits): expected NULL, found 2"]);

    write_expectation(folder, ODD_PATH, &[expected(1), expected(2), expected(3), expected(4)]);
    assert_finds(folder, root, 1, &["id 'case-4', column -: expected a row, found none"]);

    write_expectation(folder, ODD_PATH, &[expected(1), expected(2)]);
    assert_finds(folder, root, 1, &["id 'case-3', column -: expected no row, found a row"]);

    write_expectation(folder, "demo/case-sql/elsewhere", &[expected(1)]);
    assert_finds(
        folder,
        root,
        2,
        &["expected a table of 1 rows, found no table", "the table is not expected, found 3 rows"],
    );
}

#[test]
fn finds_extra_tables_and_repeated_ids() {
    let lake = tempfile::tempdir().unwrap();
    let expectation = tempfile::tempdir().unwrap();
    let (root, folder) = (lake.path(), expectation.path());
    write_expectation(folder, "demo/case-sql/village", &[expected(1)]);
    write_table(root.join("demo/case-sql/village").to_str().unwrap(), None, &[row(1)]);
    write_table(root.join("demo/form-sql/forgotten").to_str().unwrap(), None, &[]);
    compare(folder, root.to_str().unwrap(), None).unwrap();

    write_table(root.join("other/case-sql/extra").to_str().unwrap(), None, &[row(9)]);
    assert_finds(folder, root, 1, &["table other/case-sql/extra", "found 1 rows"]);

    let twice = tempfile::tempdir().unwrap();
    write_table(twice.path().join("demo/case-sql/village").to_str().unwrap(), None, &[row(1), row(1)]);
    assert_finds(folder, twice.path(), 1, &["expected one row, found 2 rows"]);

    std::fs::remove_dir_all(root.join("demo/case-sql/village/_delta_log")).unwrap();
    std::fs::create_dir(root.join("demo/case-sql/village/_delta_log")).unwrap();
    assert_finds(folder, root, 2, &["expected a readable table"]);
}

#[test]
fn reads_tables_on_s3() {
    let s3 = ObjectStore::start().unwrap();
    s3.create_bucket("lake").unwrap();
    let expectation = tempfile::tempdir().unwrap();
    write_expectation(expectation.path(), ODD_PATH, &[expected(1), expected(2)]);
    write_table(&format!("s3://lake/some/root/{ODD_PATH}"), Some(&s3), &[row(1), row(2)]);
    let summary = compare(expectation.path(), "s3://lake/some/root", Some(&s3)).unwrap();
    assert_eq!(
        summary.lines().collect::<Vec<_>>(),
        ["duckdb: tables 1 rows 2 differences 0", "polars: tables 1 rows 2 differences 0"]
    );

    write_expectation(expectation.path(), ODD_PATH, &[expected(1)]);
    let error = format!("{:#}", compare(expectation.path(), "s3://lake/some/root", Some(&s3)).unwrap_err());
    assert_eq!(error.matches("id 'case-2', column -: expected no row, found a row").count(), 2, "{error}");
}

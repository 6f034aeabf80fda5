//! Speed of `to_json()` on one core, in documents and MB of JSON per second: cases of about 2 and 11 kB, forms of about 2 and 11 kB of XML.
//!
//! `rows` is the document out of rows as the database gave them, `text` the document as it is queued, conversion of the XML included.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark")]

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::{Duration, Instant};

use lake_hq::documents::case::CaseOptions;
use lake_hq::documents::{case, form};
use lake_hq::source::{CaseRows, Columns, FormRows};
use lake_hq::xform::form_json;
use serde_json::{Map, Value, json};

fn columns(of: Value) -> Columns {
    match of {
        Value::Object(columns) => columns,
        _ => Columns::new(),
    }
}

/// A case whose document, as text, has at least so many bytes.
fn case_rows(bytes: usize) -> CaseRows {
    let mut properties = Map::new();
    let transaction = |number: usize| {
        columns(
            json!({"case_id": "6f1d2c4e8a0b4c5d9e7f001122334455", "form_id": format!("0c7b1f2a6a554c1e9d0e3f4c{number:08}"),
            "sync_log_id": "95dece4cd7c945ec83c6d2dd04d38673", "server_date": "2026-01-05T10:11:12.240000Z",
            "client_date": "2026-01-05T10:11:00.120000Z", "type": 1, "revoked": false}),
        )
    };
    let mut rows = CaseRows {
        case: columns(json!({
            "id": 12, "case_id": "6f1d2c4e8a0b4c5d9e7f001122334455", "domain": "demo-space", "type": "person", "name": "Asha Devi",
            "owner_id": "b0916685-7247-4c44-b712-633d3d64e0c0", "opened_on": "2026-01-02T04:30:00.000000Z",
            "opened_by": "0c7b1f2a6a554c1e9d0e3f4c5b6a7988", "modified_on": "2026-01-05T10:11:00.120000Z",
            "server_modified_on": "2026-01-05T10:11:12.240000Z", "modified_by": "0c7b1f2a6a554c1e9d0e3f4c5b6a7988", "closed": false,
            "closed_on": null, "closed_by": null, "deleted": false, "deleted_on": null, "deletion_id": null, "external_id": "",
            "location_id": null, "case_json": "{}"
        })),
        indices: vec![columns(json!({"id": 1, "case_id": "6f1d2c4e8a0b4c5d9e7f001122334455", "domain": "demo-space",
            "identifier": "parent", "referenced_id": "4c1e9d0e3f4c5b6a79880c7b1f2a6a55", "referenced_type": "household",
            "relationship_id": 1}))],
        transactions: (0..bytes / 1_000).map(transaction).collect(),
        ..CaseRows::default()
    };
    for number in 0.. {
        if text(case::to_json(&rows, CaseOptions::default()).unwrap()).len() >= bytes {
            break;
        }
        let value = match number % 4 {
            0 => "",
            1 => "2026-02-11",
            2 => "Visited in the morning; सुनीता was away.",
            _ => "4",
        };
        properties.insert(format!("question_{number}_answered"), value.into());
        rows.case.insert("case_json".into(), Value::Object(properties.clone()).to_string().into());
    }
    rows
}

fn form_rows() -> FormRows {
    FormRows {
        form: columns(json!({
            "id": 3, "form_id": "6f1d2c4e-8a0b-4c5d-9e7f-001122334455", "domain": "demo-space", "app_id": "95dece4cd7c945ec83c6d2dd04d38673",
            "xmlns": "http://openrosa.org/formdesigner/5B2C-77A1", "user_id": "0c7b1f2a6a554c1e9d0e3f4c5b6a7988", "orig_id": null,
            "deprecated_form_id": null, "server_modified_on": "2026-01-05T10:11:12.260000Z", "received_on": "2026-01-05T10:11:12.240000Z",
            "edited_on": null, "deleted_on": null, "deletion_id": null,
            "auth_context": "{\"doc_type\": \"AuthContext\", \"user_id\": \"u1\", \"authenticated\": true, \"domain\": \"demo-space\"}",
            "openrosa_headers": "{\"HTTP_X_OPENROSA_VERSION\": \"2.1\"}", "partial_submission": false, "submit_ip": "10.0.0.1",
            "last_sync_token": "s1", "problem": null, "date_header": null, "build_id": "b1", "state": 1,
            "initial_processing_complete": true, "time_end": "2026-01-05T10:11:00.120000Z", "time_start": "2026-01-05T10:05:00.000000Z",
            "commcare_version": "2.53", "app_version": 417
        })),
        ..FormRows::default()
    }
}

fn xml(bytes: usize) -> String {
    let mut xml =
        String::from("<data uiVersion=\"1\" name=\"Visit\" xmlns=\"http://openrosa.org/formdesigner/5B2C-77A1\">");
    let mut number = 0;
    while xml.len() + 300 < bytes {
        write!(xml, "<group_{number}><weight_kg>57.5</weight_kg><notes>came back later &amp; left</notes><age/></group_{number}>").unwrap();
        number += 1;
    }
    xml.push_str(concat!(
        "<n:meta xmlns:n=\"http://openrosa.org/jr/xforms\"><n:deviceID>c0ffee</n:deviceID>",
        "<n:timeEnd>2026-01-05T15:41:00.740+05:30</n:timeEnd><n:userID>u1</n:userID></n:meta></data>"
    ));
    xml
}

fn text(document: Map<String, Value>) -> String {
    Value::Object(document).to_string()
}

/// Documents per second of the fastest of several rounds.
fn speed(mut work: impl FnMut()) -> f64 {
    let round = Duration::from_millis(150);
    let mut best = 0.0_f64;
    for _ in 0..5 {
        let (start, mut done) = (Instant::now(), 0_u32);
        while start.elapsed() < round {
            for _ in 0..8 {
                work();
            }
            done += 8;
        }
        best = best.max(f64::from(done) / start.elapsed().as_secs_f64());
    }
    best
}

fn show(name: &str, bytes: usize, rows: f64, text: f64) {
    let mb = |documents: f64| documents * bytes as f64 / 1e6;
    println!("{name:>6} {bytes:>10} {rows:>12.0} {:>10.0} {text:>12.0} {:>10.0}", mb(rows), mb(text));
}

fn main() {
    println!(
        "{:>6} {:>10} {:>12} {:>10} {:>12} {:>10}",
        "", "JSON bytes", "rows docs/s", "MB/s", "text docs/s", "MB/s"
    );
    for bytes in [2_000, 11_000] {
        let rows = case_rows(bytes);
        let made = || case::to_json(black_box(&rows), CaseOptions::default()).unwrap();
        let size = text(made()).len();
        let of_rows = speed(|| drop(black_box(made())));
        show("case", size, of_rows, speed(|| drop(black_box(text(made())))));
    }
    for bytes in [2_000, 11_000] {
        let (rows, xml) = (form_rows(), xml(bytes));
        let data = form_json(xml.as_bytes()).unwrap();
        let size = text(form::to_json(&rows, data.clone()).unwrap()).len();
        let of_rows = speed(|| drop(black_box(form::to_json(black_box(&rows), data.clone()).unwrap())));
        let whole = || text(form::to_json(black_box(&rows), form_json(black_box(xml.as_bytes())).unwrap()).unwrap());
        show("form", size, of_rows, speed(|| drop(black_box(whole()))));
    }
}

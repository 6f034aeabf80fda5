//! Speed of the form conversion, in MB of XML per second on one core, for forms of about 2, 11 and 200 kB.
//!
//! The forms are generated: groups of questions, repeats, case blocks and a meta block, as a mobile worker's phone sends them.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark")]

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::{Duration, Instant};

use lake_hq::xform::{form_json, write_form_json};

const QUESTIONS: [&str; 12] = [
    "household_visited",
    "weight_kg",
    "pregnancy_week",
    "danger_signs",
    "next_visit_date",
    "phone_number",
    "notes",
    "mother_name",
    "has_toilet",
    "vaccines_due",
    "location_gps",
    "consent",
];
const ANSWERS: [&str; 12] = [
    "yes",
    "57.5",
    "24",
    "none fever_high bleeding",
    "2026-02-11",
    "+919812345678",
    "Visited in the morning; the family was away &amp; came back later.",
    "Sunita Kumari सुनीता",
    "no",
    "opv_3 penta_3",
    "26.8467 80.9462 120.0 5.0",
    "1",
];

/// A form with at least so many bytes.
fn form(bytes: usize) -> String {
    let mut xml = String::from(concat!(
        "<?xml version='1.0' ?><data uiVersion=\"1\" version=\"417\" name=\"Home Visit\" ",
        "xmlns:jrm=\"http://dev.commcarehq.org/jr/xforms\" xmlns=\"http://openrosa.org/formdesigner/5B2C-77A1\">"
    ));
    let mut number = 0;
    while xml.len() + 900 < bytes {
        group(&mut xml, number);
        if number % 3 == 2 && xml.len() + 2600 < bytes {
            repeat(&mut xml, number);
        }
        number += 1;
    }
    case(&mut xml, number);
    xml.push_str(concat!(
        "<n1:meta xmlns:n1=\"http://openrosa.org/jr/xforms\"><n1:deviceID>c0ffee112233</n1:deviceID>",
        "<n1:timeStart>2026-01-05T15:35:00.120+05:30</n1:timeStart><n1:timeEnd>2026-01-05T15:41:00.740+05:30</n1:timeEnd>",
        "<n1:username>asha.devi</n1:username><n1:userID>0c7b1f2a6a554c1e9d0e3f4c5b6a7988</n1:userID>",
        "<n1:instanceID>6f1d2c4e-8a0b-4c5d-9e7f-001122334455</n1:instanceID>",
        "<n2:appVersion xmlns:n2=\"http://commcarehq.org/xforms\">CommCare Android, version \"2.53\" (463)</n2:appVersion>",
        "</n1:meta></data>"
    ));
    xml
}

fn group(xml: &mut String, number: usize) {
    write!(xml, "<visit_{number}>").unwrap();
    for at in 0..8 {
        let (name, answer) = (QUESTIONS[(number + at) % 12], ANSWERS[(number + at) % 12]);
        match (number + at) % 5 {
            0 => write!(xml, "<{name}/>").unwrap(),
            _ => write!(xml, "<{name}>{answer}</{name}>").unwrap(),
        }
    }
    write!(xml, "</visit_{number}>").unwrap();
}

fn repeat(xml: &mut String, number: usize) {
    write!(xml, "<children count=\"4\" current_index=\"{number}\">").unwrap();
    for item in 0..4 {
        write!(
            xml,
            "<item id=\"child-{number}-{item}\" index=\"{item}\"><child_name>Ravi</child_name><age>{item}</age>"
        )
        .unwrap();
        write!(xml, "<seen_on>2026-01-0{}T10:11:12.345+05:30</seen_on>", item + 1).unwrap();
        case(xml, number * 10 + item);
        xml.push_str("</item>");
    }
    xml.push_str("</children>");
}

fn case(xml: &mut String, number: usize) {
    write!(
        xml,
        concat!(
            "<n0:case case_id=\"6f1d2c4e8a0b4c5d9e7f{:012x}\" date_modified=\"2026-01-05T15:41:00.740+05:30\" ",
            "user_id=\"0c7b1f2a6a554c1e9d0e3f4c5b6a7988\" xmlns:n0=\"http://commcarehq.org/case/transaction/v2\">",
            "<n0:update><n0:visit_count>{}</n0:visit_count><n0:last_visit>2026-01-05</n0:last_visit></n0:update></n0:case>"
        ),
        number, number
    )
    .unwrap();
}

/// Bytes per microsecond, that is MB per second, of the fastest of several rounds.
fn speed(bytes: usize, mut work: impl FnMut()) -> f64 {
    let round = Duration::from_millis(150);
    let mut best = 0.0_f64;
    for _ in 0..5 {
        let (start, mut done) = (Instant::now(), 0_usize);
        while start.elapsed() < round {
            for _ in 0..8 {
                work();
            }
            done += 8;
        }
        best = best.max((bytes * done) as f64 / start.elapsed().as_secs_f64() / 1e6);
    }
    best
}

fn main() {
    println!("{:>10} {:>16} {:>16}", "form bytes", "text MB/s", "values MB/s");
    for bytes in [2_000, 11_000, 200_000] {
        let xml = form(bytes);
        let mut out = Vec::new();
        let text = speed(xml.len(), || {
            out.clear();
            write_form_json(black_box(xml.as_bytes()), &mut out).unwrap();
            black_box(&out);
        });
        let values = speed(xml.len(), || {
            black_box(form_json(black_box(xml.as_bytes())).unwrap());
        });
        println!("{:>10} {text:>16.0} {values:>16.0}", xml.len());
    }
}

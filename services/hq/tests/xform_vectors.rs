//! The form conversion against recorded answers of HQ's own code: `xform-vectors/NAME.xml` and `NAME.expected.json`.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};

use lake_hq::xform::{form_json, write_form_json};
use serde_json::Value;

fn vectors() -> Vec<PathBuf> {
    // Cargo runs a test in the folder of its package.
    let folder = "tests/xform-vectors";
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "xml"));
    files.sort();
    files
}

enum Expected {
    /// As compact JSON text, members in HQ's order.
    Form(String),
    Empty,
    Raises,
}

fn expected(path: &Path) -> Expected {
    let text = fs::read_to_string(path.with_extension("expected.json")).unwrap();
    let answer: Value = match serde_json::from_str(&text) {
        Ok(answer) => answer,
        // Nested deeper than serde_json reads: these vectors have no strings that blanks or escapes stand in.
        Err(_) => {
            let compact: String = text.split_ascii_whitespace().collect();
            return Expected::Form(compact.strip_prefix("{\"form\":").unwrap().strip_suffix('}').unwrap().to_owned());
        }
    };
    match (answer.get("raises"), answer.get("parse_error")) {
        (Some(_), _) => Expected::Raises,
        (None, Some(_)) => Expected::Empty,
        (None, None) => Expected::Form(answer["form"].to_string()),
    }
}

/// What is wrong with one vector.
fn difference(path: &Path) -> Option<String> {
    let xml = fs::read(path).unwrap();
    let mut text = b"before".to_vec();
    let written = write_form_json(&xml, &mut text);
    let form = form_json(&xml).map(|form| serde_json::to_string(&form).unwrap());
    let fits = match (&form, expected(path)) {
        (Ok(form), Expected::Form(expected)) => *form == expected,
        (Err(error), Expected::Raises) => error.is_raised(),
        (Err(error), Expected::Empty) => !error.is_raised(),
        _ => false,
    };
    let agrees = match &form {
        Ok(form) => written.is_ok() && text == format!("before{form}").as_bytes(),
        Err(error) => written.as_ref() == Err(error) && text == b"before",
    };
    (!fits || !agrees).then(|| format!("{}: {form:?}, as text {written:?}", path.display()))
}

#[test]
fn every_vector_gives_the_answer_of_hq() {
    let vectors = vectors();
    assert!(vectors.len() >= 120, "only {} vectors found", vectors.len());
    let differences: Vec<_> = vectors.iter().filter_map(|path| difference(path)).collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

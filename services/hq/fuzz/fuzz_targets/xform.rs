//! The form conversion on arbitrary bytes: it must not panic, give the same answer in both of its forms and every time, keep
//! the shape that the rules demand, stay within bounds, and not care about spellings of a document that mean the same.

#![no_main]

use lake_hq::xform::{FormXmlError, form_json, write_form_json};
use libfuzzer_sys::fuzz_target;
use serde::Deserialize as _;
use serde_json::{Map, Value};

fuzz_target!(|xml: &[u8]| {
    let form = convert(xml);
    match &form {
        Ok(form) => check_root(form),
        Err(error) => check_error(error, xml.len()),
    }
    check_spellings(xml, &form);
});

/// The form, by both ways of converting, which must agree.
fn convert(xml: &[u8]) -> Result<Map<String, Value>, FormXmlError> {
    let mut text = b"kept".to_vec();
    let written = write_form_json(xml, &mut text);
    let form = form_json(xml);
    assert_eq!(form, form_json(xml), "converted twice");
    let text = text.strip_prefix(b"kept").expect("what was there before is kept");
    match &form {
        Ok(form) => {
            assert_eq!(written, Ok(()));
            assert_eq!(serde_json::to_vec(form).expect("a map of strings, arrays and maps"), text);
            let mut reader = serde_json::Deserializer::from_slice(text);
            reader.disable_recursion_limit();
            // A key that stood twice in the text would be lost here.
            assert_eq!(Map::deserialize(&mut reader).as_ref().ok(), Some(form), "text read back");
            reader.end().expect("nothing follows the object");
            // Namespace names and entities have allowances of 16 MiB and 1 MB; all else only grows by quotes and escapes.
            assert!(
                text.len() <= 64 * xml.len() + (18 << 20),
                "{} bytes of JSON from {} of XML",
                text.len(),
                xml.len()
            );
        }
        Err(error) => {
            assert_eq!(written.as_ref(), Err(error));
            assert!(text.is_empty(), "what was there before is all that is kept");
        }
    }
    form
}

fn check_root(form: &Map<String, Value>) {
    assert!(form.get("#type").is_some_and(|name| name.as_str().is_some_and(|name| !name.is_empty())));
    assert!(form.len() > 1, "a root without members is a string");
    assert!(!form.contains_key("Meta"), "renamed");
    check_members(form, 1);
}

fn check_members(members: &Map<String, Value>, depth: usize) {
    assert!(depth <= 256 && !members.is_empty());
    for (key, value) in members {
        match (key.as_str(), value) {
            ("@xmlns", Value::String(namespace)) => assert!(!namespace.is_empty()),
            ("#text", Value::String(text)) => assert!(!text.trim().is_empty()),
            ("#type", _) => assert_eq!(depth, 1),
            (attribute, Value::String(_)) if attribute.starts_with('@') => {}
            (marker, _) if marker.starts_with(['@', '#']) => panic!("{marker} is no string"),
            ("", _) => panic!("an empty key"),
            (_, Value::Array(items)) => {
                assert!(items.len() >= 2);
                items.iter().for_each(|item| check_value(item, depth));
            }
            (_, value) => check_value(value, depth),
        }
    }
}

fn check_value(value: &Value, depth: usize) {
    match value {
        Value::Object(members) => check_members(members, depth + 1),
        Value::String(_) => {}
        other => panic!("neither text nor object: {other}"),
    }
}

fn check_error(error: &FormXmlError, bytes: usize) {
    if let FormXmlError::NotWellFormed { offset, problem } = error {
        // No encoding takes more than three bytes of UTF-8 for one of its own.
        assert!(*offset <= 3 * bytes, "byte {offset} of {bytes}");
        assert!(!problem.is_empty() && problem.is_ascii());
    }
    assert_eq!(error.is_raised(), matches!(error, FormXmlError::Raises { .. }));
}

/// Other spellings of a document, where they certainly mean the same.
fn check_spellings(xml: &[u8], form: &Result<Map<String, Value>, FormXmlError>) {
    let Ok(text) = std::str::from_utf8(xml) else { return };
    if text.is_empty() || text.contains(['\0', '\u{feff}']) || text.contains("encoding") {
        return;
    }
    let answer = |form: &Result<Map<String, Value>, FormXmlError>| form.clone().map_err(|error| error.is_raised());
    let expected = answer(form);
    let same = |spelling: &[u8], what: &str| assert_eq!(answer(&form_json(spelling)), expected, "{what}");
    same(format!("\u{feff}{text}").as_bytes(), "a byte order mark");
    let utf16 =
        |bytes: fn(u16) -> [u8; 2]| format!("\u{feff}{text}").encode_utf16().flat_map(bytes).collect::<Vec<u8>>();
    same(&utf16(u16::to_le_bytes), "UTF-16, little end first");
    same(&utf16(u16::to_be_bytes), "UTF-16, big end first");
    if !text.contains('\r') {
        same(text.replace('\n', "\r\n").as_bytes(), "line ends of Windows");
        same(text.replace('\n', "\r").as_bytes(), "line ends of old Macs");
    }
    if form.is_ok() {
        same(format!("{text}\n<!-- end -->\t<?end?>").as_bytes(), "something harmless at the end");
    }
}

//! The form conversion on arbitrary bytes: it must not panic, and both of its outputs must agree.
//!
//! Run from `services/hq` with the recorded forms as a start: `cargo +nightly fuzz run xform fuzz/corpus/xform tests/xform-vectors`.

#![no_main]

use lake_hq::xform::{form_json, write_form_json};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|xml: &[u8]| {
    let mut text = b"kept".to_vec();
    let written = write_form_json(xml, &mut text);
    match form_json(xml) {
        Ok(form) => {
            assert_eq!(written, Ok(()));
            let form = serde_json::to_vec(&form).expect("a map of strings, arrays and maps");
            assert_eq!(text.strip_prefix(b"kept"), Some(form.as_slice()));
        }
        Err(error) => {
            assert_eq!(written, Err(error));
            assert_eq!(text, b"kept");
        }
    }
});

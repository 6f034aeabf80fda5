//! The text of a JSON column into JSON, as Python reads it where the two differ.

use serde_json::Value;

/// Reads JSON. A `\uD800` to `\uDFFF` that is not one of a pair counts as U+FFFD.
pub(super) fn parse(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(text).or_else(|error| match whole_surrogates(text) {
        Some(repaired) => serde_json::from_str(&repaired),
        None => Err(error),
    })
}

/// The text with `\ufffd` for every half of a surrogate pair; `None` where there is none.
///
/// In JSON a backslash is in strings only, so nothing else has to be understood.
fn whole_surrogates(text: &str) -> Option<String> {
    let mut repaired: Option<String> = None;
    let (mut kept, mut at) = (0, 0);
    while let Some(found) = text.get(at..).and_then(|rest| rest.find('\\')) {
        let escape = at + found;
        let Some(unit) = unit_at(text, escape) else {
            // The backslash and the character that it escapes, which may be a backslash, too.
            at = escape + 1 + text[escape + 1..].chars().next().map_or(0, char::len_utf8);
            continue;
        };
        at = escape + ESCAPE_BYTES;
        match unit {
            0xD800..=0xDBFF if matches!(unit_at(text, at), Some(0xDC00..=0xDFFF)) => at += ESCAPE_BYTES,
            0xD800..=0xDFFF => {
                let repaired = repaired.get_or_insert_with(|| String::with_capacity(text.len()));
                repaired.push_str(&text[kept..escape]);
                repaired.push_str(r"\ufffd");
                kept = at;
            }
            _ => {}
        }
    }
    let mut repaired = repaired?;
    repaired.push_str(&text[kept..]);
    Some(repaired)
}

/// Length of an escape `\uXXXX`, in bytes.
const ESCAPE_BYTES: usize = 6;

/// The UTF-16 unit that an escape stands for, if there is one here.
fn unit_at(text: &str, place: usize) -> Option<u16> {
    let digits = text.get(place..place + ESCAPE_BYTES)?.strip_prefix(r"\u")?;
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u16::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn read(text: &str) -> String {
        parse(&format!("\"{text}\"")).unwrap().as_str().unwrap().to_owned()
    }

    #[test]
    fn half_of_a_pair_becomes_the_replacement_character() {
        for (text, expected) in [
            (r"a\ud800b", "a\u{fffd}b"),
            (r"\uDFFF", "\u{fffd}"),
            (r"\ud83d\ude00", "\u{1f600}"),
            (r"\ud83d\ud83d\ude00", "\u{fffd}\u{1f600}"),
            (r"\ude00\ud83d", "\u{fffd}\u{fffd}"),
            (r"\ud83d\n", "\u{fffd}\n"),
            (r"\ud83d\\ude00", "\u{fffd}\\ude00"),
            (r"\\ud800", r"\ud800"),
            (r"\\\ud800", "\\\u{fffd}"),
            (r"\u0000\ud800\u0041", "\0\u{fffd}A"),
            (r#"é\"\ud800é"#, "é\"\u{fffd}é"),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_json_stays_no_json() {
        for text in ["", "{", r#""\ud800"#, r#""\ud8"#, r#""\"#, r#""\é\ud800""#, r#""\u+123""#, r"\ud800", "\\"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(whole_surrogates(r#"{"a": "\u00e9\\"}"#), None);
    }
}

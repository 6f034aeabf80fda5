//! The text of a JSON column into JSON, as Python reads it where the two differ.
//!
//! Python's `json` takes more than JSON has (`NaN`, `Infinity`, halves of surrogate pairs), whole numbers of any length, and hundreds of levels.
//! What a [`Value`] cannot hold becomes text, so that no digit is lost: in the lake a property is text in any case.

use serde_json::{Number, Value};

/// Objects and lists that begin deeper become their own JSON text, as the enricher makes of what is too deep in the document; lower
/// than its limit, so that nothing becomes the text of a text.
const DEPTH_MAX: usize = 90;

/// Reads JSON. Numbers that are not finite, or have more digits than 64 bits hold, come as text. A `\uD800` to `\uDFFF` that is not one of
/// a pair counts as U+FFFD.
pub(super) fn parse(text: &str) -> Result<Value, serde_json::Error> {
    let plain = plain_json(text);
    let text = plain.as_deref().unwrap_or(text);
    serde_json::from_str(text).or_else(|error| match whole_surrogates(text) {
        Some(repaired) => serde_json::from_str(&repaired),
        None => Err(error),
    })
}

/// The same with what a [`Value`] cannot hold in quotes; `None` where nothing has to be changed. Of a text that is not JSON it makes another
/// one that is not JSON.
fn plain_json(text: &str) -> Option<String> {
    let mut plain: Option<String> = None;
    let (mut kept, mut at, mut depth) = (0, 0, 0_usize);
    let mut replace = |from: usize, to: usize, by: &str| {
        let plain = plain.get_or_insert_with(|| String::with_capacity(text.len() + 16));
        plain.push_str(&text[kept..from]);
        plain.push_str(by);
        kept = to;
    };
    let bytes = text.as_bytes();
    while let Some(&byte) = bytes.get(at) {
        let from = at;
        match byte {
            b'"' => at = end_of_string(bytes, at),
            b'{' | b'[' if depth == DEPTH_MAX => {
                at = end_of_nested(bytes, at);
                replace(from, at, &Value::from(&text[from..at]).to_string());
            }
            b'{' | b'[' => (depth, at) = (depth + 1, at + 1),
            b'}' | b']' => (depth, at) = (depth.saturating_sub(1), at + 1),
            b'-' | b'0'..=b'9' | b'N' | b'I' => {
                let length = bytes[at..].iter().take_while(|byte| is_of_number(**byte)).count();
                at += length;
                if let Some(number) = number_as_held(&text[from..at]) {
                    replace(from, at, &number);
                }
            }
            _ => at += 1,
        }
    }
    let mut plain = plain?;
    plain.push_str(&text[kept..]);
    Some(plain)
}

fn is_of_number(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.')
}

/// How a number is written that a [`Value`] would not hold as Python does; `None` where it does, and for what is no number.
fn number_as_held(number: &str) -> Option<String> {
    let quoted = |number: &str| Some(format!("\"{number}\""));
    match number {
        "NaN" | "Infinity" | "-Infinity" => return quoted(number),
        // Python has no negative zero among whole numbers.
        "-0" => return Some("0".into()),
        _ if !is_json_number(number) => return None,
        _ => {}
    }
    if !number.contains(['.', 'e', 'E']) {
        let is_held = number.parse::<i64>().is_ok() || number.parse::<u64>().is_ok();
        return if is_held { None } else { quoted(number) };
    }
    let value: f64 = number.parse().ok()?;
    let Some(held) = Number::from_f64(value) else {
        return quoted(if value > 0.0 { "Infinity" } else { "-Infinity" });
    };
    // serde_json reads a few numbers as their neighbours. What it writes of this one is read once more, by the enricher.
    let written = held.to_string();
    let is_same = |text: &str| serde_json::from_str::<f64>(text).is_ok_and(|read| read.to_bits() == value.to_bits());
    match (is_same(&written), is_same(number)) {
        (true, true) => None,
        (true, false) => Some(written),
        (false, _) => quoted(&written),
    }
}

/// Whether this is a number by the grammar of JSON, which Python shares.
fn is_json_number(number: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let unsigned = number.strip_prefix('-').unwrap_or(number);
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).map_or((unsigned, None), |(m, e)| (m, Some(e)));
    let (whole, fraction) = mantissa.split_once('.').map_or((mantissa, None), |(w, f)| (w, Some(f)));
    digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(|exponent| digits(exponent.strip_prefix(['+', '-']).unwrap_or(exponent)))
}

/// Where the string that begins here ends, its quotes included; the end of the text where it does not end.
fn end_of_string(bytes: &[u8], begin: usize) -> usize {
    let mut at = begin + 1;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Where the object or list that begins here ends, its brackets included; the end of the text where it does not end, so that the brackets
/// around it are missing, too.
fn end_of_nested(bytes: &[u8], begin: usize) -> usize {
    let (mut at, mut depth) = (begin, 0_usize);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => at = end_of_string(bytes, at),
            b'{' | b'[' => (depth, at) = (depth + 1, at + 1),
            b'}' | b']' => {
                (depth, at) = (depth - 1, at + 1);
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    bytes.len()
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

    use serde_json::json;

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
    fn numbers_keep_what_python_reads() {
        let big = "123456789012345678901234567890";
        for (text, expected) in [
            ("NaN", json!("NaN")),
            ("-Infinity", json!("-Infinity")),
            ("1e400", json!("Infinity")),
            ("-1e400", json!("-Infinity")),
            (big, json!(big)),
            ("-123456789012345678901", json!("-123456789012345678901")),
            ("18446744073709551615", json!(u64::MAX)),
            ("-9223372036854775808", json!(i64::MIN)),
            ("-0", json!(0)),
            ("12", json!(12)),
            ("0.1", json!(0.1)),
            ("1e-400", json!(0.0)),
            ("1E+2", json!(100.0)),
        ] {
            assert_eq!(parse(text).unwrap(), expected, "{text}");
            let around = format!("{{\"a\": [ {text},{text}]}}");
            assert_eq!(parse(&around).unwrap(), json!({"a": [expected, expected]}), "{text}");
        }
        assert_eq!(parse(r#"["NaN", "\"1e400 \\", "123456789012345678901"]"#).unwrap()[1], "\"1e400 \\");
        assert_eq!(plain_json(r#"{"NaN": "Infinity", "a": [1, -2.5, true, null]}"#), None);
    }

    /// Read by the fetcher, written into the document, read by the enricher.
    #[test]
    fn fractions_are_the_same_numbers_at_the_end_of_their_way() {
        let mut state = 7_u64;
        for _ in 0..20_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let number = f64::from_bits(state);
            let texts = [format!("{number:e}"), format!("{:.17}", (state >> 11) as f64 / 1e12)];
            for text in texts.iter().filter(|_| number.is_finite()) {
                let written = parse(text).unwrap().to_string();
                let read: Value = serde_json::from_str(&written).unwrap();
                let shown = read.as_str().map_or_else(|| read.to_string(), str::to_owned);
                assert_eq!(shown.parse::<f64>().unwrap().to_bits(), text.parse::<f64>().unwrap().to_bits(), "{text}");
            }
        }
    }

    #[test]
    fn what_is_very_deep_is_kept_as_text() {
        for levels in [DEPTH_MAX, DEPTH_MAX + 1, 900, 100_000] {
            let deep = "[".repeat(levels) + r#"{"a]": NaN}"# + &"]".repeat(levels);
            let (mut value, mut seen) = (&parse(&deep).unwrap(), 0);
            while let Some(inner) = value.get(0) {
                (value, seen) = (inner, seen + 1);
            }
            assert_eq!(seen, DEPTH_MAX);
            let rest = levels - DEPTH_MAX;
            assert_eq!(value, &Value::from("[".repeat(rest) + r#"{"a]": NaN}"# + &"]".repeat(rest)));
        }
    }

    #[test]
    fn what_is_no_json_stays_no_json() {
        for text in ["", "{", r#""\ud800"#, r#""\ud8"#, r#""\"#, r#""\é\ud800""#, r#""\u+123""#, r"\ud800", "\\"] {
            assert!(parse(text).is_err(), "{text}");
        }
        for text in
            ["nan", "NAN", "-NaN", "+1", "01", "1.", ".5", "1e", "Infinity1", "-", "--1", "0x1", "1_000", "[NaN", "é1"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        let unbalanced = "[".repeat(DEPTH_MAX + 5) + &"]".repeat(DEPTH_MAX + 4);
        assert!(parse(&unbalanced).is_err());
        assert_eq!(whole_surrogates(r#"{"a": "\u00e9\\"}"#), None);
    }
}

//! The bytes of a document into JSON, safe against depth: whatever comes from outside, later recursion ends at [`DEPTH_MAX`].

use std::borrow::Cow;
use std::fmt::{self, Formatter};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::fields;

/// Deepest nesting that is kept as objects. An object or array that begins deeper becomes its own JSON text: nothing is lost, and no
/// stack overflows. HQ itself cannot read form XML nested deeper than 256, and no known form comes near this.
pub const DEPTH_MAX: usize = 100;

/// A record whose document cannot be used. It will not get better by itself: quarantine it.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// The document is not JSON.
    #[error("document of {size} bytes is not JSON; fetch it again")]
    Malformed {
        /// Size of the document in bytes.
        size: usize,
        /// Where parsing failed, and why.
        #[source]
        source: serde_json::Error,
    },
    /// The document is JSON, but not an object.
    #[error("document of {size} bytes is JSON but not an object; fetch it again")]
    NoObject {
        /// Size of the document in bytes.
        size: usize,
    },
}

/// Parses a document; what is nested deeper than [`DEPTH_MAX`] becomes text.
///
/// # Errors
/// Where the document is not a JSON object.
pub fn parse(document: &[u8]) -> Result<Map<String, Value>, DocumentError> {
    let size = document.len();
    match serde_json::from_slice(&shallow(document)).map_err(|source| DocumentError::Malformed { size, source })? {
        Value::Object(members) => Ok(members),
        _ => Err(DocumentError::NoObject { size }),
    }
}

/// Parses the document of a case without the members of its `case_json` that stand at the top level too, under a name that no other column
/// takes. They are half of a case, and are shown only where all of `case_json` is wanted.
///
/// # Errors
/// As [`parse`].
pub fn parse_case_without_copies(document: &[u8]) -> Result<Map<String, Value>, DocumentError> {
    let json = shallow(document);
    let mut deserializer = serde_json::Deserializer::from_slice(&json);
    let members = deserializer.deserialize_map(Case).and_then(|members| deserializer.end().map(|()| members));
    // A document of an unusual shape is parsed as a whole.
    members.or_else(|_| parse(document))
}

fn is_copy(name: &str) -> bool {
    !fields::hides_case_property(name) && !fields::lake_may_take(name)
}

/// Members of a case.
struct Case;

impl<'de> Visitor<'de> for Case {
    type Value = Map<String, Value>;

    fn expecting(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str("a case")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut case = Map::new();
        while let Some(key) = members.next_key::<String>()? {
            let value = match key.as_str() {
                "case_json" => Value::Object(members.next_value_seed(Properties)?),
                _ => members.next_value()?,
            };
            case.insert(key, value);
        }
        Ok(case)
    }
}

/// Members of `case_json` that are no copies.
struct Properties;

impl<'de> DeserializeSeed<'de> for Properties {
    type Value = Map<String, Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Properties {
    type Value = Map<String, Value>;

    fn expecting(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str("properties of a case")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut properties = Map::new();
        while let Some(key) = members.next_key_seed(NoCopy)? {
            if let Some(key) = key {
                properties.insert(key, members.next_value()?);
            } else {
                members.next_value::<IgnoredAny>()?;
            }
        }
        Ok(properties)
    }
}

/// A key, unless it is that of a copy.
struct NoCopy;

impl<'de> DeserializeSeed<'de> for NoCopy {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NoCopy {
    type Value = Option<String>;

    fn expecting(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str("a name")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok((!is_copy(key)).then(|| key.to_owned()))
    }
}

/// The same JSON with every subtree below [`DEPTH_MAX`] as a JSON string of its own text. Without recursion, as the depth is not known.
/// Of bytes that are not JSON it makes other bytes that are not JSON.
fn shallow(json: &[u8]) -> Cow<'_, [u8]> {
    if !is_deeper_than(json, DEPTH_MAX) {
        return Cow::Borrowed(json);
    }
    let mut kept = Vec::with_capacity(json.len() + json.len() / 8);
    let mut depth = 0;
    let mut in_string = Quoted::default();
    for &byte in json {
        let outside = in_string.pass(byte);
        let opens = outside && matches!(byte, b'{' | b'[');
        let closes = outside && matches!(byte, b'}' | b']');
        if opens {
            depth += 1;
            if depth == DEPTH_MAX + 1 {
                kept.push(b'"');
            }
        }
        push(&mut kept, byte, depth > DEPTH_MAX);
        if closes {
            if depth == DEPTH_MAX + 1 {
                kept.push(b'"');
            }
            depth = depth.saturating_sub(1);
        }
    }
    Cow::Owned(kept)
}

/// Valid JSON has no control characters inside strings, and those between values need no keeping.
fn push(kept: &mut Vec<u8>, byte: u8, as_text: bool) {
    if as_text && matches!(byte, b'"' | b'\\') {
        kept.push(b'\\');
    } else if as_text && byte.is_ascii_control() {
        return;
    }
    kept.push(byte);
}

fn is_deeper_than(json: &[u8], depth_max: usize) -> bool {
    // Nearly every document has fewer brackets than that; counting them is much faster than following them.
    let opening = |byte: &&u8| matches!(byte, b'{' | b'[');
    if json.iter().filter(opening).count() <= depth_max {
        return false;
    }
    let mut depth = 0usize;
    let mut in_string = Quoted::default();
    json.iter().any(|&byte| {
        if in_string.pass(byte) {
            match byte {
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
        depth > depth_max
    })
}

/// Whether the bytes that pass are inside a JSON string.
#[derive(Default)]
struct Quoted {
    inside: bool,
    escaped: bool,
}

impl Quoted {
    /// Whether this byte is outside of strings, their quotes aside.
    fn pass(&mut self, byte: u8) -> bool {
        if !self.inside {
            self.inside = byte == b'"';
            return !self.inside;
        }
        if self.escaped {
            self.escaped = false;
        } else {
            self.escaped = byte == b'\\';
            self.inside = byte != b'"';
        }
        false
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn only_objects_are_documents() {
        assert_eq!(parse(br#"{"a": 1}"#).unwrap().len(), 1);
        assert!(matches!(parse(b"[1]"), Err(DocumentError::NoObject { size: 3 })));
        for garbage in [&b""[..], b"{", b"{\"a\":\xff}", b"{} {}", b"\"\\"] {
            assert!(matches!(parse(garbage), Err(DocumentError::Malformed { .. })), "{garbage:?}");
        }
    }

    #[test]
    fn a_case_is_read_without_what_it_has_twice() {
        let case = br#"{"village": "A", "state_id": "7", "case_json": {"village": "A", "vill\u0061ge_2": {"x": [1]},
            "state_id": "7", "name": "B", "month": "5", "_lake_x": {"y": 2}}, "actions": [{"a": null}]}"#;
        let read = parse_case_without_copies(case).unwrap();
        let mut whole = parse(case).unwrap();
        let properties = whole["case_json"].as_object_mut().unwrap();
        properties.retain(|name, _| !name.starts_with("village"));
        assert_eq!(properties.len(), 4);
        assert_eq!(read, whole);
    }

    #[test]
    fn an_unusual_case_is_read_as_a_whole() {
        for case in [r#"{"case_json": null, "a": 1}"#, r#"{"case_json": "text"}"#, r#"{"a": [{}]}"#, "{}"] {
            assert_eq!(parse_case_without_copies(case.as_bytes()).unwrap(), parse(case.as_bytes()).unwrap(), "{case}");
        }
        assert!(matches!(parse_case_without_copies(b"[1]"), Err(DocumentError::NoObject { size: 3 })));
        for garbage in [&b""[..], b"{", b"{} {}", br#"{"case_json": {"a": }}"#] {
            assert!(matches!(parse_case_without_copies(garbage), Err(DocumentError::Malformed { .. })), "{garbage:?}");
        }
        let deep = format!("{{\"case_json\": {{\"a\": {}1{}}}}}", "[".repeat(200), "]".repeat(200));
        assert!(parse_case_without_copies(deep.as_bytes()).unwrap()["case_json"].as_object().unwrap().is_empty());
    }

    #[test]
    fn any_depth_is_read_and_nothing_is_lost() {
        let depth = 50_000;
        let deep = format!("{}\"x\\\"{{ \\n\"{}", "{\"a\": ".repeat(depth), "}".repeat(depth));
        let document = parse(deep.as_bytes()).unwrap();
        let mut value = &Value::Object(document);
        let mut levels = 0;
        while let Value::Object(members) = value {
            value = &members["a"];
            levels += 1;
        }
        assert_eq!(levels, DEPTH_MAX);
        let rest = value.as_str().unwrap();
        assert!(rest.starts_with("{\"a\": {") && rest.ends_with('}'));
        assert_eq!(rest, format!("{}\"x\\\"{{ \\n\"{}", "{\"a\": ".repeat(depth - 100), "}".repeat(depth - 100)));
        assert!(parse("[".repeat(1_000_000).as_bytes()).is_err());
        assert!(parse("]".repeat(1_000).as_bytes()).is_err());
    }

    #[test]
    fn documents_of_ordinary_depth_are_not_copied() {
        let json = format!("{}1{}", "[".repeat(DEPTH_MAX), "]".repeat(DEPTH_MAX));
        assert!(matches!(shallow(json.as_bytes()), Cow::Borrowed(_)));
        let brackets_in_text = format!("{{\"a\": \"{}\"}}", "[".repeat(500));
        assert!(matches!(shallow(brackets_in_text.as_bytes()), Cow::Borrowed(_)));
    }
}

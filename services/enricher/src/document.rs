//! The bytes of a document into JSON, safe against depth: whatever comes from outside, later recursion ends at [`DEPTH_MAX`].

use std::borrow::Cow;

use serde_json::{Map, Value};

/// Deepest nesting that is kept as objects. An object or array that begins deeper becomes its own JSON text: nothing is lost, and no
/// stack overflows. HQ itself cannot read form XML nested deeper than 256, and no known form comes near this.
pub const DEPTH_MAX: usize = 100;

/// A record whose document cannot be used. It will not get better by itself: quarantine it.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Not JSON.
    #[error("document of {size} bytes is not JSON; fetch it again")]
    Malformed {
        /// Size in bytes.
        size: usize,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// JSON, but not an object.
    #[error("document of {size} bytes is JSON but not an object; fetch it again")]
    NoObject {
        /// Size in bytes.
        size: usize,
    },
}

/// Parses a document.
pub fn parse(document: &[u8]) -> Result<Map<String, Value>, DocumentError> {
    let size = document.len();
    match serde_json::from_slice(&shallow(document)).map_err(|source| DocumentError::Malformed { size, source })? {
        Value::Object(members) => Ok(members),
        _ => Err(DocumentError::NoObject { size }),
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

//! Where a converted form goes: JSON text, or JSON values.

use serde_json::{Map, Value};

/// A member's key. Names come from XML, so they need no escaping in JSON; namespace names may.
#[derive(Debug, Clone, Copy)]
pub(super) enum Key<'k> {
    /// The key of a child element: its local name.
    Name(&'k str),
    /// The key `@name` of an attribute.
    Attribute(&'k str),
    /// The key `@{namespace}name` of an attribute with a namespace.
    NamespacedAttribute(&'k str, &'k str),
    /// `@xmlns`, `#text` or `#type`
    Marker(&'static str),
}

/// Receives a JSON document in order. Every value but the outermost object is preceded by its key, unless it is an item.
pub(super) trait Sink {
    /// `size` gives the number of members, or a little more.
    fn begin_object(&mut self, size: impl FnOnce() -> usize);
    fn end_object(&mut self);
    /// `size` gives the number of items.
    fn begin_array(&mut self, size: impl FnOnce() -> usize);
    fn end_array(&mut self);
    fn key(&mut self, key: Key<'_>);
    fn string(&mut self, value: &str);
}

/// Takes values whose only effect is that they may fail.
pub(super) struct NullSink;

impl Sink for NullSink {
    fn begin_object(&mut self, _: impl FnOnce() -> usize) {}
    fn end_object(&mut self) {}
    fn begin_array(&mut self, _: impl FnOnce() -> usize) {}
    fn end_array(&mut self) {}
    fn key(&mut self, _: Key<'_>) {}
    fn string(&mut self, _: &str) {}
}

/// Appends compact JSON text, the same as `serde_json` writes.
///
/// Every value is followed by a comma, which the end of the container takes back.
pub(super) struct TextSink<'o> {
    out: &'o mut Vec<u8>,
}

impl<'o> TextSink<'o> {
    pub(super) fn new(out: &'o mut Vec<u8>) -> Self {
        Self { out }
    }

    /// Called once, after the last member of the root.
    pub(super) fn finish(self) {
        if self.out.last() == Some(&b',') {
            self.out.pop();
        }
    }

    fn end(&mut self, bracket: &[u8; 2]) {
        match self.out.last_mut() {
            Some(comma @ b',') => {
                *comma = bracket[0];
                self.out.push(b',');
            }
            _ => self.out.extend_from_slice(bracket),
        }
    }
}

impl Sink for TextSink<'_> {
    fn begin_object(&mut self, _: impl FnOnce() -> usize) {
        self.out.push(b'{');
    }

    fn end_object(&mut self) {
        self.end(b"},");
    }

    fn begin_array(&mut self, _: impl FnOnce() -> usize) {
        self.out.push(b'[');
    }

    fn end_array(&mut self) {
        self.end(b"],");
    }

    #[inline]
    fn key(&mut self, key: Key<'_>) {
        self.out.push(b'"');
        match key {
            Key::Name(name) => self.out.extend_from_slice(name.as_bytes()),
            Key::Marker(marker) => self.out.extend_from_slice(marker.as_bytes()),
            Key::Attribute(name) => {
                self.out.push(b'@');
                self.out.extend_from_slice(name.as_bytes());
            }
            Key::NamespacedAttribute(namespace, name) => {
                self.out.extend_from_slice(b"@{");
                escape(namespace, self.out);
                self.out.push(b'}');
                self.out.extend_from_slice(name.as_bytes());
            }
        }
        self.out.extend_from_slice(b"\":");
    }

    #[inline]
    fn string(&mut self, value: &str) {
        self.out.push(b'"');
        escape(value, self.out);
        self.out.extend_from_slice(b"\",");
    }
}

/// Appends text as it stands within quotes. Other control characters than these do not occur in XML.
#[inline]
fn escape(text: &str, out: &mut Vec<u8>) {
    let bytes = text.as_bytes();
    let mut written = 0;
    for (index, byte) in bytes.iter().enumerate() {
        if *byte >= b' ' && !matches!(byte, b'"' | b'\\') {
            continue;
        }
        out.extend_from_slice(&bytes[written..index]);
        written = index + 1;
        let escaped = match byte {
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            other => *other,
        };
        out.extend_from_slice(&[b'\\', escaped]);
    }
    out.extend_from_slice(&bytes[written..]);
}

/// Builds [`Value`]s of what the conversion hands over.
#[derive(Default)]
pub(super) struct ValueSink {
    open: Vec<Container>,
    done: Map<String, Value>,
}

enum Container {
    /// Members so far and the key of the next.
    Object(Map<String, Value>, String),
    Array(Vec<Value>),
}

impl ValueSink {
    /// The outermost object, once it is closed.
    pub(super) fn into_object(self) -> Map<String, Value> {
        self.done
    }

    #[inline]
    fn put(&mut self, value: Value) {
        match self.open.last_mut() {
            Some(Container::Object(members, key)) => {
                members.insert(std::mem::take(key), value);
            }
            Some(Container::Array(items)) => items.push(value),
            None => {}
        }
    }

    fn end(&mut self) {
        match self.open.pop() {
            Some(Container::Object(members, _)) if self.open.is_empty() => self.done = members,
            Some(Container::Object(members, _)) => self.put(Value::Object(members)),
            Some(Container::Array(items)) => self.put(Value::Array(items)),
            None => {}
        }
    }
}

impl Sink for ValueSink {
    fn begin_object(&mut self, size: impl FnOnce() -> usize) {
        self.open.push(Container::Object(Map::with_capacity(size()), String::new()));
    }

    fn end_object(&mut self) {
        self.end();
    }

    fn begin_array(&mut self, size: impl FnOnce() -> usize) {
        self.open.push(Container::Array(Vec::with_capacity(size())));
    }

    fn end_array(&mut self) {
        self.end();
    }

    fn key(&mut self, key: Key<'_>) {
        if let Some(Container::Object(_, next)) = self.open.last_mut() {
            *next = match key {
                Key::Name(name) => name.to_owned(),
                // Faster than formatting.
                Key::Attribute(name) => ["@", name].concat(),
                Key::NamespacedAttribute(namespace, name) => ["@{", namespace, "}", name].concat(),
                Key::Marker(marker) => marker.to_owned(),
            };
        }
    }

    fn string(&mut self, value: &str) {
        self.put(Value::String(value.to_owned()));
    }
}

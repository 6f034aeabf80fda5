//! XML elements of a form, written as XML for HQ and as JSON for the expectation. The two come from one structure and know nothing
//! of each other, so the JSON is what the reference says about the structure, not what a parser makes of the text.

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::dice::Dice;
use crate::moment;

/// A name or text that is mostly known at compile time.
pub type Name = Cow<'static, str>;

/// Character data. Datetimes carry the instant they mean, so that no pattern matching is needed to know HQ's conversion.
#[derive(Clone, Debug, PartialEq)]
pub enum Text {
    /// Stays as it is.
    Plain(Name),
    /// HQ converts it.
    Moment {
        /// As in the XML.
        written: String,
        /// What it means, microseconds.
        instant: i64,
    },
    /// A borderline case: as in the XML, as in the JSON.
    Odd(&'static str, &'static str),
}

impl Text {
    /// A text without characters.
    pub const EMPTY: Self = Self::Plain(Cow::Borrowed(""));

    /// An instant in a phone's notation.
    pub fn moment(us: i64, dice: &mut Dice) -> Self {
        let (written, instant) = moment::as_phones_write(us, dice);
        Self::Moment { written, instant }
    }

    /// As in the XML.
    pub fn written(&self) -> &str {
        match self {
            Self::Plain(text) => text,
            Self::Moment { written, .. } => written,
            Self::Odd(written, _) => written,
        }
    }

    /// As in HQ's JSON.
    pub fn converted(&self) -> String {
        match self {
            Self::Plain(text) => text.to_string(),
            Self::Moment { instant, .. } => moment::text(*instant),
            Self::Odd(_, converted) => (*converted).to_owned(),
        }
    }
}

impl From<&'static str> for Text {
    fn from(text: &'static str) -> Self {
        Self::Plain(text.into())
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self::Plain(text.into())
    }
}

/// An element. Text comes before the children.
#[derive(Clone, Debug, PartialEq)]
pub struct Element {
    /// Name without prefix.
    pub name: Name,
    /// Its own namespace and the prefix it is declared with (`None`: as the default one); `None` where it has its parent's.
    pub namespace: Option<(Name, Option<&'static str>)>,
    /// Name as written, value.
    pub attributes: Vec<(&'static str, Text)>,
    /// Characters before the first child.
    pub text: Text,
    /// Child elements, in document order.
    pub children: Vec<Element>,
    /// Characters after its end, which HQ ignores.
    pub tail: &'static str,
}

impl Element {
    /// An element without anything in it.
    pub fn new(name: impl Into<Name>) -> Self {
        Self {
            name: name.into(),
            namespace: None,
            attributes: Vec::new(),
            text: Text::EMPTY,
            children: Vec::new(),
            tail: "",
        }
    }

    /// An element with text.
    pub fn leaf(name: impl Into<Name>, text: impl Into<Text>) -> Self {
        Self { text: text.into(), ..Self::new(name) }
    }

    /// With a namespace of its own.
    #[must_use]
    pub fn within(mut self, uri: impl Into<Name>, prefix: Option<&'static str>) -> Self {
        self.namespace = Some((uri.into(), prefix));
        self
    }

    /// With one more attribute.
    #[must_use]
    pub fn with(mut self, attribute: &'static str, value: impl Into<Text>) -> Self {
        self.attributes.push((attribute, value.into()));
        self
    }

    /// With one more child.
    #[must_use]
    pub fn and(mut self, child: Self) -> Self {
        self.children.push(child);
        self
    }

    /// Writes it as XML; `indented` puts every child of an element without text on a line of its own.
    pub fn write(&self, out: &mut String, indented: bool) {
        self.write_within(out, None, indented);
    }

    fn write_within(&self, out: &mut String, prefix: Option<&'static str>, indented: bool) {
        let prefix = self.namespace.as_ref().map_or(prefix, |(_, own)| *own);
        out.push('<');
        self.write_name(out, prefix);
        if let Some((uri, declared)) = &self.namespace {
            out.push_str(" xmlns");
            if let Some(declared) = declared {
                out.push(':');
                out.push_str(declared);
            }
            out.push_str("=\"");
            escape(out, uri);
            out.push('"');
        }
        for (name, value) in &self.attributes {
            out.push(' ');
            out.push_str(name);
            out.push_str("=\"");
            escape(out, value.written());
            out.push('"');
        }
        let text = self.text.written();
        if text.is_empty() && self.children.is_empty() {
            out.push_str("/>");
        } else {
            out.push('>');
            escape(out, text);
            for child in &self.children {
                if indented && text.is_empty() {
                    out.push_str("\n  ");
                }
                child.write_within(out, prefix, indented);
            }
            out.push_str("</");
            self.write_name(out, prefix);
            out.push('>');
        }
        escape(out, self.tail);
    }

    fn write_name(&self, out: &mut String, prefix: Option<&str>) {
        if let Some(prefix) = prefix {
            out.push_str(prefix);
            out.push(':');
        }
        out.push_str(&self.name);
    }

    /// HQ's JSON of it, inside an element of this namespace (reference §4.1, 4.2).
    pub fn value(&self, namespace: Option<&str>) -> Value {
        let own = self.namespace.as_ref().map(|(uri, _)| uri.as_ref());
        let changed = own.filter(|own| Some(*own) != namespace);
        if self.attributes.is_empty() && changed.is_none() && self.children.is_empty() {
            return Value::String(self.text.converted());
        }
        let mut members = Map::new();
        for (name, value) in &self.attributes {
            let key = name.strip_prefix("xml:").map_or_else(
                || format!("@{name}"),
                |local| format!("@{{http://www.w3.org/XML/1998/namespace}}{local}"),
            );
            members.insert(key, Value::String(value.converted()));
        }
        if let Some(uri) = changed {
            members.insert("@xmlns".into(), Value::String(uri.to_owned()));
        }
        for child in &self.children {
            add(&mut members, &child.name, child.value(own.or(namespace)));
        }
        let text = self.text.converted();
        if text.chars().any(|c| !c.is_whitespace()) {
            members.insert("#text".into(), Value::String(text));
        }
        Value::Object(members)
    }
}

/// The second of a name makes an array.
fn add(members: &mut Map<String, Value>, name: &str, value: Value) {
    match members.get_mut(name) {
        None => {
            members.insert(name.to_owned(), value);
        }
        Some(Value::Array(items)) => items.push(value),
        Some(first) => {
            let earlier = first.take();
            *first = Value::Array(vec![earlier, value]);
        }
    }
}

fn escape(out: &mut String, text: &str) {
    for character in text.chars() {
        match character {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\r' => out.push_str("&#13;"),
            '\n' => out.push_str("&#10;"),
            '\t' => out.push_str("&#9;"),
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn namespaces_repeats_and_text_follow_the_reference() {
        let root = Element::new("data")
            .within("N", None)
            .and(Element::leaf("a", "1"))
            .and(Element { tail: " tail", ..Element::leaf("a", "  ").with("k", "v") })
            .and(Element::new("case").within("C", Some("n0")).and(Element::leaf("create", "x & y")))
            .and(Element::leaf(
                "at",
                Text::Moment { written: "2024-01-02T05:30+05:30".into(), instant: 1_704_153_600_000_000 },
            ));
        let mut xml = String::new();
        root.write(&mut xml, false);
        assert_eq!(
            xml,
            "<data xmlns=\"N\"><a>1</a><a k=\"v\">  </a> tail<n0:case xmlns:n0=\"C\"><n0:create>x &amp; y</n0:create></n0:case>\
             <at>2024-01-02T05:30+05:30</at></data>"
        );
        assert_eq!(
            root.value(None),
            json!({"@xmlns": "N", "a": ["1", {"@k": "v"}], "case": {"@xmlns": "C", "create": "x & y"},
                   "at": "2024-01-02T00:00:00.000000Z"})
        );
    }
}

//! The form conversion on generated documents: a document is drawn as a model, written as XML in one of its many spellings, and
//! must come back as the JSON that the rules give for the model.

#![allow(clippy::unwrap_used, reason = "tests")]

use lake_hq::xform::{form_json, write_form_json};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value};

const NAMES: [&str; 8] = ["a", "b", "item", "case", "x-1", "_y.z", "é", "Item"];
const NAMESPACES: [&str; 3] = ["", "http://openrosa.org/f/1", "urn:other"];

#[derive(Debug, Clone)]
struct Node {
    name: &'static str,
    /// Index in [`NAMESPACES`].
    namespace: usize,
    attributes: Vec<(&'static str, String)>,
    text: String,
    children: Vec<(Node, String)>,
    /// Decides the spelling.
    seed: u64,
}

fn text() -> impl Strategy<Value = String> {
    let characters = "abc<>&\"'\\\t\n\r ]é\u{a0}\u{2003}\u{200b}\u{1F600}सु".chars().collect::<Vec<_>>();
    proptest::collection::vec(select(characters), 0..8).prop_map(|chars| chars.into_iter().collect())
}

fn bare_node() -> impl Strategy<Value = Node> {
    let names = proptest::sample::subsequence(vec!["k", "id", "case_id", "xmlnsx"], 0..3);
    let attributes =
        (names, text(), text()).prop_map(|(names, first, second)| names.into_iter().zip([first, second]).collect());
    (select(NAMES.to_vec()), 0..NAMESPACES.len(), attributes, text(), any::<u64>()).prop_map(
        |(name, namespace, attributes, text, seed)| Node { name, namespace, attributes, text, children: vec![], seed },
    )
}

fn node() -> impl Strategy<Value = Node> {
    bare_node().prop_recursive(4, 40, 6, |inner| {
        (bare_node(), proptest::collection::vec((inner, text()), 0..6))
            .prop_map(|(node, children)| Node { children, ..node })
    })
}

/// The rules of the conversion, word by word.
fn expected(node: &Node, parent: usize) -> Value {
    let mut members = Map::new();
    for (name, value) in &node.attributes {
        members.insert(format!("@{name}"), Value::String(value.clone()));
    }
    if node.namespace != 0 && node.namespace != parent {
        members.insert("@xmlns".to_owned(), NAMESPACES[node.namespace].into());
    }
    for (child, _) in &node.children {
        let value = expected(child, node.namespace);
        match members.get_mut(child.name) {
            None => {
                members.insert(child.name.to_owned(), value);
            }
            Some(Value::Array(items)) => items.push(value),
            Some(single) => *single = Value::Array(vec![single.take(), value]),
        }
    }
    if members.is_empty() {
        return Value::String(node.text.clone());
    }
    if !node.text.trim().is_empty() {
        members.insert("#text".to_owned(), Value::String(node.text.clone()));
    }
    Value::Object(members)
}

/// A small deterministic choice, `seed` being used up.
fn choose(seed: &mut u64, below: u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) % below
}

fn spell(text: &str, in_attribute: bool, seed: &mut u64, xml: &mut String) {
    for c in text.chars() {
        let must = matches!(c, '<' | '>' | '&' | '"' | '\'' | '\r') || (in_attribute && matches!(c, '\n' | '\t'));
        match (choose(seed, 8), c) {
            (0..=5, '<') => xml.push_str("&lt;"),
            (0..=5, '&') => xml.push_str("&amp;"),
            (0, _) if !in_attribute && !matches!(c, '\r' | ']') => xml.push_str(&format!("<![CDATA[{c}]]>")),
            (1, '\n') if !in_attribute => xml.push_str("\r\n"),
            (2, _) => xml.push_str(&format!("&#x{:x};", u32::from(c))),
            _ if must => xml.push_str(&format!("&#{};", u32::from(c))),
            (3, _) if !in_attribute => xml.push_str(&format!("<!-- < & -->{c}")),
            _ => xml.push(c),
        }
    }
}

fn write(node: &Node, default: usize, xml: &mut String) {
    let mut seed = node.seed;
    let with_prefix = node.namespace != 0 && choose(&mut seed, 3) == 0;
    let name = if with_prefix { format!("p:{}", node.name) } else { node.name.to_owned() };
    let mut inner_default = default;
    xml.push_str(&format!("<{name}"));
    if with_prefix {
        xml.push_str(&format!(" xmlns:p='{}'", NAMESPACES[node.namespace]));
    } else if node.namespace != default || choose(&mut seed, 4) == 0 {
        inner_default = node.namespace;
        xml.push_str(&format!(" xmlns=\"{}\"", NAMESPACES[node.namespace]));
    }
    for (attribute, value) in &node.attributes {
        xml.push_str(&format!("{}{attribute}=\"", ["\n", " ", "\t "][choose(&mut seed, 3) as usize]));
        spell(value, true, &mut seed, xml);
        xml.push('"');
    }
    if node.text.is_empty() && node.children.is_empty() && choose(&mut seed, 2) == 0 {
        xml.push_str("/>");
        return;
    }
    xml.push('>');
    spell(&node.text, false, &mut seed, xml);
    for (child, tail) in &node.children {
        write(child, inner_default, xml);
        spell(tail, false, &mut seed, xml);
    }
    xml.push_str(&format!("</{name} >"));
}

/// Both ways of converting, which must agree; the form as JSON text.
fn convert(xml: &[u8]) -> Option<String> {
    let mut text = b"kept".to_vec();
    let written = write_form_json(xml, &mut text);
    match form_json(xml) {
        Ok(form) => {
            assert_eq!(written, Ok(()));
            let form = serde_json::to_string(&form).unwrap();
            assert_eq!(text, format!("kept{form}").into_bytes());
            Some(form)
        }
        Err(error) => {
            assert_eq!(written, Err(error));
            assert_eq!(text, b"kept");
            None
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_written_document_comes_back(root in node()) {
        let mut xml = String::new();
        write(&root, 0, &mut xml);
        let expected = match expected(&root, 0) {
            Value::Object(mut members) => {
                members.insert("#type".to_owned(), root.name.into());
                Some(serde_json::to_string(&members).unwrap())
            }
            _ => None,
        };
        prop_assert_eq!(convert(xml.as_bytes()), expected.clone(), "{}", xml);
        let utf16: Vec<u8> = format!("\u{feff}{xml}").encode_utf16().flat_map(u16::to_le_bytes).collect();
        prop_assert_eq!(convert(&utf16), expected);
    }

    #[test]
    fn a_cut_document_is_not_well_formed(root in node(), cut in any::<prop::sample::Index>()) {
        let mut xml = String::new();
        write(&root, 0, &mut xml);
        let cut = cut.index(xml.len());
        prop_assert_eq!(form_json(&xml.as_bytes()[..cut]).map_err(|error| error.is_raised()), Err(false), "{}", &xml);
    }

    #[test]
    fn nothing_panics_on_damaged_documents(root in node(), at in any::<prop::sample::Index>(), piece in "[<>&;\"'/=:!?\\[\\]#x0a -]{0,6}|\\PC{0,3}") {
        let mut xml = String::new();
        write(&root, 0, &mut xml);
        let mut bytes = xml.into_bytes();
        let at = at.index(bytes.len() + 1);
        bytes.splice(at..at, piece.into_bytes());
        convert(&bytes);
    }

    #[test]
    fn nothing_panics_on_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        convert(&bytes);
    }
}

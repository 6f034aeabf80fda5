//! Whether bytes of a log name one of some ids. Pure.

use std::collections::{BTreeSet, HashMap};

use arrow::array::{Array, AsArray};
use arrow::datatypes::DataType;

/// Statistics may hold no more than so many characters of a text.
const CHARACTERS_OF_STATISTICS: usize = 32;

/// Bytes by which the ids are looked up.
const KEY_BYTES: usize = 4;

/// A form in which an id may stand.
#[derive(Debug)]
struct Form {
    bytes: Vec<u8>,
    /// Whether it may go on: only the beginning of the id is looked for.
    is_beginning: bool,
}

/// Ids that are looked for, in the forms in which JSON, paths and cut statistics have them.
#[derive(Debug, Default)]
pub(super) struct Mentions {
    by_key: HashMap<Vec<u8>, Vec<Form>>,
    /// Lengths of the keys, as an id may be shorter than others' keys.
    key_lengths: BTreeSet<usize>,
}

impl Mentions {
    pub(super) fn of(ids: &[String]) -> Self {
        let mut mentions = Self::default();
        for id in ids {
            let cut: String = id.chars().take(CHARACTERS_OF_STATISTICS).collect();
            let is_beginning = cut.len() < id.len();
            let in_json = escaped(&cut);
            // Statistics are JSON within JSON.
            let in_json_twice = escaped(&in_json);
            let in_path = percent_encoded(&cut);
            for text in BTreeSet::from([cut, in_json, in_json_twice, in_path]) {
                let key: Vec<u8> = text.bytes().take(KEY_BYTES).collect();
                mentions.key_lengths.insert(key.len());
                let form = Form { bytes: text.into_bytes(), is_beginning };
                mentions.by_key.entry(key).or_default().push(form);
            }
        }
        mentions
    }

    /// Whether a text names one of the ids: as a whole, not as a part of a longer word.
    pub(super) fn are_in(&self, text: &[u8]) -> bool {
        let is_start = |at: usize| at == 0 || !is_of_word(text[at - 1]);
        (0..text.len()).filter(|at| is_start(*at)).any(|at| {
            let rest = &text[at..];
            self.key_lengths.iter().filter_map(|length| self.by_key.get(rest.get(..*length)?)).flatten().any(|form| {
                let follows = rest.strip_prefix(form.bytes.as_slice());
                follows.is_some_and(|behind| form.is_beginning || behind.first().is_none_or(|byte| !is_of_word(*byte)))
            })
        })
    }

    /// Whether a text somewhere in an array names one of the ids.
    pub(super) fn are_in_array(&self, array: &dyn Array) -> bool {
        match array.data_type() {
            DataType::Utf8 => array.as_string::<i32>().iter().flatten().any(|text| self.are_in(text.as_bytes())),
            DataType::LargeUtf8 => array.as_string::<i64>().iter().flatten().any(|text| self.are_in(text.as_bytes())),
            DataType::Utf8View => array.as_string_view().iter().flatten().any(|text| self.are_in(text.as_bytes())),
            DataType::Struct(_) => array.as_struct().columns().iter().any(|column| self.are_in_array(column)),
            DataType::List(_) => self.are_in_array(array.as_list::<i32>().values()),
            DataType::LargeList(_) => self.are_in_array(array.as_list::<i64>().values()),
            DataType::Map(_, _) => self.are_in_array(array.as_map().entries()),
            _ => false,
        }
    }
}

/// A byte of a word; ids of HQ consist of such.
const fn is_of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

/// A text as it stands between the quotes of JSON.
fn escaped(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted.get(1..quoted.len() - 1).unwrap_or_default().to_owned()
}

/// A text as it stands in a path.
fn percent_encoded(text: &str) -> String {
    let encoded = |byte: u8| match byte {
        byte if is_of_word(byte) || matches!(byte, b'.' | b'~') => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(encoded).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, StringArray, StructArray};
    use arrow::datatypes::Field;

    use super::*;

    const ID: &str = "5ca13e2a-77b0-4e79-81be-64bd76c43a11";

    fn mentions(ids: &[&str]) -> Mentions {
        Mentions::of(&ids.iter().map(|&id| id.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn an_id_is_found_in_every_form_of_a_log() {
        let odd = mentions(&[ID, "a \"b\"/ü"]);
        let stats = |id: &str| {
            let stats = serde_json::json!({ "minValues": { "_id": id } }).to_string();
            serde_json::json!({ "add": { "stats": stats } }).to_string()
        };
        for text in [
            stats(ID),
            stats(&ID[..32]),
            stats("a \"b\"/ü"),
            format!("{{\"path\":\"_id={ID}/part.parquet\"}}"),
            "_id=a%20%22b%22%2F%C3%BC/x".into(),
            ID.to_owned(),
        ] {
            assert!(odd.are_in(text.as_bytes()), "{text}");
        }
        assert!(!odd.are_in(stats("5ca13e2a-77b0-4e79-81be-64bd76c4").as_bytes()[..40].as_ref()));
        assert!(!odd.are_in(stats("another").as_bytes()) && !odd.are_in(b""));
    }

    #[test]
    fn a_part_of_a_longer_word_is_another_id() {
        let short = mentions(&["id-1", "7"]);
        for text in ["id-1", "\"id-1\"", "\\\"id-1\\\"", "x=id-1/", "7", "[7]"] {
            assert!(short.are_in(text.as_bytes()), "{text}");
        }
        for text in ["id-10", "xid-1", "id-1-2", "17", "70", "", "id-"] {
            assert!(!short.are_in(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn texts_are_found_wherever_they_are_in_an_array() {
        let texts: ArrayRef = Arc::new(StringArray::from(vec![Some("{\"_id\":\"id-1\"}"), None]));
        let field = Arc::new(Field::new("stats", DataType::Utf8, true));
        let nested: ArrayRef = Arc::new(StructArray::from(vec![(field, texts)]));
        assert!(mentions(&["id-1"]).are_in_array(&nested) && !mentions(&["id-2"]).are_in_array(&nested));
    }
}

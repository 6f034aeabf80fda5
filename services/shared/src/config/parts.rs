//! A configuration file whose sections belong to two parts of a process, each with a type of its own.
//!
//! Serde's `flatten` cannot be used for that: with it, unknown keys are not errors any more (<https://serde.rs/attr-flatten.html>).

use std::path::Path;

use figment::providers::Toml;
use figment::value::{Dict, Map};
use figment::{Metadata, Profile, Provider};
use serde::de::value::Error as NoValue;
use serde::de::{DeserializeOwned, Deserializer, Error, Visitor};

use super::{ConfigError, Format, describe, environment, read, source_name, unknown_key};

/// Reads one file and the environment into two values: each gets the sections that it has fields for. Both may have the same field.
///
/// # Errors
///
/// Those of [`super::load`]; a section that neither of the two has is an unknown key.
pub fn load_parts<A: DeserializeOwned, B: DeserializeOwned>(path: Option<&Path>) -> Result<(A, B), ConfigError> {
    let text = read(path)?;
    let known: Vec<&'static str> = [fields::<A>(), fields::<B>()].concat();
    let all = figment(&text, None);
    let sections: Dict = all.extract().map_err(|error| describe(path, error))?;
    if let Some(unknown) = sections.keys().find(|section| !known.contains(&section.as_str())) {
        let source_name = source_name(path, all.find_metadata(unknown));
        return Err(ConfigError::Invalid { source_name, reason: unknown_key(unknown, &known) });
    }
    let first = figment(&text, Some(fields::<A>())).extract().map_err(|error| describe(path, error))?;
    let second = figment(&text, Some(fields::<B>())).extract().map_err(|error| describe(path, error))?;
    Ok((first, second))
}

/// File and environment, as far as they are about the given sections.
fn figment(text: &str, sections: Option<&'static [&'static str]>) -> figment::Figment {
    let file = Part { provider: Toml::string(text), sections };
    figment::Figment::from(file).merge(Part { provider: environment(), sections })
}

/// What a source says of some sections, or of all (`None`).
struct Part<P> {
    provider: P,
    sections: Option<&'static [&'static str]>,
}

impl<P: Provider> Provider for Part<P> {
    fn metadata(&self) -> Metadata {
        self.provider.metadata()
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let mut data = self.provider.data()?;
        if let Some(sections) = self.sections {
            for profile in data.values_mut() {
                profile.retain(|section, _| sections.contains(&section.as_str()));
            }
        }
        Ok(data)
    }
}

/// The names of the fields of a struct, as serde's derive has them.
fn fields<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut names: &'static [&'static str] = &[];
    // It always fails: only the question is of interest.
    let _ = T::deserialize(FieldNames(&mut names));
    names
}

/// Notes which fields a struct asks for, and has none of them.
struct FieldNames<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for FieldNames<'_> {
    type Error = NoValue;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, NoValue> {
        *self.0 = fields;
        Err(NoValue::custom("only the names are asked for"))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, NoValue> {
        Err(NoValue::custom("it is no struct"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Feed {
        #[serde(default)]
        batch: Option<Batch>,
        topics: Vec<String>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Batch {
        records_max: usize,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Store {
        root: String,
    }

    fn parts(toml: &str) -> Result<(Feed, Store), String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), toml).unwrap();
        load_parts(Some(file.path())).map_err(|error| error.to_string())
    }

    #[test]
    fn each_part_gets_its_sections() {
        let (feed, store) = parts("root = \"lake\"\ntopics = [\"a\"]\n[batch]\nrecords_max = 3").unwrap();
        assert_eq!((feed.topics.len(), feed.batch.unwrap().records_max, store.root.as_str()), (1, 3, "lake"));
    }

    #[test]
    fn trouble_is_told_as_of_one_file() {
        for (toml, told) in [
            ("rot = \"lake\"\ntopics = []", "unknown key `rot`; known here: batch, topics, root"),
            ("root = \"lake\"", "missing key `topics`; add it to the file, or set LAKE_TOPICS"),
            ("topics = []", "missing key `root`; add it to the file, or set LAKE_ROOT"),
            ("topics = []\nroot = 1", "key `root`: expected a text, found a whole number"),
            ("topics = []\n[batch]\nrecord_max = 1", "unknown key `batch.record_max`; known here: records_max"),
            ("topics = [", "TOML parse error at line 1"),
        ] {
            let message = parts(toml).unwrap_err();
            assert!(message.contains(told), "{message}\nshould say\n{told}");
        }
    }
}

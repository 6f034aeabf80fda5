//! One TOML file and environment overrides into a typed configuration; unknown keys are errors.
//!
//! `LAKE_HQ__DATABASE__URL=…` overrides `url` in `[hq.database]`: prefix `LAKE_`, two underscores between levels.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use figment::providers::{Env, Format, Toml};
use figment::{Figment, Metadata};
use serde::de::DeserializeOwned;

mod parts;

pub use self::parts::load_parts;

/// Prefix of environment variables that override the file.
pub const ENVIRONMENT_PREFIX: &str = "LAKE_";

/// A configuration that cannot be used. One line: what is wrong with which key, and where it came from.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration file {path} cannot be read: {reason}; check --config")]
    Unreadable {
        /// Path of the file.
        path: PathBuf,
        /// What the operating system says.
        reason: String,
    },
    /// A key is unknown, missing, of the wrong type or out of range.
    #[error("configuration {source_name}: {reason}")]
    Invalid {
        /// Path of the file, or `environment`.
        source_name: String,
        /// The key and what is wrong with it.
        reason: String,
    },
}

/// Reads the file, applies the environment, and parses the result.
///
/// # Errors
///
/// The file cannot be read, or a key is unknown, missing, of the wrong type or out of range.
pub fn load<C: DeserializeOwned>(path: Option<&Path>) -> Result<C, ConfigError> {
    let figment = Figment::from(Toml::string(&read(path)?)).merge(environment());
    figment.extract().map_err(|error| describe(path, error))
}

/// The text of the file; empty without one.
fn read(path: Option<&Path>) -> Result<String, ConfigError> {
    let Some(path) = path else { return Ok(String::new()) };
    std::fs::read_to_string(path)
        .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), reason: error.to_string() })
}

/// The variables that are configuration.
fn environment() -> Env {
    let reserved = |name: &str| RESERVED.iter().any(|reserved| name.eq_ignore_ascii_case(reserved));
    Env::prefixed(ENVIRONMENT_PREFIX).filter(move |key| !reserved(key.as_str())).split("__")
}

/// Variables with our prefix that are not configuration: `LAKE_CONFIG` names the file, `LAKE_LOG` the log filter.
const RESERVED: [&str; 3] = ["config", "log", "test_parts"];

fn describe(path: Option<&Path>, error: figment::Error) -> ConfigError {
    use figment::error::Kind;
    // Only the first error, as one clear line. Values are not shown: they may be secrets.
    let Some(first) = error.into_iter().next() else {
        return ConfigError::Invalid { source_name: source_name(path, None), reason: "it cannot be understood".into() };
    };
    let from_environment = is_environment(first.metadata.as_ref());
    let source_name = source_name(path, first.metadata.as_ref());
    let key = first.path.join(".");
    let reason = match &first.kind {
        Kind::UnknownField(name, known) => unknown_key(&full_key(&first.path, name), known),
        Kind::MissingField(name) => missing(&full_key(&first.path, name)),
        Kind::InvalidType(found, expected) => {
            let (found, wanted) = (type_name(found), wanted(expected));
            let advice = match (from_environment, &*wanted) {
                (true, "a text") => r#"; in a variable, put double quotes around it: '"12345"'"#,
                (true, "a list") => r#"; in a variable, write it as ["one", "two"]"#,
                _ => "",
            };
            format!("key `{key}`: expected {wanted}, found {found}{advice}")
        }
        Kind::InvalidValue(_, expected) => format!("key `{key}`: expected {}", wanted(expected)),
        Kind::UnknownVariant(found, known) => {
            format!("key `{key}`: `{found}` is not one of {}", known.join(", "))
        }
        Kind::Message(text) if key.is_empty() => without_source(text),
        other => format!("key `{key}`: {other}"),
    };
    ConfigError::Invalid { source_name, reason }
}

fn is_environment(source: Option<&Metadata>) -> bool {
    source.is_some_and(|source| source.name.contains("environment"))
}

/// Where a value came from, for people.
fn source_name(path: Option<&Path>, source: Option<&Metadata>) -> String {
    match path {
        _ if is_environment(source) => "environment".to_owned(),
        None => "environment (no --config given)".to_owned(),
        Some(path) => path.display().to_string(),
    }
}

fn unknown_key(key: &str, known: &[&str]) -> String {
    format!("unknown key `{key}`; known here: {}", known.join(", "))
}

fn missing(key: &str) -> String {
    // The members of a list cannot be given one by one in the environment.
    if key.split('.').any(|part| part.parse::<usize>().is_ok()) {
        return format!("missing key `{key}`; add it to the file");
    }
    let variable = key.to_ascii_uppercase().replace('.', "__");
    format!("missing key `{key}`; add it to the file, or set {ENVIRONMENT_PREFIX}{variable}")
}

/// The path of an error leads to the key itself or to the section that it is in.
fn full_key(path: &[String], name: &str) -> String {
    let section = path.strip_suffix(&[name.to_owned()]).unwrap_or(path);
    section.iter().map(String::as_str).chain([name]).collect::<Vec<_>>().join(".")
}

/// The parser shows the line that it could not read, in which there may be a secret; place and reason are enough.
fn without_source(text: &str) -> String {
    let is_source = |line: &&str| line.trim_start_matches(|c: char| c == ' ' || c.is_ascii_digit()).starts_with('|');
    let told: Vec<&str> = text.lines().filter(|line| !is_source(line) && !line.trim().is_empty()).collect();
    told.join(": ")
}

fn type_name(actual: &figment::error::Actual) -> &'static str {
    use figment::error::Actual;
    match actual {
        Actual::Bool(_) => "true or false",
        Actual::Unsigned(_) | Actual::Signed(_) => "a whole number",
        Actual::Float(_) => "a number",
        Actual::Char(_) | Actual::Str(_) => "a text",
        Actual::Seq => "a list",
        Actual::Map => "a section",
        _ => "something else",
    }
}

/// What was expected, in words of the file instead of the program.
fn wanted(expected: &str) -> Cow<'_, str> {
    let last = expected.rsplit(' ').next().unwrap_or_default();
    match expected {
        "a string" | "path string" => "a text".into(),
        "a boolean" => "true or false".into(),
        "a sequence" => "a list".into(),
        "a map" => "a section".into(),
        _ if expected.starts_with("struct ") => "a section".into(),
        _ if expected.starts_with("enum ") => "one of the known words".into(),
        _ if expected.starts_with("a nonzero ") => "a whole number, at least 1".into(),
        _ if last.starts_with(['u', 'i']) && last[1..].parse::<u8>().is_ok() || matches!(last, "usize" | "isize") => {
            "a whole number".into()
        }
        _ if matches!(last, "f64" | "f32") => "a number".into(),
        _ => expected.into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only what is wrong with them matters")]
    struct Sample {
        batch_records_max: usize,
        #[serde(default)]
        servers: Vec<String>,
        #[serde(default)]
        shards: Vec<Shard>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only what is wrong with them matters")]
    struct Shard {
        first: std::num::NonZeroU64,
    }

    fn message(toml: &str) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), toml).unwrap();
        let message = load::<Sample>(Some(file.path())).unwrap_err().to_string();
        assert!(!message.contains('\n') && !message.contains("hunter2"), "{message}");
        message
    }

    #[test]
    fn trouble_is_told_in_one_line_that_names_the_key() {
        for (toml, told) in [
            ("batch_record_max = 1", "unknown key `batch_record_max`; known here: batch_records_max, servers, shards"),
            ("", "missing key `batch_records_max`; add it to the file, or set LAKE_BATCH_RECORDS_MAX"),
            ("batch_records_max = \"hunter2\"", "key `batch_records_max`: expected a whole number, found a text"),
            ("batch_records_max = -1", "key `batch_records_max`: expected a whole number"),
            ("batch_records_max = 1\nservers = \"hunter2\"", "key `servers`: expected a list, found a text"),
            ("batch_records_max = 1\nshards = [{}]", "missing key `shards.0.first`; add it to the file"),
            (
                "batch_records_max = 1\nshards = [{first = 0}]",
                "key `shards.0.first`: expected a whole number, at least 1",
            ),
            (
                "batch_records_max = 1\nshards = [{first = 1, last = 2}]",
                "unknown key `shards.0.last`; known here: first",
            ),
            ("servers = [\"hunter2\",\n2 3]", "TOML parse error at line 2"),
            ("password = \"hunter2", "TOML parse error at line 1"),
        ] {
            let message = message(toml);
            assert!(message.contains(told), "{message}\nshould say\n{told}");
        }
        assert!(load::<Sample>(Some(Path::new("/nowhere.toml"))).unwrap_err().to_string().contains("/nowhere.toml"));
    }
}

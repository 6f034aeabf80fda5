//! One TOML file and environment overrides into a typed configuration; unknown keys are errors.
//!
//! `LAKE_HQ__DATABASE__URL=…` overrides `url` in `[hq.database]`: prefix `LAKE_`, two underscores between levels.

use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Env, Format, Toml};
use serde::de::DeserializeOwned;

/// Prefix of environment variables that override the file.
pub const ENVIRONMENT_PREFIX: &str = "LAKE_";

/// A configuration that cannot be used. One line: what is wrong with which key, and where it came from.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration file {path} cannot be read: {reason}; check --config")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A key is unknown, missing, of the wrong type or out of range.
    #[error("configuration {source_name}: {reason}")]
    Invalid {
        /// File or environment.
        source_name: String,
        /// Which key and what is wrong.
        reason: String,
    },
}

/// Reads the file, applies the environment, and parses the result.
pub fn load<C: DeserializeOwned>(path: Option<&Path>) -> Result<C, ConfigError> {
    let mut figment = Figment::new();
    if let Some(path) = path {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), reason: error.to_string() })?;
        figment = figment.merge(Toml::string(&text));
    }
    let reserved = |name: &str| RESERVED.iter().any(|reserved| name.eq_ignore_ascii_case(reserved));
    let environment = Env::prefixed(ENVIRONMENT_PREFIX).filter(move |key| !reserved(key.as_str())).split("__");
    figment.merge(environment).extract().map_err(|error| describe(path, error))
}

/// Variables with our prefix that are not configuration: `LAKE_CONFIG` names the file, `LAKE_LOG` the log filter.
const RESERVED: [&str; 3] = ["config", "log", "test_parts"];

fn describe(path: Option<&Path>, error: figment::Error) -> ConfigError {
    // Only the first trouble: one clear line. A value is not shown, it may be a secret.
    let Some(first) = error.into_iter().next() else {
        return ConfigError::Invalid { source_name: "(none)".into(), reason: "unreadable".into() };
    };
    let key = if first.path.is_empty() { String::new() } else { format!("key `{}`: ", first.path.join(".")) };
    let from_environment = first.metadata.as_ref().is_some_and(|metadata| metadata.name.contains("environment"));
    let source_name = match path {
        _ if from_environment => "environment".to_owned(),
        Some(path) => path.display().to_string(),
        None => "environment".to_owned(),
    };
    use figment::error::Kind;
    let reason = match &first.kind {
        Kind::InvalidType(found, expected) => format!("expected {expected}, found {}", type_name(found)),
        Kind::UnknownField(name, known) => {
            format!("unknown key `{name}`; known here: {}", known.join(", "))
        }
        Kind::InvalidValue(_, expected) => format!("value is not valid, expected {expected}"),
        Kind::MissingField(name) => format!("missing key `{name}`"),
        other => other.to_string(),
    };
    ConfigError::Invalid { source_name, reason: format!("{key}{reason}") }
}

fn type_name(actual: &figment::error::Actual) -> &'static str {
    use figment::error::Actual;
    match actual {
        Actual::Bool(_) => "a boolean",
        Actual::Unsigned(_) | Actual::Signed(_) => "an integer",
        Actual::Float(_) => "a number",
        Actual::Char(_) | Actual::Str(_) => "a string",
        Actual::Seq => "a list",
        Actual::Map => "a section",
        _ => "another type",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[allow(dead_code, reason = "only its absence matters")]
        batch_records_max: usize,
    }

    fn message(toml: &str) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), toml).unwrap();
        load::<Sample>(Some(file.path())).unwrap_err().to_string()
    }

    #[test]
    fn trouble_is_told_in_one_line_that_names_the_key() {
        assert!(message("batch_record_max = 1").contains("unknown key `batch_record_max`"));
        assert!(message("").contains("missing key `batch_records_max`"));
        let wrong = message("batch_records_max = \"hunter2\"");
        assert!(wrong.contains("key `batch_records_max`") && !wrong.contains("hunter2"), "{wrong}");
        assert!(!message("batch_records_max = [").contains('\n'));
        assert!(load::<Sample>(Some(Path::new("/nowhere.toml"))).unwrap_err().to_string().contains("/nowhere.toml"));
    }
}

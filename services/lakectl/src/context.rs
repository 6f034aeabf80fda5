//! Contexts: where lakes are and how to reach them, in one file that only its owner may read, as it holds tokens.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use etcetera::BaseStrategy;
use serde::{Deserialize, Serialize};

use crate::exit::ContextTrouble;

/// Variable with a token that is used instead of that of the context.
const TOKEN_VARIABLE: &str = "LAKECTL_TOKEN";

/// Where a writer on this machine answers, if it has the address of the sample; for those who have no context.
const LOCAL: &str = "http://127.0.0.1:9700";

/// Variable with another place of the file.
const FILE_VARIABLE: &str = "LAKECTL_CONFIG";

/// All contexts.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Contexts {
    /// Name of the one that is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) selected: Option<String>,
    /// By name.
    #[serde(default)]
    pub(crate) contexts: BTreeMap<String, Context>,
}

/// One lake.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    /// Address of a writer.
    pub(crate) server: String,
    /// File with the root certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<PathBuf>,
    /// File with the certificate of this client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) client_certificate: Option<PathBuf>,
    /// File with its private key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) client_key: Option<PathBuf>,
    /// The bearer token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<Token>,
}

/// A token, which is never shown.
#[derive(Clone, Deserialize, Serialize)]
#[serde(transparent)]
pub(crate) struct Token(pub(crate) String);

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}

/// The file of contexts: `LAKECTL_CONFIG`, else `commcare-lake/lakectl.toml` in the user's folder of configurations.
///
/// # Errors
/// There is no home folder.
pub(crate) fn file() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(FILE_VARIABLE) {
        return Ok(path.into());
    }
    let places = etcetera::choose_base_strategy().context("there is no home folder; set LAKECTL_CONFIG")?;
    Ok(places.config_dir().join("commcare-lake/lakectl.toml"))
}

impl Contexts {
    /// Reads a file; one that is not there has no contexts.
    ///
    /// # Errors
    /// It cannot be read or understood, or others than its owner may read it.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(trouble(path, &format!("cannot be read: {error}"))),
        };
        let mode = std::fs::metadata(path).map(|found| found.permissions().mode() & 0o777).unwrap_or_default();
        if mode & 0o077 != 0 {
            return Err(trouble(path, &format!("holds tokens, but others may read it (mode {mode:o}); chmod 600 it")));
        }
        toml::from_str(&text).map_err(|error| trouble(path, &format!("cannot be understood: {}", error.message())))
    }

    /// Replaces the file, which only its owner may read.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let written = || -> Result<()> {
            let folder = path.parent().unwrap_or(Path::new("."));
            std::fs::create_dir_all(folder)?;
            let new = path.with_extension("toml.new");
            let _ = std::fs::remove_file(&new);
            let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(toml::to_string(self)?.as_bytes())?;
            file.sync_all()?;
            Ok(std::fs::rename(new, path)?)
        };
        written().map_err(|error| trouble(path, &format!("cannot be written: {error}")))
    }

    /// The lake to ask: that of the named context, else the one at the address, else that of the selected context, else that of the only one, else the
    /// one on this machine. A token in the environment is used instead of the context's.
    ///
    /// # Errors
    /// There is no such context.
    pub(crate) fn lake(&self, named: Option<&str>, address: Option<&str>) -> Result<Context> {
        let mut context = match (named, address) {
            (None, Some(address)) => Context { server: address.to_owned(), ..Context::default() },
            (None, None) if self.contexts.is_empty() => Context { server: LOCAL.to_owned(), ..Context::default() },
            (named, _) => self.choose(named)?,
        };
        if let Ok(token) = std::env::var(TOKEN_VARIABLE) {
            context.token = Some(Token(token));
        }
        Ok(context)
    }

    /// The named context, else the selected one, else the only one.
    ///
    /// # Errors
    /// There is no such context.
    pub(crate) fn choose(&self, named: Option<&str>) -> Result<Context> {
        let only = || self.contexts.keys().next().filter(|_| self.contexts.len() == 1).map(String::as_str);
        let Some(name) = named.or(self.selected.as_deref()).or_else(only) else {
            let text = "no context is selected; add one: lakectl context add NAME --server ADDRESS".to_owned();
            return Err(ContextTrouble(text).into());
        };
        let found = self.contexts.get(name).cloned();
        let absent = || format!("there is no context `{name}`; lakectl context list shows those that there are");
        found.ok_or_else(|| ContextTrouble(absent()).into())
    }
}

fn trouble(path: &Path, what: &str) -> anyhow::Error {
    ContextTrouble(format!("{} {what}", path.display())).into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn context(server: &str) -> Context {
        let token = Some(Token("secret".into()));
        Context { server: server.into(), ca: None, client_certificate: None, client_key: None, token }
    }

    #[test]
    fn the_file_is_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/lakectl.toml");
        assert!(Contexts::read(&path).unwrap().contexts.is_empty());
        let contexts = Contexts { selected: None, contexts: [("prod".to_owned(), context("https://w:1"))].into() };
        contexts.write(&path).unwrap();
        contexts.write(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let read = Contexts::read(&path).unwrap();
        assert_eq!(read.contexts["prod"].token.as_ref().unwrap().0, "secret");
        assert!(!format!("{read:?}").contains("secret"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(Contexts::read(&path).unwrap_err().to_string().contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "token = 'secret'").unwrap();
        let error = Contexts::read(&path).unwrap_err().to_string();
        assert!(error.contains("cannot be understood") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn a_context_is_named_or_selected_or_the_only_one() {
        let mut contexts = Contexts::default();
        assert!(contexts.choose(None).unwrap_err().to_string().contains("context add"));
        assert_eq!(contexts.lake(None, None).unwrap().server, LOCAL);
        contexts.contexts.insert("a".into(), context("http://a:1"));
        assert_eq!(contexts.choose(None).unwrap().server, "http://a:1");
        contexts.contexts.insert("b".into(), context("http://b:1"));
        assert!(contexts.choose(None).is_err());
        contexts.selected = Some("b".into());
        assert_eq!(contexts.choose(None).unwrap().server, "http://b:1");
        assert_eq!(contexts.choose(Some("a")).unwrap().server, "http://a:1");
        assert_eq!(contexts.lake(None, Some("http://c:1")).unwrap().server, "http://c:1");
        assert_eq!(contexts.lake(Some("a"), Some("http://c:1")).unwrap().server, "http://a:1");
        assert!(contexts.choose(Some("c")).unwrap_err().to_string().contains("`c`"));
    }
}

//! Section `[catalog]`.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// Which catalog there is.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum CatalogKind {
    /// None: readers open tables by their locations.
    #[default]
    None,
    /// A Hive Metastore, by its Thrift service.
    Hive,
}

/// Which databases of the catalog the tables are in.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum DatabaseNaming {
    /// A database for each project: `demo.case_sql_person`.
    #[default]
    PerProject,
    /// One database for all, with the names that the lake has: `default.demo_case_sql_person`.
    One,
}

/// Section `[catalog]`: where tables are registered so that readers find them by name.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct CatalogOptions {
    /// Which catalog there is.
    pub kind: CatalogKind,
    /// Addresses of the service, `thrift://host:9083`, tried one after another.
    pub uris: Vec<String>,
    /// A database for each project, or one.
    pub databases: DatabaseNaming,
    /// The one database.
    pub database: String,
    /// Begins the name of the database of each project.
    pub database_prefix: String,
    /// Whether the columns are registered too, for tools that ask the catalog alone.
    pub columns: bool,
    /// The root of the lake, as readers of the catalog open it; absent: `store.root`, with `s3a://` for `s3://`.
    pub root: Option<String>,
    /// Certificates of who signs for the service; with them the connection is encrypted.
    pub ca_file: Option<PathBuf>,
    /// How long a connection may take, milliseconds.
    pub connect_timeout_ms: u64,
    /// How long the service may take to answer, milliseconds.
    pub request_timeout_ms: u64,
    /// Minutes between two comparisons of all tables.
    pub compare_every_minutes: u64,
}

impl Default for CatalogOptions {
    /// No catalog; of one, a database for each project, without columns, compared every 10 minutes.
    fn default() -> Self {
        Self {
            kind: CatalogKind::None,
            uris: Vec::new(),
            databases: DatabaseNaming::PerProject,
            database: "default".into(),
            database_prefix: String::new(),
            columns: false,
            root: None,
            ca_file: None,
            connect_timeout_ms: 5_000,
            request_timeout_ms: 60_000,
            compare_every_minutes: 10,
        }
    }
}

/// Host and port of an address of a Thrift service.
pub(super) fn host_and_port(uri: &str) -> Result<(String, u16), String> {
    let wrong = || format!("`{uri}` is not of the form thrift://host:9083");
    let (host, port) = uri.strip_prefix("thrift://").and_then(|rest| rest.rsplit_once(':')).ok_or_else(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = port.trim_end_matches('/').parse().map_err(|_| wrong())?;
    if host.is_empty() || host.contains(['/', '@']) { Err(wrong()) } else { Ok((host.to_owned(), port)) }
}

impl CatalogOptions {
    /// Rules that types cannot express.
    ///
    /// # Errors
    ///
    /// The key that breaks a rule and what to do.
    pub fn validate(&self) -> Result<(), String> {
        if self.kind == CatalogKind::None {
            return Ok(());
        }
        if self.uris.is_empty() {
            return Err("key `catalog.uris`: it is empty; give the address of the metastore, thrift://host:9083".into());
        }
        for uri in &self.uris {
            host_and_port(uri).map_err(|reason| format!("key `catalog.uris`: {reason}"))?;
        }
        let is_word = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if self.database.is_empty() || !is_word(&self.database) {
            return Err("key `catalog.database`: give a name of letters, digits and _".into());
        }
        if !is_word(&self.database_prefix) || self.database_prefix.len() > 64 {
            return Err("key `catalog.database_prefix`: give at most 64 letters, digits and _".into());
        }
        if self.root.as_ref().is_some_and(|root| !root.contains(":/")) {
            return Err("key `catalog.root`: give a URL such as s3a://bucket/prefix".into());
        }
        for (key, value) in [
            ("connect_timeout_ms", self.connect_timeout_ms),
            ("request_timeout_ms", self.request_timeout_ms),
            ("compare_every_minutes", self.compare_every_minutes),
        ] {
            if value == 0 {
                return Err(format!("key `catalog.{key}`: it is 0; give at least 1"));
            }
        }
        Ok(())
    }

    pub(super) const fn compare_every(&self) -> Duration {
        Duration::from_secs(self.compare_every_minutes.saturating_mul(60))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hive(change: impl FnOnce(&mut CatalogOptions)) -> Result<(), String> {
        let mut options = CatalogOptions {
            kind: CatalogKind::Hive,
            uris: vec!["thrift://one:9083".into(), "thrift://[::1]:9083".into()],
            ..CatalogOptions::default()
        };
        change(&mut options);
        options.validate()
    }

    #[test]
    fn what_cannot_be_used_is_told_by_its_key() {
        assert_eq!((hive(|_| ()), CatalogOptions::default().validate()), (Ok(()), Ok(())));
        let told = |change: fn(&mut CatalogOptions), key: &str| {
            let told = hive(change);
            assert!(told.as_ref().is_err_and(|told| told.contains(key)), "{key}: {told:?}");
        };
        told(|options| options.uris.clear(), "catalog.uris");
        told(|options| options.uris.push("http://one:9083".into()), "catalog.uris");
        told(|options| options.uris.push("thrift://one".into()), "catalog.uris");
        told(|options| options.uris.push("thrift://:9083".into()), "catalog.uris");
        told(|options| options.database = "a.b".into(), "catalog.database`");
        told(|options| options.database_prefix = "a-".into(), "catalog.database_prefix");
        told(|options| options.root = Some("bucket".into()), "catalog.root");
        told(|options| options.request_timeout_ms = 0, "catalog.request_timeout_ms");
    }

    #[test]
    fn addresses_have_host_and_port() {
        assert_eq!(host_and_port("thrift://[::1]:9083"), Ok(("::1".into(), 9083)));
        assert_eq!(host_and_port("thrift://hive.lake:1/"), Ok(("hive.lake".into(), 1)));
    }
}

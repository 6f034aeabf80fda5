//! Users from HQ's CouchDB, the source of truth.

use std::collections::HashMap;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use lake_shared::secret::Secret;
use serde::Deserialize;
use serde_json::{Value, json};

use super::http::Server;
use super::{REQUESTS_MAX, primary_location, unanswered};
use crate::source::{SourceError, UserDirectory};

/// How HQ's CouchDB is reached.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CouchdbConfig {
    /// Address, for example `http://couchdb:5984`.
    pub url: Secret,
    /// Users' database, for example `commcarehq__users`.
    pub database: String,
    /// User name, where one is needed.
    #[serde(default)]
    pub user: Option<String>,
    /// Password of the user.
    #[serde(default)]
    pub password: Option<Secret>,
    /// How long one request may take, milliseconds.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
}

fn default_timeout_ms() -> u64 {
    10_000
}

/// The port [`UserDirectory`] over CouchDB's `_all_docs`.
pub struct CouchdbUsers {
    server: Server,
    database: String,
}

impl CouchdbUsers {
    /// Checks the configuration and asks whether the database is there.
    ///
    /// # Errors
    /// [`SourceError::Unavailable`] where the server does not answer; [`SourceError::Refused`] where address, database or permission is wrong.
    pub async fn connect(config: &CouchdbConfig) -> Result<Self, SourceError> {
        let server =
            Server::new("CouchDB", &config.url, config.user.as_ref(), config.password.as_ref(), config.timeout_ms)?;
        let users = Self { server, database: config.database.clone() };
        users.check().await?;
        Ok(users)
    }

    async fn ask(&self, domain: &str, ids: Vec<String>) -> Result<Vec<(String, Option<String>)>, SourceError> {
        let action = format!("read {} users", ids.len());
        let path = [self.database.as_str(), "_all_docs"];
        let mut answer =
            self.server.ask(&action, &path, &[("include_docs", "true")], Some(&json!({"keys": ids}))).await?;
        let Some(Value::Array(rows)) = answer.get_mut("rows").map(Value::take) else {
            return Err(SourceError::Refused {
                action: format!("{action} from {}", self.server.name()),
                reason: "the answer has no rows; is this CouchDB?".into(),
            });
        };
        Ok(located(rows, domain))
    }
}

/// Rows of ids that are unknown have an error, rows of deleted documents a null document.
fn located(rows: Vec<Value>, domain: &str) -> Vec<(String, Option<String>)> {
    rows.iter()
        .filter_map(|row| {
            let id = row.get("key").or_else(|| row.get("id"))?.as_str()?.to_owned();
            Some((id, row.get("doc").and_then(Value::as_object).and_then(|user| primary_location(user, domain))))
        })
        .collect()
}

#[async_trait]
impl UserDirectory for CouchdbUsers {
    async fn locations(
        &self,
        domain: &str,
        user_ids: &[String],
    ) -> Result<HashMap<String, Option<String>>, SourceError> {
        let (mut answers, batches) = unanswered(user_ids);
        let asked = stream::iter(batches).map(|ids| self.ask(domain, ids)).buffer_unordered(REQUESTS_MAX);
        let found: Vec<Vec<(String, Option<String>)>> = asked.try_collect().await?;
        answers.extend(found.into_iter().flatten());
        Ok(answers)
    }

    async fn check(&self) -> Result<(), SourceError> {
        self.server.ask("read about the users' database", &[&self.database], &[], None).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn unknown_and_deleted_documents_have_no_location() {
        let rows = json!([
            {"id": "u1", "key": "u1", "value": {"rev": "9-a"}, "doc": {"_id": "u1", "domain": "demo", "location_id": "l1"}},
            {"key": "u2", "error": "not_found"},
            {"id": "u3", "key": "u3", "value": {"rev": "2-b", "deleted": true}, "doc": null},
        ]);
        let expected = [("u1".to_owned(), Some("l1".to_owned())), ("u2".to_owned(), None), ("u3".to_owned(), None)];
        assert_eq!(located(rows.as_array().unwrap().clone(), "demo"), expected);
    }
}

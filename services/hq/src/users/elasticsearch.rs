//! Users from HQ's Elasticsearch, versions 2 to 8.

use std::collections::HashMap;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use lake_shared::secret::Secret;
use serde::Deserialize;
use serde_json::{Value, json};

use super::http::Server;
use super::{FIELDS, REQUESTS_MAX, primary_location, unanswered};
use crate::source::{SourceError, UserDirectory};

/// How HQ's Elasticsearch is reached.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ElasticsearchConfig {
    /// Address, for example `http://elasticsearch:9200`.
    pub url: Secret,
    /// Users' index or alias, for example `users-20230524`; `GET _cat/aliases` lists what there is.
    pub index: String,
    /// Name of the mapping type, `user` in HQ; needed before version 7, where there are no types any more.
    #[serde(default)]
    pub type_name: Option<String>,
    /// Which request is used.
    #[serde(default)]
    pub mode: ElasticsearchMode,
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

/// How Elasticsearch is asked.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ElasticsearchMode {
    /// `_mget`: sees what was indexed at once. An alias of several indices cannot be asked so.
    #[default]
    Mget,
    /// `_search`: sees what was indexed after the next refresh.
    Search,
}

fn default_timeout_ms() -> u64 {
    10_000
}

/// The port [`UserDirectory`] over Elasticsearch.
pub struct ElasticsearchUsers {
    server: Server,
    index: String,
    type_name: Option<String>,
    mode: ElasticsearchMode,
}

impl ElasticsearchUsers {
    /// Checks the configuration and asks whether the index is there.
    ///
    /// # Errors
    /// [`SourceError::Unavailable`] where the server does not answer; [`SourceError::Refused`] where address, index or permission is wrong.
    pub async fn connect(config: &ElasticsearchConfig) -> Result<Self, SourceError> {
        let server = Server::new(
            "Elasticsearch",
            &config.url,
            config.user.as_ref(),
            config.password.as_ref(),
            config.timeout_ms,
        )?;
        let users =
            Self { server, index: config.index.clone(), type_name: config.type_name.clone(), mode: config.mode };
        users.check().await?;
        Ok(users)
    }

    async fn ask(&self, domain: &str, ids: &[String]) -> Result<Vec<(String, Option<String>)>, SourceError> {
        let action = format!("read {} users", ids.len());
        let (operation, body) = match self.mode {
            ElasticsearchMode::Mget => ("_mget", mget_body(ids)),
            ElasticsearchMode::Search => ("_search", search_body(ids)),
        };
        let mut path = vec![self.index.as_str()];
        path.extend(self.type_name.as_deref());
        path.push(operation);
        let answer = self.server.ask(&action, &path, &[], Some(&body)).await?;
        let documents = match self.mode {
            ElasticsearchMode::Mget => mget_documents(&answer),
            ElasticsearchMode::Search => search_documents(&answer),
        };
        let documents = documents.map_err(|trouble| trouble.of(format!("{action} from {}", self.server.name())))?;
        Ok(documents.iter().filter_map(|document| located(document, domain)).collect())
    }
}

#[async_trait]
impl UserDirectory for ElasticsearchUsers {
    async fn locations(
        &self,
        domain: &str,
        user_ids: &[String],
    ) -> Result<HashMap<String, Option<String>>, SourceError> {
        let (mut answers, batches) = unanswered(user_ids);
        let asked = stream::iter(batches).map(async |ids| self.ask(domain, &ids).await).buffer_unordered(REQUESTS_MAX);
        let found: Vec<Vec<(String, Option<String>)>> = asked.try_collect().await?;
        answers.extend(found.into_iter().flatten());
        Ok(answers)
    }

    async fn check(&self) -> Result<(), SourceError> {
        // A question like the real ones: it needs the index, the type and the permission.
        self.ask("", &["commcare-lake-asks".to_owned()]).await.map(drop)
    }
}

fn mget_body(ids: &[String]) -> Value {
    let documents: Vec<Value> = ids.iter().map(|id| json!({"_id": id, "_source": FIELDS})).collect();
    json!({"docs": documents})
}

fn search_body(ids: &[String]) -> Value {
    json!({
        "size": ids.len(),
        "_source": FIELDS,
        "query": {"bool": {
            "filter": [{"terms": {"_id": ids}}, {"term": {"base_doc": "couchuser"}}],
            "must": {"match_all": {}}
        }}
    })
}

/// What is wrong with an answer that came with status 200.
#[derive(Debug, PartialEq, Eq)]
enum Trouble {
    Passing(String),
    Lasting(String),
}

impl Trouble {
    fn of(self, action: String) -> SourceError {
        match self {
            Self::Passing(reason) => SourceError::Unavailable { action, reason },
            Self::Lasting(reason) => SourceError::Refused { action, reason },
        }
    }
}

fn mget_documents(answer: &Value) -> Result<&[Value], Trouble> {
    let documents = answer.get("docs").and_then(Value::as_array);
    let documents =
        documents.ok_or_else(|| Trouble::Lasting("the answer has no docs; is this Elasticsearch?".into()))?;
    // An unknown user is `found: false`; an error means that a shard or the index could not be asked.
    match documents.iter().find_map(|document| document.get("error")) {
        None => Ok(documents),
        Some(error) => {
            // A text before version 5, an object since.
            let said = error.get("reason").and_then(Value::as_str).map_or_else(|| error.to_string(), str::to_owned);
            let text = error.to_string();
            let lasting =
                text.contains("index_not_found") || text.contains("no such index") || text.contains("illegal_argument");
            Err(if lasting {
                Trouble::Lasting(format!("{said}; check index and mode"))
            } else {
                Trouble::Passing(said)
            })
        }
    }
}

fn search_documents(answer: &Value) -> Result<&[Value], Trouble> {
    // Missing hits would look like users without a location, so a part of the answer is no answer.
    let failed = answer.pointer("/_shards/failed").and_then(Value::as_u64).unwrap_or(0);
    if failed > 0 || answer.get("timed_out").and_then(Value::as_bool) == Some(true) {
        return Err(Trouble::Passing(format!("only a part was searched ({failed} shards failed)")));
    }
    let hits = answer.pointer("/hits/hits").and_then(Value::as_array).map(Vec::as_slice);
    hits.ok_or_else(|| Trouble::Lasting("the answer has no hits; is this Elasticsearch?".into()))
}

fn located(document: &Value, domain: &str) -> Option<(String, Option<String>)> {
    let id = document.get("_id")?.as_str()?.to_owned();
    Some((id, document.get("_source").and_then(Value::as_object).and_then(|user| primary_location(user, domain))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn answers_of_mget_in_every_version() {
        for extra in [json!({"_type": "user"}), json!({})] {
            let mut hit = json!({"_index": "users", "_id": "u1", "found": true, "_source": {"domain": "demo", "location_id": "l1"}});
            hit.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            let answer = json!({"docs": [hit, {"_index": "users", "_id": "u2", "found": false}]});
            let found: Vec<_> =
                mget_documents(&answer).unwrap().iter().filter_map(|hit| located(hit, "demo")).collect();
            assert_eq!(found, [("u1".to_owned(), Some("l1".to_owned())), ("u2".to_owned(), None)]);
        }
    }

    #[test]
    fn errors_inside_a_good_answer_are_errors() {
        let missing = json!({"type": "index_not_found_exception", "reason": "no such index", "index": "users"});
        let answer = json!({"docs": [{"_index": "users", "_id": "u1", "error": missing}]});
        assert!(matches!(mget_documents(&answer), Err(Trouble::Lasting(_))));
        let busy = json!({"docs": [{"_id": "u1", "error": {"type": "no_shard_available_action_exception", "reason": "No shard"}}]});
        assert_eq!(mget_documents(&busy), Err(Trouble::Passing("No shard".into())));
        let old = json!({"docs": [{"_id": "u1", "error": "[users] missing"}]});
        assert!(matches!(mget_documents(&old), Err(Trouble::Passing(_))));
        assert!(matches!(mget_documents(&json!({})), Err(Trouble::Lasting(_))));
    }

    #[test]
    fn a_part_of_a_search_is_no_answer() {
        let hits = json!({"hits": {"total": 1, "hits": [{"_id": "u1", "_source": {}}]}, "_shards": {"failed": 0}, "timed_out": false});
        assert_eq!(search_documents(&hits).unwrap().len(), 1);
        let part = json!({"hits": {"hits": []}, "_shards": {"total": 5, "failed": 1}});
        assert!(matches!(search_documents(&part), Err(Trouble::Passing(_))));
        let late = json!({"hits": {"hits": []}, "timed_out": true});
        assert!(matches!(search_documents(&late), Err(Trouble::Passing(_))));
    }
}

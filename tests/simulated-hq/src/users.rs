//! HQ's users, served as CouchDB and as Elasticsearch serve them, from one set of documents in memory.
//!
//! A user is visible in both at once: the delay of HQ's own indexing is not simulated. What is not known to either is answered with 501,
//! so that a reader that asks for more than this is noticed.

mod couchdb;
mod elasticsearch;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tracing::{error, info};

use crate::turn::Mutation;

/// The CouchDB database of users.
pub const DATABASE: &str = "commcarehq__users";

/// The Elasticsearch index of users.
pub const INDEX: &str = "users-20230524";

/// Names of the index besides its own.
pub const ALIASES: [&str; 2] = ["hqusers", "users"];

/// The documents of all users; clones share them.
#[derive(Clone, Debug, Default)]
pub struct UserDocuments {
    state: Arc<RwLock<State>>,
}

#[derive(Debug, Default)]
struct State {
    documents: BTreeMap<String, Value>,
    /// `_rev` of removed documents: CouchDB remembers them.
    removed: BTreeMap<String, String>,
    revisions: u64,
}

impl UserDocuments {
    /// Does what concerns users; other mutations are passed over. A document without `_rev` is given one.
    pub fn apply(&self, mutations: &[Mutation]) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        for mutation in mutations {
            match mutation {
                Mutation::PutUser { document } => state.put(document.clone()),
                Mutation::RemoveUser { id } => state.remove(id),
                _ => {}
            }
        }
    }

    /// The document of an id.
    pub fn document(&self, id: &str) -> Option<Value> {
        self.read().documents.get(id).cloned()
    }

    /// How many users there are.
    pub fn count(&self) -> usize {
        self.read().documents.len()
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next_revision(&mut self) -> String {
        self.revisions += 1;
        format!("{0}-{0:032x}", self.revisions)
    }

    fn put(&mut self, mut document: Value) {
        let Some(id) = document["_id"].as_str().map(str::to_owned) else {
            error!("a user document without _id was passed over");
            return;
        };
        if document["_rev"].is_null() {
            document["_rev"] = self.next_revision().into();
        }
        self.removed.remove(&id);
        self.documents.insert(id, document);
    }

    fn remove(&mut self, id: &str) {
        if self.documents.remove(id).is_some() {
            let revision = self.next_revision();
            self.removed.insert(id.to_owned(), revision);
        }
    }
}

/// The running server; it ends when this is dropped.
#[derive(Debug)]
pub struct UserServer {
    documents: UserDocuments,
    task: JoinHandle<()>,
}

impl UserServer {
    /// Starts on a free port of 127.0.0.1 and gives the address, `http://127.0.0.1:<port>`.
    ///
    /// # Errors
    ///
    /// When no port is free.
    pub async fn start() -> Result<(Self, String)> {
        Self::start_on((Ipv4Addr::LOCALHOST, 0).into(), UserDocuments::default()).await
    }

    /// Starts on this address and port with these documents.
    ///
    /// # Errors
    ///
    /// When the port is taken.
    pub async fn start_on(address: SocketAddr, documents: UserDocuments) -> Result<(Self, String)> {
        let listener = TcpListener::bind(address).await.with_context(|| format!("serve users on {address}"))?;
        let address = listener.local_addr().context("find the port of the user server")?;
        let router = router(documents.clone());
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                error!(%error, "user server ended");
            }
        });
        info!(%address, "serving users");
        Ok((Self { documents, task }, format!("http://{address}")))
    }

    /// The documents it serves.
    pub fn documents(&self) -> &UserDocuments {
        &self.documents
    }
}

impl Drop for UserServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn router(documents: UserDocuments) -> Router {
    Router::new()
        .route("/", get(welcome))
        .route("/_up", get(|| async { answer(StatusCode::OK, json!({"status": "ok"})) }))
        .route("/_cluster/health", get(elasticsearch::health))
        .route("/_cat/aliases", get(elasticsearch::aliases))
        .route("/{store}", get(couchdb::database))
        .route("/{store}/_all_docs", post(couchdb::all_docs))
        .route("/{store}/{name}", get(couchdb::document))
        .route("/{store}/_mget", get(elasticsearch::mget).post(elasticsearch::mget))
        .route("/{store}/{name}/_mget", get(elasticsearch::mget).post(elasticsearch::mget))
        .route("/{store}/_search", get(elasticsearch::search).post(elasticsearch::search))
        .route("/{store}/{name}/_search", get(elasticsearch::search).post(elasticsearch::search))
        .fallback(not_served)
        .method_not_allowed_fallback(not_served)
        .with_state(documents)
}

/// Both servers' greeting in one; a reader picks what it knows.
async fn welcome() -> Response {
    let body = json!({
        "couchdb": "Welcome",
        "cluster_name": "simulated-hq",
        "version": {"number": "6.8.23", "lucene_version": "7.7.3"},
        "tagline": "You Know, for Search",
    });
    elasticsearch::answer(StatusCode::OK, body)
}

async fn not_served() -> Response {
    unsupported("this path or method")
}

fn unsupported(what: &str) -> Response {
    let reason = format!("the simulated HQ does not serve {what}");
    elasticsearch::answer(StatusCode::NOT_IMPLEMENTED, json!({"error": "not_implemented", "reason": reason}))
}

fn answer(status: StatusCode, body: Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

fn bad_query(rejection: &QueryRejection) -> Response {
    answer(StatusCode::BAD_REQUEST, json!({"error": "query_parse_error", "reason": rejection.body_text()}))
}

/// Both servers insist on the content type of a body.
fn json_body(headers: &HeaderMap, body: &Bytes) -> Result<Value, Box<Response>> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !content_type.starts_with("application/json") {
        let reason = format!("Content-Type header [{content_type}] is not supported");
        let body = json!({"error": "bad_content_type", "reason": reason});
        return Err(Box::new(answer(StatusCode::UNSUPPORTED_MEDIA_TYPE, body)));
    }
    serde_json::from_slice(body).map_err(|error| {
        let body = json!({"error": "bad_request", "reason": format!("invalid JSON: {error}")});
        Box::new(answer(StatusCode::BAD_REQUEST, body))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn user(id: &str, location: Option<&str>) -> Mutation {
        Mutation::PutUser {
            document: json!({"_id": id, "doc_type": "CommCareUser", "base_doc": "CouchUser", "domain": "d", "location_id": location}),
        }
    }

    async fn served() -> (UserServer, String) {
        let (server, url) = UserServer::start().await.unwrap();
        let mutations = [
            user("u1", Some("loc1")),
            user("u2", None),
            user("gone", None),
            Mutation::RemoveUser { id: "gone".into() },
        ];
        server.documents().apply(&mutations);
        (server, url)
    }

    async fn post(url: String, body: Value) -> (StatusCode, Value) {
        let answer = reqwest::Client::new().post(url).json(&body).send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    #[tokio::test]
    async fn couchdb_gives_documents() {
        let (server, url) = served().await;
        let documents = format!("{url}/{DATABASE}/_all_docs?include_docs=true");
        let (status, body) = post(documents, json!({"keys": ["u1", "nobody", "gone"]})).await;
        assert_eq!(status, 200);
        assert_eq!(body["rows"][0]["doc"], server.documents().document("u1").unwrap());
        assert_eq!(body["rows"][1], json!({"key": "nobody", "error": "not_found"}));
        assert_eq!((&body["rows"][2]["value"]["deleted"], &body["rows"][2]["doc"]), (&json!(true), &Value::Null));

        let one = reqwest::get(format!("{url}/{DATABASE}/u1")).await.unwrap();
        assert_eq!(one.json::<Value>().await.unwrap()["location_id"], "loc1");
        for (path, reason) in [("nobody", "missing"), ("gone", "deleted")] {
            let none = reqwest::get(format!("{url}/{DATABASE}/{path}")).await.unwrap();
            assert_eq!(none.status(), 404);
            assert_eq!(none.json::<Value>().await.unwrap(), json!({"error": "not_found", "reason": reason}));
        }
        assert_eq!(reqwest::get(format!("{url}/other/u1")).await.unwrap().status(), 404);
    }

    #[tokio::test]
    async fn elasticsearch_gives_documents() {
        let (_server, url) = served().await;
        for path in [format!("{INDEX}/_mget"), "hqusers/user/_mget?_source=location_id".to_owned()] {
            let (status, body) = post(format!("{url}/{path}"), json!({"ids": ["u1", "gone"]})).await;
            assert_eq!(status, 200, "{path}");
            assert_eq!(body["docs"][0]["_source"]["location_id"], "loc1");
            assert_eq!(body["docs"][1]["found"], false);
        }
        let query = json!({"size": 1000, "_source": ["_id", "location_id"], "query": {"bool": {
            "filter": [{"terms": {"_id": ["u1", "u2", "gone"]}}, {"term": {"base_doc": "couchuser"}}],
            "must": {"match_all": {}},
        }}});
        let (status, body) = post(format!("{url}/users/_search"), query).await;
        assert_eq!((status.as_u16(), &body["hits"]["total"]), (200, &json!(2)));
        assert_eq!(body["hits"]["hits"][0]["_source"], json!({"_id": "u1", "location_id": "loc1"}));
        let aliases = reqwest::get(format!("{url}/_cat/aliases")).await.unwrap();
        assert_eq!(aliases.headers()["x-elastic-product"], "Elasticsearch");
        assert!(aliases.text().await.unwrap().starts_with("hqusers users-20230524 "));
    }

    #[tokio::test]
    async fn what_is_not_served_says_so() {
        let (_server, url) = served().await;
        let (status, body) = post(format!("{url}/users/_search"), json!({"query": {"prefix": {"_id": "u"}}})).await;
        assert_eq!(
            (status.as_u16(), body["reason"].as_str()),
            (501, Some("the simulated HQ does not serve the query prefix"))
        );
        for path in ["users/_bulk", "users/_count", "commcarehq__users/_find", "commcarehq__users/_all_docs", "a/b/c/d"]
        {
            assert_eq!(post(format!("{url}/{path}"), json!({})).await.0, 501, "{path}");
        }
        assert_eq!(post(format!("{url}/nothing/_search"), json!({})).await.0, 404);
        let typeless = reqwest::Client::new().post(format!("{url}/users/_mget")).body("{}").send().await.unwrap();
        assert_eq!(typeless.status(), 415);
    }
}

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

    /// One document.
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
fn json_body(headers: &HeaderMap, body: &Bytes) -> Result<Value, Response> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !content_type.starts_with("application/json") {
        let reason = format!("Content-Type header [{content_type}] is not supported");
        return Err(answer(StatusCode::UNSUPPORTED_MEDIA_TYPE, json!({"error": "bad_content_type", "reason": reason})));
    }
    serde_json::from_slice(body).map_err(|error| {
        answer(StatusCode::BAD_REQUEST, json!({"error": "bad_request", "reason": format!("invalid JSON: {error}")}))
    })
}

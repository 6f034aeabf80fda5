//! What Elasticsearch 6 answers, for the few requests that a reader of users needs.

mod query;

use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use self::query::{Condition, SourceFilter};
use super::{ALIASES, INDEX, UserDocuments, bad_query, json_body, unsupported};

/// Hits of a search that does not say how many it wants.
const DEFAULT_SIZE: usize = 10;

/// Elasticsearch refuses deeper result windows.
const WINDOW_MAX: usize = 10_000;

pub(super) fn answer(status: StatusCode, body: Value) -> Response {
    marked(super::answer(status, body))
}

/// Official clients refuse servers without this header.
fn marked(mut response: Response) -> Response {
    response.headers_mut().insert("x-elastic-product", HeaderValue::from_static("Elasticsearch"));
    response
}

fn refused(status: StatusCode, kind: &str, reason: &str) -> Response {
    answer(status, json!({"error": {"type": kind, "reason": reason}, "status": status.as_u16()}))
}

pub(super) fn is_index(name: &str) -> bool {
    name == INDEX || ALIASES.contains(&name)
}

fn no_index(name: &str) -> Response {
    refused(StatusCode::NOT_FOUND, "index_not_found_exception", &format!("no such index [{name}]"))
}

/// `GET /{index}`.
pub(super) fn index() -> Response {
    let aliases: serde_json::Map<String, Value> = ALIASES.iter().map(|&alias| (alias.to_owned(), json!({}))).collect();
    answer(StatusCode::OK, json!({INDEX: {"aliases": aliases, "mappings": {}, "settings": {}}}))
}

/// `GET /_cluster/health`.
pub(super) async fn health() -> Response {
    answer(StatusCode::OK, json!({"cluster_name": "simulated-hq", "status": "green", "timed_out": false}))
}

#[derive(Debug, Deserialize)]
pub(super) struct Format {
    format: Option<String>,
}

/// `GET /_cat/aliases`: text, or JSON when asked for.
pub(super) async fn aliases(query: Result<Query<Format>, QueryRejection>) -> Response {
    let format = match query {
        Ok(Query(query)) => query.format,
        Err(rejection) => return bad_query(&rejection),
    };
    if format.as_deref() == Some("json") {
        let rows: Vec<Value> = ALIASES
            .iter()
            .map(|alias| json!({"alias": alias, "index": INDEX, "filter": "-", "routing.index": "-", "routing.search": "-"}))
            .collect();
        return answer(StatusCode::OK, Value::Array(rows));
    }
    let text: String = ALIASES.iter().map(|alias| format!("{alias} {INDEX} - - -\n")).collect();
    marked(text.into_response())
}

#[derive(Debug, Deserialize)]
pub(super) struct SourceQuery {
    #[serde(rename = "_source")]
    source: Option<String>,
    #[serde(rename = "_source_includes", alias = "_source_include")]
    includes: Option<String>,
}

impl SourceQuery {
    /// What the address says of `_source`; lists are separated by commas.
    fn filter(&self) -> Option<Value> {
        match (self.source.as_deref(), self.includes.as_deref()) {
            (Some("true"), _) => Some(Value::Bool(true)),
            (Some("false"), _) => Some(Value::Bool(false)),
            (Some(list), _) | (None, Some(list)) => Some(list.split(',').collect()),
            (None, None) => None,
        }
    }
}

/// `_mget` with `ids`, or with `docs` that name their `_id`.
pub(super) async fn mget(
    State(documents): State<UserDocuments>,
    Path(place): Path<Vec<String>>,
    query: Result<Query<SourceQuery>, QueryRejection>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let (query, body) = match (query, json_body(&headers, &body)) {
        (Ok(Query(query)), Ok(body)) => (query, body),
        (Err(rejection), _) => return bad_query(&rejection),
        (_, Err(refusal)) => return *refusal,
    };
    let Some(store) = place.first().filter(|store| is_index(store)) else {
        return no_index(place.first().map_or("", String::as_str));
    };
    let wanted: Vec<&Value> = match (&body["ids"], &body["docs"]) {
        (Value::Array(ids), Value::Null) => ids.iter().collect(),
        (Value::Null, Value::Array(docs)) => docs.iter().map(|doc| &doc["_id"]).collect(),
        _ => return unsupported("_mget without ids"),
    };
    let filter = match SourceFilter::of(query.filter().as_ref()) {
        Ok(filter) => filter,
        Err(what) => return unsupported(&what),
    };
    let state = documents.read();
    let found = |id: &Value| {
        let kind = place.get(1).map_or("user", String::as_str);
        let mut doc = json!({"_index": INDEX, "_type": kind, "_id": id, "found": false});
        if let Some(document) = id.as_str().and_then(|id| state.documents.get(id)) {
            doc["found"] = true.into();
            doc["_version"] = 1.into();
            if let Some(source) = filter.apply(document) {
                doc["_source"] = source;
            }
        }
        doc
    };
    tracing::trace!(store, ids = wanted.len(), "mget");
    answer(StatusCode::OK, json!({"docs": wanted.into_iter().map(found).collect::<Vec<_>>()}))
}

/// `_search` with `query`, `size`, `from` and `_source`.
pub(super) async fn search(
    State(documents): State<UserDocuments>,
    Path(place): Path<Vec<String>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let body = match json_body(&headers, &body) {
        Ok(body) => body,
        Err(refusal) => return *refusal,
    };
    if !place.first().is_some_and(|store| is_index(store)) {
        return no_index(place.first().map_or("", String::as_str));
    }
    match find(&documents, &body) {
        Ok(hits) => answer(StatusCode::OK, hits),
        Err(SearchError::Unsupported(what)) => unsupported(&what),
        Err(SearchError::WindowTooLarge) => {
            let reason =
                format!("Result window is too large, from + size must be less than or equal to: [{WINDOW_MAX}]");
            refused(StatusCode::BAD_REQUEST, "query_phase_execution_exception", &reason)
        }
    }
}

enum SearchError {
    Unsupported(String),
    WindowTooLarge,
}

impl From<String> for SearchError {
    fn from(what: String) -> Self {
        Self::Unsupported(what)
    }
}

fn find(documents: &UserDocuments, body: &Value) -> Result<Value, SearchError> {
    let Some(body) = body.as_object() else { return Err("a search that is no object".to_owned().into()) };
    if let Some(unknown) = body.keys().find(|key| !["query", "size", "from", "_source"].contains(&key.as_str())) {
        return Err(format!("a search with {unknown}").into());
    }
    let number = |key: &str, default: usize| match body.get(key) {
        None => Ok(default),
        Some(value) => value
            .as_u64()
            .and_then(|value| usize::try_from(value).ok())
            .ok_or_else(|| format!("a search with {key} {value}")),
    };
    let (size, from) = (number("size", DEFAULT_SIZE)?, number("from", 0)?);
    if size.saturating_add(from) > WINDOW_MAX {
        return Err(SearchError::WindowTooLarge);
    }
    let condition = Condition::of(body.get("query"))?;
    let filter = SourceFilter::of(body.get("_source"))?;
    let state = documents.read();
    let matching: Vec<_> = state.documents.iter().filter(|(id, document)| condition.holds(id, document)).collect();
    let hit = |(id, document): &(&String, &Value)| {
        let mut hit = json!({"_index": INDEX, "_type": "user", "_id": id, "_score": 0.0});
        if let Some(source) = filter.apply(document) {
            hit["_source"] = source;
        }
        hit
    };
    let hits: Vec<Value> = matching.iter().skip(from).take(size).map(hit).collect();
    Ok(json!({
        "took": 1,
        "timed_out": false,
        "_shards": {"total": 5, "successful": 5, "skipped": 0, "failed": 0},
        "hits": {"total": matching.len(), "max_score": 0.0, "hits": hits},
    }))
}

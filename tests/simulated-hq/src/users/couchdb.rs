//! What CouchDB answers.

use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{DATABASE, UserDocuments, answer, bad_query, elasticsearch, json_body, unsupported};

fn not_found(reason: &str) -> Response {
    answer(StatusCode::NOT_FOUND, json!({"error": "not_found", "reason": reason}))
}

/// `GET /{database}`; also answers for an index, since a reader may ask whether it is there.
pub(super) async fn database(State(documents): State<UserDocuments>, Path(store): Path<String>) -> Response {
    if elasticsearch::is_index(&store) {
        return elasticsearch::index();
    }
    if store.starts_with('_') {
        return unsupported(&store);
    }
    if store != DATABASE {
        return not_found("Database does not exist.");
    }
    let state = documents.read();
    let body = json!({
        "db_name": DATABASE,
        "doc_count": state.documents.len(),
        "doc_del_count": state.removed.len(),
        "compact_running": false,
    });
    answer(StatusCode::OK, body)
}

/// `GET /{database}/{id}`.
pub(super) async fn document(
    State(documents): State<UserDocuments>,
    Path((store, id)): Path<(String, String)>,
) -> Response {
    if id.starts_with('_') || elasticsearch::is_index(&store) {
        return unsupported(&id);
    }
    if store != DATABASE {
        return not_found("Database does not exist.");
    }
    let state = documents.read();
    match state.documents.get(&id) {
        Some(document) => answer(StatusCode::OK, document.clone()),
        None if state.removed.contains_key(&id) => not_found("deleted"),
        None => not_found("missing"),
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct AllDocs {
    #[serde(default)]
    include_docs: bool,
}

/// `POST /{database}/_all_docs` with keys; without keys it is not served.
pub(super) async fn all_docs(
    State(documents): State<UserDocuments>,
    Path(store): Path<String>,
    query: Result<Query<AllDocs>, QueryRejection>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let include = match query {
        Ok(Query(query)) => query.include_docs,
        Err(rejection) => return bad_query(&rejection),
    };
    if store != DATABASE {
        return not_found("Database does not exist.");
    }
    let body = match json_body(&headers, &body) {
        Ok(body) => body,
        Err(refusal) => return *refusal,
    };
    let Some(keys) = body["keys"].as_array() else { return unsupported("_all_docs without keys") };
    let state = documents.read();
    let row = |key: &Value| {
        let id = key.as_str().unwrap_or_default();
        if let Some(document) = state.documents.get(id) {
            let mut row = json!({"id": id, "key": id, "value": {"rev": document["_rev"]}});
            if include {
                row["doc"] = document.clone();
            }
            return row;
        }
        match state.removed.get(id) {
            Some(revision) => {
                json!({"id": id, "key": id, "value": {"rev": revision, "deleted": true}, "doc": null})
            }
            None => json!({"key": key, "error": "not_found"}),
        }
    };
    let rows: Vec<Value> = keys.iter().map(row).collect();
    answer(StatusCode::OK, json!({"total_rows": state.documents.len(), "rows": rows}))
}

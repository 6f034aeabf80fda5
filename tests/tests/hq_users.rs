//! User directories of HQ, read from servers that answer as CouchDB and each version of Elasticsearch do.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use lake_hq::connect::connect_users;
use lake_hq::source::{SourceError, UserDirectory};
use lake_hq::users::UsersConfig;
use lake_tests::parts::Port;
use serde_json::{Value, json};

/// What was asked: method and path with query, authorization, body.
type Asked = Arc<Mutex<Vec<(String, Option<String>, Value)>>>;
/// What is answered to a path and a body.
type Answer = fn(&str, &Value) -> (u16, Value);

struct Stub {
    url: String,
    asked: Asked,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn stub(answer: Answer) -> Stub {
    let asked = Asked::default();
    let router = Router::new().fallback(reply).with_state((asked.clone(), answer));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    Stub { url, asked, server }
}

async fn reply(State((asked, answer)): State<(Asked, Answer)>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let authorization = parts.headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    let (status, answer) = answer(parts.uri.path(), &body);
    asked.lock().unwrap().push((format!("{} {}", parts.method, parts.uri), authorization, body));
    (StatusCode::from_u16(status).unwrap(), answer.to_string()).into_response()
}

fn user(id: &str) -> Option<Value> {
    match id {
        "asha" => {
            Some(json!({"doc_type": "CommCareUser", "base_doc": "CouchUser", "domain": "demo", "location_id": "l1"}))
        }
        "web" => Some(json!({"doc_type": "WebUser", "base_doc": "CouchUser", "domains": ["demo"],
            "domain_memberships": [{"domain": "demo", "location_id": "l2"}]})),
        // Of other versions: HQ's older index, its newest, and one where a single membership is not a list.
        "older" => Some(
            json!({"doc_type": "CommCareUser", "base_doc": "couchuser", "domain": "demo", "user_location_id": "l3",
                "assigned_location_ids": ["l3", "l9"]}),
        ),
        "newest" => {
            Some(json!({"doc_type": "WebUser", "base_doc": "CouchUser", "domain_memberships": [{"domain": "other"}],
            "user_domain_memberships": [{"domain": "other", "location_id": "lo"}, {"domain": "demo", "location_id": "l4"}]}))
        }
        "nested" => Some(json!({"doc_type": "CommCareUser", "base_doc": "CouchUser", "domain": "demo",
            "domain_membership": {"domain": "demo", "location_id": "l5"}})),
        "unassigned" => Some(
            json!({"doc_type": "CommCareUser", "base_doc": "CouchUser", "domain": "demo", "location_id": null, "is_active": true}),
        ),
        "inactive" => Some(
            json!({"doc_type": "CommCareUser", "base_doc": "CouchUser", "domain": "demo", "location_id": "l6", "is_active": false}),
        ),
        "web-elsewhere" => Some(json!({"doc_type": "WebUser", "base_doc": "CouchUser", "domains": ["other"],
            "domain_memberships": [{"domain": "other", "location_id": "l2"}]})),
        "web-retired" => Some(json!({"doc_type": "WebUser", "base_doc": "CouchUser-Deleted", "domains": ["demo"],
            "domain_memberships": [{"domain": "demo", "location_id": "l2"}]})),
        "retired" => Some(
            json!({"doc_type": "CommCareUser", "base_doc": "CouchUser-Deleted", "domain": "demo", "location_id": "l1"}),
        ),
        "elsewhere" => {
            Some(json!({"doc_type": "CommCareUser", "base_doc": "CouchUser", "domain": "other", "location_id": "l1"}))
        }
        _ => None,
    }
}

fn strings(of: &Value) -> Vec<String> {
    of.as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
}

async fn directory(config: Value) -> Result<Arc<dyn UserDirectory>, SourceError> {
    connect_users(&serde_json::from_value::<UsersConfig>(config).unwrap()).await
}

const EVERYBODY: [&str; 18] = [
    "asha",
    "web",
    "retired",
    "elsewhere",
    "unknown",
    "",
    "demo_user",
    "asha",
    "older",
    "newest",
    "nested",
    "unassigned",
    "inactive",
    "web-elsewhere",
    "web-retired",
    "system",
    "commtrack-system",
    "Asha",
];

async fn assert_everybody_is_found(users: &dyn UserDirectory) {
    let found = users.locations("demo", &EVERYBODY.map(str::to_owned)).await.unwrap();
    let expected: HashMap<String, Option<String>> = EVERYBODY
        .into_iter()
        .map(|id| {
            let location = match id {
                "asha" => Some("l1".to_owned()),
                "web" => Some("l2".to_owned()),
                "older" => Some("l3".to_owned()),
                "newest" => Some("l4".to_owned()),
                "nested" => Some("l5".to_owned()),
                "inactive" => Some("l6".to_owned()),
                _ => None,
            };
            (id.to_owned(), location)
        })
        .collect();
    assert_eq!(found, expected);
}

fn couchdb(path: &str, body: &Value) -> (u16, Value) {
    match path {
        "/commcarehq__users" => (200, json!({"db_name": "commcarehq__users"})),
        "/commcarehq__users/_all_docs" => {
            let rows: Vec<Value> = strings(&body["keys"])
                .into_iter()
                .map(|id| match user(&id) {
                    Some(document) => json!({"id": id, "key": id, "value": {"rev": "1-a"}, "doc": document}),
                    None => json!({"key": id, "error": "not_found"}),
                })
                .collect();
            (200, json!({"total_rows": 9, "offset": 0, "rows": rows}))
        }
        _ => (404, json!({"error": "not_found", "reason": "Database does not exist."})),
    }
}

#[tokio::test]
async fn users_from_couchdb() {
    let stub = stub(couchdb).await;
    let config = json!({"kind": "couchdb", "url": stub.url, "database": "commcarehq__users", "user": "reader", "password": "top-secret"});
    let users = directory(config).await.unwrap();
    assert_everybody_is_found(&*users).await;
    let asked = stub.asked.lock().unwrap().clone();
    let (line, authorization, body) = asked.last().unwrap();
    assert_eq!(line, "POST /commcarehq__users/_all_docs?include_docs=true");
    assert_eq!(authorization.as_deref(), Some("Basic cmVhZGVyOnRvcC1zZWNyZXQ="));
    assert_eq!(
        strings(&body["keys"]),
        [
            "asha",
            "web",
            "retired",
            "elsewhere",
            "unknown",
            "older",
            "newest",
            "nested",
            "unassigned",
            "inactive",
            "web-elsewhere",
            "web-retired",
            "Asha"
        ],
        "each once, and only who may be a user"
    );
}

fn mget(path: &str, body: &Value) -> (u16, Value) {
    let type_name = match path {
        "/users/_mget" => None,
        "/users/user/_mget" => Some("user"),
        _ => return (404, json!({"error": {"type": "index_not_found_exception"}, "status": 404})),
    };
    let found = |asked: &Value| {
        let id = asked["_id"].as_str().unwrap().to_owned();
        let mut answer = json!({"_index": "users", "_id": id, "found": false});
        if let Some(mut document) = user(&id) {
            document.as_object_mut().unwrap().retain(|key, _| strings(&asked["_source"]).contains(key));
            answer["found"] = true.into();
            answer["_source"] = document;
        }
        if let Some(type_name) = type_name {
            answer["_type"] = type_name.into();
        }
        answer
    };
    (200, json!({"docs": body["docs"].as_array().unwrap().iter().map(found).collect::<Vec<_>>()}))
}

fn search(path: &str, body: &Value) -> (u16, Value) {
    let total = match path {
        "/users/_search" => json!({"value": 1, "relation": "eq"}),
        "/users/user/_search" => json!(1),
        _ => return (404, json!({"error": "no such index"})),
    };
    let ids = strings(&body["query"]["bool"]["filter"][0]["terms"]["_id"]);
    assert_eq!(body["query"]["bool"]["filter"][1]["term"]["base_doc"], "couchuser");
    // The analysed field knows retired users under another token.
    let hits: Vec<Value> = ids
        .iter()
        .filter_map(|id| Some((id, user(id)?)))
        .filter(|(_, document)| !document["base_doc"].as_str().unwrap().ends_with("-Deleted"))
        .map(|(id, document)| json!({"_index": "users", "_id": id, "_source": document}))
        .take(body["size"].as_u64().unwrap() as usize)
        .collect();
    (
        200,
        json!({"timed_out": false, "_shards": {"total": 5, "successful": 5, "failed": 0}, "hits": {"total": total, "hits": hits}}),
    )
}

#[tokio::test]
async fn users_from_elasticsearch_of_every_version() {
    for (mode, answer) in [("mget", mget as Answer), ("search", search)] {
        for type_name in [json!(null), json!("user")] {
            let stub = stub(answer).await;
            let config = json!({"kind": "elasticsearch", "url": stub.url, "index": "users", "type_name": type_name, "mode": mode});
            let users = directory(config).await.unwrap();
            assert_everybody_is_found(&*users).await;
            users.check().await.unwrap();
        }
    }
}

/// What each version of Elasticsearch wraps around a document, found and not found, and how it says that there is no such index.
#[tokio::test]
async fn answers_of_elasticsearch_2_5_6_and_7() {
    fn answer(path: &str, body: &Value, found: fn(Value) -> Value, missing: Value) -> (u16, Value) {
        if path.starts_with("/nowhere/") {
            return (404, missing);
        }
        let hit = |id: &str| Some((id.to_owned(), user(id)?));
        let asked = |docs: &Value| strings(&docs.as_array().unwrap().iter().map(|doc| doc["_id"].clone()).collect());
        if path.ends_with("/_mget") {
            let docs = asked(&body["docs"]).into_iter().map(|id| match hit(&id) {
                Some((id, source)) => found(json!({"_index": "users", "_id": id, "found": true, "_source": source})),
                None => found(json!({"_index": "users", "_id": id, "found": false})),
            });
            return (200, json!({"docs": docs.collect::<Vec<_>>()}));
        }
        let ids = strings(&body["query"]["bool"]["filter"][0]["terms"]["_id"]);
        // The analysed field finds retired users too: their text has the token as well.
        let hits = ids
            .iter()
            .filter_map(|id| hit(id))
            .map(|(id, source)| found(json!({"_id": id, "_score": 0.0, "_source": source})));
        let hits: Vec<Value> = hits.collect();
        (
            200,
            json!({"took": 1, "timed_out": false, "_shards": {"total": 5, "failed": 0}, "hits": {"total": hits.len(), "hits": hits}}),
        )
    }
    fn with(mut document: Value, more: Value) -> Value {
        document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        document
    }
    let versions: [(&str, Option<&str>, Answer); 4] = [
        ("2", Some("user"), |path, body| {
            let missing = json!({"error": {"type": "index_not_found_exception", "reason": "no such index", "index": "nowhere"}, "status": 404});
            answer(path, body, |document| with(document, json!({"_type": "user", "_version": 3})), missing)
        }),
        ("5", Some("user"), |path, body| {
            let missing = json!({"error": {"root_cause": [], "type": "index_not_found_exception", "reason": "no such index"}, "status": 404});
            answer(path, body, |document| with(document, json!({"_type": "user", "_version": 3})), missing)
        }),
        ("6", Some("user"), |path, body| {
            let seen =
                |document| with(document, json!({"_type": "user", "_version": 3, "_seq_no": 1, "_primary_term": 1}));
            answer(path, body, seen, json!({"error": {"type": "index_not_found_exception"}, "status": 404}))
        }),
        ("7", None, |path, body| {
            let seen =
                |document| with(document, json!({"_type": "_doc", "_version": 3, "_seq_no": 1, "_primary_term": 1}));
            answer(path, body, seen, json!({"error": {"type": "index_not_found_exception"}, "status": 404}))
        }),
    ];
    for (version, type_name, answer) in versions {
        let stub = stub(answer).await;
        for mode in ["mget", "search"] {
            let config = json!({"kind": "elasticsearch", "url": stub.url, "index": "users", "type_name": type_name, "mode": mode});
            assert_everybody_is_found(&*directory(config).await.unwrap()).await;
            let path = match type_name {
                Some(type_name) => format!("POST /users/{type_name}/_{mode}"),
                None => format!("POST /users/_{mode}"),
            };
            assert!(stub.asked.lock().unwrap().iter().all(|(line, _, _)| line == &path), "{version}");
            stub.asked.lock().unwrap().clear();
            let nowhere = json!({"kind": "elasticsearch", "url": stub.url, "index": "nowhere", "type_name": type_name, "mode": mode});
            let refused = directory(nowhere).await.err().unwrap();
            assert!(matches!(refused, SourceError::Refused { .. }), "{version}: {refused}");
            assert!(refused.to_string().contains("check the name of the index"), "{version}: {refused}");
            stub.asked.lock().unwrap().clear();
        }
    }
}

#[tokio::test]
async fn many_users_are_asked_for_in_batches() {
    let stub = stub(mget).await;
    let users = directory(json!({"kind": "elasticsearch", "url": stub.url, "index": "users"})).await.unwrap();
    stub.asked.lock().unwrap().clear();
    let many: Vec<String> = (0..1_201).map(|n| format!("u{n}")).chain(["asha".to_owned()]).collect();
    let found = users.locations("demo", &many).await.unwrap();
    assert_eq!((found.len(), found["asha"].as_deref()), (1_202, Some("l1")));
    let mut sizes: Vec<usize> =
        stub.asked.lock().unwrap().iter().map(|(_, _, body)| body["docs"].as_array().unwrap().len()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [202, 500, 500]);
    stub.asked.lock().unwrap().clear();
    users.locations("demo", &["".to_owned(), "system".to_owned()]).await.unwrap();
    assert!(stub.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn trouble_is_passing_or_lasting() {
    let elasticsearch = |url: &str| json!({"kind": "elasticsearch", "url": url, "index": "users"});
    for (answer, passing) in [
        (((|_, _| (503, json!({"error": "busy"}))) as Answer), true),
        (|_, _| (429, json!({})), true),
        (
            |_, _| {
                (200, json!({"docs": [{"_id": "x", "error": {"type": "unavailable_shards_exception", "reason": "r"}}]}))
            },
            true,
        ),
        (
            |_, _| {
                (200, json!({"docs": [{"_id": "x", "error": {"type": "index_not_found_exception", "reason": "r"}}]}))
            },
            false,
        ),
        (|_, _| (404, json!({"error": "no index"})), false),
        (|_, _| (401, json!({"error": "who"})), false),
        (|_, _| (200, json!("not what was asked")), false),
    ] {
        let stub = stub(answer).await;
        let trouble = directory(elasticsearch(&stub.url)).await.err().unwrap();
        assert_eq!(matches!(trouble, SourceError::Unavailable { .. }), passing, "{trouble}");
        assert!(trouble.to_string().contains("from Elasticsearch at 127.0.0.1"), "{trouble}");
    }
    let port = Port::free().unwrap();
    let nowhere = format!("http://reader:top-secret@127.0.0.1:{}", port.number());
    let trouble = directory(elasticsearch(&nowhere)).await.err().unwrap();
    assert!(
        matches!(trouble, SourceError::Unavailable { .. }) && !trouble.to_string().contains("top-secret"),
        "{trouble}"
    );
}

//! What the page is told of a whole writer.
#![allow(clippy::unwrap_used, reason = "tests")]

use axum::body::to_bytes;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use serde_json::Value;
use tempfile::TempDir;

use super::{Samples, StatusPage, TablesAsked};
use crate::handle::test_writer::Running;
use crate::pipeline_watch::PipelineWatch;

async fn json(answer: axum::response::Response) -> Value {
    assert_eq!(answer.status(), StatusCode::OK);
    serde_json::from_slice(&to_bytes(answer.into_body(), 1 << 20).await.unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_told_of_tables_pauses_and_who_holds_the_lease() {
    let folder = TempDir::new().unwrap();
    let writer = Running::start(&folder, "w", "").await;
    writer.until_holding().await;
    writer.publish("person", &["a", "b"], 1).await;
    writer.publish("house", &["h"], 1).await;
    let metastore = std::sync::Arc::clone(&writer.metastore);
    metastore.pause(None, "ann", "a <script> & more").await.unwrap();
    let (pipeline, samples) = (PipelineWatch::default(), Samples::default());
    let page = StatusPage { handle: writer.handle.clone(), metastore, pipeline, samples };

    let status = json(super::status(State(page.clone())).await).await;
    assert_eq!(status["writer"]["role"], "holds the lease");
    assert!(status["holder"]["name"].as_str().unwrap().starts_with("w-"), "{status}");
    assert_eq!((&status["pauses"][0]["scope"], &status["lag"]), (&"everything".into(), &Value::Null));
    assert_eq!(status["pauses"][0]["command"], "lakectl lake resume --all");
    let asked =
        |contains: &str, behind: &str| Query(TablesAsked { contains: contains.to_owned(), behind: behind.to_owned() });
    let all = json(super::tables(State(page.clone()), asked("", "")).await).await;
    assert_eq!((&all["total"], all["tables"].as_array().unwrap().len(), &all["next"]), (&2.into(), 2, &"".into()));
    let found = json(super::tables(State(page.clone()), asked("PERS", "")).await).await;
    assert_eq!((&found["tables"][0]["name"], &found["tables"][0]["rows"]), (&"demo_case_sql_person".into(), &2.into()));
    let long = super::tables(State(page), asked(&"x".repeat(501), "")).await;
    assert_eq!(long.status(), StatusCode::BAD_REQUEST);
    writer.end().await;
}

#[tokio::test]
async fn the_page_loads_nothing_from_elsewhere() {
    let answer = super::page().await;
    let policy = answer.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("http"), "{policy}");
    assert!(!super::PAGE.contains("https://") && !super::PAGE.contains("innerHTML"));
}

//! The quarantine and single records, through lakectl.

use serde_json::Value;

use super::check_every_form;
use super::stage::{PERSON, Stage, json, lakectl};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lakectl_shows_the_quarantine_and_traces_in_every_form() {
    let mut stage = Stage::start().await;
    let token = stage.token("ann", "admin", None);
    let mut writer = stage.writer("w").await;
    stage.fill("demo", "person", 2).await;
    let admin = stage.context("ann", &writer, &token);
    for id in ["id-1", "id-2"] {
        stage.quarantine("demo", id).await;
    }
    let entry = json(&admin, "quarantine list --id id-1")[0]["id"].as_str().unwrap().to_owned();
    let saved = stage.path("payload");
    let shown = json(&admin, &format!("quarantine get {entry} --save {}", saved.display()));
    assert_eq!((&shown["detail"], &shown["payload"]), (&"cannot be stored".into(), &Value::Null));
    assert_eq!(std::fs::read(&saved).unwrap(), b"bytes");
    assert_eq!(lakectl(&admin, "quarantine discard --id id-2").code, Some(64), "nobody can be asked");
    let discarded = json(&admin, "quarantine discard --id id-2 --yes");
    assert_eq!((&discarded["result"]["entries"], &discarded["selection"]), (&1.into(), &"id=id-2".into()));
    let commands = [
        ("record trace id-1".to_owned(), false, "id-1"),
        ("quarantine summary".to_owned(), true, "row_fails"),
        ("quarantine list --domain demo --since 2026-01-01T00:00:00Z".to_owned(), true, entry.as_str()),
        (format!("quarantine get {entry}"), false, entry.as_str()),
        ("quarantine replay --all --dry-run".to_owned(), false, "-"),
        ("quarantine discard --all --dry-run".to_owned(), false, "-"),
    ];
    check_every_form(&admin, &token, &commands);
    let traced = json(&admin, "record trace id-1 --domain demo --kind case");
    assert_eq!((&traced["state"], &traced["rows"][0]["table"]), (&"in_lake, quarantined".into(), &PERSON.into()));
    writer.running.end().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_see_and_do_what_with_the_quarantine_is_told_by_the_code() {
    let mut stage = Stage::start().await;
    let tokens = ["admin", "viewer"].map(|role| stage.token(role, role, None));
    let other = stage.token("other", "admin", Some("other"));
    let mut writer = stage.writer("w").await;
    stage.quarantine("demo", "id-0").await;
    let (admin, viewer) = (stage.context("admin", &writer, &tokens[0]), stage.context("viewer", &writer, &tokens[1]));
    let other = stage.context("other", &writer, &other);
    let entry = format!("quarantine get {}", json(&admin, "quarantine list")[0]["id"].as_str().unwrap());
    for (contexts, command, code) in [
        (&admin, "quarantine get nothing", 66),
        (&admin, "record trace nothing", 66),
        (&admin, "quarantine replay", 64),
        (&admin, "quarantine replay --all --reason row_fails", 64),
        (&admin, "quarantine list --since yesterday", 64),
        (&viewer, "quarantine summary", 0),
        (&viewer, "quarantine list", 0),
        (&viewer, &entry, 77),
        (&viewer, "quarantine replay --all", 77),
        (&viewer, "quarantine discard --all --yes", 77),
        (&other, &entry, 66),
        (&other, "record trace id-0 --domain demo", 66),
        (&other, "quarantine replay --all", 77),
        (&other, "quarantine replay --all --domain demo", 64),
        (&other, "quarantine replay --domain demo", 66),
    ] {
        let outcome = lakectl(contexts, command);
        assert_eq!(outcome.code, Some(code), "{command}: {outcome:?}");
        assert!(!outcome.stderr.contains("lake_") && (code == 0 || !outcome.stderr.is_empty()), "{outcome:?}");
    }
    writer.running.end().unwrap();
}

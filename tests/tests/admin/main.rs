//! The interface for operators, on writers as processes with real Postgres and NATS: through lakectl and through a client in another language,
//! with TLS and tokens.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod quarantine;
mod records;
mod stage;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lake_tests::certificates::Certificates;
use lake_tests::invocation;
use lake_tests::parts::{parts_dir, wait_until};
use serde_json::Value;

use self::stage::{PATIENCE, PERSON, Stage, json, lakectl};

/// The forms of an answer.
const FORMATS: [&str; 6] = ["table", "wide", "json", "jsonl", "yaml", "name"];

/// What a command prints in one form: a list or one object, with this name in it.
fn check_form(format: &str, text: &str, is_list: bool, name: &str, what: &str) {
    assert!(text.contains(name) && text.ends_with('\n'), "{what}");
    match format {
        "json" => assert_eq!(serde_json::from_str::<Value>(text).unwrap().is_array(), is_list, "{what}"),
        "jsonl" => assert!(text.lines().all(|line| serde_json::from_str::<Value>(line).unwrap().is_object())),
        "yaml" => assert_eq!(serde_norway::from_str::<Value>(text).unwrap().is_array(), is_list, "{what}"),
        "name" => assert!(text.lines().all(|line| !line.contains(' ')), "{what}"),
        _ => assert!(!text.contains('{'), "{what}"),
    }
}

/// What commands print in all forms: each with whether it is a list, and what a name in it is. The token is never shown.
fn check_every_form(contexts: &Path, token: &str, commands: &[(String, bool, &str)]) {
    for (command, is_list, name) in commands {
        for format in FORMATS {
            let outcome = lakectl(contexts, &format!("{command} -o {format}"));
            let what = format!("{command} -o {format}: {outcome:?}");
            assert!(outcome.code == Some(0) && !what.contains(token), "{what}");
            check_form(format, &outcome.stdout, *is_list, name, &what);
        }
    }
}

/// One table is treated otherwise than the others, completed by a shell, and brought back to an earlier version.
fn check_one_table(admin: &Path) {
    let policy = json(admin, &format!("table get {PERSON}"))["policy"].clone();
    assert_eq!((&policy["compaction"], &policy["retention_hours"]), (&"on".into(), &72.into()), "{policy}");
    let policy = json(admin, &format!("table policy {PERSON} --as-configured --deletion-vectors off"));
    assert_eq!(
        (&policy["compaction"], &policy["deletion_vectors"]),
        (&"as configured".into(), &"off".into()),
        "{policy}"
    );
    // What a shell asks when somebody presses the key in the middle of a name.
    let typed = ["--", "lakectl", "table", "get", "demo_case_sq"];
    let of_shell = [("COMPLETE", "bash"), ("_CLAP_COMPLETE_INDEX", "3"), ("LAKECTL_CONFIG", admin.to_str().unwrap())];
    assert_eq!(invocation::run("lakectl", &typed, &of_shell).unwrap().stdout.trim(), PERSON);
    let restored = json(admin, &format!("table restore {PERSON} --version 1 --yes"));
    assert_eq!((&restored["result"]["rows_after"], &restored["result"]["done"]), (&2.into(), &1.into()), "{restored}");
    assert_eq!(json(admin, &format!("table get {PERSON}"))["rows"], 2);
}

/// A comparison with HQ, for which nobody is there who could say what HQ has.
fn check_a_comparison(admin: &Path, token: &str) {
    let compared = json(admin, "reconcile start demo --kind case --no-wait");
    assert_eq!((&compared["kind"], &compared["target"]), (&"reconcile".into(), &"demo/case".into()), "{compared}");
    let id = compared["id"].as_str().unwrap();
    let commands = [
        ("reconcile list --domain demo".to_owned(), true, id),
        (format!("reconcile get {id}"), false, id),
        (format!("reconcile cancel {id}"), false, id),
    ];
    check_every_form(admin, token, &commands);
    assert_eq!(lakectl(admin, &format!("reconcile watch {id}")).code, Some(1), "it was cancelled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lakectl_has_every_answer_in_every_form() {
    let mut stage = Stage::start().await;
    let token = stage.token("ann", "admin", None);
    let mut writer = stage.writer("w").await;
    stage.fill("demo", "person", 4).await;
    stage.fill("other", "house", 1).await;
    let admin = stage.context("ann", &writer, &token);
    let planned = json(&admin, &format!("table compact {PERSON} --dry-run"));
    assert_eq!((&planned["result"]["files_before"], &planned["result"]["done"]), (&4.into(), &0.into()), "{planned}");
    let stale = lakectl(&admin, &format!("table compact {PERSON} --plan 0123"));
    assert!(stale.code == Some(1) && stale.stdout.contains("stale"), "{stale:?}");
    let plan = planned["plan_id"].as_str().unwrap();
    let compacted = json(&admin, &format!("table compact {PERSON} --plan {plan}"));
    assert_eq!((&compacted["state"], &compacted["result"]["files_after"]), (&"succeeded".into(), &1.into()));
    let id = compacted["id"].as_str().unwrap();
    let cleaned = json(&admin, "table clean-up demo case");
    assert_eq!(cleaned["result"]["tables"], 1);
    // Nobody is at the terminal who could be asked.
    assert_eq!(lakectl(&admin, "table drop --domain other").code, Some(64));
    let dropped = json(&admin, "table drop --domain other --yes");
    assert_eq!((dropped.as_array().unwrap().len(), &dropped[0]["result"]["rows"]), (1, &1.into()), "{dropped}");
    assert_eq!(lakectl(&admin, "table drop --domain other --yes").code, Some(66), "nothing is left");
    assert_eq!(json(&admin, "lake pause --domain demo --kind case --reason test").as_array().unwrap().len(), 1);

    // Every command that answers: (command, is it a list, what a name of it is).
    let commands = [
        ("table list".to_owned(), true, PERSON),
        (format!("table get {PERSON}"), false, PERSON),
        (format!("table history {PERSON}"), true, "4"),
        (format!("table files {PERSON}"), true, ".parquet"),
        (format!("table vacuum {PERSON} --dry-run"), false, "-"),
        (format!("table compact {PERSON} --dry-run"), false, "-"),
        (format!("table checkpoint {PERSON}"), false, "-"),
        (format!("table policy {PERSON}"), false, PERSON),
        (format!("table policy {PERSON} --compaction on --retention-hours 72"), false, PERSON),
        (format!("table drop {PERSON} --dry-run"), true, "demo/case/person"),
        (format!("table restore {PERSON} --version 0 --dry-run"), false, "-"),
        ("table dropped".to_owned(), true, "other/case"),
        ("operation list".to_owned(), true, id),
        (format!("operation get {id}"), false, id),
        (format!("operation watch {id}"), false, id),
        (format!("operation cancel {id}"), false, id),
        ("lake status".to_owned(), false, "w-"),
        ("lake pipeline".to_owned(), false, "1"),
        ("lake gather".to_owned(), false, "20"),
        ("catalog status".to_owned(), false, "none"),
        ("lake pause --domain demo --kind case".to_owned(), true, "demo/case"),
        ("lake audit".to_owned(), true, "20"),
        ("context list".to_owned(), true, "lake"),
    ];
    check_every_form(&admin, &token, &commands);
    let gathered = json(&admin, "lake gather");
    assert_eq!((&gathered["tables"][0]["name"], &gathered["status"]["tables"]), (&PERSON.into(), &1.into()));
    check_one_table(&admin);
    check_a_comparison(&admin, &token);
    // Without a terminal it is shown once.
    let top = lakectl(&admin, "lake top");
    assert!(top.code == Some(0) && top.stdout.contains(PERSON) && top.stdout.contains("1 writers"), "{top:?}");
    let checked = lakectl(&admin, "lake check");
    assert_eq!(checked.code, Some(1), "{checked:?}");
    assert!(checked.stdout.starts_with("LAKE WARNING - paused: demo/case"), "{checked:?}");
    assert_eq!(json(&admin, "lake resume --all"), Value::Array(Vec::new()));
    assert_eq!(lakectl(&admin, "lake check").code, Some(0));
    assert_eq!(json(&admin, "table allow other case")["result"]["allowed"], 2);
    stage.fill("other", "tree", 1).await;
    assert_eq!(lakectl(&admin, "table list --domain other -o name").stdout, "other_case_sql_tree\n");
    writer.running.end().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lakectl_says_by_its_code_what_happened() {
    let mut stage = Stage::start().await;
    let tokens = ["admin", "viewer"].map(|role| stage.token(role, role, None));
    let other = stage.token("other", "admin", Some("other"));
    let mut writer = stage.writer("w").await;
    stage.fill("demo", "person", 1).await;
    stage.fill("other", "house", 1).await;
    let (admin, viewer) = (stage.context("admin", &writer, &tokens[0]), stage.context("viewer", &writer, &tokens[1]));
    let (wrong, other) = (stage.context("wrong", &writer, "wrong"), stage.context("other", &writer, &other));
    let none = stage.path("none.toml");
    let compacted = json(&admin, &format!("table compact {PERSON}"));
    let of_person = |verb: &str| format!("table {verb} {PERSON}");
    let get = format!("operation get {}", compacted["id"].as_str().unwrap());
    for (contexts, command, code) in [
        (&admin, "table get nothing", 66),
        (&admin, "operation get nothing", 66),
        (&admin, "table compact nothing", 66),
        (&admin, "table clean-up nobody case", 66),
        (&admin, "table drop nothing --dry-run", 66),
        (&admin, "table allow nobody case", 66),
        (&admin, "table history nothing", 66),
        (&admin, "catalog diff", 1),
        (&other, "catalog status", 77),
        (&viewer, "catalog sync", 77),
        (&admin, "table list --nothing", 64),
        (&admin, "lake pause", 64),
        (&admin, "table list --context nothing", 78),
        (&none, "table list --context lake", 78),
        (&none, "lake check", 3),
        (&viewer, &of_person("compact"), 77),
        (&viewer, &of_person("vacuum"), 77),
        (&viewer, &of_person("policy"), 0),
        (&viewer, &of_person("policy --compaction off"), 77),
        (&admin, &of_person("policy --retention-hours 0"), 64),
        (&admin, "table policy nothing", 66),
        (&viewer, &of_person("drop --yes"), 77),
        (&viewer, &of_person("restore --version 0 --yes"), 77),
        (&admin, &of_person("restore --version 99 --yes"), 1),
        (&admin, &of_person("restore --before yesterday"), 64),
        (&viewer, "reconcile start demo --kind case --no-wait", 77),
        (&other, "reconcile start demo --kind case --no-wait", 66),
        (&admin, "reconcile start demo --type person", 64),
        (&admin, "reconcile start demo --kind location --type person --no-wait", 64),
        (&admin, "reconcile get nothing", 66),
        (&viewer, "lake pause --all", 77),
        (&viewer, "lake audit", 77),
        (&wrong, "table list", 77),
        (&other, &of_person("get"), 66),
        (&other, &of_person("compact"), 66),
        (&other, &of_person("files"), 66),
        (&other, &get, 66),
        (&other, "lake pause --all", 77),
    ] {
        let outcome = lakectl(contexts, command);
        assert_eq!(outcome.code, Some(code), "{command}: {outcome:?}");
        assert!(
            !outcome.stderr.contains("lake_") && ([0, 3].contains(&code) || !outcome.stderr.is_empty()),
            "{outcome:?}"
        );
    }
    assert_eq!(lakectl(&other, "table list -o name").stdout, "other_case_sql_house\n");
    writer.running.end().unwrap();
    assert_eq!(lakectl(&admin, "table list").code, Some(69), "no writer answers");
    assert_eq!(lakectl(&admin, "lake check").code, Some(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_in_another_language_is_generated_from_the_contract() {
    let mut stage = Stage::start().await;
    let token = stage.token("python", "operator", None);
    let mut writer = stage.writer("w").await;
    stage.fill("demo", "person", 4).await;
    stage.quarantine("demo", "id-3").await;
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(parts_dir().unwrap().join("python/bin/python"))
        .arg(here.join("admin/client.py"))
        .arg(format!("localhost:{}", writer.port.number()))
        .arg(stage.certificates.file("ca.pem"))
        .arg(here.join("../proto"))
        .arg(PERSON)
        .env("LAKE_TOKEN", &token)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let answered: Value = serde_json::from_str(text.trim()).unwrap();
    assert_eq!(answered["tables"], serde_json::json!([PERSON]));
    assert_eq!(answered["states"].as_array().unwrap().last().unwrap(), "OPERATION_STATE_SUCCEEDED");
    assert_eq!((&answered["newest_operation"], &answered["more_versions"]), (&"OPTIMIZE".into(), &true.into()));
    assert_eq!((&answered["rows"], &answered["plan"]), (&serde_json::json!([4]), &serde_json::json!([true, true])));
    let calls = answered["every_call"].as_object().unwrap();
    assert!(calls.len() >= 35, "{calls:?}");
    let of_contract = ["OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "PERMISSION_DENIED"];
    assert!(calls.values().all(|code| of_contract.contains(&code.as_str().unwrap())), "{calls:?}");
    assert_eq!(
        (&calls["ListTables"], &calls["GetStatus"], &calls["DropTables"]),
        (&"OK".into(), &"OK".into(), &"PERMISSION_DENIED".into())
    );
    let keda = serde_json::json!([[true, true], [["lake-fetcher-replicas", 1.0]], "UNAVAILABLE"]);
    assert_eq!(answered["keda"], keda);
    assert_eq!((&answered["refused"], &answered["stranger"]), (&"NOT_FOUND".into(), &"UNAUTHENTICATED".into()));
    assert_eq!((&answered["role"], &answered["health"]), (&"WRITER_ROLE_HOLDING".into(), &"SERVING".into()));
    assert_eq!(answered["quarantined"], serde_json::json!([["row_fails", 1]]));
    assert_eq!(answered["entry"], serde_json::json!(["id-3", "cannot be stored", "bytes"]));
    assert_eq!((&answered["replay"]["records"], &answered["replay"]["done"]), (&1.into(), &0.into()));
    assert_eq!(answered["trace"], serde_json::json!(["in_lake, quarantined", PERSON]));
    for service in ["LakeService", "OperationService", "QuarantineService", "RecordService", "TableService"] {
        let named = Value::from(format!("lake.admin.v1.{service}"));
        assert!(answered["services"].as_array().unwrap().contains(&named), "{answered}");
    }
    writer.running.end().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_is_done_although_its_writer_is_killed() {
    let mut stage = Stage::start().await;
    let token = stage.token("ann", "operator", None);
    let mut first = stage.writer("first").await;
    stage.fill("demo", "person", 8).await;
    let second = stage.writer("second").await;
    // Asked of the one that stands by; killed is the one that works on it.
    let contexts = stage.context("ann", &second, &token);
    let verbs = [
        format!("table compact {PERSON}"),
        "table clean-up demo case".to_owned(),
        format!("table checkpoint {PERSON}"),
        format!("table vacuum {PERSON}"),
    ];
    for (number, verb) in verbs.iter().enumerate() {
        let asked = json(&contexts, &format!("{verb} --no-wait --request-id request-{number}"));
        let id = asked["id"].as_str().unwrap();
        if number == 0 {
            first.running.kill_and_restart().await.unwrap();
        }
        let ended = json(&contexts, &format!("operation watch {id}"));
        assert_eq!(ended["state"], "succeeded", "{ended}");
        let again = json(&contexts, &format!("{verb} --no-wait --request-id request-{number}"));
        assert_eq!(
            (again["id"].as_str(), &again["state"]),
            (Some(id), &"succeeded".into()),
            "asked for twice, done once"
        );
    }
    let person = json(&contexts, &format!("table get {PERSON}"));
    assert_eq!((&person["rows"], &person["files"]), (&8.into(), &1.into()));
    let (mut first, mut second) = (first, second);
    first.running.end().unwrap();
    second.running.end().unwrap();
}

/// Certificates expire; who renews them replaces files, and restarts nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_is_replaced_is_used_without_a_start() {
    let mut stage = Stage::start().await;
    let token = stage.token("ann", "viewer", None);
    let mut writer = stage.writer("w").await;
    stage.fill("demo", "person", 1).await;
    let renewed = Certificates::make().unwrap();
    let of_root = |person: &str, certificates: &Certificates| {
        let contexts = stage.context(person, &writer, &token);
        let text = std::fs::read_to_string(&contexts).unwrap();
        let (before, after) = (stage.certificates.file("ca.pem"), certificates.file("ca.pem"));
        std::fs::write(&contexts, text.replace(&before.display().to_string(), &after.display().to_string())).unwrap();
        contexts
    };
    let (old, new) = (of_root("old", &stage.certificates), of_root("new", &renewed));
    let code = |contexts: &Path| lakectl(contexts, "table list").code;
    assert_eq!((code(&old), code(&new)), (Some(0), Some(69)));
    // Half of a renewal, and then nonsense: the certificate of before stays.
    std::fs::write(stage.certificates.file("server.key"), "nonsense").unwrap();
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(code(&old), Some(0));
    for name in ["server.pem", "server.key"] {
        std::fs::copy(renewed.file(name), stage.certificates.file(name)).unwrap();
    }
    let used = wait_until("the new certificate is used", PATIENCE, async || Ok(code(&new) == Some(0)));
    used.await.unwrap();
    assert_eq!(code(&old), Some(69), "the old one is not used any more");
    writer.running.end().unwrap();
}

/// By plan, asked of the writer that stands by, while the one that works on it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_planned_is_done_although_its_writer_is_killed() {
    let mut stage = Stage::start().await;
    let token = stage.token("ann", "admin", None);
    let mut writers = [stage.writer("first").await, stage.writer("second").await];
    stage.fill("demo", "person", 6).await;
    stage.fill("other", "house", 3).await;
    let verbs = [
        "record erase other id-0 --kind case".to_owned(),
        format!("table restore {PERSON} --version 2"),
        "table drop --domain other --kind case".to_owned(),
        format!("table drop {PERSON}"),
    ];
    for verb in &verbs {
        let contexts =
            writers.each_ref().map(|writer| stage.context(&writer.port.number().to_string(), writer, &token));
        let status = json(&contexts[0], "lake status");
        let holding = usize::from(status["holder"].as_str().unwrap().starts_with("second"));
        let planned = json(&contexts[1 - holding], &format!("{verb} --dry-run"));
        let planned = planned.get(0).unwrap_or(&planned);
        let (asked, plan) = (contexts[1 - holding].clone(), planned["plan_id"].as_str().unwrap());
        let command = format!("{verb} --plan {plan}");
        let asking = std::thread::spawn(move || json(&asked, &command));
        // Long enough for the operation to be begun, mostly; whenever it is, it is done.
        tokio::time::sleep(Duration::from_millis(700)).await;
        writers[holding].running.kill_and_restart().await.unwrap();
        let done = tokio::task::spawn_blocking(move || asking.join().unwrap()).await.unwrap();
        assert_eq!(done.get(0).unwrap_or(&done)["state"], "succeeded", "{verb}: {done}");
        if verb.contains("restore") {
            let listed = wait_until("the rows of the version are there", PATIENCE, async || {
                let person = json(&contexts[1 - holding], &format!("table get {PERSON}"));
                Ok(person["rows"] == 3)
            });
            listed.await.unwrap();
        }
    }
    let contexts = stage.context("last", &writers[0], &token);
    assert_eq!(json(&contexts, "table list"), Value::Array(Vec::new()));
    let dropped = json(&contexts, "table dropped");
    let dropped = dropped.as_array().unwrap();
    assert!(dropped.len() == 3 && dropped.iter().all(|record| record["files_gone"] == true), "{dropped:?}");
    for writer in &mut writers {
        writer.running.end().unwrap();
    }
}

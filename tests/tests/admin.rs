//! The interface for operators, on writers as processes with real Postgres and NATS: through lakectl and through a client in another language,
//! with TLS and tokens.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use arrow::ipc::writer::StreamWriter;
use lake_proto::queue::v1::RowBatch;
use lake_shared::identity::{Kind, Space, TableKey};
use lake_shared::queue::jetstream::{JetStreamConfig, JetStreamQueue};
use lake_shared::queue::{Message, Queue};
use lake_shared::{escaped_names, wire};
use lake_test_kit::rows::{new_row, record_batch};
use lake_tests::certificates::Certificates;
use lake_tests::invocation::{self, Outcome};
use lake_tests::parts::{Nats, Port, Postgres, parts_dir, wait_until};
use lake_tests::system::Running;
use lake_writer::metastore::Metastore;
use lake_writer::metastore::postgres::PostgresMetastore;
use serde_json::Value;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);
const STREAM_BYTES: u64 = 64 << 20;
/// The name of the table that has several files.
const PERSON: &str = "demo_case_sql_person";

/// The servers, with certificates and tokens for the writers.
struct Stage {
    postgres: Postgres,
    nats: Nats,
    queue: Arc<JetStreamQueue>,
    metastore: PostgresMetastore,
    /// Lines of configuration with the hashes of the tokens.
    token_lines: String,
    certificates: Certificates,
    folder: TempDir,
}

/// A writer that operators may ask.
struct Writer {
    running: Running,
    port: Port,
}

impl Writer {
    fn address(&self) -> String {
        format!("https://localhost:{}", self.port.number())
    }
}

impl Stage {
    async fn start() -> Self {
        let (postgres, nats) = (Postgres::start().unwrap(), Nats::start().unwrap());
        let url = postgres.create_database("metastore").unwrap();
        let metastore = PostgresMetastore::new(&url.into(), 2).unwrap();
        metastore.migrate().await.unwrap();
        let config = JetStreamConfig {
            servers: vec![nats.url()],
            stream_size_bytes_max: STREAM_BYTES,
            quarantine_size_bytes_max: STREAM_BYTES,
            ..JetStreamConfig::default()
        };
        let queue = JetStreamQueue::connect(config).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("lake")).unwrap();
        let certificates = Certificates::make().unwrap();
        Self { postgres, nats, queue, metastore, token_lines: String::new(), certificates, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes a token, by lakectl. It is known to the writers that are started after that.
    fn token(&mut self, name: &str, role: &str, domain: Option<&str>) -> String {
        let mut arguments = vec!["token", "new", name, "--role", role];
        arguments.extend(domain.into_iter().flat_map(|domain| ["--domain", domain]));
        let made = invocation::run("lakectl", &arguments, &[]).unwrap();
        assert_eq!(made.code, Some(0), "{made:?}");
        let token = made.stdout.trim().to_owned();
        let (_, lines) = made.stderr.split_once("[[admin.tokens]]").unwrap();
        assert!(token.len() > 60 && !made.stderr.contains(&token), "the configuration does not hold it");
        self.token_lines += &format!("[[admin.tokens]]{lines}");
        token
    }

    async fn writer(&self, name: &str) -> Writer {
        let port = Port::free().unwrap();
        let place = |name: &str| self.path(name).display().to_string();
        let config = format!(
            "[queue]\nservers = [\"{}\"]\nstream_size_bytes_max = {STREAM_BYTES}\nquarantine_size_bytes_max = {STREAM_BYTES}\n\
             [store]\nroot = \"{}\"\nsync = false\n[metastore]\nurl = \"{}\"\n[ingest]\nflush_age_ms = 20\nacknowledge_within_seconds = 5\n\
             [maintenance]\ncompact_every_seconds = 0\n[tables]\nindex_folder = \"{}\"\ndeletion_vectors = \"on\"\ntiny_file_bytes = 0\n\
             small_files_max = 2\n[lease]\nseconds = 3\nowner = \"{name}\"\n\
             [admin]\naddress = \"127.0.0.1:{}\"\ntls = {{ certificate = \"{}\", key = \"{}\" }}\n{}",
            self.nats.url(),
            place("lake"),
            self.postgres.url("metastore"),
            place(&format!("index-{name}")),
            port.number(),
            self.certificates.file("server.pem").display(),
            self.certificates.file("server.key").display(),
            self.token_lines,
        );
        let running = Running::start("writer", name, &config, Vec::new(), self.folder.path()).await.unwrap();
        Writer { running, port }
    }

    /// Rows of a table of the project, each in a commit of its own; waits for them.
    async fn fill(&self, domain: &str, document_type: &str, rows: usize) {
        let space = Space { domain: domain.into(), kind: Kind::Case };
        let key = TableKey { space, document_type: document_type.into() };
        for number in 0..rows {
            let batch = record_batch(&[new_row(&format!("id-{number}"), 1, &[("/name", "A")])]);
            let mut stream = StreamWriter::try_new(Vec::new(), batch.schema_ref()).unwrap();
            stream.write(&batch).unwrap();
            let payload = wire::encode(&RowBatch {
                domain: domain.into(),
                kind: Kind::Case.to_proto() as i32,
                r#type: Some(document_type.into()),
                arrow_ipc: stream.into_inner().unwrap().into(),
                tombstones: Vec::new(),
            });
            let subject = escaped_names::rows_subject(&key.space.domain, Kind::Case, Some(&key.document_type));
            let dedupe_id = format!("{domain}-{document_type}-{number}");
            self.queue.publish(Message { subject, payload, dedupe_id }).await.unwrap();
            let what = format!("row {number} of {document_type} is in its table");
            let there = wait_until(&what, PATIENCE, async || {
                let record = self.metastore.table(&key).await?;
                Ok(record.is_some_and(|record| record.state.rows > number as i64))
            });
            there.await.unwrap();
        }
    }

    /// The file of contexts of one person, whose lake is that of a writer.
    fn context(&self, person: &str, writer: &Writer, token: &str) -> PathBuf {
        let file = self.path(&format!("{person}.toml"));
        let text = format!(
            "[contexts.lake]\nserver = \"{}\"\nca = \"{}\"\ntoken = \"{token}\"\n",
            writer.address(),
            self.certificates.file("ca.pem").display()
        );
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        file
    }
}

fn lakectl(contexts: &Path, words: &str) -> Outcome {
    let arguments: Vec<&str> = words.split_whitespace().collect();
    invocation::run("lakectl", &arguments, &[("LAKECTL_CONFIG", contexts.to_str().unwrap())]).unwrap()
}

/// What a command prints as JSON; it must succeed.
fn json(contexts: &Path, words: &str) -> Value {
    let outcome = lakectl(contexts, &format!("{words} -o json"));
    assert_eq!(outcome.code, Some(0), "{words}: {outcome:?}");
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{words}: {error}: {outcome:?}"))
}

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lakectl_has_every_answer_in_every_form() {
    let mut stage = Stage::start().await;
    let token = stage.token("ann", "admin", None);
    let mut writer = stage.writer("w").await;
    stage.fill("demo", "person", 4).await;
    stage.fill("other", "house", 1).await;
    let admin = stage.context("ann", &writer, &token);
    let compacted = json(&admin, &format!("table compact {PERSON}"));
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
        (format!("table checkpoint {PERSON}"), false, "-"),
        (format!("table drop {PERSON} --dry-run"), true, "demo/case/person"),
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
    for (command, is_list, name) in commands {
        for format in FORMATS {
            let outcome = lakectl(&admin, &format!("{command} -o {format}"));
            let what = format!("{command} -o {format}: {outcome:?}");
            assert!(outcome.code == Some(0) && !what.contains(&token), "{what}");
            check_form(format, &outcome.stdout, is_list, name, &what);
        }
    }
    let gathered = json(&admin, "lake gather");
    assert_eq!((&gathered["tables"][0]["name"], &gathered["status"]["tables"]), (&PERSON.into(), &1.into()));
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
        (&viewer, &of_person("drop --yes"), 77),
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
        assert!(!outcome.stderr.contains("lake_") && (code == 3 || !outcome.stderr.is_empty()), "{outcome:?}");
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
    assert_eq!((&answered["refused"], &answered["stranger"]), (&"NOT_FOUND".into(), &"UNAUTHENTICATED".into()));
    assert_eq!((&answered["role"], &answered["health"]), (&"WRITER_ROLE_HOLDING".into(), &"SERVING".into()));
    for service in ["LakeService", "OperationService", "TableService"] {
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

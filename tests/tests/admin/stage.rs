//! Servers, writers with tokens and certificates, and rows in their tables, for the tests of the interface.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow::ipc::writer::StreamWriter;
use lake_proto::queue::v1::{Quarantined, RowBatch};
use lake_shared::identity::{Kind, Space, TableKey};
use lake_shared::queue::jetstream::{JetStreamConfig, JetStreamQueue};
use lake_shared::queue::{Message, Queue};
use lake_shared::{escaped_names, wire};
use lake_test_kit::rows::{new_row, record_batch};
use lake_tests::certificates::Certificates;
use lake_tests::invocation::{self, Outcome};
use lake_tests::parts::{Nats, Port, Postgres, wait_until};
use lake_tests::system::Running;
use lake_writer::metastore::Metastore;
use lake_writer::metastore::postgres::PostgresMetastore;
use serde_json::Value;
use tempfile::TempDir;

pub const PATIENCE: Duration = Duration::from_secs(60);
pub const STREAM_BYTES: u64 = 64 << 20;
/// The name of the table that has several files.
pub const PERSON: &str = "demo_case_sql_person";

/// The servers, with certificates and tokens for the writers.
pub struct Stage {
    pub postgres: Postgres,
    pub nats: Nats,
    pub queue: Arc<JetStreamQueue>,
    pub metastore: PostgresMetastore,
    /// Lines of configuration with the hashes of the tokens.
    pub token_lines: String,
    pub certificates: Certificates,
    pub folder: TempDir,
}

/// A writer that operators may ask.
pub struct Writer {
    pub running: Running,
    pub port: Port,
}

impl Writer {
    pub fn address(&self) -> String {
        format!("https://localhost:{}", self.port.number())
    }
}

impl Stage {
    pub async fn start() -> Self {
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

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes a token, by lakectl. It is known to the writers that are started after that.
    pub fn token(&mut self, name: &str, role: &str, domain: Option<&str>) -> String {
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

    pub async fn writer(&self, name: &str) -> Writer {
        let port = Port::free().unwrap();
        let place = |name: &str| self.path(name).display().to_string();
        let config = format!(
            "[queue]\nservers = [\"{}\"]\nstream_size_bytes_max = {STREAM_BYTES}\nquarantine_size_bytes_max = {STREAM_BYTES}\n\
             [store]\nroot = \"{}\"\nsync = false\n[metastore]\nurl = \"{}\"\n[ingest]\nflush_age_ms = 20\nacknowledge_within_seconds = 5\n\
             [maintenance]\ncompact_every_seconds = 0\n[tables]\nindex_folder = \"{}\"\ndeletion_vectors = \"on\"\ntiny_file_bytes = 0\n\
             small_files_max = 2\n[lease]\nseconds = 3\nowner = \"{name}\"\n\
             [admin]\nscaler = true\naddress = \"127.0.0.1:{}\"\ntls = {{ certificate = \"{}\", key = \"{}\" }}\n{}",
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
    pub async fn fill(&self, domain: &str, document_type: &str, rows: usize) {
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

    /// Puts something about a record into quarantine.
    pub async fn quarantine(&self, domain: &str, id: &str) {
        let entry = Quarantined {
            reason: "row_fails".into(),
            detail: "cannot be stored".into(),
            domain: domain.into(),
            kind: Kind::Case.to_proto() as i32,
            r#type: "person".into(),
            id: id.into(),
            payload: b"bytes".to_vec().into(),
            quarantined_us: chrono::Utc::now().timestamp_micros(),
            ..Quarantined::default()
        };
        self.metastore.quarantine("writer", &entry).await.unwrap();
    }

    /// The file of contexts of one person, whose lake is that of a writer.
    pub fn context(&self, person: &str, writer: &Writer, token: &str) -> PathBuf {
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

pub fn lakectl(contexts: &Path, words: &str) -> Outcome {
    let arguments: Vec<&str> = words.split_whitespace().collect();
    invocation::run("lakectl", &arguments, &[("LAKECTL_CONFIG", contexts.to_str().unwrap())]).unwrap()
}

/// What a command prints as JSON; it must succeed.
pub fn json(contexts: &Path, words: &str) -> Value {
    let outcome = lakectl(contexts, &format!("{words} -o json"));
    assert_eq!(outcome.code, Some(0), "{words}: {outcome:?}");
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{words}: {error}: {outcome:?}"))
}

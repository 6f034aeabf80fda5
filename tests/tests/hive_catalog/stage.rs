//! A writer as a process, on a real metastore and queue, with lakectl to ask it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arrow::ipc::writer::StreamWriter;
use lake_proto::queue::v1::RowBatch;
use lake_shared::identity::{Kind, Space, TableKey};
use lake_shared::queue::jetstream::{JetStreamConfig, JetStreamQueue};
use lake_shared::queue::{Message, Queue};
use lake_shared::{escaped_names, wire};
use lake_test_kit::rows::{NewRow, new_row, record_batch};
use lake_tests::invocation::{self, Outcome};
use lake_tests::parts::{Nats, Port, Postgres, wait_until};
use lake_tests::system::Running;
use lake_writer::metastore::Metastore;
use lake_writer::metastore::postgres::PostgresMetastore;
use serde_json::Value;
use tempfile::TempDir;

/// How long something that happens by itself may take.
pub const PATIENCE: Duration = Duration::from_secs(120);

const STREAM_BYTES: u64 = 64 << 20;

/// The servers, and a place for the lake.
pub struct Stage {
    pub postgres: Postgres,
    nats: Nats,
    queue: Arc<JetStreamQueue>,
    metastore: PostgresMetastore,
    folder: TempDir,
    port: Port,
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
        let folder = tempfile::Builder::new().prefix("lake-test-hive-catalog-").tempdir().unwrap();
        std::fs::create_dir(folder.path().join("lake")).unwrap();
        Self { postgres, nats, queue, metastore, folder, port: Port::free().unwrap() }
    }

    /// A writer whose upserts leave deletion vectors, with these lines in its section `[catalog]`.
    pub async fn writer(&self, catalog: &str) -> Running {
        let place = |name: &str| self.folder.path().join(name).display().to_string();
        let config = format!(
            "[queue]\nservers = [\"{}\"]\nstream_size_bytes_max = {STREAM_BYTES}\nquarantine_size_bytes_max = {STREAM_BYTES}\n\
             [store]\nroot = \"{}\"\nsync = false\n[metastore]\nurl = \"{}\"\n[ingest]\nflush_age_ms = 20\n\
             [maintenance]\ncompact_every_seconds = 0\n[tables]\nindex_folder = \"{}\"\ndeletion_vectors = \"on\"\ntiny_file_bytes = 0\n\
             [lease]\nseconds = 3\n[admin]\naddress = \"127.0.0.1:{}\"\n[catalog]\n{catalog}",
            self.nats.url(),
            place("lake"),
            self.postgres.url("metastore"),
            place("index"),
            self.port.number(),
        );
        Running::start("writer", "w", &config, Vec::new(), self.folder.path()).await.unwrap()
    }

    /// Rows of a table of the project; waits until they are in it.
    pub async fn fill(&self, domain: &str, document_type: &str, ids: &[&str], version: i64) {
        self.fill_column(domain, document_type, ids, version, "/name").await;
    }

    /// The same with their text in another column.
    pub async fn fill_column(&self, domain: &str, document_type: &str, ids: &[&str], version: i64, column: &str) {
        let rows: Vec<_> =
            ids.iter().map(|id| new_row(id, version, &[(column, format!("{id} {version}").as_str())])).collect();
        self.fill_rows(domain, document_type, &rows).await;
    }

    /// The same with any values.
    pub async fn fill_rows(&self, domain: &str, document_type: &str, rows: &[NewRow]) {
        let space = Space { domain: domain.into(), kind: Kind::Case };
        let key = TableKey { space, document_type: document_type.into() };
        let before = self.metastore.table(&key).await.unwrap().and_then(|record| record.state.version);
        let batch = record_batch(rows);
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
        let dedupe_id = uuid::Uuid::new_v4().to_string();
        self.queue.publish(Message { subject, payload, dedupe_id }).await.unwrap();
        let what = format!("rows of {document_type} are in their table");
        let there = wait_until(&what, PATIENCE, async || {
            let record = self.metastore.table(&key).await?;
            Ok(record.is_some_and(|record| record.state.version > before))
        });
        there.await.unwrap();
    }

    pub fn lakectl(&self, words: &str) -> Outcome {
        let arguments: Vec<&str> = words.split_whitespace().collect();
        let server = format!("http://127.0.0.1:{}", self.port.number());
        let contexts = self.folder.path().join("contexts.toml").display().to_string();
        let variables = [("LAKECTL_SERVER", server.as_str()), ("LAKECTL_CONFIG", contexts.as_str())];
        invocation::run("lakectl", &arguments, &variables).unwrap()
    }

    /// What a command prints as JSON, whatever its exit code is.
    pub fn json(&self, words: &str) -> Value {
        self.try_json(words).unwrap()
    }

    fn try_json(&self, words: &str) -> anyhow::Result<Value> {
        let outcome = self.lakectl(&format!("{words} -o json"));
        serde_json::from_str(&outcome.stdout).with_context(|| format!("{words}: {outcome:?}"))
    }

    /// Waits until the catalog's status is as it should be.
    pub async fn until(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let waited = wait_until(what, PATIENCE, async || {
            // A writer that does not hold the lease yet does not know it.
            last = self.try_json("catalog status")?;
            Ok(is_so(&last))
        });
        let waited = waited.await;
        waited.unwrap_or_else(|error| panic!("{error:#}; the status is {last}"));
        last
    }
}

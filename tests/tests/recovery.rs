//! What a killed service held comes back to the one that is started in its place: a writer, then an enricher, killed with SIGKILL while messages are
//! with it. How many seconds that took is printed. And what a slow one works on is not handed to another meanwhile.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use lake_proto::queue::v1::{Record, RecordBatch};
use lake_shared::identity::{Kind, Space, TableKey};
use lake_shared::queue::jetstream::{JetStreamConfig, JetStreamQueue};
use lake_shared::queue::{Message, Queue, Stream};
use lake_shared::{escaped_names, wire};
use lake_simulated_hq::postgres::PostgresSink;
use lake_simulated_hq::users::UserServer;
use lake_tests::parts::{Link, Nats, Postgres, wait_until};
use lake_tests::readers::Snapshot;
use lake_tests::system::Running;
use serde_json::json;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(120);
const STREAM_BYTES: u64 = 64 << 20;
/// Messages that are held, of one record each.
const HELD: usize = 40;
/// Longer than the queue leaves a message with a service that says nothing.
const LONGER_THAN_SILENCE: Duration = Duration::from_secs(14);

/// The servers, and an HQ in which nothing is but users, who can be made not to answer.
struct Stage {
    postgres: Postgres,
    nats: Nats,
    queue: Arc<JetStreamQueue>,
    _users: UserServer,
    users_link: Link,
    folder: TempDir,
}

fn table() -> TableKey {
    TableKey { space: Space { domain: "demo".into(), kind: Kind::Case }, document_type: "person".into() }
}

impl Stage {
    async fn start() -> Self {
        let (postgres, nats) = (Postgres::start().unwrap(), Nats::start().unwrap());
        postgres.create_database("metastore").unwrap();
        let hq = postgres.create_database("hq_main").unwrap();
        PostgresSink::connect(&hq, Vec::new()).await.unwrap().create_schema().await.unwrap();
        let (users, address) = UserServer::start().await.unwrap();
        let port = address.rsplit_once(':').unwrap().1.parse().unwrap();
        let users_link = Link::to(port).await.unwrap();
        let config = JetStreamConfig {
            servers: vec![nats.url()],
            stream_size_bytes_max: STREAM_BYTES,
            quarantine_size_bytes_max: STREAM_BYTES,
            ..JetStreamConfig::default()
        };
        let queue = JetStreamQueue::connect(config).await.unwrap();
        Self { postgres, nats, queue, _users: users, users_link, folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn service(&self, binary: &'static str, name: &str, sections: &str) -> Running {
        let queue = format!(
            "[queue]\nservers = [\"{}\"]\nstream_size_bytes_max = {STREAM_BYTES}\nquarantine_size_bytes_max = {STREAM_BYTES}\n",
            self.nats.url()
        );
        let config = [queue.as_str(), sections].concat();
        Running::start(binary, name, &config, Vec::new(), self.folder.path()).await.unwrap()
    }

    async fn writer(&self, name: &str, ingest: &str) -> Running {
        let sections = format!(
            "[store]\nroot = \"{}\"\n[metastore]\nurl = \"{}\"\n[ingest]\n{ingest}",
            self.path("lake").display(),
            self.postgres.url("metastore")
        );
        self.service("writer", name, &sections).await
    }

    async fn enricher(&self, name: &str) -> Running {
        let sections = format!(
            "[hq.database]\nurl = \"{}\"\n[[hq.blobs.stores]]\nfolder = \"{}\"\n\
             [hq.users]\nkind = \"elasticsearch\"\nurl = \"http://127.0.0.1:{}\"\nindex = \"users-20230524\"\ntimeout_ms = 2000\n",
            self.postgres.url("hq_main"),
            self.folder.path().display(),
            self.users_link.port()
        );
        self.service("enricher", name, &sections).await
    }

    /// Queues so many records, each in a message of its own and of a user of its own.
    async fn publish(&self, prefix: &str) {
        let key = table();
        let subject = escaped_names::records_subject(&key.space.domain, Kind::Case, Some(&key.document_type));
        for number in 0..HELD {
            let id = format!("{prefix}-{number}");
            let document = json!({"_id": id, "domain": "demo", "user_id": format!("user of {id}")});
            let record = Record {
                id: id.clone(),
                version_us: 1,
                observed_us: 1,
                document: document.to_string().into_bytes().into(),
                ..Record::default()
            };
            let batch = RecordBatch {
                domain: "demo".into(),
                kind: Kind::Case.to_proto() as i32,
                r#type: Some("person".into()),
                records: vec![record],
                tombstones: Vec::new(),
            };
            let message = Message { subject: subject.clone(), payload: wire::encode(&batch), dedupe_id: id };
            self.queue.publish(message).await.unwrap();
        }
    }

    /// Messages of a stream that are with its consumer, and how many of them were handed out more than once.
    async fn held(&self, stream: Stream) -> anyhow::Result<(usize, usize)> {
        let context = jetstream::new(async_nats::connect(self.nats.url()).await?);
        let consumer = if stream == Stream::Rows { "writer" } else { "enricher" };
        let found: Result<jetstream::consumer::PullConsumer, _> =
            context.get_consumer_from_stream(consumer, stream.name()).await;
        let mut found = found?;
        let info = found.info().await?;
        Ok((info.num_ack_pending, info.num_redelivered))
    }

    /// Waits until all messages are with the consumer of a stream, or none.
    async fn until_held(&self, stream: Stream, count: usize) {
        let what = format!("{count} messages of {} are held", stream.name());
        wait_until(&what, PATIENCE, async || Ok(self.held(stream).await?.0 == count)).await.unwrap();
    }

    /// Waits for so many rows.
    async fn until_rows(&self, count: usize) {
        let folder = self.path("lake").join(escaped_names::table_path(&table()));
        wait_until("the rows are there", PATIENCE, async || {
            let rows = Snapshot::read(&folder, None).await?.map_or(0, |table| table.rows.len());
            anyhow::ensure!(rows <= count, "{rows} rows instead of {count}");
            Ok(rows == count)
        })
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_service_held_comes_back_and_what_a_slow_one_works_on_does_not() {
    let stage = Stage::start().await;
    std::fs::create_dir(stage.path("lake")).unwrap();
    // This one waits for more rows for very long.
    let mut writer = stage.writer("writer-1", "flush_age_ms = 3600000\n").await;
    let mut enricher = stage.enricher("enricher-1").await;
    stage.publish("a").await;
    stage.until_held(Stream::Rows, HELD).await;
    tokio::time::sleep(LONGER_THAN_SILENCE).await;
    assert_eq!(stage.held(Stream::Rows).await.unwrap(), (HELD, 0), "the writer says that it works on them");
    writer.service.kill_hard().unwrap();
    let killed = Instant::now();
    let mut writer = stage.writer("writer-2", "").await;
    stage.until_rows(HELD).await;
    println!("writer: its rows are there {:.1} s after it was killed", killed.elapsed().as_secs_f64());

    stage.users_link.cut();
    stage.publish("b").await;
    stage.until_held(Stream::Records, HELD).await;
    tokio::time::sleep(LONGER_THAN_SILENCE).await;
    assert_eq!(stage.held(Stream::Records).await.unwrap(), (HELD, 0), "the enricher says that it works on them");
    enricher.service.kill_hard().unwrap();
    let killed = Instant::now();
    stage.users_link.mend();
    let mut enricher = stage.enricher("enricher-2").await;
    stage.until_rows(2 * HELD).await;
    println!("enricher: its rows are there {:.1} s after it was killed", killed.elapsed().as_secs_f64());
    stage.until_held(Stream::Records, 0).await;
    stage.until_held(Stream::Rows, 0).await;
    enricher.end().unwrap();
    writer.end().unwrap();
}

//! Two writers as processes on one lake and one metastore. The one that holds the lease is cut off from Postgres, from the store, from NATS,
//! and suspended: the other one takes over, the first one stands by when it is back, and the lake has every row in its latest state.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::ipc::writer::StreamWriter;
use lake_proto::queue::v1::RowBatch;
use lake_shared::identity::Kind;
use lake_shared::queue::jetstream::{JetStreamConfig, JetStreamQueue};
use lake_shared::queue::{Message, Queue};
use lake_shared::{escaped_names, wire};
use lake_test_kit::rows::{self, new_row, record_batch, tombstone};
use lake_tests::parts::{Link, Nats, ObjectStore, Postgres, wait_until};
use lake_tests::readers::{Reader, Readers};
use lake_tests::system::Running;
use lake_writer::lease::LEASE_NAME;
use lake_writer::metastore::Metastore;
use lake_writer::metastore::postgres::PostgresMetastore;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(120);
const BUCKET: &str = "lake";
const TABLE: &str = "visit";
/// How long a lease lasts, seconds.
const LEASE_SECONDS: u64 = 3;

/// The ways of the first writer to the servers; the second one has none that can be cut.
struct Links {
    postgres: Link,
    nats: Link,
    store: Link,
}

struct Stage {
    postgres: Postgres,
    nats: Nats,
    store: ObjectStore,
    links: Links,
    metastore: PostgresMetastore,
    queue: Arc<JetStreamQueue>,
    readers: Readers,
    /// What the table should have: the version of each id.
    expected: BTreeMap<String, i64>,
    /// Changes so far.
    clock: i64,
    folder: TempDir,
}

/// The port in an address that ends with it, or with it and a path.
fn port_of(url: &str) -> u16 {
    let after = url.rsplit_once(':').unwrap().1;
    after.split('/').next().unwrap().parse().unwrap()
}

impl Stage {
    async fn start() -> Self {
        let (postgres, nats, store) =
            (Postgres::start().unwrap(), Nats::start().unwrap(), ObjectStore::start().unwrap());
        store.create_bucket(BUCKET).unwrap();
        let url = postgres.create_database("metastore").unwrap();
        let links = Links {
            postgres: Link::to(port_of(&url)).await.unwrap(),
            nats: Link::to(port_of(&nats.url())).await.unwrap(),
            store: Link::to(port_of(&store.endpoint())).await.unwrap(),
        };
        let metastore = PostgresMetastore::new(&url.into(), 2).unwrap();
        metastore.migrate().await.unwrap();
        let config = JetStreamConfig {
            servers: vec![nats.url()],
            stream_size_bytes_max: 64 << 20,
            quarantine_size_bytes_max: 64 << 20,
            ..JetStreamConfig::default()
        };
        let queue = JetStreamQueue::connect(config).await.unwrap();
        let readers = Readers::of_bucket(&store, BUCKET).unwrap();
        let (expected, folder) = (BTreeMap::new(), tempfile::tempdir().unwrap());
        Self { postgres, nats, store, links, metastore, queue, readers, expected, clock: 0, folder }
    }

    /// Starts a writer; `linked`: it goes through the links.
    async fn writer(&self, name: &str, linked: bool) -> Running {
        let through = |url: String, link: &Link| {
            let port = port_of(&url).to_string();
            if linked { url.replace(&port, &link.port().to_string()) } else { url }
        };
        let config = format!(
            "[queue]\nservers = [\"{}\"]\nstream_size_bytes_max = {}\nquarantine_size_bytes_max = {}\nrequest_timeout_ms = 2000\n\
             [store]\nroot = \"s3://{BUCKET}/tables\"\n[store.s3]\nendpoint = \"{}\"\nregion = \"{}\"\nallow_http = true\n\
             [metastore]\nurl = \"{}\"\n[ingest]\nflush_age_ms = 20\nacknowledge_within_seconds = 5\n\
             [maintenance]\ncompact_every_seconds = 1\n[lease]\nseconds = {LEASE_SECONDS}\nowner = \"{name}\"\n",
            through(self.nats.url(), &self.links.nats),
            64 << 20,
            64 << 20,
            through(self.store.endpoint(), &self.links.store),
            self.store.region(),
            through(self.postgres.url("metastore"), &self.links.postgres),
        );
        let is_credential = |(name, _): &(&str, String)| name.contains("ACCESS_KEY");
        let environment = self.store.environment().into_iter().filter(is_credential).collect();
        Running::start("writer", name, &config, environment, self.folder.path()).await.unwrap()
    }

    async fn holder(&self) -> Option<String> {
        let lease = self.metastore.lease(LEASE_NAME).await.unwrap()?;
        Some(lease.owner.split('-').next().unwrap().to_owned())
    }

    async fn until_held_by(&self, name: &str) {
        let what = format!("{name} holds the lease");
        let held = wait_until(&what, PATIENCE, async || Ok(self.holder().await.as_deref() == Some(name)));
        held.await.unwrap();
    }

    /// Some ids change, some come, one leaves; the messages are queued.
    async fn change(&mut self) {
        self.clock += 1;
        let version = self.clock * 10;
        let number = |back: i64| format!("id-{}", self.clock - back);
        let rows: Vec<_> =
            (0..3).map(|back| new_row(&number(back), version, &[("/x", &version.to_string())])).collect();
        let gone = number(3);
        for row in &rows {
            self.expected.insert(row.id.clone(), version);
        }
        self.expected.remove(&gone);
        let mut stream = StreamWriter::try_new(Vec::new(), record_batch(&rows).schema_ref()).unwrap();
        stream.write(&record_batch(&rows)).unwrap();
        let space = rows::space();
        let table = rows::table(TABLE);
        let payload = wire::encode(&RowBatch {
            domain: space.domain.to_string(),
            kind: Kind::Case.to_proto() as i32,
            r#type: Some(TABLE.into()),
            arrow_ipc: stream.into_inner().unwrap().into(),
            tombstones: vec![tombstone(&gone, None, version)],
        });
        let subject = escaped_names::rows_subject(&space.domain, space.kind, Some(&table.document_type));
        let dedupe_id = format!("change-{version}");
        self.queue.publish(Message { subject, payload, dedupe_id }).await.unwrap();
    }

    /// What a reader finds in the table.
    fn found(&mut self) -> anyhow::Result<BTreeMap<String, i64>> {
        let path = Path::new("tables").join(escaped_names::table_path(&rows::table(TABLE)));
        let content = self.readers.read(Reader::DuckDb, &path, None)?;
        let rows = content.sorted()?;
        let count = rows.len();
        let found: BTreeMap<String, i64> =
            rows.into_iter().map(|row| Ok((row["_id"].clone(), row["x"].parse()?))).collect::<anyhow::Result<_>>()?;
        anyhow::ensure!(found.len() == count, "an id is there twice: {found:?}");
        Ok(found)
    }

    async fn until_in_the_lake(&mut self, when: &str) {
        let expected = self.expected.clone();
        let what = format!("the lake is as expected {when}");
        let outcome = wait_until(&what, PATIENCE, async || {
            let found = self.found()?;
            anyhow::ensure!(found == expected, "{found:?} instead of {expected:?}");
            Ok(true)
        });
        outcome.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_cut_off_or_suspended_the_other_goes_on_and_no_row_is_wrong() {
    let mut stage = Stage::start().await;
    let mut first = stage.writer("first", true).await;
    stage.until_held_by("first").await;
    let mut second = stage.writer("second", false).await;
    for _ in 0..4 {
        stage.change().await;
    }
    stage.until_in_the_lake("at the beginning").await;
    for what in ["postgres", "store", "nats"] {
        let of = |links: &Links, act: fn(&Link)| match what {
            "postgres" => act(&links.postgres),
            "store" => act(&links.store),
            _ => act(&links.nats),
        };
        // In the middle of work.
        stage.change().await;
        of(&stage.links, Link::cut);
        stage.change().await;
        stage.until_held_by("second").await;
        stage.until_in_the_lake(&format!("while the first writer is cut off from {what}")).await;
        of(&stage.links, Link::mend);
        stage.change().await;
        stage.until_in_the_lake(&format!("after the first writer was cut off from {what}")).await;

        // The other one is suspended: the first one is there again and takes over.
        stage.change().await;
        let times_lost = |writer: &Running| writer.service.log().matches("the writer's lease is lost").count();
        let before = times_lost(&second);
        second.service.process().suspend().unwrap();
        stage.change().await;
        stage.until_held_by("first").await;
        stage.until_in_the_lake("while the second writer is suspended").await;
        second.service.process().resume().unwrap();
        stage.change().await;
        stage.until_in_the_lake("after the second writer was suspended").await;
        // It notices, and stays to take over the next time.
        let lost = wait_until("the second writer stands by", PATIENCE, async || Ok(times_lost(&second) > before));
        lost.await.unwrap();
    }
    let running = [&mut first, &mut second].map(|writer| writer.service.process().exit_status().unwrap().is_none());
    assert_eq!(running, [true, true], "a lost lease ends no process");
    let quarantined = stage.metastore.quarantined_count(&Default::default()).await.unwrap();
    assert_eq!(quarantined, 0);
    for writer in [&mut first, &mut second] {
        writer.end().unwrap();
    }
    assert_eq!(stage.holder().await, None);
    stage.until_in_the_lake("at the end").await;
}

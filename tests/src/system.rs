//! The whole system as processes on real parts: a simulated HQ that lives on Postgres, an S3 store, a user service and Kafka; fetchers,
//! enrichers and a writer over NATS JetStream; the lake on S3.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use async_nats::jetstream;
use lake_simulated_hq::blobs::BlobSink;
use lake_simulated_hq::expectation::ExpectationOptions;
use lake_simulated_hq::kafka::KafkaSink;
use lake_simulated_hq::life::Life;
use lake_simulated_hq::play::{Pace, RealHq};
use lake_simulated_hq::postgres::PostgresSink;
use lake_simulated_hq::users::UserServer;
use rdkafka::ClientConfig;
use rdkafka::consumer::Consumer;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::Value;
use sqlx::Connection;
use tempfile::TempDir;

use crate::invocation;
use crate::parts::{Kafka, Launch, Nats, ObjectStore, Port, Postgres, Service, wait_until, with_consumer};
use crate::readers;

/// How the logical shards are spread over HQ's two shard databases.
const SHARD_RANGES: [(&str, u32, u32); 2] = [("hq_p1", 0, 511), ("hq_p2", 512, 1023)];
/// Partitions of each topic.
const PARTITIONS: i32 = 4;
/// Topics that the fetchers read, as far as the simulated HQ writes them.
const TOPICS: [&str; 5] = ["case-sql", "form-sql", "location", "commcare-user", "web-user"];
/// Consumer group of the fetchers.
pub const GROUP: &str = "commcare-lake";
/// How long a service may take to get ready.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// The servers, and HQ living on them.
pub struct RealParts {
    /// HQ's databases and the metastore.
    pub postgres: Postgres,
    /// The queue: a NATS server with JetStream.
    pub nats: Nats,
    /// HQ's change feed.
    pub kafka: Kafka,
    /// HQ's blobs and the lake.
    pub store: ObjectStore,
    /// HQ, to be played.
    pub hq: RealHq,
    /// Address of the users.
    users_url: String,
    _users: UserServer,
    /// Configuration files, logs, expectations.
    pub folder: TempDir,
}

impl RealParts {
    /// Starts everything and creates HQ's tables and topics.
    pub async fn start() -> anyhow::Result<Self> {
        let (postgres, nats, kafka, store) = tokio::task::spawn_blocking(start_servers).await??;
        for bucket in ["blobdb", "lake"] {
            store.create_bucket(bucket)?;
        }
        let main = postgres.create_database("hq_main")?;
        postgres.create_database("lake_metastore")?;
        let mut shards = Vec::new();
        for (name, first, last) in SHARD_RANGES {
            shards.push((first, last, postgres.create_database(name)?));
        }
        let sink = PostgresSink::connect(&main, shards).await?;
        sink.create_schema().await?;
        for topic in TOPICS {
            kafka.create_topic(topic, PARTITIONS).await?;
        }
        let (users, users_url) = UserServer::start().await?;
        let hq = RealHq {
            postgres: sink,
            blobs: BlobSink::new(std::sync::Arc::new(store.client("blobdb")?)),
            users: users.documents().clone(),
            kafka: KafkaSink::new(&kafka.bootstrap(), &[])?,
            patience: Duration::ZERO,
        };
        Ok(Self { postgres, nats, kafka, store, hq, users_url, _users: users, folder: tempfile::tempdir()? })
    }

    /// Plays a life until it has had so many changes; `report` is called now and then.
    pub async fn play(&self, life: &mut Life, changes: u64, mut report: impl FnMut(u64)) -> anyhow::Result<()> {
        let pace = Pace { changes, rate_per_second: None, turns_per_group_max: 40, account: None };
        self.hq
            .play(life, &pace, |progress| {
                report(progress.changes);
                ControlFlow::Continue(())
            })
            .await?;
        Ok(())
    }

    /// Waits until every message on Kafka has been read and committed by the fetchers, and nothing is left on the queue.
    pub async fn drained(&self, within: Duration) -> anyhow::Result<()> {
        let client = async_nats::connect(self.nats.url()).await?;
        let context = jetstream::new(client);
        self.committed(within).await?;
        wait_until("the queue is empty", within, async || {
            let mut queued = 0;
            for stream in ["LAKE_CHANGES", "LAKE_RECORDS", "LAKE_ROWS", "LAKE_REPORTS", "LAKE_QUARANTINE"] {
                queued += context.get_stream(stream).await?.cached_info().state.messages;
            }
            Ok(queued == 0)
        })
        .await
    }

    /// Waits until every message on Kafka has been committed by the fetchers: in one process that is when it is in the lake.
    pub async fn committed(&self, within: Duration) -> anyhow::Result<()> {
        wait_until("everything on Kafka is in the lake", within, async || {
            let bootstrap = self.kafka.bootstrap();
            Ok(tokio::task::spawn_blocking(move || kafka_lag(&bootstrap)).await?? == 0)
        })
        .await
    }

    /// Compares the lake under `root` with what HQ's life says, through DuckDB and Polars.
    pub fn compare(&self, life: &Life, place_slack_turns: u64, root: &str) -> anyhow::Result<String> {
        let expected = self.folder.path().join("expected");
        let summary = life.write_expectation(&expected, &ExpectationOptions { place_slack_turns })?;
        println!("expected: {} tables, {} rows", summary.tables, summary.rows);
        ensure!(summary.rows > 0, "the life left nothing to compare");
        let s3 = root.starts_with("s3://").then_some(&self.store);
        readers::compare(&expected, root, s3)
    }

    /// Entries in the quarantine by reason.
    pub async fn quarantined(&self) -> anyhow::Result<BTreeMap<String, i64>> {
        let mut metastore = sqlx::PgConnection::connect(&self.postgres.url("lake_metastore")).await?;
        let rows = sqlx::query_as("select reason, count(*) from quarantine group by reason");
        Ok(rows.fetch_all(&mut metastore).await?.into_iter().collect())
    }

    /// Section `[hq]` for a service that reads it.
    pub fn hq_section(&self) -> String {
        let shards: String = SHARD_RANGES
            .iter()
            .map(|(name, first, last)| {
                let url = self.postgres.url(name);
                format!("[[hq.database.shards]]\nname = \"{name}\"\nfirst = {first}\nlast = {last}\nurl = \"{url}\"\n")
            })
            .collect();
        format!(
            "[hq.database]\nurl = \"{}\"\n{shards}{}[hq.users]\nkind = \"elasticsearch\"\nurl = \"{}\"\nindex = \"users-20230524\"\n",
            self.postgres.url("hq_main"),
            self.blob_section(),
            self.users_url,
        )
    }

    fn blob_section(&self) -> String {
        format!("[[hq.blobs.stores]]\ns3_bucket = \"blobdb\"\n{}{}", self.s3_place(), self.s3_keys())
    }

    fn s3_place(&self) -> String {
        let (endpoint, region) = (self.store.endpoint(), self.store.region());
        format!("endpoint = \"{endpoint}\"\nregion = \"{region}\"\nallow_http = true\n")
    }

    fn s3_keys(&self) -> String {
        let (id, secret) = (self.store.access_key(), self.store.secret_key());
        format!("access_key_id = \"{id}\"\nsecret_access_key = \"{secret}\"\n")
    }

    /// The usual variables with the credentials of the store, for a writer: its configuration has none.
    fn credentials(&self) -> Vec<(&'static str, String)> {
        let is_credential = |(name, _): &(&str, String)| name.contains("ACCESS_KEY");
        self.store.environment().into_iter().filter(is_credential).collect()
    }

    /// Section `[kafka]` of a service that reads the change feed.
    pub fn kafka_section(&self) -> String {
        // A fetcher that was killed is missed sooner than in production.
        let properties = "[kafka.properties]\n\"session.timeout.ms\" = \"6000\"\n";
        format!("[kafka]\nbootstrap_servers = [\"{}\"]\ngroup_id = \"{GROUP}\"\n{properties}", self.kafka.bootstrap())
    }

    /// Section `[queue]` of every service.
    pub fn queue_section(&self) -> String {
        format!(
            "[queue]\nservers = [\"{}\"]\nstream_size_bytes_max = 268435456\nquarantine_size_bytes_max = 67108864\n",
            self.nats.url()
        )
    }

    /// Sections `[store]` and `[metastore]` of the writer. What gives access to the store is in its environment.
    pub fn store_section(&self, root: &str) -> String {
        format!(
            "[store]\nroot = \"{root}\"\n[store.s3]\n{}[metastore]\nurl = \"{}\"\n",
            self.s3_place(),
            self.postgres.url("lake_metastore"),
        )
    }
}

fn start_servers() -> anyhow::Result<(Postgres, Nats, Kafka, ObjectStore)> {
    std::thread::scope(|scope| {
        let postgres = scope.spawn(Postgres::start);
        let nats = scope.spawn(Nats::start);
        let kafka = scope.spawn(Kafka::start);
        let store = scope.spawn(ObjectStore::start);
        let panicked = |_| anyhow::anyhow!("starting a part panicked");
        Ok((
            postgres.join().map_err(panicked)??,
            nats.join().map_err(panicked)??,
            kafka.join().map_err(panicked)??,
            store.join().map_err(panicked)??,
        ))
    })
}

/// Messages that the fetchers' group has not committed yet.
fn kafka_lag(bootstrap: &str) -> anyhow::Result<i64> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("group.id", GROUP);
    let mut asked = TopicPartitionList::new();
    for topic in TOPICS {
        for partition in 0..PARTITIONS {
            asked.add_partition(topic, partition);
        }
    }
    with_consumer(&config, move |consumer| {
        let committed = consumer.committed_offsets(asked, PATIENCE)?;
        let mut behind = 0;
        for element in committed.elements() {
            let (low, high) = consumer.fetch_watermarks(element.topic(), element.partition(), PATIENCE)?;
            let at = match element.offset() {
                Offset::Offset(offset) => offset,
                _ => low,
            };
            behind += high - at;
        }
        Ok(behind)
    })
}

/// A running service of the lake.
pub struct Running {
    /// Its process.
    pub service: Service,
    name: String,
    binary: &'static str,
    config: PathBuf,
    environment: Vec<(&'static str, String)>,
    port: Port,
    log: PathBuf,
}

impl Running {
    /// Starts a service with this configuration (without `[telemetry]`) and waits until it is ready.
    pub async fn start(
        binary: &'static str,
        name: &str,
        config: &str,
        environment: Vec<(&'static str, String)>,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let port = Port::free()?;
        let file = folder.join(format!("{name}.toml"));
        let telemetry = format!("[telemetry]\nhttp_address = \"127.0.0.1:{}\"\nlog_filter = \"info\"\n", port.number());
        std::fs::write(&file, format!("{telemetry}{config}"))?;
        let log = folder.join(format!("{name}.log"));
        let service = launch(binary, &file, &environment, &log)?;
        let mut running = Self { service, name: name.to_owned(), binary, config: file, environment, port, log };
        running.wait_ready().await?;
        Ok(running)
    }

    async fn wait_ready(&mut self) -> anyhow::Result<()> {
        let url = format!("{}/ready", self.url());
        self.service.wait_ready(&url, READY_WITHIN).await.with_context(|| format!("{} does not get ready", self.name))
    }

    /// Address of its HTTP endpoints.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port.number())
    }

    /// SIGKILL, and at once the same again.
    pub async fn kill_and_restart(&mut self) -> anyhow::Result<()> {
        self.service.kill_hard()?;
        self.service = launch(self.binary, &self.config, &self.environment, &self.log)?;
        self.wait_ready().await
    }

    /// Ends the service, changes its configuration, and starts it again.
    pub async fn reconfigure(&mut self, change: impl FnOnce(&str) -> String) -> anyhow::Result<()> {
        self.end()?;
        let before = std::fs::read_to_string(&self.config)?;
        let after = change(&before);
        ensure!(after != before, "the configuration of {} is what it was", self.name);
        std::fs::write(&self.config, after)?;
        self.service = launch(self.binary, &self.config, &self.environment, &self.log)?;
        self.wait_ready().await
    }

    /// SIGTERM; the service must drain and end well.
    pub fn end(&mut self) -> anyhow::Result<()> {
        let status = self.service.terminate()?;
        ensure!(status.success(), "{} ended with {status}:\n{}", self.name, self.service.log());
        Ok(())
    }
}

fn launch(binary: &str, config: &Path, environment: &[(&'static str, String)], log: &Path) -> anyhow::Result<Service> {
    let environment = environment.iter().map(|(name, value)| (*name, value));
    Launch::new(binary).args(["serve", "--config"]).arg(config).envs(environment).log_file(log).start()
}

/// The services of one lake.
pub struct LakeServices {
    /// By name, `fetcher-1` and so on.
    pub running: BTreeMap<String, Running>,
    /// Where the writer answers operators.
    admin: Port,
}

impl LakeServices {
    /// Starts so many fetchers and enrichers, and one writer to `root`.
    pub async fn start(parts: &RealParts, fetchers: usize, enrichers: usize, root: &str) -> anyhow::Result<Self> {
        Self::start_with(parts, fetchers, enrichers, root, "").await
    }

    /// The same with more sections in the writer's configuration.
    pub async fn start_with(
        parts: &RealParts,
        fetchers: usize,
        enrichers: usize,
        root: &str,
        sections: &str,
    ) -> anyhow::Result<Self> {
        let take = "[take]\ndomains = \"everything\"\n";
        let fetcher = [parts.kafka_section(), parts.hq_section(), parts.queue_section(), take.to_owned()].concat();
        let enricher = [parts.hq_section(), parts.queue_section()].concat();
        let admin = Port::free()?;
        let steered = format!("{sections}[admin]\naddress = \"127.0.0.1:{}\"\n", admin.number());
        let writer = [parts.queue_section(), parts.store_section(root), steered].concat();
        let mut wanted = vec![("writer", "writer-1".to_owned(), &writer)];
        wanted.extend((1..=enrichers).map(|number| ("enricher", format!("enricher-{number}"), &enricher)));
        wanted.extend((1..=fetchers).map(|number| ("fetcher", format!("fetcher-{number}"), &fetcher)));
        let mut running = BTreeMap::new();
        for (binary, name, config) in wanted {
            let environment = if binary == "writer" { parts.credentials() } else { Vec::new() };
            let service = Running::start(binary, &name, config, environment, parts.folder.path()).await?;
            running.insert(name, service);
        }
        Ok(Self { running, admin })
    }

    /// What `lakectl` prints as JSON when the writer is asked.
    pub fn lakectl(&self, words: &str) -> anyhow::Result<Value> {
        let server = format!("http://127.0.0.1:{}", self.admin.number());
        let mut arguments = vec!["--at", &server, "-o", "json"];
        arguments.extend(words.split(' '));
        let outcome = invocation::run("lakectl", &arguments, &[])?;
        ensure!(outcome.code == Some(0), "lakectl {words}: {outcome:?}");
        serde_json::from_str(&outcome.stdout).with_context(|| format!("lakectl {words}: {outcome:?}"))
    }

    /// A running service, by its name.
    pub fn get(&mut self, name: &str) -> anyhow::Result<&mut Running> {
        self.running.get_mut(name).with_context(|| format!("no service {name}"))
    }

    /// Ends all in order of the data path; each must end well.
    pub fn end(&mut self) -> anyhow::Result<()> {
        for prefix in ["fetcher", "enricher", "writer"] {
            for (_, service) in self.running.iter_mut().filter(|(name, _)| name.starts_with(prefix)) {
                service.end()?;
            }
        }
        Ok(())
    }
}

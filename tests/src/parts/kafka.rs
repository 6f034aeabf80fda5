//! Apache Kafka: one process that is broker and controller (KRaft), with a small heap.

use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaErrorCode;
use tempfile::TempDir;
use uuid::Uuid;

use super::port::Port;
use super::process::Process;
use super::{installed, wait_until, with_fresh_ports};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// A running Kafka broker without topics; topics are never created by use.
#[derive(Debug)]
pub struct Kafka {
    server: Process,
    port: Port,
    _controller: Port,
    _folder: TempDir,
}

impl Kafka {
    /// Formats an empty store and starts the broker on it, in a few seconds.
    ///
    /// # Errors
    /// When Kafka or Java is not installed, or the broker does not come up.
    pub fn start() -> anyhow::Result<Self> {
        with_fresh_ports(Self::start_once)
    }

    fn start_once() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("lake-test-kafka-").tempdir()?;
        let (port, controller) = (Port::free()?, Port::free()?);
        let properties = folder.path().join("server.properties");
        std::fs::write(&properties, server_properties(port.number(), controller.number(), folder.path())?)?;
        format_store(&properties)?;
        let mut command = java()?;
        command.arg("kafka.Kafka").arg(&properties);
        let probe = admin(&bootstrap(&port))?;
        let ready = Box::new(move || {
            let metadata = probe.inner().fetch_metadata(None, Duration::from_secs(1));
            metadata.is_ok_and(|metadata| !metadata.brokers().is_empty())
        });
        let log = folder.path().join("server.log");
        let server = Process::start("Kafka", command, &log, "TERM", vec![folder.path().to_owned()], ready)?;
        Ok(Self { server, port, _controller: controller, _folder: folder })
    }

    /// The value for `bootstrap.servers`.
    pub fn bootstrap(&self) -> String {
        bootstrap(&self.port)
    }

    /// Makes a topic and waits until every partition has a leader.
    ///
    /// # Errors
    /// When it exists already, or the broker is down.
    pub async fn create_topic(&self, name: &str, partitions: i32) -> anyhow::Result<()> {
        let admin = admin(&self.bootstrap())?;
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        let what = format!("create topic {name}");
        let results = admin.create_topics([&topic], &options()).await.with_context(|| what.clone())?;
        accepted(&what, results)?;
        has_leaders(&admin, name, usize::try_from(partitions)?).await
    }

    /// Gives a topic more partitions, as an operator does while HQ publishes.
    ///
    /// # Errors
    /// When there is no such topic or it has as many already.
    pub async fn add_partitions(&self, topic: &str, total: usize) -> anyhow::Result<()> {
        let admin = admin(&self.bootstrap())?;
        let results = admin.create_partitions([&NewPartitions::new(topic, total)], &options()).await?;
        accepted(&format!("give topic {topic} more partitions"), results)?;
        has_leaders(&admin, topic, total).await
    }

    /// Deletes a topic with all its messages, and waits until the broker has forgotten it.
    ///
    /// # Errors
    /// When there is no such topic.
    pub async fn delete_topic(&self, topic: &str) -> anyhow::Result<()> {
        let admin = admin(&self.bootstrap())?;
        accepted(&format!("delete topic {topic}"), admin.delete_topics(&[topic], &options()).await?)?;
        wait_until(&format!("topic {topic} is gone"), REQUEST_TIMEOUT, async || {
            let metadata = admin.inner().fetch_metadata(Some(topic), Duration::from_secs(2))?;
            Ok(metadata.topics().iter().all(|topic| topic.partitions().is_empty()))
        })
        .await
    }

    /// Deletes the messages of a partition below an offset, as its retention does.
    ///
    /// # Errors
    /// When there is no such partition or it ends before the offset.
    pub async fn delete_records(&self, topic: &str, partition: i32, before: i64) -> anyhow::Result<()> {
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(topic, partition, Offset::Offset(before))?;
        let deleted = admin(&self.bootstrap())?.delete_records(&offsets, &options()).await?;
        deleted.elements().iter().try_for_each(|element| element.error().context("delete records"))
    }

    /// Deletes all that a consumer group has committed, as the broker does when no member came for a week. It must have no member.
    ///
    /// # Errors
    /// When there is no such group or it has members.
    pub async fn delete_group(&self, group: &str) -> anyhow::Result<()> {
        let results = admin(&self.bootstrap())?.delete_groups(&[group], &options()).await?;
        accepted(&format!("delete group {group}"), results)
    }

    /// What a consumer group has committed for a partition.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn committed(&self, group: &str, topic: &str, partition: i32) -> anyhow::Result<Option<i64>> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.bootstrap()).set("group.id", group);
        let mut asked = TopicPartitionList::new();
        asked.add_partition(topic, partition);
        let asking = tokio::task::spawn_blocking(move || {
            with_consumer(&config, move |consumer| Ok(consumer.committed_offsets(asked, REQUEST_TIMEOUT)?))
        });
        let committed = asking.await?.context("ask for a group's offsets")?;
        Ok(committed.elements().first().and_then(|element| match element.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        }))
    }

    /// The server process, to be stopped, killed, frozen or started again.
    pub fn server(&mut self) -> &mut Process {
        &mut self.server
    }
}

/// Asks something of a consumer that is there for nothing else. Blocks.
///
/// A thread of its own asks it and destroys it: librdkafka sometimes waits for itself for ever when a consumer closes, and no test would end.
///
/// # Errors
/// When the configuration is refused, and the errors of `ask`.
pub fn with_consumer<T: Send + 'static>(
    config: &ClientConfig,
    ask: impl FnOnce(&BaseConsumer) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let consumer: BaseConsumer = config.create()?;
    let (answer, answered) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = answer.send(ask(&consumer));
    });
    answered.recv().context("the thread that asks Kafka panicked")?
}

fn bootstrap(port: &Port) -> String {
    format!("127.0.0.1:{}", port.number())
}

fn admin(bootstrap: &str) -> anyhow::Result<AdminClient<DefaultClientContext>> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("reconnect.backoff.max.ms", "200");
    // Refused connections are ordinary while the broker starts; the caller reports what matters.
    config.set_log_level(rdkafka::config::RDKafkaLogLevel::Emerg);
    config.create().context("make a Kafka admin client")
}

async fn has_leaders(admin: &AdminClient<DefaultClientContext>, topic: &str, partitions: usize) -> anyhow::Result<()> {
    wait_until(&format!("topic {topic} has {partitions} leaders"), REQUEST_TIMEOUT, async || {
        let metadata = admin.inner().fetch_metadata(Some(topic), Duration::from_secs(2))?;
        let found = metadata.topics().iter().flat_map(|topic| topic.partitions()).filter(|p| p.leader() >= 0).count();
        Ok(found == partitions)
    })
    .await
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(REQUEST_TIMEOUT)).request_timeout(Some(REQUEST_TIMEOUT))
}

fn accepted(what: &str, results: Vec<Result<String, (String, RDKafkaErrorCode)>>) -> anyhow::Result<()> {
    for result in results {
        if let Err((name, code)) = result {
            bail!("Kafka refuses to {what} ({name}): {code}");
        }
    }
    Ok(())
}

fn java() -> anyhow::Result<Command> {
    let jars = installed("kafka/jars")?;
    let mut command = Command::new("java");
    command.args(["-Xmx256m", "-Xms64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true"]);
    command.arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn");
    command.arg("-cp").arg(jars.join("*"));
    Ok(command)
}

fn format_store(properties: &Path) -> anyhow::Result<()> {
    let mut command = java()?;
    command.args(["kafka.tools.StorageTool", "format", "--cluster-id", &cluster_id(), "--config"]).arg(properties);
    let output = command.stdin(Stdio::null()).output().context("run java: run tests/set-up if it is missing")?;
    if !output.status.success() {
        let trouble = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        bail!("Kafka cannot format its store ({}): {trouble}", output.status);
    }
    Ok(())
}

/// Kafka wants 22 characters of base64 for 16 bytes. Hex digits are among them; the last one may only hold bits that exist.
fn cluster_id() -> String {
    let digits = Uuid::new_v4().simple().to_string();
    format!("{}A", &digits[..21])
}

fn server_properties(port: u16, controller: u16, folder: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    for (key, value) in [
        ("process.roles", "broker,controller"),
        ("node.id", "1"),
        ("controller.quorum.voters", &format!("1@127.0.0.1:{controller}")),
        ("listeners", &format!("PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}")),
        ("advertised.listeners", &format!("PLAINTEXT://127.0.0.1:{port}")),
        ("controller.listener.names", "CONTROLLER"),
        ("inter.broker.listener.name", "PLAINTEXT"),
        ("listener.security.protocol.map", "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT"),
        ("log.dirs", &folder.join("store").display().to_string()),
        ("auto.create.topics.enable", "false"),
        ("offsets.topic.num.partitions", "1"),
        ("offsets.topic.replication.factor", "1"),
        ("transaction.state.log.num.partitions", "1"),
        ("transaction.state.log.replication.factor", "1"),
        ("transaction.state.log.min.isr", "1"),
        ("group.initial.rebalance.delay.ms", "0"),
        // The defaults of these are made for bigger machines: the cleaner alone would take half of the heap.
        ("log.cleaner.dedupe.buffer.size", "4194304"),
        ("num.network.threads", "2"),
        ("num.io.threads", "4"),
        // A broker that was killed may come back only when its old session has run out.
        ("broker.heartbeat.interval.ms", "500"),
        ("broker.session.timeout.ms", "3000"),
    ] {
        writeln!(text, "{key}={value}")?;
    }
    Ok(text)
}

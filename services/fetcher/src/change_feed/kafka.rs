//! The change feed on Apache Kafka: one member of a consumer group.
//!
//! Offsets are committed by us alone, each second and when a partition is revoked, and only below the first message that is not done.
//! Where a group begins, and what is said when its position is gone, is in [`super::positions`].
//! A full fetcher pauses its partitions but goes on polling, so that the group can rebalance at any time; partitions that it gets while it is
//! full are paused too. HQ's own consumers keep their positions in Postgres and are not disturbed.
//!
//! Memory: messages that wait, here and in librdkafka, are bounded by number and by bytes.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use lake_proto::queue::v1::FeedPartition;
use lake_shared::byte_budget::ByteBudget;
use lake_shared::secret::Secret;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaConfRes;
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::group_member::GroupMember;
use super::offsets::{Log, Offsets, Start};
pub use super::positions::StartFrom;
use super::positions::{self, Group};
use super::spark_checkpoint::Positions;
use super::waiting::{self, Placed, WaitingMessages};
use super::{ChangeFeed, FeedMessage, Position};
use crate::metric_names;

/// Section `[kafka]`: how HQ's brokers are reached, and as which consumer group.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KafkaConfig {
    /// Addresses of HQ's brokers, `host:port`.
    pub bootstrap_servers: Vec<String>,
    /// Consumer group; all fetchers of one lake share it.
    #[serde(default = "default_group")]
    pub group_id: String,
    /// Where a new group begins: `earliest` or `latest`. A group is new if it has committed nothing and the lake has no records.
    #[serde(default)]
    pub start_from: StartFrom,
    /// Further librdkafka properties, for example `security.protocol`. They win over ours, except those that safety depends on.
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
    /// Password for `sasl.username`, apart from the properties so that it is never shown.
    #[serde(default)]
    pub sasl_password: Option<Secret>,
}

impl KafkaConfig {
    /// Checks rules that types cannot express.
    ///
    /// # Errors
    /// The key and what to do about it; values are not in the text, as they may be secrets.
    pub fn validate(&self) -> Result<(), String> {
        if self.bootstrap_servers.iter().all(|server| server.trim().is_empty()) {
            return Err(
                "key `kafka.bootstrap_servers`: no broker is named; give something like [\"kafka:9092\"]".into()
            );
        }
        client_config(self).create_native_config().map(drop).map_err(|error| {
            let reason = unusable(&error);
            format!("key `kafka.properties`: {reason}; see CONFIGURATION.md of librdkafka")
        })
    }
}

/// What is wrong with a configuration. librdkafka's own words may repeat a value, which may be a secret.
fn unusable(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, _, key, _) => format!("`{key}` is no property"),
        KafkaError::ClientConfig(_, _, key, _) => format!("`{key}` cannot have that value"),
        other => other.to_string(),
    }
}

fn default_group() -> String {
    "commcare-lake".into()
}

/// Longest time for the answer to what a partition's log holds.
const WATERMARKS_WITHIN: Duration = Duration::from_secs(5);
/// How often finished offsets are committed.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

type Member = GroupMember<StreamConsumer<FeedContext>>;

/// The group member. Dropping it leaves the group without a last commit; use [`ChangeFeed::close`].
pub struct KafkaFeed {
    consumer: Arc<Member>,
    messages: tokio::sync::Mutex<mpsc::Receiver<Placed>>,
    stop: Mutex<Option<oneshot::Sender<oneshot::Sender<()>>>>,
}

impl KafkaFeed {
    /// Joins the group and reads these topics. Brokers that cannot be reached are waited for. `lake_has_records` says whether the lake has
    /// taken records before, so that a group that has committed nothing is known to have lost its positions.
    ///
    /// # Errors
    /// Where librdkafka does not know a property or refuses its value.
    pub fn subscribe(config: &KafkaConfig, topics: &[&str], lake_has_records: bool) -> anyhow::Result<Arc<Self>> {
        let offsets = Arc::new(Mutex::new(Offsets::default()));
        let context =
            FeedContext { offsets: Arc::clone(&offsets), doubts: Mutex::default(), is_full: AtomicBool::new(false) };
        let consumer: StreamConsumer<FeedContext> =
            client_config(config).create_with_context(context).map_err(|error| refused(&error))?;
        let consumer = Arc::new(GroupMember::new(consumer)?);
        let group = Group {
            id: config.group_id.clone(),
            topics: topics.iter().map(|&topic| topic.to_owned()).collect(),
            start_from: config.start_from,
            lake_has_records,
        };
        let (sender, receiver) = mpsc::channel(waiting::MESSAGES_MAX);
        let (stop, stopped) = oneshot::channel();
        tokio::spawn(poll(Arc::clone(&consumer), group, offsets, sender, stopped));
        Ok(Arc::new(Self { consumer, messages: tokio::sync::Mutex::new(receiver), stop: Mutex::new(Some(stop)) }))
    }
}

/// Commits positions for the configured group, which must be new and have no member, and is to read these topics. Blocks. Returns how many of the
/// messages from a position on Kafka does not hold any more, by topic and partition.
///
/// # Errors
/// A group that has positions or members, a topic that is not read or a partition that is not there, a position behind the end of its log, or
/// brokers that do not answer. Nothing was committed then.
pub fn begin_at(config: &KafkaConfig, topics: &[&str], wanted: &Positions) -> anyhow::Result<Positions> {
    let consumer: BaseConsumer = client_config(config).create().map_err(|error| refused(&error))?;
    let consumer = GroupMember::new(consumer)?;
    positions::begin_at(&*consumer, &config.group_id, topics, wanted)
}

fn refused(error: &KafkaError) -> anyhow::Error {
    anyhow::anyhow!("kafka: the configuration cannot be used: {}; check kafka.properties", unusable(error))
}

fn client_config(config: &KafkaConfig) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("client.id", "commcare-lake-fetcher")
        // Eager: with the cooperative one, a member whose generation had passed went on owning partitions that it no longer fetched. That was
        // seen while partitions that were paused came back paused, which may have been the cause. A group with members cannot change from
        // one to the other.
        .set("partition.assignment.strategy", "roundrobin")
        .set("session.timeout.ms", "15000")
        .set("queued.max.messages.kbytes", "16384")
        // An answer comes on top of what is queued, one of each broker.
        .set("fetch.max.bytes", "8388608")
        .set("fetch.wait.max.ms", "100")
        .set("topic.metadata.refresh.interval.ms", "10000")
        .set("reconnect.backoff.max.ms", "5000")
        .set_log_level(RDKafkaLogLevel::Warning);
    for (name, value) in &config.properties {
        client.set(name, value);
    }
    if let Some(password) = &config.sasl_password {
        client.set("sasl.password", password.expose());
    }
    client
        .set("bootstrap.servers", config.bootstrap_servers.join(","))
        .set("group.id", &config.group_id)
        .set("auto.offset.reset", "earliest")
        // Positions that are gone are seen by the statistics.
        .set("statistics.interval.ms", "5000")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "false")
        .set("allow.auto.create.topics", "false");
    client
}

/// Reads the broker until told to stop; keeps polling while the pipeline is full.
async fn poll(
    consumer: Arc<Member>,
    group: Group,
    offsets: Arc<Mutex<Offsets>>,
    sender: mpsc::Sender<Placed>,
    mut stopped: oneshot::Receiver<oneshot::Sender<()>>,
) {
    let room = ByteBudget::new(waiting::BYTES_MAX);
    let mut waiting = WaitingMessages::default();
    let (mut paused, mut arrived, mut joined, mut settling) = (false, false, false, None);
    let mut joining = pin!(join(&consumer, group));
    let mut commit_tick = tokio::time::interval(COMMIT_EVERY);
    let told = loop {
        tokio::select! {
            told = &mut stopped => break told,
            place = waiting::place(&sender, &room, waiting.first_bytes()), if !waiting.is_empty() => {
                let Some((permit, bytes)) = place else { return };
                if let Some(message) = waiting.pop() {
                    permit.send((message, bytes));
                }
                if paused && waiting.is_empty() {
                    paused = !flow(&consumer, true);
                }
            }
            () = &mut joining, if !joined => joined = true,
            received = consumer.recv() => match received {
                Ok(message) => {
                    hand_out(&offsets, &message).into_iter().for_each(|message| waiting.push(message));
                    arrived = true;
                }
                Err(error) => note(&error),
            },
            _ = commit_tick.tick() => {
                commit(&**consumer, &offsets, CommitMode::Async);
                settle_doubts(&consumer, &mut settling);
                // Resuming may have failed in the middle of a rebalance.
                if paused && waiting.is_empty() {
                    paused = !flow(&consumer, true);
                }
            }
        }
        // One that comes although they are paused was on its way, or they flow again for whatever reason.
        if waiting.is_full() && (!paused || arrived) {
            paused |= flow(&consumer, false);
        }
        arrived = false;
    };
    drop(sender);
    commit(&**consumer, &offsets, CommitMode::Sync);
    consumer.unsubscribe();
    if let Ok(answer) = told {
        // `close` may have been cancelled while it waited for this.
        let _ = answer.send(());
    }
}

/// Joins the group when it is known where a new one begins.
async fn join(consumer: &Arc<Member>, group: Group) {
    let topics = group.topics.clone();
    positions::prepare(Arc::clone(consumer), group).await;
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    if let Err(error) = consumer.subscribe(&topics) {
        tracing::error!(%error, ?topics, "Kafka's client refuses to read these topics; nothing is read until the process is started anew");
    }
}

/// Asks the broker about the partitions whose position seems to be gone; one round at a time.
fn settle_doubts(consumer: &Arc<Member>, settling: &mut Option<JoinHandle<()>>) {
    if settling.as_ref().is_some_and(|settling| !settling.is_finished()) {
        return;
    }
    let doubts = std::mem::take(&mut *consumer.context().doubts.lock().unwrap_or_else(PoisonError::into_inner));
    if doubts.is_empty() {
        return;
    }
    let consumer = Arc::clone(consumer);
    *settling = Some(tokio::task::spawn_blocking(move || {
        for ((topic, partition), drained) in doubts {
            let (low, high) = match consumer.fetch_watermarks(&topic, partition, WATERMARKS_WITHIN) {
                Ok(watermarks) => watermarks,
                // The next statistics have the doubt again.
                Err(error) => {
                    return tracing::debug!(%error, topic, partition, "the broker does not say what a log holds");
                }
            };
            let gone = lock(&consumer.context().offsets).settle(&topic, partition, Log { low, high, drained });
            if let Some(gone) = gone {
                positions::tell_gone(&topic, partition, gone);
            }
        }
    }));
}

fn hand_out(offsets: &Mutex<Offsets>, message: &rdkafka::message::BorrowedMessage<'_>) -> Option<FeedMessage> {
    let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
    let handed_out = {
        let mut offsets = lock(offsets);
        let handed_out = offsets.handed_out(topic, partition, offset)?;
        offsets.published(topic, partition, message.timestamp().to_millis());
        handed_out
    };
    if let Some(wanted) = handed_out.back_from {
        positions::tell_back(topic, partition, wanted, offset);
    }
    Some(FeedMessage {
        position: Position { topic: topic.into(), partition, offset, generation: handed_out.generation },
        payload: message.payload().map(Bytes::copy_from_slice),
    })
}

/// Pauses or resumes all assigned partitions; tells whether that was done.
fn flow(consumer: &StreamConsumer<FeedContext>, resume: bool) -> bool {
    // For partitions that are assigned meanwhile.
    consumer.context().is_full.store(!resume, Ordering::Relaxed);
    let outcome = consumer.assignment().and_then(|assigned| match resume {
        true => consumer.resume(&assigned),
        false => consumer.pause(&assigned),
    });
    outcome.inspect_err(|error| tracing::warn!(%error, resume, "cannot pause or resume partitions")).is_ok()
}

fn note(error: &KafkaError) {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
            tracing::warn!(%error, "a topic does not exist (yet); it is waited for");
        }
        _ => tracing::warn!(%error, "Kafka cannot be read now; will be tried again"),
    }
}

fn commit<C: ConsumerContext>(consumer: &impl Consumer<C>, offsets: &Mutex<Offsets>, mode: CommitMode) {
    let commits = lock(offsets).to_commit();
    commit_these(consumer, offsets, &commits, mode);
}

fn commit_these<C: ConsumerContext>(
    consumer: &impl Consumer<C>,
    offsets: &Mutex<Offsets>,
    commits: &[(String, i32, i64)],
    mode: CommitMode,
) {
    if commits.is_empty() {
        return;
    }
    let mut list = TopicPartitionList::new();
    for (topic, partition, offset) in commits {
        if let Err(error) = list.add_partition_offset(topic, *partition, Offset::Offset(*offset)) {
            tracing::warn!(%error, topic, partition, offset, "offset cannot be committed");
        }
    }
    match consumer.commit(&list, mode) {
        Ok(()) => lock(offsets).committed(commits),
        // Not lost: the messages are handed out again, and doing them twice changes nothing.
        Err(error) => tracing::warn!(%error, "offsets cannot be committed now"),
    }
}

fn lock(offsets: &Mutex<Offsets>) -> std::sync::MutexGuard<'_, Offsets> {
    offsets.lock().unwrap_or_else(PoisonError::into_inner)
}

impl KafkaFeed {
    /// Messages that were handed out by the brokers and are not done.
    pub fn in_flight(&self) -> usize {
        lock(&self.consumer.context().offsets).in_flight()
    }
}

#[async_trait]
impl ChangeFeed for KafkaFeed {
    async fn next(&self) -> Option<FeedMessage> {
        self.messages.lock().await.recv().await.map(|(message, _)| message)
    }

    fn done(&self, positions: &[Position]) {
        let mut offsets = lock(&self.consumer.context().offsets);
        for position in positions {
            offsets.done(position);
        }
    }

    async fn close(&self) {
        let stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(stop) = stop {
            let (answer, answered) = oneshot::channel();
            if stop.send(answer).is_ok() {
                let _ = answered.await;
            }
        }
    }

    fn progress(&self) -> Vec<FeedPartition> {
        lock(&self.consumer.context().offsets).progress()
    }

    async fn check(&self) -> Result<(), String> {
        let consumer = Arc::clone(&self.consumer);
        let asked =
            tokio::task::spawn_blocking(move || consumer.fetch_metadata(None, Duration::from_secs(2)).map(|_| ()));
        asked.await.map_err(|error| error.to_string())?.map_err(|error| format!("no broker answers: {error}"))
    }
}

#[allow(clippy::cast_precision_loss, reason = "a gauge")]
fn set_lag(topic: &str, partition: i32, lag: i64) {
    metrics::gauge!(metric_names::KAFKA_LAG, "topic" => topic.to_owned(), "partition" => partition.to_string())
        .set(lag as f64);
}

/// What librdkafka calls back.
struct FeedContext {
    offsets: Arc<Mutex<Offsets>>,
    /// Partitions whose position seems to be gone, each with whether all its messages were handed out then.
    doubts: Mutex<BTreeMap<(String, i32), bool>>,
    /// Whether partitions are paused, as too much waits.
    is_full: AtomicBool,
}

impl ClientContext for FeedContext {
    fn stats(&self, statistics: Statistics) {
        let mut doubts = self.doubts.lock().unwrap_or_else(PoisonError::into_inner);
        for (topic, state) in &statistics.topics {
            for (&partition, state) in &state.partitions {
                let log = Log { low: state.lo_offset, high: state.hi_offset, drained: state.fetchq_cnt == 0 };
                if partition < 0 || log.low < 0 || log.high < 0 {
                    // Nothing was fetched from it yet.
                    continue;
                }
                let observed = lock(&self.offsets).observe(topic, partition, log);
                if observed.doubtful {
                    doubts.insert((topic.clone(), partition), log.drained);
                }
                if let Some(lag) = observed.lag {
                    set_lag(topic, partition, lag);
                }
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "kafka cannot be reached; check kafka.bootstrap_servers; will be tried again");
    }
}

impl ConsumerContext for FeedContext {
    fn commit_callback(&self, result: Result<(), KafkaError>, commits: &TopicPartitionList) {
        // In the middle of a rebalance the broker refuses. Noted as not committed, so that it is tried again even if no more messages come.
        for element in commits.elements() {
            let (topic, partition) = (element.topic(), element.partition());
            let Err(error) = element.error().and(result.clone()) else { continue };
            tracing::info!(%error, topic, partition, "an offset was not committed; will be tried again");
            match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::UnknownTopicOrPartition) => lock(&self.offsets).topic_gone(topic, partition),
                _ => lock(&self.offsets).commit_failed(topic, partition),
            }
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Assign(assigned) = rebalance else { return };
        // A partition that was paused when it was revoked comes back paused, and any other one flows.
        let outcome = match self.is_full.load(Ordering::Relaxed) {
            true => consumer.pause(assigned),
            false => consumer.resume(assigned),
        };
        if let Err(error) = outcome {
            tracing::warn!(%error, "assigned partitions cannot be paused or resumed");
        }
    }

    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(assigned) => {
                let starts = positions::starts(consumer, assigned);
                let uncommitted = starts.iter().filter(|(_, _, start)| *start == Start::Beginning).count();
                let mut offsets = lock(&self.offsets);
                for (topic, partition, start) in starts {
                    if let Some(wanted) = offsets.assign(&topic, partition, start) {
                        positions::tell_uncommitted(&topic, partition, wanted);
                    }
                }
                tracing::info!(partitions = assigned.count(), read_from_beginning = uncommitted, "partitions assigned");
            }
            Rebalance::Revoke(revoked) => {
                let mine = |topic: &str, partition| {
                    revoked
                        .elements()
                        .iter()
                        .any(|element| element.topic() == topic && element.partition() == partition)
                };
                let commits: Vec<_> = lock(&self.offsets)
                    .to_commit()
                    .into_iter()
                    .filter(|(topic, partition, _)| mine(topic, *partition))
                    .collect();
                commit_these(consumer, &self.offsets, &commits, CommitMode::Sync);
                let mut offsets = lock(&self.offsets);
                for element in revoked.elements() {
                    offsets.revoke(element.topic(), element.partition());
                    // Another fetcher tells it from now on.
                    set_lag(element.topic(), element.partition(), 0);
                }
                tracing::info!(partitions = revoked.count(), "partitions revoked");
            }
            Rebalance::Error(error) => tracing::warn!(%error, "rebalance failed; will be tried again"),
        }
    }
}

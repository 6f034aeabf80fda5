//! Where the fetchers' consumer group reads on a real Kafka: new groups, partitions that are added, and positions that are gone.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use lake_fetcher::allow_list::TakeConfig;
use lake_fetcher::change_feed::kafka::{KafkaConfig, KafkaFeed, StartFrom};
use lake_fetcher::change_feed::{ChangeFeed, FeedMessage};
use lake_fetcher::coalesce::coalesce;
use lake_shared::telemetry;
use lake_tests::invocation;
use lake_tests::parts::{Kafka, read_kafka_with_spark, wait_until};
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

/// One broker for all tests of this file: each has topics and a group of its own.
static KAFKA: LazyLock<Kafka> = LazyLock::new(|| Kafka::start().unwrap());
/// What `/metrics` would answer.
static METRICS: LazyLock<Box<dyn Fn() -> String + Send + Sync>> = LazyLock::new(|| {
    let handle = telemetry::install_metrics().unwrap();
    Box::new(move || handle.render())
});

/// A fetcher's feed of these topics; the group is called as the first one.
fn feed(start_from: StartFrom, topics: &[&str], lake_has_records: bool) -> Arc<KafkaFeed> {
    LazyLock::force(&METRICS);
    let config = KafkaConfig {
        bootstrap_servers: vec![KAFKA.bootstrap()],
        group_id: topics[0].to_owned(),
        start_from,
        properties: BTreeMap::from([("session.timeout.ms".to_owned(), "6000".to_owned())]),
        sasl_password: None,
    };
    KafkaFeed::subscribe(&config, topics, lake_has_records).unwrap()
}

fn producer() -> FutureProducer {
    ClientConfig::new().set("bootstrap.servers", KAFKA.bootstrap()).create().unwrap()
}

/// Publishes these numbers on a partition.
async fn publish(topic: &str, partition: i32, numbers: std::ops::Range<i64>) {
    let producer = producer();
    let sending = numbers.map(|number| {
        let (producer, number) = (producer.clone(), number.to_string());
        async move {
            let record = FutureRecord::to(topic).partition(partition).key("id").payload(&number);
            producer.send(record, PATIENCE).await.unwrap();
        }
    });
    futures::future::join_all(sending).await;
}

fn number(message: &FeedMessage) -> i64 {
    std::str::from_utf8(message.payload.as_deref().unwrap()).unwrap().parse().unwrap()
}

/// Takes so many messages and reports them as done; their numbers, in order.
async fn take(feed: &KafkaFeed, count: usize) -> Vec<i64> {
    let mut numbers = Vec::new();
    while numbers.len() < count {
        let message = timeout(PATIENCE, feed.next()).await.expect("another message comes").expect("the feed is open");
        numbers.push(number(&message));
        feed.done(&[message.position]);
    }
    numbers.sort_unstable();
    numbers
}

async fn committed(group: &str, topic: &str, partition: i32, wanted: i64) {
    wait_until(&format!("{group} stands at {wanted} of {topic}[{partition}]"), PATIENCE, async || {
        let found = KAFKA.committed(group, topic, partition).await?;
        anyhow::ensure!(found == Some(wanted), "it stands at {found:?}");
        Ok(true)
    })
    .await
    .unwrap();
}

/// Waits until a metric of a topic is told with such a value.
async fn metric(name: &str, topic: &str, wanted: impl Fn(f64) -> bool) {
    wait_until(&format!("{name} of {topic} is as wanted"), PATIENCE, async || {
        let text = METRICS();
        let is_meant = |line: &&str| line.starts_with(&format!("{name}{{")) && line.contains(&format!("\"{topic}\""));
        let line = text.lines().find(is_meant).unwrap_or_default();
        let value = line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
        anyhow::ensure!(value.is_some_and(&wanted), "it is {line:?}");
        Ok(true)
    })
    .await
    .unwrap();
}

/// A fetcher that takes nothing, as HQ or the queue is down, holds no more than it may when partitions are assigned to it again, and goes on
/// where it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_fetcher_stays_full_when_partitions_are_assigned_again() {
    const OF_PARTITION: i64 = 15_000;
    KAFKA.create_topic("full", 2).await.unwrap();
    for partition in 0..2 {
        publish("full", partition, 0..OF_PARTITION).await;
    }
    let full = feed(StartFrom::Earliest, &["full"], false);
    wait_until("it is full", PATIENCE, async || Ok(full.in_flight() >= 4_000)).await.unwrap();
    let other = feed(StartFrom::Earliest, &["full"], false);
    timeout(PATIENCE, other.next()).await.expect("the other one has a partition").unwrap();
    other.close().await;
    drop(other);
    // The time itself is what is tested: it has both partitions again, and reads tens of thousands in a second if it is allowed to.
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let held = full.in_flight();
        assert!(held < 10_000, "{held} messages are held by a fetcher that takes none");
    }
    let mut seen = [0, 1].map(|_| std::collections::BTreeSet::new());
    while seen.iter().any(|numbers| (numbers.len() as i64) < OF_PARTITION) {
        let message = timeout(PATIENCE, full.next()).await.expect("another message comes").expect("the feed is open");
        seen[message.position.partition as usize].insert(number(&message));
        full.done(&[message.position]);
    }
    full.close().await;
}

/// What waits for the pipeline is bounded by bytes, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_large_messages_fill_a_fetcher() {
    const MESSAGES: usize = 400;
    const BYTES: usize = 100_000;
    KAFKA.create_topic("large", 1).await.unwrap();
    let (producer, value) = (producer(), "x".repeat(BYTES));
    let sending = (0..MESSAGES).map(|_| producer.send(FutureRecord::to("large").key("id").payload(&value), PATIENCE));
    for sent in futures::future::join_all(sending).await {
        sent.unwrap();
    }
    let full = feed(StartFrom::Earliest, &["large"], false);
    wait_until("it is full", PATIENCE, async || Ok(full.in_flight() * BYTES >= 15 << 20)).await.unwrap();
    // The time itself is what is tested.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let held = full.in_flight() * BYTES;
    assert!(held < 20 << 20, "{held} bytes wait");
    for _ in 0..MESSAGES {
        timeout(PATIENCE, full.next()).await.expect("another message comes").expect("the feed is open");
    }
    full.close().await;
}

/// What is published while no fetcher runs, on a partition that was always quiet, is read by the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_began_at_the_end_keeps_its_place_on_quiet_partitions() {
    for topic in ["quiet", "quiet-other"] {
        KAFKA.create_topic(topic, 1).await.unwrap();
        publish(topic, 0, 0..3).await;
    }
    let fetcher = feed(StartFrom::Latest, &["quiet", "quiet-other"], false);
    for topic in ["quiet", "quiet-other"] {
        committed("quiet", topic, 0, 3).await;
    }
    fetcher.close().await;
    publish("quiet", 0, 3..13).await;
    let fetcher = feed(StartFrom::Latest, &["quiet", "quiet-other"], false);
    assert_eq!(take(&fetcher, 10).await, Vec::from_iter(3..13));
    committed("quiet", "quiet", 0, 13).await;
    fetcher.close().await;
}

/// Messages that come to a new partition before the fetchers know of it are read, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_are_added_are_read_from_their_beginning() {
    KAFKA.create_topic("growing", 4).await.unwrap();
    let fetcher = feed(StartFrom::Latest, &["growing"], false);
    committed("growing", "growing", 3, 0).await;
    KAFKA.add_partitions("growing", 8).await.unwrap();
    for partition in 0..8 {
        let first = i64::from(partition) * 10;
        publish("growing", partition, first..first + 10).await;
    }
    assert_eq!(take(&fetcher, 80).await, Vec::from_iter(0..80));
    fetcher.close().await;
}

/// Two fetchers of a new group that start together: both of them read, and neither what was there before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fetchers_that_start_together_begin_at_the_end() {
    KAFKA.create_topic("pair", 2).await.unwrap();
    for partition in [0, 1] {
        publish("pair", partition, 0..5).await;
    }
    let fetchers = [feed(StartFrom::Latest, &["pair"], false), feed(StartFrom::Latest, &["pair"], false)];
    let mut numbers = [Vec::new(), Vec::new()];
    let mut next = 10;
    wait_until("both have a partition and its messages", PATIENCE, async || {
        for partition in [0, 1] {
            publish("pair", partition, next..next + 1).await;
        }
        next += 1;
        for (fetcher, numbers) in fetchers.iter().zip(&mut numbers) {
            while let Ok(Some(message)) = timeout(Duration::from_millis(100), fetcher.next()).await {
                fetcher.done(std::slice::from_ref(&message.position));
                numbers.push(number(&message));
            }
        }
        Ok(numbers.iter().all(|numbers| !numbers.is_empty()))
    })
    .await
    .unwrap();
    assert!(numbers.iter().flatten().all(|number| *number >= 10), "only what came after the beginning: {numbers:?}");
    for fetcher in fetchers {
        fetcher.close().await;
    }
}

/// The brokers delete the offsets of a group that had no member for a week; they keep the messages longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_whose_offsets_expired_is_not_new() {
    KAFKA.create_topic("expired", 1).await.unwrap();
    let fetcher = feed(StartFrom::Latest, &["expired"], false);
    committed("expired", "expired", 0, 0).await;
    publish("expired", 0, 0..20).await;
    take(&fetcher, 20).await;
    committed("expired", "expired", 0, 20).await;
    fetcher.close().await;
    wait_until("the group has no member", PATIENCE, async || {
        KAFKA.delete_group("expired").await?;
        Ok(true)
    })
    .await
    .unwrap();
    publish("expired", 0, 20..120).await;
    let fetcher = feed(StartFrom::Latest, &["expired"], true);
    assert_eq!(take(&fetcher, 120).await, Vec::from_iter(0..120));
    metric("lake_fetcher_positions_gone_total", "expired", |count| count >= 1.0).await;
    committed("expired", "expired", 0, 120).await;
    fetcher.close().await;
}

/// Retention has passed what was to be read: the rest is read, and the gap is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_that_retention_has_passed_is_told_and_the_rest_is_read() {
    KAFKA.create_topic("passed", 1).await.unwrap();
    let fetcher = feed(StartFrom::Latest, &["passed"], false);
    committed("passed", "passed", 0, 0).await;
    publish("passed", 0, 0..50).await;
    take(&fetcher, 50).await;
    committed("passed", "passed", 0, 50).await;
    fetcher.close().await;
    publish("passed", 0, 50..120).await;
    KAFKA.delete_records("passed", 0, 80).await.unwrap();
    let fetcher = feed(StartFrom::Latest, &["passed"], true);
    assert_eq!(take(&fetcher, 40).await, Vec::from_iter(80..120));
    metric("lake_fetcher_positions_gone_total", "passed", |count| count >= 1.0).await;
    fetcher.close().await;
}

/// The topic is deleted and made again under a running fetcher, which goes away on its way through the new log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_made_anew_is_read_from_its_beginning_and_committed() {
    KAFKA.create_topic("anew", 1).await.unwrap();
    let fetcher = feed(StartFrom::Earliest, &["anew"], false);
    publish("anew", 0, 0..200).await;
    take(&fetcher, 200).await;
    committed("anew", "anew", 0, 200).await;
    KAFKA.delete_topic("anew").await.unwrap();
    KAFKA.create_topic("anew", 1).await.unwrap();
    publish("anew", 0, 1_000..1_100).await;
    assert_eq!(take(&fetcher, 60).await, Vec::from_iter(1_000..1_060));
    metric("lake_fetcher_positions_gone_total", "anew", |count| count >= 1.0).await;
    committed("anew", "anew", 0, 60).await;
    // The rest comes while none runs, until the new log is longer than the old one was.
    drop(fetcher);
    publish("anew", 0, 1_100..1_400).await;
    let fetcher = feed(StartFrom::Earliest, &["anew"], true);
    assert_eq!(take(&fetcher, 340).await, Vec::from_iter(1_060..1_400));
    fetcher.close().await;
}

/// Lag is told for a partition for which nothing was committed, and of which nothing was reported as done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lag_is_told_before_anything_is_committed() {
    KAFKA.create_topic("lagging", 1).await.unwrap();
    publish("lagging", 0, 0..5_000).await;
    let fetcher = feed(StartFrom::Earliest, &["lagging"], false);
    // The feed takes some messages ahead and then waits for its caller, who takes none.
    metric("lake_fetcher_kafka_lag", "lagging", |lag| (1.0..5_000.0).contains(&lag)).await;
    take(&fetcher, 5_000).await;
    metric("lake_fetcher_kafka_lag", "lagging", |lag| lag < 1.0).await;
    fetcher.close().await;
}

/// Keys without a value, as tools write them into compacted topics, and other odd payloads go by like all messages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_without_a_value_pass() {
    KAFKA.create_topic("odd", 1).await.unwrap();
    let producer = producer();
    let odd: [(Option<&str>, Option<&str>); 4] =
        [(Some("pub-case-1"), None), (None, Some("")), (Some("f-1"), Some("{}")), (Some("loc-1"), None)];
    for (key, payload) in odd {
        let mut record = FutureRecord::<str, str>::to("odd").partition(0);
        record.key = key;
        record.payload = payload;
        producer.send(record, PATIENCE).await.unwrap();
    }
    let fetcher = feed(StartFrom::Earliest, &["odd"], false);
    let mut messages = Vec::new();
    for _ in odd {
        messages.push(timeout(PATIENCE, fetcher.next()).await.unwrap().unwrap());
    }
    let coalesced = coalesce(&messages, &TakeConfig::EVERYTHING);
    assert_eq!(coalesced.skipped, BTreeMap::from([("no_value", 3)]));
    assert_eq!(coalesced.quarantined.len(), 1, "the one that names no document");
    let positions: Vec<_> = messages.into_iter().map(|message| message.position).collect();
    fetcher.done(&positions);
    committed("odd", "odd", 0, 4).await;
    fetcher.close().await;
}

/// The fetchers of a new lake go on where the predecessor stood, on the topics that it read; the others are read from their beginning.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_group_begins_where_a_spark_job_stood() {
    KAFKA.create_topic("case-sql", 2).await.unwrap();
    KAFKA.create_topic("form-sql", 1).await.unwrap();
    KAFKA.create_topic("web-user", 1).await.unwrap();
    publish("case-sql", 0, 0..100).await;
    publish("case-sql", 1, 1_000..1_030).await;
    publish("form-sql", 0, 2_000..2_050).await;
    publish("web-user", 0, 3_000..3_005).await;
    let folder = tempfile::tempdir().unwrap();
    read_kafka_with_spark(&KAFKA.bootstrap(), folder.path(), &["case-sql", "form-sql"]).unwrap();
    publish("case-sql", 0, 100..110).await;
    publish("form-sql", 0, 2_050..2_060).await;
    // Meanwhile Kafka has forgotten some of what the job had not read.
    KAFKA.delete_records("form-sql", 0, 2_053 - 2_000).await.unwrap();

    let config = folder.path().join("fetcher.toml");
    std::fs::write(&config, FETCHER.replace("BOOTSTRAP", &KAFKA.bootstrap())).unwrap();
    let begin = |checkpoint: &Path| {
        let arguments =
            ["begin-at-spark-checkpoint", "--config", config.to_str().unwrap(), checkpoint.to_str().unwrap()];
        invocation::run("fetcher", &arguments, &[]).unwrap()
    };
    let nothing = begin(&folder.path().join("case-sql/offsets"));
    assert!(nothing.code == Some(1) && nothing.stderr.contains("a folder `offsets` is missing"), "{nothing:?}");
    KAFKA.create_topic("other", 1).await.unwrap();
    publish("other", 0, 0..1).await;
    let others = tempfile::tempdir().unwrap();
    read_kafka_with_spark(&KAFKA.bootstrap(), others.path(), &["other"]).unwrap();
    let strange = begin(others.path());
    assert!(strange.code == Some(1) && strange.stderr.contains("do not read topic other, but case-sql"), "{strange:?}");
    let begun = begin(folder.path());
    assert_eq!(begun.code, Some(0), "{begun:?}");
    let told = "case-sql 0: from 100 on\ncase-sql 1: from 30 on\n\
        form-sql 0: from 50 on; Kafka does not hold the 3 messages from there on any more: backfill the projects\n";
    assert_eq!(begun.stdout, told);
    let wrong =
        invocation::run("fetcher", &["begin-at-spark-checkpoint", "--config", "/nowhere", "/nowhere"], &[]).unwrap();
    assert_eq!(wrong.code, Some(64), "{wrong:?}");
    let again = begin(folder.path());
    assert!(again.code == Some(1) && again.stderr.contains("give kafka.group_id a new name"), "{again:?}");

    let fetcher = feed(StartFrom::Latest, &["case-sql", "form-sql", "web-user"], false);
    let wanted: Vec<i64> = (100..110).chain(2_053..2_060).chain(3_000..3_005).collect();
    assert_eq!(take(&fetcher, wanted.len()).await, wanted);
    fetcher.close().await;
}

/// The group is named as `feed` names it.
const FETCHER: &str = r#"
[kafka]
bootstrap_servers = ["BOOTSTRAP"]
group_id = "case-sql"
[hq.database]
url = "postgres://hq@127.0.0.1:1/hq"
[[hq.blobs.stores]]
folder = "/nowhere"
[hq.users]
kind = "elasticsearch"
url = "http://127.0.0.1:1"
index = "users"
[queue]
servers = ["nats://127.0.0.1:1"]
[take]
domains = "everything"
"#;

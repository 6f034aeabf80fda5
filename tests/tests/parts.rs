//! Each real part starts, does its work, survives a hard kill where it should, and is gone afterwards.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use async_nats::jetstream;
use futures::StreamExt;
use lake_tests::parts::{
    Kafka, Launch, Nats, ObjectStore, Port, Postgres, Spark, SparkRelease, sql_name, wait_until, with_consumer,
};
use object_store::path::Path as Key;
use object_store::{ObjectStore as _, ObjectStoreExt, PutMode, PutPayload};
use rdkafka::ClientConfig;
use rdkafka::consumer::Consumer;
use rdkafka::message::Message;
use rdkafka::producer::{FutureProducer, FutureRecord};
use sqlx::Connection;

const PATIENCE: Duration = Duration::from_secs(30);

fn is_alive(process: u32) -> bool {
    std::path::Path::new(&format!("/proc/{process}")).exists()
}

#[tokio::test]
async fn postgres_answers_sql_and_is_gone_afterwards() {
    let mut postgres = Postgres::start().unwrap();
    let url = postgres.create_database("hq shard-1").unwrap();
    assert_eq!(url, postgres.url("hq shard-1"));
    let mut connection = sqlx::PgConnection::connect(&url).await.unwrap();
    sqlx::query("CREATE TABLE form (id text PRIMARY KEY, state int)").execute(&mut connection).await.unwrap();
    sqlx::query("INSERT INTO form VALUES ($1, 1)").bind("Ödön").execute(&mut connection).await.unwrap();
    let found: (String, i32) = sqlx::query_as("SELECT id, state FROM form").fetch_one(&mut connection).await.unwrap();
    assert_eq!(found, ("Ödön".to_owned(), 1));
    assert!(postgres.create_database("hq shard-1").unwrap_err().to_string().contains("already exists"));

    let process = postgres.server().id().unwrap();
    drop(postgres);
    assert!(!is_alive(process));
}

#[tokio::test]
async fn nats_keeps_a_stream_over_a_hard_restart() {
    let mut nats = Nats::start().unwrap();
    let config = jetstream::stream::Config {
        name: "RECORDS".to_owned(),
        subjects: vec!["lake.records.>".to_owned()],
        ..Default::default()
    };
    let context = jetstream::new(async_nats::connect(nats.url()).await.unwrap());
    context.create_stream(config).await.unwrap();
    for text in ["one", "two"] {
        context.publish("lake.records.demo", text.into()).await.unwrap().await.unwrap();
    }
    nats.restart().unwrap();

    let context = jetstream::new(async_nats::connect(nats.url()).await.unwrap());
    let stream = context.get_stream("RECORDS").await.unwrap();
    let pull = jetstream::consumer::pull::Config { durable_name: Some("reader".to_owned()), ..Default::default() };
    let consumer = stream.create_consumer(pull).await.unwrap();
    let mut messages = consumer.messages().await.unwrap().take(2);
    let mut payloads = Vec::new();
    while let Some(message) = messages.next().await {
        let message = message.unwrap();
        payloads.push(message.payload.clone());
        message.double_ack().await.unwrap();
    }
    assert_eq!(payloads, ["one", "two"]);
}

/// Messages of a topic: partition and value, sorted.
fn consume(bootstrap: &str, count: usize) -> Vec<(i32, String)> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("group.id", uuid::Uuid::new_v4().to_string());
    config.set("auto.offset.reset", "earliest");
    let consumed = with_consumer(&config, move |consumer| {
        consumer.subscribe(&["case-sql"])?;
        let (mut received, deadline) = (Vec::new(), Instant::now() + PATIENCE);
        while received.len() < count {
            anyhow::ensure!(Instant::now() < deadline, "{} of {count} messages came", received.len());
            let Some(message) = consumer.poll(Duration::from_secs(1)) else { continue };
            let message = message?;
            let value = message.payload().context("a message with a value")?.to_vec();
            received.push((message.partition(), String::from_utf8(value)?));
        }
        received.sort();
        Ok(received)
    });
    consumed.unwrap()
}

#[tokio::test]
async fn kafka_keeps_messages_over_a_hard_restart() {
    let mut kafka = Kafka::start().unwrap();
    kafka.create_topic("case-sql", 2).await.unwrap();
    assert!(kafka.create_topic("case-sql", 2).await.unwrap_err().to_string().contains("case-sql"));
    let producer: FutureProducer = ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create().unwrap();
    for partition in [0, 1] {
        let record = FutureRecord::to("case-sql").partition(partition).key("id").payload("{}");
        producer.send(record, PATIENCE).await.unwrap();
    }
    let sent = vec![(0, "{}".to_owned()), (1, "{}".to_owned())];
    assert_eq!(consume(&kafka.bootstrap(), 2), sent);

    kafka.server().restart().unwrap();
    assert_eq!(consume(&kafka.bootstrap(), 2), sent);
}

#[tokio::test]
async fn the_object_store_puts_only_if_absent_and_survives_a_hard_restart() {
    let mut s3 = ObjectStore::start().unwrap();
    s3.create_bucket("lake").unwrap();
    assert!(s3.create_bucket("lake").unwrap_err().to_string().contains("HTTP 409"));
    let store = s3.client("lake").unwrap();
    let key = Key::from("demo~2e/case-sql/a b%25/_delta_log/00000000000000000000.json");
    store.put_opts(&key, PutPayload::from("first"), PutMode::Create.into()).await.unwrap();
    let refused = store.put_opts(&key, PutPayload::from("second"), PutMode::Create.into()).await;
    assert!(matches!(refused, Err(object_store::Error::AlreadyExists { .. })), "{refused:?}");

    s3.server().restart().unwrap();
    let store = s3.client("lake").unwrap();
    assert_eq!(store.get(&key).await.unwrap().bytes().await.unwrap(), "first");

    let stranger = object_store::aws::AmazonS3Builder::new()
        .with_endpoint(s3.endpoint())
        .with_allow_http(true)
        .with_region(s3.region())
        .with_access_key_id(s3.access_key())
        .with_secret_access_key("wrong")
        .with_bucket_name("lake")
        .build()
        .unwrap();
    let refused = stranger.get(&key).await;
    assert!(matches!(refused, Err(object_store::Error::PermissionDenied { .. })), "{refused:?}");
}

#[test]
fn spark_writes_a_delta_table_with_deletion_vectors_and_is_gone_afterwards() {
    let lake = tempfile::tempdir().unwrap();
    let table = lake.path().join("a table");
    let name = sql_name(&table);
    let mut spark = Spark::start(SparkRelease::Four).unwrap();
    let create = format!(
        "CREATE TABLE {name} (_id STRING, visits INT) USING delta TBLPROPERTIES ('delta.enableDeletionVectors' = 'true')"
    );
    let insert =
        format!("INSERT INTO {name} SELECT CASE WHEN id > 0 THEN concat('id-', id) END, id FROM range(0, 50, 1, 1)");
    let deleted = spark.sql(&[&create, &insert, &format!("DELETE FROM {name} WHERE visits >= 2")]).unwrap();
    assert_eq!(deleted, [[Some("48".to_owned())]]);
    let found = spark.read(&table, None).unwrap();
    assert_eq!((found.columns.as_slice(), found.count), (["_id".to_owned(), "visits".to_owned()].as_slice(), 2));
    assert_eq!(found.rows, [[None, Some("0".to_owned())], [Some("id-1".to_owned()), Some("1".to_owned())]]);
    assert_eq!(spark.read(&table, Some(1)).unwrap().count, 50);
    assert!(
        std::fs::read_dir(&table).unwrap().any(|file| file.unwrap().path().extension().is_some_and(|end| end == "bin"))
    );
    let error = format!("{:#}", spark.sql(&["SELECT nothing FROM nowhere"]).unwrap_err());
    assert!(error.contains("nowhere") && !error.contains("\tat "), "{error}");

    let process = spark.process_id();
    drop(spark);
    assert!(!is_alive(process));
}

#[test]
fn ports_are_reserved_while_held() {
    let ports: Vec<Port> = (0..50).map(|_| Port::free().unwrap()).collect();
    let mut numbers: Vec<u16> = ports.iter().map(Port::number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 50);
    let pair = Port::free_pair().unwrap();
    for number in [pair.number(), pair.number() + 10_000] {
        assert!(!numbers.contains(&number));
        TcpListener::bind(("127.0.0.1", number)).unwrap();
    }
}

/// Runs itself as a process of its own, which starts a part and then dies as a test can: without dropping anything.
#[tokio::test]
async fn a_part_ends_with_a_test_that_dies() {
    const TOLD: &str = "LAKE_TEST_TELL_PROCESS";
    if let Some(told) = std::env::var_os(TOLD) {
        let mut nats = Nats::start().unwrap();
        std::fs::write(told, nats.server().id().unwrap().to_string()).unwrap();
        std::process::abort();
    }
    let folder = tempfile::tempdir().unwrap();
    let told = folder.path().join("process");
    let dying = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_part_ends_with_a_test_that_dies"])
        .env(TOLD, &told)
        .output()
        .unwrap();
    assert!(!dying.status.success());
    let process: u32 = std::fs::read_to_string(told).unwrap().parse().unwrap();
    wait_until("the orphaned server is gone", PATIENCE, async || Ok(!is_alive(process))).await.unwrap();
}

#[tokio::test]
async fn waiting_tells_what_it_waited_for() {
    let error =
        wait_until("pigs fly", Duration::from_millis(60), async || anyhow::bail!("no wings")).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("until pigs fly") && text.contains("no wings"), "{text}");
    wait_until("true", Duration::ZERO, async || Ok(true)).await.unwrap();
    let hanging = async || {
        futures::future::pending::<()>().await;
        Ok(true)
    };
    let error = wait_until("the end of days", Duration::from_millis(60), hanging).await.unwrap_err();
    assert!(error.to_string().contains("it did not come back"), "{error}");
}

#[test]
fn a_binary_that_is_not_built_is_an_error_with_the_command_to_run() {
    let error = Launch::new("no-such-binary").start().unwrap_err();
    assert!(error.to_string().contains("cargo build --workspace --bins"), "{error}");
}

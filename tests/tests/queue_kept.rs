//! What other people and power cuts do to the streams and consumers of a running queue: they come back, or the service ends with a clear line.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::{self, consumer, stream};
use bytes::Bytes;
use lake_shared::queue::jetstream::{JetStreamConfig, JetStreamQueue};
use lake_shared::queue::{Consumer, ConsumerOptions, Message, Queue, Stream};
use lake_tests::parts::{Nats, wait_until};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);

/// A queue on a server, kept as the services do it.
struct Kept {
    server: Nats,
    queue: Arc<JetStreamQueue>,
    keeping: JoinHandle<anyhow::Result<()>>,
    /// Another program on the same server.
    stranger: jetstream::Context,
}

impl Kept {
    async fn start() -> Self {
        let server = Nats::start().unwrap();
        let config = JetStreamConfig {
            servers: vec![server.url()],
            stream_size_bytes_max: 64 << 20,
            quarantine_size_bytes_max: 1 << 20,
            ..JetStreamConfig::default()
        };
        let queue = JetStreamQueue::connect(config).await.unwrap();
        let keeping = tokio::spawn(Arc::clone(&queue).keep(CancellationToken::new()));
        let stranger = jetstream::new(async_nats::connect(server.url()).await.unwrap());
        Self { server, queue, keeping, stranger }
    }

    async fn consumer(&self) -> Box<dyn Consumer> {
        let options = ConsumerOptions {
            durable_name: "writer".into(),
            in_flight_max: 100,
            acknowledge_within: Duration::from_secs(5),
        };
        self.queue.consumer(Stream::Rows, options).await.unwrap()
    }

    /// Publishes these numbers, each until it is stored.
    async fn publish(&self, subject: &str, numbers: std::ops::Range<u64>) {
        for number in numbers {
            wait_until("a message is stored", PATIENCE, async || {
                let payload = Bytes::from(number.to_string());
                let message = Message { subject: subject.into(), payload, dedupe_id: format!("{subject}-{number}") };
                self.queue.publish(message).await?;
                Ok(true)
            })
            .await
            .unwrap();
        }
    }

    /// The consumer as the server describes it.
    async fn described(&self) -> anyhow::Result<consumer::Info> {
        let found = self.stranger.get_consumer_from_stream::<consumer::pull::Config, _, _>("writer", "LAKE_ROWS");
        Ok(found.await?.cached_info().clone())
    }
}

const ROWS: &str = "lake.rows.demo.case.person";

/// Takes messages, acknowledged, until all of these numbers have come.
async fn take(consumer: &mut Box<dyn Consumer>, numbers: std::ops::Range<u64>) {
    let mut missing: BTreeSet<u64> = numbers.collect();
    let taking = async {
        while !missing.is_empty() {
            // Trouble on the way, such as a consumer that was deleted, is what is tested.
            let Ok(delivery) = consumer.next().await.expect("the queue is open") else { continue };
            missing.remove(&std::str::from_utf8(&delivery.payload).unwrap().parse().unwrap());
            let _ = delivery.receipt.acknowledge().await;
        }
    };
    let ended = timeout(PATIENCE, taking).await;
    assert!(ended.is_ok(), "these did not come: {missing:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_a_power_cut_left_beyond_its_stream_skips_nothing() {
    let mut kept = Kept::start().await;
    let mut consumer = kept.consumer().await;
    kept.publish(ROWS, 0..50).await;
    take(&mut consumer, 0..50).await;
    wait_until("all are acknowledged", PATIENCE, async || Ok(kept.described().await?.ack_floor.stream_sequence == 50))
        .await
        .unwrap();
    tokio::task::block_in_place(|| kept.server.lose_messages().unwrap());
    kept.publish(ROWS, 100..150).await;
    take(&mut consumer, 100..150).await;
    wait_until("consumer and stream agree", PATIENCE, async || {
        let position = kept.described().await?.delivered.stream_sequence;
        let last = kept.stranger.get_stream("LAKE_ROWS").await?.cached_info().state.last_sequence;
        anyhow::ensure!(position <= last, "{position} beyond {last}");
        Ok(true)
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_stream_that_was_deleted_comes_back_for_those_who_only_publish() {
    let kept = Kept::start().await;
    kept.publish("lake.records.demo.case", 0..1).await;
    assert!(kept.queue.was_used(Stream::Records).await.unwrap());
    kept.stranger.delete_stream("LAKE_RECORDS").await.unwrap();
    kept.publish("lake.records.demo.case", 1..2).await;
    let found = kept.stranger.get_stream("LAKE_RECORDS").await.unwrap().cached_info().config.clone();
    assert_eq!(found.retention, stream::RetentionPolicy::WorkQueue);
    assert!(!kept.queue.was_used(Stream::Rows).await.unwrap());
}

#[tokio::test]
async fn a_stream_that_was_changed_is_set_back() {
    let kept = Kept::start().await;
    let found = kept.stranger.get_stream("LAKE_ROWS").await.unwrap().cached_info().config.clone();
    // Both would drop what nobody has read yet.
    let changed =
        stream::Config { discard: stream::DiscardPolicy::Old, max_age: Duration::from_secs(3_600), ..found.clone() };
    kept.stranger.update_stream(&changed).await.unwrap();
    wait_until("it is set back", PATIENCE, async || {
        let now = kept.stranger.get_stream("LAKE_ROWS").await?.cached_info().config.clone();
        Ok((now.discard, now.max_age) == (stream::DiscardPolicy::New, Duration::ZERO))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_consumer_that_was_changed_skips_nothing() {
    let kept = Kept::start().await;
    let mut consumer = kept.consumer().await;
    let filtered = consumer::pull::Config {
        durable_name: Some("writer".into()),
        ack_policy: consumer::AckPolicy::Explicit,
        filter_subject: "lake.rows.other.>".into(),
        max_deliver: 1,
        ..consumer::pull::Config::default()
    };
    // What comes while the filter is there is passed over; the keeper may be so quick that nothing comes meanwhile.
    let mut count = 0;
    loop {
        kept.stranger.create_consumer_on_stream(filtered.clone(), "LAKE_ROWS").await.unwrap();
        kept.publish(ROWS, count..count + 3).await;
        count += 3;
        if kept.described().await.is_ok_and(|found| !found.config.filter_subject.is_empty()) {
            break;
        }
    }
    take(&mut consumer, 0..count).await;
    let found = kept.described().await.unwrap().config;
    assert_eq!((found.filter_subject.as_str(), found.max_deliver), ("", -1));
}

#[tokio::test]
async fn a_consumer_that_was_paused_goes_on() {
    let kept = Kept::start().await;
    let mut consumer = kept.consumer().await;
    let for_years = r#"{"pause_until":"2999-01-01T00:00:00Z"}"#;
    let client = async_nats::connect(kept.server.url()).await.unwrap();
    client.request("$JS.API.CONSUMER.PAUSE.LAKE_ROWS.writer", for_years.into()).await.unwrap();
    assert!(kept.described().await.unwrap().paused);
    kept.publish(ROWS, 0..3).await;
    take(&mut consumer, 0..3).await;
}

#[tokio::test]
async fn a_stream_that_was_made_anew_otherwise_ends_the_service_with_one_line() {
    let kept = Kept::start().await;
    kept.stranger.delete_stream("LAKE_ROWS").await.unwrap();
    let foreign = stream::Config {
        name: "LAKE_ROWS".into(),
        subjects: vec!["lake.rows.>".into()],
        retention: stream::RetentionPolicy::Limits,
        ..stream::Config::default()
    };
    // The keeper may have made it anew already.
    while kept.stranger.create_stream(foreign.clone()).await.is_err() {
        let _ = kept.stranger.delete_stream("LAKE_ROWS").await;
    }
    let ended = timeout(PATIENCE, kept.keeping).await.expect("it ends").unwrap();
    let line = ended.unwrap_err().to_string();
    assert!(line.contains("LAKE_ROWS") && line.contains("retention") && !line.contains('\n'), "{line}");
}

//! Large messages on a real JetStream server: what becomes of their parts when publishers, consumers and servers end in between.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use bytes::Bytes;
use lake_proto::queue::v1::RowBatch;
use lake_shared::queue::jetstream::{JetStreamConfig, JetStreamQueue};
use lake_shared::queue::{Consumer, ConsumerOptions, Delivery, Message, PublishError, Queue, Stream};
use lake_shared::wire;
use lake_tests::parts::{Nats, wait_until};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);
const ROWS: &str = "lake.rows.demo.case.person";
/// Several times what a server takes in one piece.
const LARGE: usize = 5 << 20;

/// A queue on a server of its own.
struct Ground {
    server: Nats,
    queue: Arc<JetStreamQueue>,
    /// Another program on the same server.
    stranger: jetstream::Context,
}

impl Ground {
    async fn start(parts_size_bytes_max: u64, parts_abandoned_after_seconds: u64) -> Self {
        let server = Nats::start().unwrap();
        let config = JetStreamConfig {
            servers: vec![server.url()],
            stream_size_bytes_max: 64 << 20,
            quarantine_size_bytes_max: 1 << 20,
            payload_size_max: 8 << 20,
            parts_size_bytes_max,
            parts_abandoned_after_seconds,
            ..JetStreamConfig::default()
        };
        let queue = JetStreamQueue::connect(config).await.unwrap();
        let stranger = jetstream::new(async_nats::connect(server.url()).await.unwrap());
        Self { server, queue, stranger }
    }

    async fn consumer(&self) -> Box<dyn Consumer> {
        let options = ConsumerOptions {
            durable_name: "writer".into(),
            in_flight_max: 100,
            acknowledge_within: Duration::from_secs(5),
        };
        self.queue.consumer(Stream::Rows, options).await.unwrap()
    }

    /// Publishes until it is stored, whatever happens to the server.
    async fn publish(&self, message: &Message) {
        wait_until("a message is stored", PATIENCE, async || {
            self.queue.publish(message.clone()).await?;
            Ok(true)
        })
        .await
        .unwrap();
    }

    async fn messages(&self, stream: &str) -> anyhow::Result<u64> {
        Ok(self.stranger.get_stream(stream).await?.cached_info().state.messages)
    }

    async fn has(&self, stream: &str, messages: u64) {
        wait_until(&format!("{stream} has {messages} messages"), PATIENCE, async || {
            let found = self.messages(stream).await?;
            anyhow::ensure!(found == messages, "it has {found}");
            Ok(true)
        })
        .await
        .unwrap();
    }
}

/// A message of which every byte is told by its number and place.
fn sized(number: usize, size: usize) -> Message {
    let payload: Vec<u8> =
        (0..size).map(|place| (place.wrapping_mul(2_654_435_761) >> 16) as u8 ^ number as u8).collect();
    Message { subject: ROWS.into(), payload: payload.into(), dedupe_id: format!("{number}") }
}

/// The next message, whatever happens on the way.
async fn next(consumer: &mut Box<dyn Consumer>) -> Delivery {
    let wait = async {
        loop {
            if let Ok(delivery) = consumer.next().await.expect("the queue is open") {
                return delivery;
            }
        }
    };
    timeout(PATIENCE, wait).await.expect("a message comes")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_lie_beside_the_queue_until_their_message_is_acknowledged() {
    let ground = Ground::start(64 << 20, 900).await;
    let mut consumer = ground.consumer().await;
    ground.publish(&sized(1, LARGE)).await;
    ground.publish(&sized(2, 100)).await;
    ground.has("LAKE_ROWS", 2).await;
    ground.has("LAKE_ROWS_PARTS", 6).await;
    // A repetition leaves nothing.
    ground.publish(&sized(1, LARGE)).await;
    ground.has("LAKE_ROWS_PARTS", 6).await;
    let held = [next(&mut consumer).await, next(&mut consumer).await];
    ground.has("LAKE_ROWS_PARTS", 6).await;
    for delivery in held {
        delivery.receipt.acknowledge().await.unwrap();
    }
    ground.has("LAKE_ROWS", 0).await;
    ground.has("LAKE_ROWS_PARTS", 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_publisher_leaves_holds_up_nothing_and_is_dropped() {
    const ABANDONED_AFTER: u64 = 6;
    let ground = Ground::start(64 << 20, ABANDONED_AFTER).await;
    let stop = CancellationToken::new();
    let keeping = tokio::spawn(Arc::clone(&ground.queue).keep(stop.clone()));
    let mut consumer = ground.consumer().await;
    // As a process leaves them that ends between the first and the last part.
    for number in 0..3 {
        let subject = format!("lake.parts.rows.0123456789abcdef.{number}");
        ground.stranger.publish(subject, Bytes::from(vec![7; 900_000])).await.unwrap().await.unwrap();
    }
    // This one waits for its consumer for longer than parts may lie without a message.
    ground.publish(&sized(1, LARGE)).await;
    ground.publish(&sized(2, 100)).await;
    sleep(Duration::from_secs(2 * ABANDONED_AFTER + 6)).await;
    // The old parts may lie there as long as a message is queued that could name them; it names its own.
    let waited = next(&mut consumer).await;
    assert!(waited.payload == sized(1, LARGE).payload, "{} bytes", waited.payload.len());
    waited.receipt.acknowledge().await.unwrap();
    let small = next(&mut consumer).await;
    assert_eq!(small.payload, sized(2, 100).payload);
    small.receipt.acknowledge().await.unwrap();
    ground.has("LAKE_ROWS_PARTS", 0).await;
    // What is published afterwards is not taken for what was left.
    ground.publish(&sized(3, LARGE)).await;
    assert!(next(&mut consumer).await.payload == sized(3, LARGE).payload);
    stop.cancel();
    keeping.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_that_somebody_deleted_are_told_and_hold_up_nothing() {
    let ground = Ground::start(64 << 20, 900).await;
    let mut consumer = ground.consumer().await;
    ground.publish(&sized(1, LARGE)).await;
    ground.stranger.get_stream("LAKE_ROWS_PARTS").await.unwrap().purge().await.unwrap();
    ground.publish(&sized(2, LARGE)).await;
    let sound = next(&mut consumer).await;
    assert!(sound.payload == sized(2, LARGE).payload, "what can be read does not wait for what cannot");
    sound.receipt.acknowledge().await.unwrap();
    let lost = next(&mut consumer).await;
    // So that the service puts it into quarantine as malformed, with a text that says why.
    assert!(wire::decode::<RowBatch>(&lost.payload).is_err());
    let text = String::from_utf8(lost.payload.to_vec()).unwrap();
    assert!(text.contains("6 parts of 5242880 bytes"), "{text}");
    lost.receipt.acknowledge().await.unwrap();
    ground.has("LAKE_ROWS", 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_room_of_parts_makes_large_messages_wait_and_no_others() {
    let ground = Ground::start(16 << 20, 900).await;
    let mut stored = 0;
    let refused = loop {
        match ground.queue.publish(sized(stored, LARGE)).await {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(&refused, PublishError::Unavailable { .. }), "{refused}");
    assert!(refused.to_string().contains("maximum bytes"), "{refused}");
    assert_eq!(stored, 3);
    // What was stored of it in vain is gone, so it does not take the room of others.
    ground.has("LAKE_ROWS_PARTS", 18).await;
    ground.publish(&sized(100, 1_000)).await;
    let mut consumer = ground.consumer().await;
    let mut sizes = BTreeSet::new();
    for _ in 0..4 {
        let delivery = next(&mut consumer).await;
        sizes.insert(delivery.payload.len());
        delivery.receipt.acknowledge().await.unwrap();
    }
    assert_eq!(sizes, BTreeSet::from([1_000, LARGE]));
    ground.publish(&sized(stored, LARGE)).await;
    assert!(next(&mut consumer).await.payload == sized(stored, LARGE).payload);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_messages_survive_the_ends_of_the_server() {
    const COUNT: usize = 12;
    let mut ground = Ground::start(64 << 20, 900).await;
    let mut consumer = ground.consumer().await;
    let publishing = tokio::spawn({
        let queue = Arc::clone(&ground.queue);
        async move {
            for number in 0..COUNT {
                while let Err(error) = queue.publish(sized(number, LARGE)).await {
                    assert!(matches!(error, PublishError::Unavailable { .. }), "{error}");
                    sleep(Duration::from_millis(20)).await;
                }
            }
        }
    });
    let mut seen = BTreeSet::new();
    while seen.len() < COUNT {
        let delivery = next(&mut consumer).await;
        let number = usize::from(delivery.payload[0]);
        assert!(delivery.payload == sized(number, LARGE).payload, "{} bytes", delivery.payload.len());
        // A lost acknowledgement brings the message again, which must do no harm.
        let _ = delivery.receipt.acknowledge().await;
        if seen.insert(number) && seen.len() % 4 == 2 {
            tokio::task::block_in_place(|| ground.server.restart().unwrap());
        }
    }
    timeout(PATIENCE, publishing).await.unwrap().unwrap();
}

//! What concerns only the queue on a server: restarts, set-up by many at once, limits, logins.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::HashSet;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::{join_all, try_join_all};
use lake_shared::queue::jetstream::{JetStreamConfig, JetStreamQueue};
use lake_shared::queue::{Broadcast, Consumer, ConsumerOptions, Delivery, Message, PublishError, Queue, Stream};
use lake_tests::certificates::Certificates;
use lake_tests::parts::{Nats, Port, parts_dir, wait_until};
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(30);

fn config(url: &str) -> JetStreamConfig {
    JetStreamConfig {
        servers: vec![url.to_owned()],
        stream_size_bytes_max: 64 << 20,
        quarantine_size_bytes_max: 1 << 20,
        request_timeout_ms: 10_000,
        ..JetStreamConfig::default()
    }
}

fn group(in_flight_max: usize) -> ConsumerOptions {
    ConsumerOptions { durable_name: "writer".into(), in_flight_max, acknowledge_within: Duration::from_secs(5) }
}

fn message(number: usize) -> Message {
    Message {
        subject: "lake.rows.demo.case.person".into(),
        payload: Bytes::from(number.to_string()),
        dedupe_id: format!("message-{number}"),
    }
}

fn number(delivery: &Delivery) -> usize {
    std::str::from_utf8(&delivery.payload).unwrap().parse().unwrap()
}

/// The next message, whatever happens on the way; how often something happened is counted.
async fn next(consumer: &mut Box<dyn Consumer>, trouble: &mut usize) -> Delivery {
    let wait = async {
        loop {
            match consumer.next().await.expect("the queue is open") {
                Ok(delivery) => return delivery,
                Err(_) => *trouble += 1,
            }
        }
    };
    timeout(PATIENCE, wait).await.expect("a message comes")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_published_survives_the_end_of_the_server() {
    let mut server = Nats::start().unwrap();
    let queue = JetStreamQueue::connect(config(&server.url())).await.unwrap();
    for number in 0..50 {
        queue.publish(message(number)).await.unwrap();
    }
    server.restart().unwrap();
    let mut consumer = loop {
        if let Ok(consumer) = queue.consumer(Stream::Rows, group(100)).await {
            break consumer;
        }
    };
    let (mut seen, mut trouble) = (HashSet::new(), 0);
    while seen.len() < 50 {
        let delivery = next(&mut consumer, &mut trouble).await;
        assert!(seen.insert(number(&delivery)));
        delivery.receipt.acknowledge().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn producers_and_consumers_go_on_after_restarts() {
    const COUNT: usize = 3_000;
    let mut server = Nats::start().unwrap();
    let queue = JetStreamQueue::connect(config(&server.url())).await.unwrap();
    let mut consumer = queue.consumer(Stream::Rows, group(500)).await.unwrap();
    let publisher = tokio::spawn({
        let queue = Arc::clone(&queue);
        async move {
            let publish = async |number| {
                while let Err(error) = queue.publish(message(number)).await {
                    assert!(matches!(error, PublishError::Unavailable { .. }), "{error}");
                    sleep(Duration::from_millis(20)).await;
                }
                // Spread over the restarts.
                sleep(Duration::from_millis(5)).await;
            };
            futures::stream::iter(0..COUNT).for_each_concurrent(8, publish).await;
        }
    });
    let (mut seen, mut trouble) = (HashSet::new(), 0);
    while seen.len() < COUNT {
        let delivery = next(&mut consumer, &mut trouble).await;
        seen.insert(number(&delivery));
        // A lost acknowledgement brings the message again, which must do no harm.
        let _ = delivery.receipt.acknowledge().await;
        if [500, 1_000, 1_500].contains(&seen.len()) {
            tokio::task::block_in_place(|| server.restart().unwrap());
        }
    }
    timeout(PATIENCE, publisher).await.unwrap().unwrap();
    assert!(trouble < 100, "{trouble} errors: the consumer does not wait between tries");
}

#[tokio::test]
async fn an_idle_consumer_is_not_in_trouble() {
    let server = Nats::start().unwrap();
    let queue = JetStreamQueue::connect(config(&server.url())).await.unwrap();
    let mut consumer = queue.consumer(Stream::Rows, group(100)).await.unwrap();
    // Longer than several heartbeats; the time itself is what is tested.
    if let Ok(Some(Err(error))) = timeout(Duration::from_secs(12), consumer.next()).await {
        panic!("{error}");
    }
    queue.publish(message(1)).await.unwrap();
    assert_eq!(timeout(PATIENCE, consumer.next()).await.unwrap().unwrap().unwrap().attempts, 1);
}

#[tokio::test]
async fn what_waits_in_a_consumer_is_bounded_by_bytes() {
    const LARGE: usize = 60;
    const LARGE_BYTES: usize = 900_000;
    let server = Nats::start().unwrap();
    let queue = JetStreamQueue::connect(config(&server.url())).await.unwrap();
    let patient = ConsumerOptions { acknowledge_within: Duration::from_secs(60), ..group(2_000) };
    let mut consumer = queue.consumer(Stream::Rows, patient).await.unwrap();
    // Many small ones, taken fast, so that many are asked for ahead.
    for number in 0..200 {
        queue.publish(message(number)).await.unwrap();
    }
    for _ in 0..200 {
        next(&mut consumer, &mut 0).await.receipt.acknowledge().await.unwrap();
    }
    for number in 1_000..1_000 + LARGE {
        let payload = Bytes::from(vec![b'x'; LARGE_BYTES]);
        queue.publish(Message { payload, ..message(number) }).await.unwrap();
    }
    let first = next(&mut consumer, &mut 0).await;
    let context = jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let on_server = context.get_stream("LAKE_ROWS").await.unwrap();
    let handed_out = async || on_server.consumer_info("writer").await.unwrap().num_ack_pending;
    // Whatever the server still sends without being asked again has come after this.
    sleep(Duration::from_secs(1)).await;
    let bytes = handed_out().await * LARGE_BYTES;
    assert!((LARGE_BYTES..16 << 20).contains(&bytes), "{bytes} bytes wait in the consumer");
    let mut held = vec![first];
    while held.len() < LARGE {
        held.push(next(&mut consumer, &mut 0).await);
    }
    assert!(held.iter().all(|delivery| delivery.payload.len() == LARGE_BYTES));
}

#[tokio::test]
async fn a_frozen_server_is_noticed() {
    let mut server = Nats::start().unwrap();
    let hasty = JetStreamConfig { request_timeout_ms: 2_000, ..config(&server.url()) };
    let queue = JetStreamQueue::connect(hasty).await.unwrap();
    let mut consumer = queue.consumer(Stream::Rows, group(100)).await.unwrap();
    queue.publish(message(1)).await.unwrap();
    let first = next(&mut consumer, &mut 0).await;
    assert_eq!(number(&first), 1);
    // Dropped, it would be given back, and might come again before the server is suspended.
    first.receipt.acknowledge().await.unwrap();
    server.server().suspend().unwrap();
    // First, as the client notices it too after a while, and says nothing until it is connected again.
    assert!(timeout(PATIENCE, consumer.next()).await.unwrap().unwrap().is_err());
    assert!(queue.check().await.is_err());
    assert!(matches!(queue.publish(message(2)).await, Err(PublishError::Unavailable { .. })));
    server.server().resume().unwrap();
    while queue.publish(message(2)).await.is_err() {}
    while number(&next(&mut consumer, &mut 0).await) != 2 {}
}

#[tokio::test]
async fn a_consumer_and_a_stream_that_were_deleted_are_made_again() {
    let server = Nats::start().unwrap();
    let queue = JetStreamQueue::connect(config(&server.url())).await.unwrap();
    let mut consumer = queue.consumer(Stream::Rows, group(100)).await.unwrap();
    queue.publish(message(1)).await.unwrap();
    let mut trouble = 0;
    next(&mut consumer, &mut trouble).await.receipt.acknowledge().await.unwrap();
    assert_eq!(trouble, 0);
    let context = jetstream::new(async_nats::connect(server.url()).await.unwrap());

    context.delete_consumer_from_stream("writer", "LAKE_ROWS").await.unwrap();
    queue.publish(message(2)).await.unwrap();
    assert_eq!(number(&next(&mut consumer, &mut trouble).await), 2);

    context.delete_stream("LAKE_ROWS").await.unwrap();
    let reader = tokio::spawn(async move { number(&next(&mut consumer, &mut 0).await) });
    while queue.publish(message(3)).await.is_err() {
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(timeout(PATIENCE, reader).await.unwrap().unwrap(), 3);
}

#[tokio::test]
async fn a_listener_hears_that_the_connection_was_away() {
    let mut server = Nats::start().unwrap();
    let queue = JetStreamQueue::connect(config(&server.url())).await.unwrap();
    let mut listener = queue.listen("lake.told.>").await.unwrap();
    queue.broadcast("lake.told.a", Bytes::from_static(b"1")).await.unwrap();
    let told = |payload: &'static [u8]| {
        Some(Broadcast::Message { subject: "lake.told.a".into(), payload: Bytes::from_static(payload) })
    };
    assert_eq!(timeout(PATIENCE, listener.next()).await.unwrap(), told(b"1"));
    server.restart().unwrap();
    assert_eq!(timeout(PATIENCE, listener.next()).await.unwrap(), Some(Broadcast::MaybeMissed));
    // From now on nothing is missed any more.
    queue.broadcast("lake.told.a", Bytes::from_static(b"2")).await.unwrap();
    assert_eq!(timeout(PATIENCE, listener.next()).await.unwrap(), told(b"2"));
}

#[tokio::test]
async fn many_start_at_once_and_limits_follow_the_configuration() {
    let server = Nats::start().unwrap();
    let url = server.url();
    let started = (0..8).map(|_| JetStreamQueue::connect(config(&url)));
    let queues = timeout(PATIENCE, try_join_all(started)).await.unwrap().unwrap();
    assert_eq!(queues.len(), 8);
    let consumers = join_all(queues.iter().map(|queue| queue.consumer(Stream::Records, group(10)))).await;
    assert!(consumers.iter().all(Result::is_ok));

    let larger = JetStreamConfig { stream_size_bytes_max: 96 << 20, dedupe_window_seconds: 60, ..config(&url) };
    JetStreamQueue::connect(larger).await.unwrap();
    let context = jetstream::new(async_nats::connect(&url).await.unwrap());
    for (stream, bytes_max) in [(Stream::Records, 96 << 20), (Stream::Rows, 96 << 20), (Stream::Quarantine, 1 << 20)] {
        let found = context.get_stream(stream.name()).await.unwrap().cached_info().config.clone();
        assert_eq!((found.max_bytes, found.duplicate_window), (bytes_max, Duration::from_secs(60)));
        assert_eq!(found.retention, jetstream::stream::RetentionPolicy::WorkQueue);
        assert_eq!(found.discard, jetstream::stream::DiscardPolicy::New);
        assert_eq!(found.subjects, [stream.subjects()]);
    }

    // One that keeps messages otherwise is not ours to change.
    context.delete_stream("LAKE_ROWS").await.unwrap();
    let foreign = jetstream::stream::Config {
        name: "LAKE_ROWS".into(),
        subjects: vec!["lake.rows.>".into()],
        ..jetstream::stream::Config::default()
    };
    context.create_stream(foreign).await.unwrap();
    let refused = JetStreamQueue::connect(config(&url)).await.err().unwrap().to_string();
    assert!(refused.contains("LAKE_ROWS") && refused.contains("retention"), "{refused}");
}

#[tokio::test]
async fn a_full_stream_says_so_and_takes_more_later() {
    let server = Nats::start().unwrap();
    let small = JetStreamConfig { stream_size_bytes_max: 8 << 10, ..config(&server.url()) };
    let queue = JetStreamQueue::connect(small).await.unwrap();
    let large = |number| Message { payload: Bytes::from(vec![b'x'; 3_000]), ..message(number) };
    let mut stored = 0;
    let refused = loop {
        match queue.publish(large(stored)).await {
            Ok(()) => stored += 1,
            Err(error) => break error.to_string(),
        }
    };
    assert_eq!(stored, 2);
    assert!(refused.contains("maximum bytes") && refused.contains("lake.rows.demo.case.person"), "{refused}");
    let mut consumer = queue.consumer(Stream::Rows, group(10)).await.unwrap();
    next(&mut consumer, &mut 0).await.receipt.acknowledge().await.unwrap();
    wait_until("the refused message is taken", PATIENCE, async || Ok(queue.publish(large(stored)).await.is_ok()))
        .await
        .unwrap();
    // It was refused, not remembered as a repetition.
    for _ in 0..stored {
        next(&mut consumer, &mut 0).await.receipt.acknowledge().await.unwrap();
    }
}

#[tokio::test]
async fn the_server_may_come_later() {
    let port = Port::free().unwrap();
    let url = format!("nats://lake:s3cret@127.0.0.1:{}", port.number());
    let impatient = JetStreamConfig { connect_attempts_max: Some(2), ..config(&url) };
    let error = JetStreamQueue::connect(impatient).await.err().unwrap().to_string();
    assert!(error.contains(&format!("nats://127.0.0.1:{}", port.number())) && error.contains("2 attempts"), "{error}");
    assert!(!error.contains("s3cret"), "{error}");

    let waiting = tokio::spawn(JetStreamQueue::connect(config(&url)));
    let _server = GuardedServer::start(&port);
    let queue = timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap();
    queue.check().await.unwrap();
}

#[tokio::test]
async fn a_wrong_login_is_an_error_at_once() {
    let port = Port::free().unwrap();
    let _server = GuardedServer::start(&port);
    let url = format!("nats://127.0.0.1:{}", port.number());
    let right = JetStreamConfig { user: Some("lake".into()), password: Some("s3cret".into()), ..config(&url) };
    timeout(PATIENCE, JetStreamQueue::connect(right)).await.unwrap().unwrap();
    for wrong in [
        JetStreamConfig { user: Some("lake".into()), password: Some("wr0ng".into()), ..config(&url) },
        JetStreamConfig { token: Some("wr0ng".into()), ..config(&url) },
        config(&format!("nats://lake:wr0ng@127.0.0.1:{}", port.number())),
        config(&url),
    ] {
        let error = timeout(PATIENCE, JetStreamQueue::connect(wrong)).await.unwrap().err().unwrap().to_string();
        assert!(error.contains("login") && error.contains(&url) && !error.contains("wr0ng"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_connection_may_be_encrypted_with_certificates_on_both_sides() {
    let certificates = Certificates::make().unwrap();
    let server = Nats::start_with_tls(&certificates).unwrap();
    let file = |name: &str| Some(certificates.file(name));
    let right = JetStreamConfig {
        ca_file: file("ca.pem"),
        certificate_file: file("client.pem"),
        key_file: file("client.key"),
        connect_attempts_max: Some(1),
        ..config(&server.url())
    };
    let queue = JetStreamQueue::connect(right.clone()).await.unwrap();
    queue.publish(message(7)).await.unwrap();
    let mut consumer = queue.consumer(Stream::Rows, group(1)).await.unwrap();
    assert_eq!(number(&next(&mut consumer, &mut 0).await), 7);

    for (wrong, reason) in [
        (JetStreamConfig { ca_file: None, ..right.clone() }, "certificate"),
        (JetStreamConfig { certificate_file: None, key_file: None, ..right.clone() }, "ertificate"),
        (JetStreamConfig { ca_file: file("gone.pem"), ..right }, "gone.pem"),
    ] {
        let error = JetStreamQueue::connect(wrong).await.err().unwrap().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

/// A server that asks for a login.
struct GuardedServer {
    child: Child,
    _folder: tempfile::TempDir,
}

impl GuardedServer {
    fn start(port: &Port) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = Command::new(parts_dir().unwrap().join("python/bin/nats-server"))
            .args([
                "-a",
                "127.0.0.1",
                "-p",
                &port.number().to_string(),
                "--user",
                "lake",
                "--pass",
                "s3cret",
                "-js",
                "-sd",
            ])
            .arg(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let since = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port.number())).is_err() {
            assert!(since.elapsed() < PATIENCE, "the server does not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child, _folder: folder }
    }
}

impl Drop for GuardedServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

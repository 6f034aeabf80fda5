//! The streams by which the lake itself asks for records, and hears of them.

use std::time::Duration;

use bytes::Bytes;
use lake_shared::escaped_names;
use lake_shared::identity::{Domain, Kind};
use lake_shared::queue::{ConsumerOptions, Message, PublishError, Stream};
use tokio::time::{sleep, timeout};

use super::ground::{Ground, LONG, PATIENCE, all_safe, group, message, next, next_within, number};

/// How the fetchers read.
fn fetchers(in_flight_max: usize) -> ConsumerOptions {
    ConsumerOptions { durable_name: "fetcher".into(), ..group(in_flight_max, LONG) }
}

/// The message of that number, as a request for documents of a domain with an odd name.
fn request(number: usize) -> Message {
    Message { subject: escaped_names::changes_subject(&Domain::from("a.b >"), Kind::Form), ..message(number) }
}

pub async fn what_the_lake_asks_for_has_streams_of_its_own(ground: Ground) {
    let mut fetcher = ground.queue.consumer(Stream::Changes, fetchers(10)).await.unwrap();
    let mut writer = ground.other.consumer(Stream::Reports, group(10, LONG)).await.unwrap();
    let mut rows = ground.consumer(10, LONG).await;
    // The same dedupe id on each: a stream knows only its own.
    let report = Message { subject: escaped_names::reports_subject(&Domain::from("d"), Kind::Case), ..message(1) };
    let published = [request(1), report, message(1)].map(|message| ground.publish(message));
    for (consumer, subject) in [
        (&mut fetcher, "lake.changes.a~2Eb~20~3E.form"),
        (&mut writer, "lake.reports.d.case"),
        (&mut rows, "lake.rows.demo.case.type1"),
    ] {
        let delivery = next(consumer).await;
        assert_eq!((delivery.subject.as_str(), number(&delivery)), (subject, 1));
        delivery.receipt.acknowledge().await.unwrap();
    }
    all_safe(published.into()).await;
    // A repetition is dropped here too, and what one message cannot hold is refused: nothing is in parts here.
    timeout(PATIENCE, ground.queue.publish(request(1))).await.unwrap().unwrap();
    assert!(next_within(&mut fetcher, Duration::from_millis(400)).await.is_none());
    let large = vec![7; ground.queue.message_size_max() + 1];
    let refused = ground.queue.publish(Message { payload: Bytes::from(large), ..request(2) }).await;
    assert!(matches!(refused, Err(PublishError::TooLarge { .. })), "{refused:?}");
    // Who asks does not hear of it by broadcast: the subjects belong to streams.
    assert!(ground.queue.broadcast("lake.changes.d.case", Bytes::new()).await.is_err());
}

pub async fn what_the_lake_asks_for_waits_where_its_stream_is_full(ground: Ground) {
    const COUNT: usize = 40;
    let mut fetcher = ground.queue.consumer(Stream::Changes, fetchers(100)).await.unwrap();
    let wide = |number: usize| {
        let text = format!("{number} {}", "x".repeat(4_000));
        Message { payload: Bytes::from(text), ..request(number) }
    };
    let published: Vec<_> = (0..COUNT).map(|number| ground.publish(wide(number))).collect();
    sleep(Duration::from_millis(500)).await;
    let safe = published.iter().filter(|one| one.is_finished()).count();
    assert!(safe < COUNT, "64 KiB hold no {COUNT} messages of 4 kB");
    let mut seen: Vec<usize> = Vec::new();
    while seen.len() < COUNT {
        let delivery = next(&mut fetcher).await;
        seen.push(number(&delivery));
        delivery.receipt.acknowledge().await.unwrap();
    }
    all_safe(published).await;
    seen.sort_unstable();
    assert_eq!(seen, (0..COUNT).collect::<Vec<_>>());
}

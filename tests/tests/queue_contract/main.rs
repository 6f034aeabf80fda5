//! What the queue promises, shown on both adapters: in process, and on a real JetStream server.
//!
//! Each promise is a function that gets a queue to be tried on; the macro at the end makes one test per adapter of it.
//! Where a promise is about time, the test waits for just that time; everything else waits for a condition.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod backlog;
mod changes;
mod ground;
mod redelivery;

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::future::{join_all, select_all};
use lake_shared::escaped_names;
use lake_shared::identity::Kind;
use lake_shared::queue::{Broadcast, ConsumerOptions, Message, PublishError, Stream};
use tokio::time::{sleep, timeout};

use self::backlog::what_waits_is_told;
use self::changes::{
    what_the_lake_asks_for_has_streams_of_its_own, what_the_lake_asks_for_waits_where_its_stream_is_full,
};
use self::ground::{
    A_MOMENT, Ground, LONG, PATIENCE, Size, all_safe, assert_nothing_comes, group, message, next, next_within, number,
};
use self::redelivery::{a_retry_comes_after_its_time, what_is_dropped_comes_again_soon};

async fn what_nobody_answers_comes_again(ground: Ground) {
    let within = Duration::from_secs(3);
    let mut consumer = ground.consumer(10, within).await;
    let published = ground.publish(message(1));
    let since = Instant::now();
    let silent = next(&mut consumer).await;
    let second = next(&mut consumer).await;
    assert!(since.elapsed() >= within, "{:?}", since.elapsed());
    assert_eq!((second.attempts, &second.id), (2, &silent.id));
    // The silent one comes round at last: what it says counts.
    silent.receipt.acknowledge().await.unwrap();
    all_safe(vec![published]).await;
    drop(second);
    assert_nothing_comes(&mut consumer, 2 * within).await;
}

async fn work_in_progress_is_left_alone(ground: Ground) {
    let within = Duration::from_secs(4);
    let mut consumer = ground.consumer(10, within).await;
    let published = ground.publish(message(1));
    let working = next(&mut consumer).await;
    for _ in 0..6 {
        assert_nothing_comes(&mut consumer, within / 4).await;
        working.receipt.in_progress().await.unwrap();
    }
    working.receipt.acknowledge().await.unwrap();
    all_safe(vec![published]).await;
    assert_nothing_comes(&mut consumer, 2 * within).await;
}

async fn consumers_of_one_name_share(ground: Ground) {
    let mut consumers = Vec::new();
    for queue in [&ground.queue, &ground.other, &ground.queue] {
        consumers.push(queue.consumer(Stream::Rows, group(100, LONG)).await.unwrap());
    }
    let published = ground.publish_many(300);
    let taken = Arc::new(AtomicUsize::new(0));
    let shares = consumers.into_iter().map(|mut consumer| {
        let taken = Arc::clone(&taken);
        tokio::spawn(async move {
            let mut mine = Vec::new();
            while taken.load(Ordering::SeqCst) < 300 {
                let Some(delivery) = next_within(&mut consumer, Duration::from_millis(50)).await else { continue };
                assert_eq!(delivery.attempts, 1);
                mine.push(number(&delivery));
                delivery.receipt.acknowledge().await.unwrap();
                taken.fetch_add(1, Ordering::SeqCst);
                sleep(Duration::from_millis(1)).await;
            }
            mine
        })
    });
    let shares: Vec<Vec<usize>> =
        timeout(PATIENCE, join_all(shares)).await.unwrap().into_iter().map(|share| share.unwrap()).collect();
    all_safe(published).await;
    assert!(shares.iter().all(|share| !share.is_empty()), "{shares:?}");
    let mut all: Vec<usize> = shares.concat();
    all.sort_unstable();
    assert_eq!(all, (0..300).collect::<Vec<_>>());
    // A second group would take messages from the first.
    let second = ConsumerOptions { durable_name: "second".into(), ..group(1, LONG) };
    let refused = ground.queue.consumer(Stream::Rows, second).await.err().unwrap().to_string();
    assert!(refused.contains("second") && refused.contains("LAKE_ROWS"), "{refused}");
}

async fn a_group_holds_no_more_than_it_may(ground: Ground) {
    let mut one = ground.consumer(4, LONG).await;
    let mut two = ground.other.consumer(Stream::Rows, group(4, LONG)).await.unwrap();
    let published = ground.publish_many(10);
    let mut held = Vec::new();
    while held.len() < 4 {
        let either = select_all([one.next(), two.next()]);
        held.push(timeout(PATIENCE, either).await.unwrap().0.unwrap().unwrap());
    }
    assert_nothing_comes(&mut one, A_MOMENT).await;
    assert_nothing_comes(&mut two, A_MOMENT).await;
    let mut seen: HashSet<usize> = held.iter().map(number).collect();
    // Each answer makes room for one more.
    while seen.len() < 10 {
        held.remove(0).receipt.acknowledge().await.unwrap();
        let either = select_all([one.next(), two.next()]);
        held.push(timeout(PATIENCE, either).await.unwrap().0.unwrap().unwrap());
        assert!(seen.insert(number(held.last().unwrap())));
    }
    for delivery in held {
        delivery.receipt.acknowledge().await.unwrap();
    }
    all_safe(published).await;
}

async fn a_repetition_is_dropped(ground: Ground) {
    let mut consumer = ground.consumer(10, LONG).await;
    let published: Vec<_> = (0..5).map(|_| ground.publish(message(1))).collect();
    let only = next(&mut consumer).await;
    assert_nothing_comes(&mut consumer, A_MOMENT).await;
    only.receipt.acknowledge().await.unwrap();
    all_safe(published).await;
    // Also when it is done with, and on any subject of the stream.
    let again = Message { subject: "lake.rows.other".into(), ..message(1) };
    timeout(PATIENCE, ground.queue.publish(again)).await.unwrap().unwrap();
    assert_nothing_comes(&mut consumer, A_MOMENT).await;
    // Ids that do not fit in a header are ids too.
    let odd = |dedupe_id: String| Message { dedupe_id, ..message(2) };
    let ids = ["a\r\nb".to_owned(), "x".repeat(3_000), "x".repeat(3_001)];
    let published: Vec<_> = ids.iter().chain(&ids).map(|id| ground.publish(odd(id.clone()))).collect();
    for _ in 0..ids.len() {
        next(&mut consumer).await.receipt.acknowledge().await.unwrap();
    }
    all_safe(published).await;
    assert_nothing_comes(&mut consumer, A_MOMENT).await;
}

async fn only_too_large_messages_are_refused(ground: Ground) {
    let (size_max, message_size_max) = (ground.queue.payload_size_max(), ground.queue.message_size_max());
    assert!(message_size_max < size_max, "{message_size_max}");
    let sized = |size: usize, id: &str| Message {
        payload: Bytes::from(vec![b'x'; size]),
        dedupe_id: id.repeat(3_000),
        ..message(1)
    };
    match ground.queue.publish(sized(size_max + 1, "a")).await {
        Err(PublishError::TooLarge { size, size_max: told, .. }) => assert_eq!((size, told), (size_max + 1, size_max)),
        other => panic!("{other:?}"),
    }
    // Entries for the quarantine are cut, so that they do not travel in parts.
    let entry = Message { subject: "lake.quarantine.writer".into(), ..sized(message_size_max + 1, "c") };
    assert!(matches!(ground.queue.publish(entry).await, Err(PublishError::TooLarge { .. })));
    let mut consumer = ground.consumer(10, LONG).await;
    let published = ground.publish(sized(size_max, "b"));
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.payload.len(), size_max);
    delivery.receipt.acknowledge().await.unwrap();
    all_safe(vec![published]).await;
    for subject in ["lake.nowhere.x", "lake.rows", "lake.rows..x", "lake.rows.*", "lake.rows.a b", ""] {
        let lost = Message { subject: subject.into(), ..message(3) };
        assert!(matches!(ground.queue.publish(lost).await, Err(PublishError::Unavailable { .. })), "{subject}");
    }
}

/// 200 messages of 2 kB do not fit in 64 kB.
async fn a_full_queue_makes_producers_wait_and_loses_nothing(ground: Ground) {
    let published: Vec<_> = (0..200)
        .map(|number| {
            let payload = Bytes::from(format!("{number} {}", "x".repeat(2_000)));
            ground.publish(Message { payload, ..message(number) })
        })
        .collect();
    let mut consumer = ground.consumer(1_000, LONG).await;
    let mut held = Vec::new();
    while held.len() < 10 {
        held.push(next(&mut consumer).await);
    }
    while let Ok(Some(Ok(delivery))) = timeout(A_MOMENT, consumer.next()).await {
        held.push(delivery);
    }
    assert!(held.len() < 100, "{} fit", held.len());
    assert!(published.iter().any(|one| !one.is_finished()));
    let mut seen = HashSet::new();
    loop {
        for delivery in held.drain(..) {
            assert!(seen.insert(number(&delivery)), "{} came twice", number(&delivery));
            delivery.receipt.acknowledge().await.unwrap();
        }
        if seen.len() == 200 {
            break;
        }
        held.push(next(&mut consumer).await);
    }
    all_safe(published).await;
    assert_nothing_comes(&mut consumer, A_MOMENT).await;
}

/// A number that looks random and is the same in each run.
fn scattered(seed: u64) -> u64 {
    let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

async fn nothing_is_lost_when_consumers_come_and_go(ground: Ground) {
    const COUNT: usize = 2_000;
    let published = ground.publish_many(COUNT);
    let done = Arc::new(std::sync::Mutex::new(HashMap::<usize, usize>::new()));
    let workers = (0..4_u64).map(|worker| {
        let queue = Arc::clone(if worker % 2 == 0 { &ground.queue } else { &ground.other });
        let done = Arc::clone(&done);
        tokio::spawn(async move {
            for life in 0_u64.. {
                let mut consumer = queue.consumer(Stream::Rows, group(200, Duration::from_secs(5))).await.unwrap();
                for turn in 0..50 + scattered(life) % 200 {
                    if done.lock().unwrap().len() == COUNT {
                        return;
                    }
                    let chance = scattered((worker << 48) ^ (life << 24) ^ turn);
                    // Short enough to be cut off now and then while a message is on its way.
                    let patience = Duration::from_micros(500 + chance % 20_000);
                    let Some(delivery) = next_within(&mut consumer, patience).await else { continue };
                    match chance % 20 {
                        0..=1 => drop(delivery),
                        2..=3 => delivery.receipt.retry(Duration::from_millis(chance % 30)).await.unwrap(),
                        _ => {
                            let number = number(&delivery);
                            delivery.receipt.acknowledge().await.unwrap();
                            *done.lock().unwrap().entry(number).or_default() += 1;
                        }
                    }
                }
            }
        })
    });
    timeout(3 * PATIENCE, join_all(workers)).await.expect("all come").into_iter().for_each(|worker| worker.unwrap());
    all_safe(published).await;
    assert_eq!(done.lock().unwrap().len(), COUNT);
    assert_nothing_comes(&mut ground.consumer(200, Duration::from_secs(5)).await, A_MOMENT).await;
}

/// What a server sends in the moment in which a consumer leaves may reach nobody, and comes again after its time-out. That is rare: it must not be
/// so in most of the rounds, and nothing may be lost in any.
async fn a_consumer_that_leaves_takes_nothing_along(ground: Ground) {
    const ROUNDS: usize = 5;
    let within = Duration::from_secs(20);
    let mut slipped = 0;
    for round in 0..ROUNDS {
        let published: Vec<_> = (0..400).map(|number| ground.publish(message(1_000 * round + number))).collect();
        let mut leaving = ground.consumer(2_000, within).await;
        let mut seen = HashSet::new();
        // Long enough to find out its pace and ask ahead.
        for _ in 0..100 {
            let delivery = next(&mut leaving).await;
            assert!(seen.insert(number(&delivery)));
            delivery.receipt.acknowledge().await.unwrap();
        }
        drop(leaving);
        let mut staying = ground.other.consumer(Stream::Rows, group(2_000, within)).await.unwrap();
        let mut is_slow = false;
        while seen.len() < 400 {
            // Before the time-out of what the other one had.
            let delivery = match timeout(within / 2, next(&mut staying)).await {
                Ok(delivery) => delivery,
                Err(_) => {
                    is_slow = true;
                    next(&mut staying).await
                }
            };
            assert!(seen.insert(number(&delivery)));
            delivery.receipt.acknowledge().await.unwrap();
        }
        slipped += usize::from(is_slow);
        all_safe(published).await;
    }
    let slips_max = if ground.is_remote() { ROUNDS / 2 } else { 0 };
    assert!(slipped <= slips_max, "in {slipped} of {ROUNDS} rounds something came after its time-out only");
}

/// What was asked for ahead must not be handed out when its time is over, and must not be forgotten either.
async fn a_consumer_that_was_away_for_long_goes_on(ground: Ground) {
    let within = Duration::from_secs(2);
    let published = ground.publish_many(300);
    let mut consumer = ground.consumer(1_000, within).await;
    let mut seen = HashSet::new();
    while seen.len() < 300 {
        let delivery = next(&mut consumer).await;
        seen.insert(number(&delivery));
        delivery.receipt.acknowledge().await.unwrap();
        if seen.len() % 100 == 50 {
            sleep(2 * within).await;
        }
    }
    all_safe(published).await;
    assert_nothing_comes(&mut consumer, 2 * within).await;
}

async fn waiting_can_be_cut_off_at_any_time(ground: Ground) {
    let mut consumer = ground.consumer(500, LONG).await;
    let (mut published, mut seen) = (Vec::new(), HashSet::new());
    for turn in 0.. {
        if published.len() < 300 {
            published.push(ground.publish(message(published.len())));
        }
        let patience = Duration::from_micros(scattered(turn) % 3_000);
        if let Some(delivery) = next_within(&mut consumer, patience).await {
            assert_eq!(delivery.attempts, 1);
            assert!(seen.insert(number(&delivery)));
            delivery.receipt.acknowledge().await.unwrap();
        }
        if seen.len() == 300 {
            break;
        }
        assert!(turn < 100_000, "{} came", seen.len());
    }
    all_safe(published).await;
}

async fn hostile_names_arrive_as_they_are(ground: Ground) {
    let names = ["a.b", "*", ">", "a b", "..", "", "\u{0}\r\n", "घर", "_", "a/b", "PUB x 1", &"é".repeat(5_000)];
    let mut consumer = ground.consumer(100, LONG).await;
    let mut expected = HashMap::new();
    let mut published = Vec::new();
    for (number, domain) in names.iter().enumerate() {
        for (step, document_type) in names.iter().enumerate() {
            let subject = escaped_names::rows_subject(&(*domain).into(), Kind::Case, Some(&(*document_type).into()));
            let number = number * 100 + step;
            expected.insert(number, subject.clone());
            published.push(ground.publish(Message { subject, ..message(number) }));
        }
    }
    let pairs = expected.len();
    assert_eq!(expected.values().collect::<HashSet<_>>().len(), pairs);
    for _ in 0..pairs {
        let delivery = next(&mut consumer).await;
        assert_eq!(expected.remove(&number(&delivery)), Some(delivery.subject.clone()));
        delivery.receipt.acknowledge().await.unwrap();
    }
    all_safe(published).await;
}

fn told(subject: &str, payload: &str) -> Broadcast {
    Broadcast::Message { subject: subject.into(), payload: Bytes::copy_from_slice(payload.as_bytes()) }
}

async fn broadcasts_reach_who_listens_now(ground: Ground) {
    ground.queue.broadcast("lake.told.a", Bytes::from_static(b"early")).await.unwrap();
    // An answer of the server: the broadcast before it has been sent to whoever listens.
    ground.queue.check().await.unwrap();
    let mut exact = ground.other.listen("lake.told.a").await.unwrap();
    let mut token = ground.queue.listen("lake.*.b").await.unwrap();
    let mut rest = ground.other.listen("lake.told.>").await.unwrap();
    for subject in ["lake.told.a", "lake.told.b", "lake.told.a.b", "lake.told", "lake.other.b", "other"] {
        ground.queue.broadcast(subject, Bytes::copy_from_slice(subject.as_bytes())).await.unwrap();
    }
    ground.queue.broadcast("lake.told.a", Bytes::from_static(b"end")).await.unwrap();
    ground.queue.broadcast("lake.end.b", Bytes::from_static(b"end")).await.unwrap();
    for (listener, subjects, end) in [
        (&mut exact, vec!["lake.told.a"], "lake.told.a"),
        (&mut token, vec!["lake.told.b", "lake.other.b"], "lake.end.b"),
        (&mut rest, vec!["lake.told.a", "lake.told.b", "lake.told.a.b"], "lake.told.a"),
    ] {
        for subject in subjects {
            assert_eq!(timeout(PATIENCE, listener.next()).await.unwrap(), Some(told(subject, subject)));
        }
        assert_eq!(timeout(PATIENCE, listener.next()).await.unwrap(), Some(told(end, "end")));
    }
    for subject in ["lake.rows.a", "lake.told.*", "a..b", ""] {
        assert!(ground.queue.broadcast(subject, Bytes::new()).await.is_err(), "{subject}");
    }
    assert!(ground.queue.listen("a.>.b").await.is_err());
}

async fn a_slow_listener_holds_up_nobody_and_hears_of_it(ground: Ground) {
    let mut slow = ground.other.listen("lake.told.>").await.unwrap();
    for number in 0..20_000 {
        let broadcast = ground.queue.broadcast("lake.told.a", Bytes::from(number.to_string()));
        timeout(PATIENCE, broadcast).await.unwrap().unwrap();
    }
    let mut heard = 0;
    while timeout(PATIENCE, slow.next()).await.unwrap().unwrap() != Broadcast::MaybeMissed {
        heard += 1;
    }
    assert!(heard < 20_000, "{heard}");
}

async fn closing_ends_everyone(ground: Ground) {
    let mut consumer = ground.consumer(10, LONG).await;
    let mut listener = ground.queue.listen("lake.told.>").await.unwrap();
    ground.queue.check().await.unwrap();
    let queue = Arc::clone(&ground.queue);
    let waiting = tokio::spawn(async move { (consumer.next().await.is_none(), consumer.next().await.is_none()) });
    ground.close().await;
    assert_eq!(timeout(PATIENCE, waiting).await.unwrap().unwrap(), (true, true));
    assert_eq!(timeout(PATIENCE, listener.next()).await.unwrap(), None);
    assert!(matches!(queue.publish(message(1)).await, Err(PublishError::Closed)));
    assert!(queue.check().await.is_err());
}

/// Not every promise can be told by the same means: in process `Ok` comes last.
#[tokio::test]
async fn memory_says_ok_only_after_the_acknowledgement() {
    let ground = Ground::memory(Size::Ample).await;
    let mut consumer = ground.consumer(10, LONG).await;
    let queue = Arc::clone(&ground.queue);
    let mut published = Box::pin(queue.publish(message(1)));
    assert!(futures::poll!(&mut published).is_pending());
    let delivery = next(&mut consumer).await;
    assert!(futures::poll!(&mut published).is_pending());
    delivery.receipt.retry(Duration::ZERO).await.unwrap();
    let delivery = next(&mut consumer).await;
    assert!(futures::poll!(&mut published).is_pending());
    delivery.receipt.acknowledge().await.unwrap();
    timeout(PATIENCE, published).await.unwrap().unwrap();

    // What is on its way when the queue closes was never safe.
    let published = tokio::spawn(async move { queue.publish(message(2)).await });
    let delivery = next(&mut consumer).await;
    ground.close().await;
    assert!(matches!(timeout(PATIENCE, published).await.unwrap().unwrap(), Err(PublishError::Closed)));
    assert!(delivery.receipt.acknowledge().await.is_err());
}

async fn run<F: Future<Output = ()>>(ground: impl Future<Output = Ground>, promise: impl FnOnce(Ground) -> F) {
    promise(ground.await).await;
}

macro_rules! promises {
    ($($promise:ident on $size:ident;)*) => {
        mod memory {
            use super::{Ground, Size};
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                super::run(Ground::memory(Size::$size), super::$promise).await;
            })*
        }
        mod jetstream {
            use super::{Ground, Size};
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                super::run(Ground::jetstream(Size::$size), super::$promise).await;
            })*
        }
    };
}

promises! {
    what_is_dropped_comes_again_soon on Ample;
    what_waits_is_told on Ample;
    a_retry_comes_after_its_time on Ample;
    what_nobody_answers_comes_again on Ample;
    work_in_progress_is_left_alone on Ample;
    consumers_of_one_name_share on Ample;
    a_group_holds_no_more_than_it_may on Ample;
    a_repetition_is_dropped on Ample;
    only_too_large_messages_are_refused on Ample;
    a_full_queue_makes_producers_wait_and_loses_nothing on Small;
    nothing_is_lost_when_consumers_come_and_go on Ample;
    a_consumer_that_leaves_takes_nothing_along on Ample;
    a_consumer_that_was_away_for_long_goes_on on Ample;
    waiting_can_be_cut_off_at_any_time on Ample;
    hostile_names_arrive_as_they_are on Ample;
    broadcasts_reach_who_listens_now on Ample;
    a_slow_listener_holds_up_nobody_and_hears_of_it on Ample;
    closing_ends_everyone on Ample;
    what_the_lake_asks_for_has_streams_of_its_own on Ample;
    what_the_lake_asks_for_waits_where_its_stream_is_full on Small;
}

// Behind the macro, which it uses.
mod parts;

//! What the queue promises of messages that are larger than one piece can be: they are published, handed out and acknowledged like all others.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::select_all;
use lake_shared::queue::{Delivery, Message, Stream};
use tokio::time::timeout;

use super::ground::{
    A_MOMENT, Ground, LONG, PATIENCE, Size, all_safe, assert_nothing_comes, group, message, next, next_within, number,
};
use super::{run, scattered};

/// A message of that number and of so many bytes, each of which says where it belongs.
fn sized(number: usize, size: usize) -> Message {
    let mut payload = format!("{number} ").into_bytes();
    payload.reserve(size);
    for place in 0.. {
        if payload.len() >= size {
            break;
        }
        payload.extend(scattered((number << 32 | place) as u64).to_le_bytes());
    }
    payload.truncate(size);
    Message { payload: payload.into(), ..message(number) }
}

/// The number of a message whose payload is not all text.
fn number_of(delivery: &Delivery) -> usize {
    let text = delivery.payload.split(|byte| *byte == b' ').next().unwrap();
    std::str::from_utf8(text).unwrap().parse().unwrap()
}

/// So many pieces and a bit.
fn pieces(ground: &Ground, count: usize) -> usize {
    count * ground.queue.message_size_max() + 17
}

async fn large_ones_arrive_whole_among_others(ground: Ground) {
    let piece = ground.queue.message_size_max();
    let mut expected: HashMap<usize, Bytes> = HashMap::new();
    let mut published = Vec::new();
    for (number, size) in [piece, piece + 1, 2 * piece, pieces(&ground, 2), 3 * piece - 1].into_iter().enumerate() {
        for other in 0..20 {
            published.push(ground.publish(message(100 + 20 * number + other)));
        }
        let large = sized(number, size);
        expected.insert(number, large.payload.clone());
        published.push(ground.publish(large));
    }
    let mut one = ground.consumer(200, LONG).await;
    let mut two = ground.other.consumer(Stream::Rows, group(200, LONG)).await.unwrap();
    for _ in 0..105 {
        let either = select_all([one.next(), two.next()]);
        let delivery = timeout(PATIENCE, either).await.expect("another one comes").0.unwrap().unwrap();
        assert_eq!(delivery.attempts, 1);
        if delivery.payload.len() > 10 {
            let whole = expected.remove(&number_of(&delivery)).expect("it did not come before");
            assert!(whole == delivery.payload, "{} of {} bytes", delivery.payload.len(), whole.len());
        }
        delivery.receipt.acknowledge().await.unwrap();
    }
    assert!(expected.is_empty(), "{:?}", expected.keys());
    all_safe(published).await;
    assert_nothing_comes(&mut one, A_MOMENT).await;
    assert_nothing_comes(&mut two, A_MOMENT).await;
}

async fn a_large_one_comes_again_whole(ground: Ground) {
    let within = Duration::from_secs(3);
    let mut consumer = ground.consumer(10, within).await;
    let large = sized(1, pieces(&ground, 2));
    let published = ground.publish(large.clone());
    let first = next(&mut consumer).await;
    let id = first.id.clone();
    drop(first);
    let second = next(&mut consumer).await;
    let (since, after) = (Instant::now(), Duration::from_millis(700));
    second.receipt.retry(after).await.unwrap();
    let third = next(&mut consumer).await;
    assert!(since.elapsed() >= after, "{:?}", since.elapsed());
    // Left alone while it is worked on, and handed out again when nothing is said.
    for _ in 0..4 {
        assert_nothing_comes(&mut consumer, within / 2).await;
        third.receipt.in_progress().await.unwrap();
    }
    let fourth = next(&mut consumer).await;
    assert_eq!((fourth.attempts, &fourth.id), (4, &id));
    assert!(fourth.payload == large.payload);
    fourth.receipt.acknowledge().await.unwrap();
    drop(third);
    all_safe(vec![published]).await;
    assert_nothing_comes(&mut consumer, 2 * within).await;
}

async fn a_repetition_of_a_large_one_is_dropped(ground: Ground) {
    let mut consumer = ground.consumer(10, LONG).await;
    let large = sized(1, pieces(&ground, 2));
    let published: Vec<_> = (0..3).map(|_| ground.publish(large.clone())).collect();
    let only = next(&mut consumer).await;
    assert!(only.payload == large.payload);
    assert_nothing_comes(&mut consumer, A_MOMENT).await;
    only.receipt.acknowledge().await.unwrap();
    all_safe(published).await;
    timeout(PATIENCE, ground.queue.publish(large)).await.unwrap().unwrap();
    assert_nothing_comes(&mut consumer, A_MOMENT).await;
}

async fn a_large_one_counts_as_one(ground: Ground) {
    let mut consumer = ground.consumer(2, LONG).await;
    let published: Vec<_> = (0..3).map(|number| ground.publish(sized(number, pieces(&ground, 2)))).collect();
    let held = [next(&mut consumer).await, next(&mut consumer).await];
    assert!(next_within(&mut consumer, A_MOMENT).await.is_none());
    for delivery in held {
        delivery.receipt.acknowledge().await.unwrap();
    }
    next(&mut consumer).await.receipt.acknowledge().await.unwrap();
    all_safe(published).await;
}

async fn waiting_for_a_large_one_can_be_cut_off_at_any_time(ground: Ground) {
    let mut consumer = ground.consumer(100, LONG).await;
    let (mut published, mut seen) = (Vec::new(), Vec::new());
    for turn in 0.. {
        if published.len() < 12 {
            let number = published.len();
            published.push(ground.publish(if number % 2 == 0 {
                sized(number, pieces(&ground, 2))
            } else {
                message(number)
            }));
        }
        if let Some(delivery) = next_within(&mut consumer, Duration::from_micros(scattered(turn) % 3_000)).await {
            assert_eq!(delivery.attempts, 1);
            if delivery.payload.len() > 10 {
                assert!(delivery.payload == sized(number_of(&delivery), pieces(&ground, 2)).payload);
                seen.push(number_of(&delivery));
            } else {
                seen.push(number(&delivery));
            }
            delivery.receipt.acknowledge().await.unwrap();
        }
        if seen.len() == 12 {
            break;
        }
        assert!(turn < 100_000, "{seen:?} came");
    }
    all_safe(published).await;
    seen.sort_unstable();
    assert_eq!(seen, Vec::from_iter(0..12));
    assert_nothing_comes(&mut consumer, A_MOMENT).await;
}

/// Consumers that leave, and publishers that are cut off and begin again, leave only whole messages.
async fn large_ones_survive_those_who_come_and_go(ground: Ground) {
    const COUNT: usize = 10;
    let (queue, size) = (Arc::clone(&ground.queue), pieces(&ground, 3));
    let publishing = tokio::spawn(async move {
        for number in 0..COUNT {
            let large = sized(number, size);
            for patience in (1..).map(|tries: u64| Duration::from_millis(3 * tries * tries)) {
                // In process it waits for the acknowledgement.
                if let Ok(stored) = timeout(patience, queue.publish(large.clone())).await {
                    stored.unwrap();
                    break;
                }
            }
        }
    });
    let mut seen = HashMap::<usize, usize>::new();
    let working = async {
        for life in 0_u64.. {
            let within = Duration::from_secs(5);
            let queue = if life % 2 == 0 { &ground.queue } else { &ground.other };
            let mut consumer = queue.consumer(Stream::Rows, group(20, within)).await.unwrap();
            for turn in 0..4 {
                let patience = Duration::from_millis(5 + scattered(life << 8 | turn) % 300);
                let Some(delivery) = next_within(&mut consumer, patience).await else { continue };
                let number = number_of(&delivery);
                assert!(delivery.payload == sized(number, size).payload, "{number}: {} bytes", delivery.payload.len());
                if !scattered(life ^ turn).is_multiple_of(3) {
                    delivery.receipt.acknowledge().await.unwrap();
                    *seen.entry(number).or_default() += 1;
                }
            }
            if seen.len() == COUNT && publishing.is_finished() {
                return;
            }
        }
    };
    timeout(4 * PATIENCE, working).await.expect("all come");
    publishing.await.unwrap();
    let mut consumer = ground.consumer(20, Duration::from_secs(5)).await;
    assert!(next_within(&mut consumer, 3 * A_MOMENT).await.is_none_or(|late| seen.contains_key(&number_of(&late))));
}

promises! {
    large_ones_arrive_whole_among_others on Ample;
    a_large_one_comes_again_whole on Ample;
    a_repetition_of_a_large_one_is_dropped on Ample;
    a_large_one_counts_as_one on Ample;
    waiting_for_a_large_one_can_be_cut_off_at_any_time on Ample;
    large_ones_survive_those_who_come_and_go on Ample;
}

//! What is given back, or let go of, comes again.

use std::time::{Duration, Instant};

use crate::ground::{A_MOMENT, Ground, LONG, all_safe, assert_nothing_comes, message, next, number};

pub async fn what_is_dropped_comes_again_soon(ground: Ground) {
    let mut consumer = ground.consumer(10, LONG).await;
    let published = ground.publish(message(1));
    let first = next(&mut consumer).await;
    assert_eq!((first.attempts, number(&first), first.subject.as_str()), (1, 1, "lake.rows.demo.case.type1"));
    let id = first.id.clone();
    drop(first);
    let second = next(&mut consumer).await;
    assert_eq!((second.attempts, &second.id), (2, &id));
    second.receipt.acknowledge().await.unwrap();
    all_safe(vec![published]).await;
    assert_nothing_comes(&mut consumer, A_MOMENT).await;
}

pub async fn a_retry_comes_after_its_time(ground: Ground) {
    let mut consumer = ground.consumer(10, LONG).await;
    let published = ground.publish(message(1));
    let (first, after) = (next(&mut consumer).await, Duration::from_millis(700));
    let since = Instant::now();
    first.receipt.retry(after).await.unwrap();
    let second = next(&mut consumer).await;
    assert!(since.elapsed() >= after, "{:?}", since.elapsed());
    assert_eq!(second.attempts, 2);
    second.receipt.retry(Duration::ZERO).await.unwrap();
    let third = next(&mut consumer).await;
    assert_eq!(third.attempts, 3);
    third.receipt.acknowledge().await.unwrap();
    all_safe(vec![published]).await;
}

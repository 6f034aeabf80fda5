//! What a queue tells of what waits.

use lake_shared::queue::{Backlog, Stream};
use lake_tests::parts::wait_until;

use crate::ground::{Ground, LONG, PATIENCE, all_safe, message, next};

/// Waits until the queue says so; it may take a moment until it has counted.
async fn until(ground: &Ground, what: &str, is_so: impl Fn(Backlog) -> bool) {
    let asked = wait_until(what, PATIENCE, async || {
        let told = ground.queue.backlog(Stream::Rows).await?.unwrap();
        if is_so(told) { Ok(true) } else { anyhow::bail!("{told:?}") }
    });
    asked.await.unwrap();
}

pub async fn what_waits_is_told(ground: Ground) {
    let counts = |told: Backlog| Backlog { bytes_max: None, in_flight_max: None, ..told };
    until(&ground, "nothing waits", |told| counts(told) == Backlog::default()).await;
    let mut published = vec![ground.publish(message(0))];
    until(&ground, "a message waits", |told| (told.messages, told.undelivered) == (1, 1) && told.bytes > 0).await;
    until(&ground, "it is told since when, and how much fits", |told| {
        told.oldest_us > Some(0) && told.bytes_max > Some(0)
    })
    .await;
    let mut consumer = ground.consumer(1, LONG).await;
    drop(next(&mut consumer).await);
    let again = next(&mut consumer).await;
    assert_eq!(again.attempts, 2);
    until(&ground, "it was handed out twice", |told| (told.in_flight, told.redelivered) == (1, 1)).await;
    until(&ground, "how many are handed out at once", |told| told.in_flight_max > Some(0)).await;
    published.extend([1, 2].map(|number| ground.publish(message(number))));
    until(&ground, "two more wait", |told| (told.messages, told.undelivered, told.in_flight) == (3, 2, 1)).await;
    again.receipt.acknowledge().await.unwrap();
    for _ in 0..2 {
        next(&mut consumer).await.receipt.acknowledge().await.unwrap();
    }
    all_safe(published).await;
    let nothing = Backlog { published_total: 3, ..Backlog::default() };
    until(&ground, "nothing waits any more", |told| counts(told) == nothing).await;
}

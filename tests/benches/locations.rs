//! One domain with 707,781 locations on seven levels, in a real Postgres: time and memory for the enricher's tree, and for what the fetcher and
//! the enricher do when a leaf, a location with 10,110 others below it, and the root are renamed.
//!
//! Peaks are of this process, with the allocator of the services; before each line the kernel's mark is set back, so a peak counts what was
//! held before too.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use lake_enricher::caches::trees::Trees;
use lake_enricher::options::{CacheOptions, EnricherOptions};
use lake_fetcher::allow_list::TakeConfig;
use lake_fetcher::change_feed::memory::MemoryFeed;
use lake_fetcher::options::FetchOptions;
use lake_fetcher::pipeline::Fetcher;
use lake_hq::documents::case::CaseOptions;
use lake_hq::source::Hq;
use lake_shared::escaped_names;
use lake_shared::identity::Domain;
use lake_shared::queue::memory::{MemoryQueue, MemoryQueueOptions};
use lake_shared::queue::{Broadcast, Consumer, ConsumerOptions, Message, PublishError, Queue, QueueError, Stream};
use lake_tests::location_hq::{DOMAIN, LocationHq};
use lake_tests::parts::wait_until;
use serde_json::json;
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Children of one location, from the root down.
const CHILDREN: [i64; 6] = [10, 7, 10, 10, 10, 9];
const PATIENCE: Duration = Duration::from_secs(1_200);

/// Megabytes.
fn memory(what: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1024.0
}

/// Runs something and prints what it took.
async fn measure<T>(what: &str, work: impl Future<Output = T>) -> T {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let (before, began) = (memory("VmRSS:"), Instant::now());
    let outcome = work.await;
    let (took, peak, after) = (began.elapsed(), memory("VmHWM:"), memory("VmRSS:"));
    println!(
        "{what:<58} {:>9.3} s   before {before:>6.1} MB   peak +{:>6.1} MB   after {:>+7.1} MB",
        took.as_secs_f64(),
        peak - before,
        after - before
    );
    outcome
}

/// A queue that counts what it is given and calls it safe.
#[derive(Default)]
struct Counter {
    messages: AtomicU64,
    bytes: AtomicU64,
}

#[async_trait]
impl Queue for Counter {
    async fn publish(&self, message: Message) -> Result<(), PublishError> {
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(message.payload.len() as u64, Ordering::Relaxed);
        Ok(())
    }
    async fn consumer(&self, _: Stream, _: ConsumerOptions) -> Result<Box<dyn Consumer>, QueueError> {
        Err(QueueError { action: "consume".into(), reason: "this queue only counts".into() })
    }
    async fn broadcast(&self, _: &str, _: Bytes) -> Result<(), QueueError> {
        Ok(())
    }
    async fn listen(&self, _: &str) -> Result<BoxStream<'static, Broadcast>, QueueError> {
        Ok(Box::pin(futures::stream::pending()))
    }
    fn payload_size_max(&self) -> usize {
        8 << 20
    }
    async fn check(&self) -> Result<(), QueueError> {
        Ok(())
    }
}

struct Lake<'h> {
    hq: &'h LocationHq,
    feed: Arc<MemoryFeed>,
    shutdown: CancellationToken,
}

impl<'h> Lake<'h> {
    fn start(hq: &'h LocationHq, ports: Hq, queue: Arc<dyn Queue>) -> Self {
        let (feed, shutdown) = (Arc::new(MemoryFeed::default()), CancellationToken::new());
        let (take, options) = (TakeConfig::EVERYTHING, FetchOptions::default());
        let fetcher = Fetcher::new(ports, queue, take, CaseOptions::default(), options);
        tokio::spawn(lake_fetcher::pipeline::run(feed.clone(), Arc::new(fetcher), shutdown.clone()));
        Self { hq, feed, shutdown }
    }

    /// Renames a location and waits until all that comes of it is safe.
    async fn rename(&self, number: i64) {
        let sql = "update locations_sqllocation set name = name || '!', last_modified = now() where id = ";
        self.hq.run(&format!("{sql}{number}")).await.unwrap();
        let message = json!({
            "document_id": self.hq.id_of(number).await.unwrap(), "domain": DOMAIN, "document_type": "Location",
            "data_source_type": "sql", "data_source_name": "location", "is_deletion": false,
        });
        self.feed.publish("location", message.to_string());
        wait_until("it is safe", PATIENCE, async || Ok(self.feed.unfinished() == 0)).await.unwrap();
    }
}

async fn tree_in_memory(hq: &LocationHq, ports: &Hq) {
    let domain = Domain::from(DOMAIN);
    let trees = Trees::new(ports.database.clone(), &CacheOptions::default(), 200);
    let places =
        measure("the whole tree into the enricher's cache", trees.domain_locations(&domain, i64::MIN)).await.unwrap();
    println!("{:<58} {} locations, {} types", "", places.nodes(), places.type_columns().len());
    drop(places);
    let leaf = hq.levels[6].0;
    hq.run(&format!("update locations_sqllocation set name = 'x', last_modified = now() where id = {leaf}"))
        .await
        .unwrap();
    trees.forget(Some(&escaped_names::token(DOMAIN)), &[hq.id_of(leaf).await.unwrap()]);
    measure("the tree brought up to date after one change", trees.domain_locations(&domain, i64::MIN)).await.unwrap();
    trees.forget(Some(&escaped_names::token(DOMAIN)), &[]);
    let began = measure("the whole tree read again", trees.domain_locations(&domain, i64::MIN)).await.unwrap();
    let id = hq.id_of(hq.levels[6].0 + 300_000).await.unwrap();
    let started = Instant::now();
    for _ in 0..100_000 {
        assert_eq!(std::hint::black_box(began.ancestors_by_type(Some(&id))).len(), 8);
    }
    println!("{:<58} {:>9.3} µs", "ancestors of one location", started.elapsed().as_secs_f64() * 10.0);
}

#[tokio::main]
async fn main() {
    let hq = LocationHq::start(&CHILDREN).await.unwrap();
    let ports = hq.hq().await.unwrap();
    let cases = [("a leaf", hq.levels[6].0 + 5), ("a location with 10,110 below", hq.levels[2].0 + 3), ("the root", 1)];
    let counter = Arc::new(Counter::default());
    let lake = Lake::start(&hq, ports.clone(), counter.clone());
    for (what, number) in cases {
        let (messages, bytes) = (counter.messages.load(Ordering::Relaxed), counter.bytes.load(Ordering::Relaxed));
        measure(&format!("fetcher: {what} is renamed"), lake.rename(number)).await;
        let messages = counter.messages.load(Ordering::Relaxed) - messages;
        let bytes = (counter.bytes.load(Ordering::Relaxed) - bytes) as f64 / 1e6;
        println!("{:<58} {messages} messages, {bytes:.1} MB compressed", "");
    }
    lake.shutdown.cancel();
    tree_in_memory(&hq, &ports).await;

    let queue: Arc<dyn Queue> = MemoryQueue::new(MemoryQueueOptions::default());
    let lake = Lake::start(&hq, ports.clone(), Arc::clone(&queue));
    let (options, shutdown) = (EnricherOptions::default(), lake.shutdown.clone());
    let enriching = lake_enricher::pipeline::run(Arc::clone(&queue), ports, options, Arc::default(), shutdown);
    tokio::spawn(enriching);
    let options = ConsumerOptions {
        durable_name: "bench".into(),
        in_flight_max: 100,
        acknowledge_within: Duration::from_secs(30),
    };
    let mut rows = queue.consumer(Stream::Rows, options).await.unwrap();
    tokio::spawn(async move {
        while let Some(Ok(delivery)) = rows.next().await {
            delivery.receipt.acknowledge().await.unwrap();
        }
    });
    for (what, number) in cases {
        measure(&format!("fetcher and enricher: {what} is renamed"), lake.rename(number)).await;
    }
    lake.shutdown.cancel();
}

//! The fetcher service.

use std::process::ExitCode;
use std::sync::Arc;

use lake_fetcher::change_feed::ChangeFeed;
use lake_fetcher::change_feed::kafka::KafkaFeed;
use lake_fetcher::coalesce::{LEDGER_TOPIC, USER_TOPICS};
use lake_fetcher::config::FetcherConfig;
use lake_fetcher::pipeline::{self, Fetcher};
use lake_hq::connect::connect_when_there;
use lake_shared::identity::Kind;
use lake_shared::queue::Queue;
use lake_shared::queue::jetstream::JetStreamQueue;
use lake_shared::service;
use lake_shared::shutdown::TaskGroup;
use lake_shared::telemetry::Check;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type NoMigration = fn(FetcherConfig) -> std::future::Ready<anyhow::Result<()>>;

fn main() -> ExitCode {
    service::run("fetcher", build, None::<NoMigration>)
}

async fn build(config: FetcherConfig, mut tasks: TaskGroup) -> anyhow::Result<(TaskGroup, Vec<Check>)> {
    let hq = connect_when_there(&config.hq).await?;
    let queue = JetStreamQueue::connect(config.queue).await?;
    let ledger = config.hq.database.ledger_values.then_some(LEDGER_TOPIC);
    let topics: Vec<&str> = Kind::ALL.map(Kind::topic).into_iter().chain(USER_TOPICS).chain(ledger).collect();
    let feed = KafkaFeed::subscribe(&config.kafka, &topics)?;
    let checks = checks(Arc::clone(&feed), Arc::clone(&queue), hq.clone());
    let case_options = config.hq.case_options();
    let fetcher = Arc::new(Fetcher { hq, queue, take: config.take, case_options, options: config.fetch });
    let shutdown = tasks.shutdown();
    tasks.spawn("fetch", pipeline::run(feed, fetcher, shutdown));
    Ok((tasks, checks))
}

fn checks(feed: Arc<KafkaFeed>, queue: Arc<JetStreamQueue>, hq: lake_hq::source::Hq) -> Vec<Check> {
    let (database, blobs) = (hq.database, hq.blobs);
    vec![
        Check::new("kafka", move || {
            let feed = Arc::clone(&feed);
            async move { feed.check().await }
        }),
        Check::new("queue", move || {
            let queue = Arc::clone(&queue);
            async move { queue.check().await.map_err(|error| error.to_string()) }
        }),
        Check::new("hq database", move || {
            let database = Arc::clone(&database);
            async move { database.check().await.map_err(|error| error.to_string()) }
        }),
        Check::new("hq blobs", move || {
            let blobs = Arc::clone(&blobs);
            async move { blobs.check().await.map_err(|error| error.to_string()) }
        }),
    ]
}

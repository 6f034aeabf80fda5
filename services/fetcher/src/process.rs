//! The fetcher as a process of its own.

use std::process::ExitCode;
use std::sync::Arc;

use lake_hq::connect::connect_when_there;
use lake_shared::queue::Stream;
use lake_shared::queue::jetstream::JetStreamQueue;
use lake_shared::service;
use lake_shared::shutdown::TaskGroup;
use lake_shared::telemetry::Check;

use crate::config::FetcherConfig;
use crate::service::{FetcherOptions, FetcherService, subscribe};

type NoMigration = fn(FetcherConfig) -> std::future::Ready<anyhow::Result<()>>;

/// Does what the command line says.
pub fn main() -> ExitCode {
    service::run("fetcher", build, None::<NoMigration>)
}

async fn build(config: FetcherConfig, mut tasks: TaskGroup) -> anyhow::Result<(TaskGroup, Vec<Check>)> {
    let hq = connect_when_there(&config.hq).await?;
    let queue = JetStreamQueue::connect(config.queue).await?;
    let lake_has_records = queue.was_used(Stream::Records).await?;
    let feed = subscribe(&config.kafka, &config.hq, lake_has_records)?;
    let options = FetcherOptions { take: config.take, case_options: config.hq.case_options(), fetch: config.fetch };
    let fetcher = FetcherService::build(feed, hq, Arc::<JetStreamQueue>::clone(&queue), options);
    let checks = fetcher.checks();
    let shutdown = tasks.shutdown();
    tasks.spawn("queue", queue.keep(shutdown.clone()));
    tasks.spawn("fetch", fetcher.run(shutdown));
    Ok((tasks, checks))
}

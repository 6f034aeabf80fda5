//! The enricher as a process of its own.

use std::process::ExitCode;
use std::sync::Arc;

use lake_hq::connect::connect_when_there;
use lake_shared::queue::jetstream::JetStreamQueue;
use lake_shared::service;
use lake_shared::shutdown::TaskGroup;
use lake_shared::telemetry::Check;

use crate::config::EnricherConfig;
use crate::service::EnricherService;

type NoMigration = fn(EnricherConfig) -> std::future::Ready<anyhow::Result<()>>;

/// Does what the command line says.
pub fn main() -> ExitCode {
    service::run("enricher", build, None::<NoMigration>)
}

async fn build(config: EnricherConfig, mut tasks: TaskGroup) -> anyhow::Result<(TaskGroup, Vec<Check>)> {
    let hq = connect_when_there(&config.hq).await?;
    let queue = JetStreamQueue::connect(config.queue).await?;
    let enricher = EnricherService::build(hq, Arc::<JetStreamQueue>::clone(&queue), config.enricher);
    let checks = enricher.checks();
    let shutdown = tasks.shutdown();
    tasks.spawn("queue", Arc::clone(&queue).keep(shutdown.clone()));
    tasks.spawn("enrich", async move {
        let enriched = enricher.run(shutdown).await;
        queue.close().await;
        enriched
    });
    Ok((tasks, checks))
}

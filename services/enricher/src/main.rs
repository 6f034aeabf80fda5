//! The enricher service.

use std::process::ExitCode;
use std::sync::Arc;

use lake_enricher::config::EnricherConfig;
use lake_enricher::pipeline;
use lake_hq::connect::connect_when_there;
use lake_shared::queue::Queue;
use lake_shared::queue::jetstream::JetStreamQueue;
use lake_shared::service;
use lake_shared::shutdown::TaskGroup;
use lake_shared::telemetry::Check;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type NoMigration = fn(EnricherConfig) -> std::future::Ready<anyhow::Result<()>>;

fn main() -> ExitCode {
    service::run("enricher", build, None::<NoMigration>)
}

async fn build(config: EnricherConfig, mut tasks: TaskGroup) -> anyhow::Result<(TaskGroup, Vec<Check>)> {
    let hq = connect_when_there(&config.hq).await?;
    let queue = JetStreamQueue::connect(config.queue).await?;
    let (asked_queue, database, users) = (Arc::clone(&queue), Arc::clone(&hq.database), Arc::clone(&hq.users));
    let checks = vec![
        Check::new("queue", move || {
            let queue = Arc::clone(&asked_queue);
            async move { queue.check().await.map_err(|error| error.to_string()) }
        }),
        Check::new("hq database", move || {
            let database = Arc::clone(&database);
            async move { database.check().await.map_err(|error| error.to_string()) }
        }),
        Check::new("hq users", move || {
            let users = Arc::clone(&users);
            async move { users.check().await.map_err(|error| error.to_string()) }
        }),
    ];
    let shutdown = tasks.shutdown();
    tasks.spawn("enrich", async move {
        let enriched = pipeline::run(Arc::<JetStreamQueue>::clone(&queue), hq, config.enricher, shutdown).await;
        queue.close().await;
        enriched
    });
    Ok((tasks, checks))
}

//! The writer service.

use std::process::ExitCode;
use std::sync::Arc;

use lake_shared::queue::Queue;
use lake_shared::queue::jetstream::JetStreamQueue;
use lake_shared::service;
use lake_shared::shutdown::TaskGroup;
use lake_shared::telemetry::Check;
use lake_writer::config::WriterConfig;
use lake_writer::metastore::connect;
use lake_writer::writer::Writer;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    service::run("writer", build, Some(migrate))
}

async fn migrate(config: WriterConfig) -> anyhow::Result<()> {
    let metastore = connect::open(&config.metastore)?;
    connect::migrate_when_there(&*metastore).await;
    Ok(())
}

async fn build(config: WriterConfig, mut tasks: TaskGroup) -> anyhow::Result<(TaskGroup, Vec<Check>)> {
    let writer = Writer::open(config.options()).await?;
    let queue = JetStreamQueue::connect(config.queue).await?;
    let (asked_queue, metastore, root) = (Arc::clone(&queue), Arc::clone(&writer.metastore), Arc::clone(&writer.root));
    let checks = vec![
        Check::new("queue", move || {
            let queue = Arc::clone(&asked_queue);
            async move { queue.check().await.map_err(|error| error.to_string()) }
        }),
        Check::new("metastore", move || {
            let metastore = Arc::clone(&metastore);
            async move { metastore.check().await.map_err(|error| error.to_string()) }
        }),
        Check::new("store", move || {
            let root = Arc::clone(&root);
            async move { root.check().await.map_err(|error| error.to_string()) }
        }),
    ];
    let shutdown = tasks.shutdown();
    tasks.spawn("write", async move {
        let written = writer.run(Arc::<JetStreamQueue>::clone(&queue), shutdown).await;
        queue.close().await;
        written
    });
    Ok((tasks, checks))
}

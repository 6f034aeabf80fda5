//! The writer as a process of its own.

use std::process::ExitCode;
use std::sync::Arc;

use lake_shared::queue::Queue;
use lake_shared::queue::jetstream::JetStreamQueue;
use lake_shared::service;
use lake_shared::shutdown::TaskGroup;
use lake_shared::telemetry::Endpoints;

use crate::config::WriterConfig;
use crate::writer::{self, Writer};

/// Does what the command line says.
pub fn main() -> ExitCode {
    service::run("writer", build, Some(migrate))
}

async fn migrate(config: WriterConfig) -> anyhow::Result<()> {
    writer::migrate(&config.writer.metastore).await
}

async fn build(config: WriterConfig, mut tasks: TaskGroup) -> anyhow::Result<(TaskGroup, Endpoints)> {
    let writer = Writer::open(config.writer).await?;
    let jetstream = JetStreamQueue::connect(config.process.queue).await?;
    let queue: Arc<dyn Queue> = Arc::<JetStreamQueue>::clone(&jetstream);
    let endpoints = writer.endpoints(&queue);
    let shutdown = tasks.shutdown();
    tasks.spawn("queue", Arc::clone(&jetstream).keep(shutdown.clone()));
    tasks.spawn("write", async move {
        let written = writer.run(queue, shutdown).await;
        jetstream.close().await;
        written
    });
    Ok((tasks, endpoints))
}

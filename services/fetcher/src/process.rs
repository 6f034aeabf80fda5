//! The fetcher as a process of its own.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use lake_hq::connect::connect_when_there;
use lake_shared::queue::Stream;
use lake_shared::queue::jetstream::JetStreamQueue;
use lake_shared::service::{self, ConfigArgument, EXIT_FAILURE, EXIT_USAGE, Verb};
use lake_shared::shutdown::TaskGroup;
use lake_shared::telemetry::Check;

use crate::change_feed::{kafka, spark_checkpoint};
use crate::config::FetcherConfig;
use crate::service::{FetcherOptions, FetcherService, subscribe, topics};

type NoMigration = fn(FetcherConfig) -> std::future::Ready<anyhow::Result<()>>;

/// The fetcher of CommCare Lake
#[derive(Parser)]
#[command(disable_version_flag = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Service(Verb),
    /// Have the configured consumer group, which must be new, begin where a Spark job stood
    BeginAtSparkCheckpoint {
        #[command(flatten)]
        config: ConfigArgument,
        /// The job's checkpoint, or the folder that has those of its topics: a copy in a local folder
        folder: PathBuf,
    },
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let line = match service::command_line::<CommandLine>() {
        Ok(line) => line,
        Err(exit) => return exit,
    };
    match line.command {
        Command::Service(verb) => service::run_verb("fetcher", verb, build, None::<NoMigration>),
        Command::BeginAtSparkCheckpoint { config, folder } => {
            let (outcome, code) = match service::load(&config) {
                Ok(config) => (begin_at_spark_checkpoint(&config, &folder), EXIT_FAILURE),
                Err(error) => (Err(error), EXIT_USAGE),
            };
            match outcome {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("fetcher: {error:#}");
                    ExitCode::from(code)
                }
            }
        }
    }
}

fn begin_at_spark_checkpoint(config: &FetcherConfig, folder: &Path) -> anyhow::Result<()> {
    let positions = spark_checkpoint::positions(folder)?;
    let gone = kafka::begin_at(&config.kafka, &topics(&config.hq), &positions)?;
    for (place @ (topic, partition), offset) in &positions {
        let gone = gone.get(place).map(|count| {
            format!("; Kafka does not hold the {count} messages from there on any more: backfill the projects")
        });
        println!("{topic} {partition}: from {offset} on{}", gone.unwrap_or_default());
    }
    Ok(())
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

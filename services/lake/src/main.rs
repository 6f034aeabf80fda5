//! All services of CommCare Lake in one process, and what is nice to have on a laptop: a demo, and a look at what a form becomes.

mod config;
mod demo;
mod embedded;
mod xform;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use lake_fetcher::change_feed::ChangeFeed;
use lake_fetcher::change_feed::kafka::KafkaFeed;
use lake_fetcher::coalesce::{LEDGER_TOPIC, USER_TOPICS};
use lake_hq::connect::connect_when_there;
use lake_shared::identity::Kind;
use lake_shared::service::{self, Verb};
use lake_shared::shutdown::TaskGroup;
use lake_shared::telemetry::Check;
use lake_writer::writer::Writer;

use crate::config::LakeConfig;
use crate::embedded::{Embedded, FetcherParts};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// CommCare Lake in one process
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
    /// Play a small programme through the whole path, without any server, and show the tables
    Demo(demo::DemoArguments),
    /// Show what forms become: one JSON line for each XML file
    Xform {
        /// Form XML as phones send it
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

fn main() -> ExitCode {
    let line = match service::command_line::<CommandLine>() {
        Ok(line) => line,
        Err(exit) => return exit,
    };
    match line.command {
        Command::Service(verb) => service::run_verb("lake", verb, build, Some(migrate)),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Xform { files } => xform::run(&files),
    }
}

async fn migrate(config: LakeConfig) -> anyhow::Result<()> {
    let metastore = lake_writer::metastore::connect::open(&config.metastore)?;
    lake_writer::metastore::connect::migrate_when_there(&*metastore).await;
    Ok(())
}

async fn build(config: LakeConfig, mut tasks: TaskGroup) -> anyhow::Result<(TaskGroup, Vec<Check>)> {
    let writer = Writer::open(config.writer_options()).await?;
    let hq = connect_when_there(&config.hq).await?;
    let ledger = config.hq.database.ledger_values.then_some(LEDGER_TOPIC);
    let topics: Vec<&str> = Kind::ALL.map(Kind::topic).into_iter().chain(USER_TOPICS).chain(ledger).collect();
    let feed = KafkaFeed::subscribe(&config.kafka, &topics)?;
    let (asked_feed, database, metastore) =
        (Arc::clone(&feed), Arc::clone(&hq.database), Arc::clone(&writer.metastore));
    let checks = vec![
        Check::new("kafka", move || {
            let feed = Arc::clone(&asked_feed);
            async move { feed.check().await }
        }),
        Check::new("hq database", move || {
            let database = Arc::clone(&database);
            async move { database.check().await.map_err(|error| error.to_string()) }
        }),
        Check::new("metastore", move || {
            let metastore = Arc::clone(&metastore);
            async move { metastore.check().await.map_err(|error| error.to_string()) }
        }),
    ];
    let case_options = config.hq.case_options();
    let fetcher = FetcherParts { take: config.take, case_options, options: config.fetch };
    let embedded = Embedded { feed, hq, fetcher, enricher: config.enricher, writer };
    let shutdown = tasks.shutdown();
    tasks.spawn("lake", embedded.run(shutdown));
    Ok((tasks, checks))
}

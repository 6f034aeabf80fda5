//! All services of CommCare Lake in one process, and what is nice to have on a laptop: a demo, and a look at what a form becomes.
//!
//! Started by the name `fetcher`, `enricher` or `writer`, it is that service alone: the image has one program with four names, as this one
//! holds all of them anyway.

mod config;
mod demo;
mod embedded;
mod xform;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lake_fetcher::service::{FetcherOptions, subscribe};
use lake_hq::connect::connect_when_there;
use lake_shared::service::{self, Verb};
use lake_shared::shutdown::TaskGroup;
use lake_shared::telemetry::Endpoints;
use lake_writer::writer::{self, Writer};

use crate::config::LakeConfig;
use crate::embedded::Embedded;

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

/// The name that this program was started by.
fn called() -> Option<String> {
    let path = PathBuf::from(std::env::args_os().next()?);
    Some(path.file_name()?.to_string_lossy().into_owned())
}

fn main() -> ExitCode {
    match called().as_deref() {
        Some("fetcher") => return lake_fetcher::process::main(),
        Some("enricher") => return lake_enricher::process::main(),
        Some("writer") => return lake_writer::process::main(),
        _ => {}
    }
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
    writer::migrate(&config.writer.metastore).await
}

async fn build(config: LakeConfig, mut tasks: TaskGroup) -> anyhow::Result<(TaskGroup, Endpoints)> {
    let LakeConfig { source, writer } = config;
    let writer = Writer::open(writer).await?;
    let hq = connect_when_there(&source.hq).await?;
    let lake_has_records = !writer.metastore.spaces().await?.is_empty();
    let feed = subscribe(&source.kafka, &source.hq, lake_has_records)?;
    let fetcher = FetcherOptions { take: source.take, case_options: source.hq.case_options(), fetch: source.fetch };
    let lake = Embedded::build(feed, hq, fetcher, source.enricher, writer);
    let endpoints = lake.endpoints();
    let shutdown = tasks.shutdown();
    tasks.spawn("lake", lake.run(shutdown));
    Ok((tasks, endpoints))
}

//! What the benchmark is asked for.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Figures of the whole path, from a message on Kafka to a row that can be read.
#[derive(Debug, Parser)]
#[command(name = "whole_path")]
pub struct Arguments {
    /// What to measure. `freshness` needs the cases that `throughput` brings into the lake, so these are always loaded.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "throughput,freshness")]
    pub parts: Vec<Part>,
    /// Cases that HQ has, and messages that wait on Kafka.
    #[arg(long, default_value_t = 200_000)]
    pub cases: u64,
    /// Project spaces.
    #[arg(long, default_value_t = 3)]
    pub domains: u64,
    /// Case types of each project space, each of which is a table.
    #[arg(long, default_value_t = 5)]
    pub types: u64,
    /// Properties of a case; 28 make a case of about 2 kB.
    #[arg(long, default_value_t = 28)]
    pub properties: u64,
    /// Cases that change in a second, for the freshness.
    #[arg(long, default_value_t = 1_000)]
    pub rate: u64,
    /// How long they change, seconds. Each case changes at most once.
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
    /// How the lake runs.
    #[arg(long, value_enum, default_value = "services")]
    pub lake: Lake,
    /// The cases come by a backfill from HQ's tables, while Kafka knows nothing of them.
    #[arg(long)]
    pub backfill: bool,
    /// How the binaries of the services were built, for the report.
    #[arg(long)]
    pub build: Option<String>,
    /// Keeps the logs of the services in this folder, and their configuration.
    #[arg(long)]
    pub logs: Option<PathBuf>,
    /// A key of a service's configuration as service:section.key=value (TOML), for example writer:ingest.flush_age_ms=2000.
    #[arg(long = "set", value_parser = setting)]
    pub settings: Vec<Setting>,
    /// Waits so long before a part begins and prints the process ids, so that a profiler can be attached; seconds.
    #[arg(long, default_value_t = 0)]
    pub pause: u64,
    /// Gives up when no row has come for so long, seconds.
    #[arg(long, default_value_t = 60)]
    pub patience: u64,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Records a second while there is more than enough to do.
    Throughput,
    /// Time until a change can be read, at a steady rate.
    Freshness,
}

/// How the lake runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Lake {
    /// Fetcher, enricher and writer as processes of their own, over NATS JetStream.
    Services,
    /// All in one process.
    OneProcess,
}

/// A key that differs from its default.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Binary whose configuration it is of.
    pub service: String,
    /// Section, for example `ingest`.
    pub section: String,
    /// The line in it, `key = value`.
    pub line: String,
}

fn setting(text: &str) -> Result<Setting, String> {
    const FORM: &str = "it is not of the form service:section.key=value";
    let (service, rest) = text.split_once(':').ok_or(FORM)?;
    let (key, value) = rest.split_once('=').ok_or(FORM)?;
    let (section, key) = key.rsplit_once('.').ok_or(FORM)?;
    Ok(Setting { service: service.to_owned(), section: section.to_owned(), line: format!("{key} = {value}") })
}

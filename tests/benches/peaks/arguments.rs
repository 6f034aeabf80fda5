//! What the benchmark is asked for.

use clap::{Parser, ValueEnum};

/// Peaks of resident memory of fetcher, enricher, writer, and of all of them in one process.
#[derive(Debug, Parser)]
#[command(name = "peaks")]
pub struct Arguments {
    /// What the lake has to read.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "forms,transactions,texts,rebalance")]
    pub inputs: Vec<Input>,
    /// How the lake runs.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "services,one-process")]
    pub lakes: Vec<Shape>,
    /// Forms in a row.
    #[arg(long, default_value_t = 1_000)]
    pub forms: u64,
    /// Bytes of the XML of each form.
    #[arg(long, default_value_t = 2_000_000)]
    pub form_bytes: usize,
    /// Cases with many transactions.
    #[arg(long, default_value_t = 200)]
    pub cases: u64,
    /// Transactions of each.
    #[arg(long, default_value_t = 5_000)]
    pub transactions: u64,
    /// Cases with the same long text.
    #[arg(long, default_value_t = 20_000)]
    pub rows: u64,
    /// Bytes of that text.
    #[arg(long, default_value_t = 50_000)]
    pub text_bytes: usize,
    /// Messages on Kafka during the rebalance, of a kilobyte each.
    #[arg(long, default_value_t = 300_000)]
    pub backlog: u64,
    /// Gives up when the lake has not everything after so long, seconds.
    #[arg(long, default_value_t = 900)]
    pub patience: u64,
    /// How the binaries of the services were built, for the report.
    #[arg(long)]
    pub build: Option<String>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// An input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Input {
    /// Forms with large XML, as an import sends them.
    Forms,
    /// Cases with thousands of transactions.
    Transactions,
    /// The same long text in a property of many cases: inserted, changed (copy on write) and compacted.
    Texts,
    /// A rebalance while HQ does not answer and a large backlog waits on Kafka.
    Rebalance,
}

/// How the lake runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// One fetcher, one enricher, one writer over NATS.
    Services,
    /// All in one process.
    OneProcess,
}

impl Input {
    /// The input in words, for the table.
    pub fn told(self, arguments: &Arguments) -> String {
        match self {
            Self::Forms => format!("{} forms of {} kB", arguments.forms, arguments.form_bytes / 1_000),
            Self::Transactions => format!("{} cases with {} transactions", arguments.cases, arguments.transactions),
            Self::Texts => {
                format!("{} cases with the same {} kB of text", arguments.rows, arguments.text_bytes / 1_000)
            }
            Self::Rebalance => format!("rebalance while paused, {} messages of 1 kB", arguments.backlog),
        }
    }
}

//! `hq-sim`: a simulated CommCare HQ on real parts, for the demo, tests and benchmarks.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use lake_simulated_hq::command_line::CommandLine;
use lake_simulated_hq::commands;
use tracing::error;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let line = CommandLine::parse();
    // The log goes to standard error: standard output is for results.
    let filter = EnvFilter::try_from_env("HQ_SIM_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
    match commands::run(line.command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = format!("{error:#}"), "ended by an error");
            ExitCode::FAILURE
        }
    }
}

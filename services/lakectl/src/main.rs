//! `lakectl`: shows and steers a lake through the interface `lake.admin.v1` of its writers.
//!
//! Data goes to standard output, everything else to standard error. The exit code tells what happened: see [`exit`].

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use clap_complete::CompleteEnv;

use self::command_line::CommandLine;

mod catalog_view;
mod client;
mod command_line;
mod commands;
mod completion;
mod context;
mod exit;
mod output;
mod pipeline_view;
mod quarantine_view;
mod view;
mod words;

fn main() -> ExitCode {
    // Asked by the script of `lakectl completions`, this answers and ends here.
    CompleteEnv::with_factory(CommandLine::command).complete();
    let line = match CommandLine::try_parse() {
        Ok(line) => line,
        Err(error) => {
            // If standard error is closed, the exit code still says it.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::DONE });
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("lakectl: the runtime cannot be started: {error}");
            return ExitCode::from(exit::FAILED);
        }
    };
    match runtime.block_on(commands::run(line)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("lakectl: {error:#}");
            ExitCode::from(exit::code_of(&error))
        }
    }
}

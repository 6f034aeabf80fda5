//! Figures of the engine: what an upsert costs at several table sizes, beside MERGE, and what surrounds it. Prints Markdown tables.
//!
//! Everything goes through the port that the writer uses. Each measured phase runs in a process of its own (this program again, with
//! `--phase`), so that its peak memory is its own. Every phase begins with a fresh copy of a table that was made once.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark")]

mod arguments;
mod compaction;
mod home;
mod index;
mod load;
mod long_run;
mod made;
mod measure;
mod memory;
mod merge;
mod partitions;
mod phase;
mod rows;
mod s3;
mod scan;
mod spread;
mod table;
mod upsert;
mod wide;

use std::process::ExitCode;

use arguments::{Arguments, Part};
use clap::Parser;
use made::MadeTables;

/// The services' allocator, so that memory is theirs too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.phase {
        Some(phase) => phase::run(phase),
        None => report(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("engine benchmark: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures a part and prints its tables.
type Report = fn(&Arguments, &MadeTables) -> anyhow::Result<()>;

fn report(arguments: &Arguments) -> anyhow::Result<()> {
    println!("# Engine benchmark\n\n{}", measure::machine());
    let made = MadeTables::new(arguments)?;
    made.make_all()?;
    let parts: [(Part, Report); 10] = [
        (Part::Upsert, upsert::report),
        (Part::Index, index::report),
        (Part::Merge, merge::report),
        (Part::Compaction, compaction::report),
        (Part::S3, s3::report),
        (Part::Spread, spread::report),
        (Part::Memory, memory::report),
        (Part::Partitions, partitions::report),
        (Part::Wide, wide::report),
        (Part::LongRun, long_run::report),
    ];
    let mut failed = 0;
    for (part, report) in parts {
        if !arguments.has(part) {
            continue;
        }
        // What the other parts found out should not be lost.
        if let Err(error) = report(arguments, &made) {
            println!("\n{part:?} failed: {error:#}");
            failed += 1;
        }
    }
    made.clean_up()?;
    anyhow::ensure!(failed == 0, "{failed} parts failed");
    Ok(())
}

//! Figures of the engine: what an upsert costs at several table sizes, beside MERGE, and what surrounds it. Prints Markdown tables.
//!
//! Everything goes through the port that the writer uses. Each measured phase runs in a process of its own (this program again, with
//! `--phase`), so that its peak memory is its own. Every phase begins with a fresh copy of a table that was made once.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark")]

mod aims;
mod arguments;
mod compaction;
mod foreign;
mod home;
mod index;
mod load;
mod long_run;
mod long_texts;
mod lookup;
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
mod trace;
mod type_change;
mod upsert;
mod wide;

use std::process::ExitCode;

use aims::Findings;
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

/// Measures a part, prints its tables and notes what the aims ask for.
type Report = fn(&Arguments, &MadeTables, &mut Findings) -> anyhow::Result<()>;

fn report(arguments: &Arguments) -> anyhow::Result<()> {
    println!("# Engine benchmark\n\n{}", measure::machine());
    let made = MadeTables::new(arguments)?;
    made.make_all()?;
    let parts: [(Part, Report); 15] = [
        (Part::Upsert, upsert::report),
        (Part::Index, index::report),
        (Part::Lookup, lookup::report),
        (Part::Trace, trace::report),
        (Part::TypeChange, |arguments, made, _| type_change::report(arguments, made)),
        (Part::Foreign, |arguments, made, _| foreign::report(arguments, made)),
        (Part::Merge, merge::report),
        (Part::Compaction, compaction::report),
        (Part::S3, |arguments, made, _| s3::report(arguments, made)),
        (Part::Spread, |arguments, made, _| spread::report(arguments, made)),
        (Part::Memory, memory::report),
        (Part::Partitions, |arguments, made, _| partitions::report(arguments, made)),
        (Part::Wide, |arguments, made, _| wide::report(arguments, made)),
        (Part::LongTexts, |arguments, made, _| long_texts::report(arguments, made)),
        (Part::LongRun, |arguments, made, _| long_run::report(arguments, made)),
    ];
    let mut findings = Findings::default();
    let mut failed = 0;
    for (part, report) in parts {
        if !arguments.has(part) {
            continue;
        }
        // What the other parts found out should not be lost.
        if let Err(error) = report(arguments, &made, &mut findings) {
            println!("\n{part:?} failed: {error:#}");
            failed += 1;
        }
    }
    findings.print();
    made.clean_up()?;
    anyhow::ensure!(failed == 0, "{failed} parts failed");
    Ok(())
}

//! Peaks of resident memory of the lake's services, each on an input that has to be bounded by bytes: large forms in a row, cases with thousands
//! of transactions, long texts that are nothing on disk, a rebalance while nothing can be taken. Real parts, services as processes. Prints a
//! Markdown table.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark")]

mod arguments;
mod cases;
mod forms;
mod lake;
mod rebalance;
mod words;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use arguments::{Arguments, Input, Shape};
use clap::Parser;
use lake::Lake;
use lake_simulated_hq::turn::ChangeMessage;
use lake_tests::parts::binary_path;
use lake_tests::system::RealParts;

#[tokio::main]
async fn main() -> ExitCode {
    match report(&Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("benchmark of peaks: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn report(arguments: &Arguments) -> anyhow::Result<()> {
    let build = arguments.build.clone().unwrap_or_else(|| "see the folder".to_owned());
    println!("# Peaks of memory\n\nServices built with: {build} ({})\n", binary_path("writer")?.display());
    println!("| input | process | peak, MiB | at rest before, MiB | seconds |\n|-|-|-|-|-|");
    let mut failures = 0;
    for &input in &arguments.inputs {
        for &shape in &arguments.lakes {
            // One that fails must not hide the figures of the others.
            if let Err(error) = measure(arguments, input, shape).await {
                failures += 1;
                println!("| {} | {shape:?} | failed: {error:#} | | |", input.told(arguments));
            }
        }
    }
    anyhow::ensure!(failures == 0, "{failures} of the inputs could not be measured");
    Ok(())
}

/// Fills an HQ of its own, lets a fresh lake read it, and prints what its processes needed at most.
async fn measure(arguments: &Arguments, input: Input, shape: Shape) -> anyhow::Result<()> {
    eprintln!("{}, {shape:?}: starting the servers", input.told(arguments));
    let mut parts = RealParts::start().await?;
    let messages = match input {
        Input::Forms => forms::fill(&parts, arguments.forms, arguments.form_bytes).await?,
        Input::Transactions => cases::with_transactions(&parts, arguments.cases, arguments.transactions).await?,
        Input::Texts => cases::with_equal_texts(&parts, arguments.rows, arguments.text_bytes).await?,
        Input::Rebalance => rebalance::backlog(arguments.backlog),
    };
    let mut lake = Lake::start(&parts, shape).await?;
    let rest = lake.resident()?;
    let began = Instant::now();
    let read = feed(arguments, input, &mut parts, &lake, &messages).await;
    let seconds = began.elapsed().as_secs_f64();
    for ((name, peak), (_, rest)) in lake.peaks()?.into_iter().zip(rest) {
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let (peak, rest) = (mebibytes(peak), mebibytes(rest));
        println!("| {} | {name} | {peak:.0} | {rest:.0} | {seconds:.0} |", input.told(arguments));
    }
    // What was needed until then is a figure, too.
    read?;
    // After the rebalance there is no HQ any more that would let them drain.
    if input != Input::Rebalance {
        lake.end()?;
    }
    Ok(())
}

/// Announces the input, and waits until the lake has it.
async fn feed(
    arguments: &Arguments,
    input: Input,
    parts: &mut RealParts,
    lake: &Lake,
    messages: &[ChangeMessage],
) -> anyhow::Result<()> {
    let patience = Duration::from_secs(arguments.patience);
    if input == Input::Rebalance {
        return rebalance::while_paused(parts, messages).await;
    }
    parts.hq.kafka.publish(messages).await?;
    lake.has_all(parts, patience).await?;
    if input == Input::Texts {
        for round in 0..cases::ROUNDS_OF_CHANGES {
            let changed = cases::change_some(parts, arguments.rows, round).await?;
            parts.hq.kafka.publish(&changed).await?;
            lake.has_all(parts, patience).await?;
        }
        // What was changed is compacted every few seconds.
        tokio::time::sleep(lake::COMPACTED_WITHIN).await;
    }
    Ok(())
}

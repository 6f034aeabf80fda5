//! Figures of the whole path on real parts: HQ's Postgres (main and two shards), Kafka, NATS JetStream, fetcher, enricher and writer as
//! processes, tables in a local folder. Prints Markdown tables.
//!
//! Throughput: all messages wait on Kafka; the time runs from the first committed row to the last. Freshness: cases change at a steady
//! rate; a row is fresh when the commit is there that made it readable.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark")]

mod arguments;
mod cases;
mod hq;
mod processes;
mod setting;
mod tables;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use arguments::{Arguments, Part};
use cases::Programme;
use clap::Parser;
use hq::Hq;
use lake_tests::parts::binary_path;
use processes::Watched;
use setting::{Servers, Usage};
use tables::Tables;

const LOOK_EVERY: Duration = Duration::from_millis(200);
const REPORT_EVERY: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> ExitCode {
    match report(&Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("whole path benchmark: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn report(arguments: &Arguments) -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    let build = arguments.build.clone().unwrap_or_else(|| format!("{profile} profile"));
    println!("# Whole path\n\n{cores} cores; services built with: {build} ({})", binary_path("writer")?.display());
    let programme = Programme { domains: arguments.domains, types: arguments.types, properties: arguments.properties };
    let mut servers = Servers::start(arguments).await?;
    let mut hq = Hq::create(&servers.postgres, &servers.kafka, programme).await?;
    eprintln!("filling HQ with {} cases", arguments.cases);
    let sizes = hq.fill(arguments.cases).await?;
    if !arguments.backfill {
        hq.announce(arguments.cases).await?;
    }
    println!(
        "\n{} cases of {} types in {} domains; a case's properties take {:.0} bytes, its row {:.0}; {} transactions each",
        arguments.cases,
        arguments.types,
        arguments.domains,
        sizes.properties,
        sizes.row,
        cases::TRANSACTIONS
    );
    eprintln!("starting the lake; its logs are in {}", servers.logs().display());
    let before = Usage::now(&servers.watched(&mut [])?)?;
    let mut lake = servers.start_lake(arguments).await?;
    let watched = servers.watched(&mut lake)?;
    if arguments.backfill {
        for domain in 0..arguments.domains {
            servers.lakectl(&["backfill", "start", &cases::domain_name(domain), "--kind", "case", "--no-wait"])?;
        }
    }
    let mut tables = Tables::default();
    throughput(arguments, &servers, &watched, &before, &mut tables).await?;
    if arguments.parts.contains(&Part::Freshness) {
        freshness(arguments, &servers, &mut hq, &watched, &mut tables).await?;
    }
    for (_, running) in lake.iter_mut().rev() {
        running.end()?;
    }
    Ok(())
}

/// Waits until the tables have all cases; `before` is from the time before the lake was started.
async fn throughput(
    arguments: &Arguments,
    servers: &Servers,
    watched: &[Watched],
    before: &Usage,
    tables: &mut Tables,
) -> anyhow::Result<()> {
    pause(arguments, watched).await;
    let (root, wanted) = (servers.root(), i64::try_from(arguments.cases)?);
    let started = Instant::now();
    let mut first: Option<(Instant, i64)> = None;
    let (mut grew, mut reported, mut rows) = (started, started, 0);
    while rows < wanted {
        tokio::time::sleep(LOOK_EVERY).await;
        tables.update(&root)?;
        let now = Instant::now();
        if tables.rows() > rows {
            (rows, grew) = (tables.rows(), now);
            first.get_or_insert((now, rows));
        }
        ensure!(grew.elapsed().as_secs() < arguments.patience, "{rows} of {wanted} rows came, and then no more");
        if reported.elapsed() >= REPORT_EVERY {
            reported = now;
            eprintln!("{:6.1} s: {rows} rows, {} commits", started.elapsed().as_secs_f64(), tables.commits());
        }
    }
    let (first_at, first_rows) = first.context("no row came")?;
    let seconds = (grew - first_at).as_secs_f64();
    let rate = (rows - first_rows) as f64 / seconds.max(f64::EPSILON);
    println!("\n## Throughput\n");
    println!(
        "{rate:.0} records/s sustained: {rows} rows in {} tables, {} commits, {seconds:.1} s from the first committed row to the last\n",
        tables.count(),
        tables.commits()
    );
    print_usage(watched, before, arguments.cases as f64)
}

/// Changes cases and tells how long each change took until it could be read.
async fn freshness(
    arguments: &Arguments,
    servers: &Servers,
    hq: &mut Hq,
    watched: &[Watched],
    tables: &mut Tables,
) -> anyhow::Result<()> {
    pause(arguments, watched).await;
    let seconds = arguments.seconds.min(arguments.cases / arguments.rate.max(1));
    ensure!(seconds > 0, "there are fewer cases than change in a second");
    let (before, commits) = (Usage::now(watched)?, tables.commits());
    let since_us = chrono::Utc::now().timestamp_micros();
    eprintln!("changing {} cases in a second, for {seconds} s", arguments.rate);
    let (changed, behind) = hq.play(arguments.rate, seconds).await?;
    let played = Instant::now();
    let found = loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        tables.update(&servers.root())?;
        let found = tables.instants_since(since_us)?;
        if found.len() as u64 >= changed {
            break found;
        }
        let late = changed - found.len() as u64;
        ensure!(played.elapsed().as_secs() < arguments.patience, "{late} of {changed} changes did not come");
    };
    let mut to_commit: Vec<i64> = found.values().map(|row| row.readable_us - row.published_us).collect();
    let mut to_stamp: Vec<i64> = found.values().map(|row| row.stamped_us - row.published_us).collect();
    println!("\n## Freshness\n");
    println!(
        "{changed} changes at {} a second for {seconds} s, {} commits; the player was at most {} ms behind\n",
        arguments.rate,
        tables.commits() - commits,
        behind.as_millis()
    );
    println!("| from publication on Kafka, seconds | p50 | p99 | max |\n|-|-|-|-|");
    for (what, times) in [("to the commit in the log", &mut to_commit), ("to `_lake_committed_at`", &mut to_stamp)] {
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize] as f64 / 1e6;
        println!("| {what} | {:.2} | {:.2} | {:.2} |", at(0.5), at(0.99), at(1.0));
    }
    println!();
    print_usage(watched, &before, changed as f64)
}

fn print_usage(watched: &[Watched], before: &Usage, records: f64) -> anyhow::Result<()> {
    let now = Usage::now(watched)?;
    println!("| process | CPU seconds | CPU ms per 1,000 records | peak memory, MiB |\n|-|-|-|-|");
    let mut all = 0.0;
    for (process, seconds) in now.since(before) {
        // The player is no part of the path.
        let counts = process.id != std::process::id();
        all += if counts { seconds } else { 0.0 };
        let peak = if process.is_service {
            format!("{:.0}", processes::peak_memory(process.id)? as f64 / f64::from(1 << 20))
        } else {
            String::new()
        };
        let shown = seconds * 1e6 / records;
        println!(
            "| {}{} | {seconds:.1} | {shown:.0} | {peak} |",
            process.name,
            if counts { "" } else { " (not in the sum)" }
        );
    }
    println!("| sum | {all:.1} | {:.0} | |", all * 1e6 / records);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (used, idle) = now.machine_since(before);
    println!(
        "\nThe sum allows {:.0} records/s on {cores} cores. The machine was busy for {used:.1} CPU seconds, others included, and idle for {idle:.1}.",
        records / all * cores as f64
    );
    Ok(())
}

async fn pause(arguments: &Arguments, watched: &[Watched]) {
    if arguments.pause > 0 {
        for process in watched {
            eprintln!("{}: process {}", process.name, process.id);
        }
        tokio::time::sleep(Duration::from_secs(arguments.pause)).await;
    }
}

//! A measured piece of work, in a process of its own.

use std::process::{Command, Stdio};

use anyhow::Context;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::home::Home;
use super::{
    compaction, foreign, index, load, long_run, long_texts, lookup, memory, merge, partitions, spread, trace,
    type_change, upsert, wide,
};

/// What a process does.
#[derive(Debug, Serialize, Deserialize)]
pub enum Phase {
    /// Makes a table.
    Load(load::Load),
    /// Measures repeated upserts.
    Upsert(upsert::Upserts),
    /// Measures a start, and the upserts that follow it.
    Start(index::Start),
    /// Look-ups in the key index itself.
    LookUp(lookup::LookUps),
    /// Traces of single records.
    Trace(trace::Traces),
    /// Batches at a steady pace.
    Ingest(compaction::Ingest),
    /// Maintenance until nothing is left to do.
    Maintain,
    /// A column of numbers gets a text.
    TypeChange(type_change::TypeChange),
    /// Another writer rewrites the table.
    Foreign(foreign::Foreign),
    /// Many tables in one engine.
    ManyTables(memory::ManyTables),
    /// Batches into a table of many partitions.
    Partitions(partitions::Partitions),
    /// One flush into a wide table.
    Wide(wide::Wide),
    /// Makes a table with long texts.
    LongTexts(long_texts::LongTexts),
    /// Batches over many tables.
    Spread(spread::SpreadBatches),
    /// A log that has grown for a long time.
    LongRun(long_run::LongRun),
    /// Writes batches to files, for other engines.
    Export(merge::Export),
}

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    home: Home,
    phase: Phase,
}

/// Begins the line of the output that holds the result.
const RESULT: &str = "result: ";

impl Phase {
    /// Runs the phase on a home, in a process of its own.
    pub fn run_on<T: DeserializeOwned>(self, home: &Home) -> anyhow::Result<T> {
        // What was written and deleted before is not to reach the disk in the middle of what is measured.
        let synced = Command::new("sync").status().context("run sync")?;
        anyhow::ensure!(synced.success(), "sync failed: {synced}");
        let environment = home.environment.clone();
        let order = serde_json::to_string(&Order { home: home.clone(), phase: self })?;
        let mut command = Command::new(std::env::current_exe()?);
        // As in the services' image.
        command.env("MIMALLOC_PURGE_DELAY", "100");
        command.arg("--phase").arg(&order).envs(environment);
        output_of(command).with_context(|| format!("phase {order}"))
    }
}

/// Runs a program whose last line begins with `result: `, and reads the JSON that follows.
pub fn output_of<T: DeserializeOwned>(mut command: Command) -> anyhow::Result<T> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("start {program}"))?;
    anyhow::ensure!(output.status.success(), "{program} ended with {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let result = text.lines().rev().find_map(|line| line.strip_prefix(RESULT)).context("there is no result")?;
    serde_json::from_str(result).with_context(|| format!("read the result of {program}: {result}"))
}

/// Does what another process of this program ordered, and prints the result.
pub fn run(order: &str) -> anyhow::Result<()> {
    let Order { home, phase } = serde_json::from_str(order)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result: Value = runtime.block_on(async {
        Ok::<_, anyhow::Error>(match phase {
            Phase::Load(load) => serde_json::to_value(load.run(&home).await?)?,
            Phase::Upsert(upserts) => serde_json::to_value(upserts.run(&home).await?)?,
            Phase::Start(start) => serde_json::to_value(start.run(&home).await?)?,
            Phase::LookUp(look_ups) => serde_json::to_value(look_ups.run(&home)?)?,
            Phase::Trace(traces) => serde_json::to_value(traces.run(&home).await?)?,
            Phase::Ingest(ingest) => serde_json::to_value(ingest.run(&home).await?)?,
            Phase::Maintain => serde_json::to_value(compaction::maintain(&home).await?)?,
            Phase::TypeChange(change) => serde_json::to_value(change.run(&home).await?)?,
            Phase::Foreign(foreign) => serde_json::to_value(foreign.run(&home).await?)?,
            Phase::ManyTables(tables) => serde_json::to_value(tables.run(&home).await?)?,
            Phase::Partitions(partitions) => serde_json::to_value(partitions.run(&home).await?)?,
            Phase::Wide(wide) => serde_json::to_value(wide.run(&home).await?)?,
            Phase::LongTexts(texts) => serde_json::to_value(texts.run(&home).await?)?,
            Phase::Spread(batches) => serde_json::to_value(batches.run(&home).await?)?,
            Phase::LongRun(step) => serde_json::to_value(step.run(&home).await?)?,
            Phase::Export(export) => serde_json::to_value(export.run()?)?,
        })
    })?;
    println!("{RESULT}{result}");
    Ok(())
}

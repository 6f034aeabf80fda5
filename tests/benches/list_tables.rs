//! What lists and descriptions of tables cost with thousands of tables: through lakectl, of a writer as a process, its metastore in Postgres. Prints a
//! Markdown table.
//!
//! `cargo build --workspace --bins && cargo bench -p lake-tests --bench list_tables --profile dev`

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark")]

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, ensure};
use lake_shared::identity::{Kind, Space, TableKey};
use lake_tests::invocation;
use lake_tests::parts::{Nats, Port, Postgres};
use lake_tests::system::Running;
use lake_writer::metastore::postgres::PostgresMetastore;
use lake_writer::metastore::{Metastore, NewTable, RecordedState};
use serde_json::json;

const TABLES: usize = 5_000;
const COLUMNS: usize = 500;
const REPEATS: usize = 9;

#[tokio::main]
async fn main() -> ExitCode {
    match report().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("benchmark of lists of tables: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn report() -> anyhow::Result<()> {
    let (postgres, nats) = (Postgres::start()?, Nats::start()?);
    let metastore = PostgresMetastore::new(&postgres.create_database("metastore")?.into(), 2)?;
    metastore.migrate().await?;
    register(&metastore).await?;
    let folder = tempfile::tempdir()?;
    std::fs::create_dir(folder.path().join("lake"))?;
    let port = Port::free()?;
    let config = format!(
        "[queue]\nservers = [\"{}\"]\nstream_size_bytes_max = 67108864\nquarantine_size_bytes_max = 67108864\n\
         [store]\nroot = \"{}\"\nsync = false\n[metastore]\nurl = \"{}\"\n[tables]\nstart_without_tables = true\n\
         [admin]\naddress = \"127.0.0.1:{}\"\n",
        nats.url(),
        folder.path().join("lake").display(),
        postgres.url("metastore"),
        port.number(),
    );
    let mut writer = Running::start("writer", "w", &config, Vec::new(), folder.path()).await?;
    let server = format!("http://127.0.0.1:{}", port.number());
    println!("# {TABLES} tables of {COLUMNS} columns\n");
    println!("| call | answer, kB | median, ms | worst, ms | writer after it, MiB |\n|-|-|-|-|-|");
    println!("| at rest | | | | {} |", resident_mib(&mut writer)?);
    let calls = [
        "--help",
        "table list --domain project-7",
        "table list --contains type_49",
        "table list",
        "table get project_7_case_sql_type_7",
    ];
    for call in calls {
        let mut times = Vec::new();
        let mut bytes = 0;
        for _ in 0..REPEATS {
            let words: Vec<&str> = call.split(' ').chain(["-o", "jsonl"]).collect();
            let began = Instant::now();
            let outcome = invocation::run("lakectl", &words, &[("LAKECTL_SERVER", &server)])?;
            times.push(began.elapsed().as_secs_f64() * 1e3);
            ensure!(outcome.code == Some(0), "{call}: {outcome:?}");
            bytes = outcome.stdout.len();
        }
        times.sort_by(f64::total_cmp);
        let (median, worst) = (times[REPEATS / 2], times[REPEATS - 1]);
        println!("| {call} | {} | {median:.0} | {worst:.0} | {} |", bytes / 1_000, resident_mib(&mut writer)?);
    }
    writer.end()
}

/// Resident memory of the writer now.
fn resident_mib(writer: &mut Running) -> anyhow::Result<u64> {
    let id = writer.service.process().id().context("the writer does not run any more")?;
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no such figure")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? >> 10)
}

async fn register(metastore: &PostgresMetastore) -> anyhow::Result<()> {
    let key = |number: usize| TableKey {
        space: Space { domain: format!("project-{}", number % 50).into(), kind: Kind::Case },
        document_type: format!("type {number}").into(),
    };
    let fields = (0..COLUMNS).map(|number| {
        let metadata = json!({"lake.source": format!("/case_json/question_{number}")});
        json!({"name": format!("case_json__question_{number}"), "type": "string", "nullable": true, "metadata": metadata})
    });
    let schema = json!({"type": "struct", "fields": fields.collect::<Vec<_>>()}).to_string();
    let numbers: Vec<usize> = (0..TABLES).collect();
    for some in numbers.chunks(250) {
        let new = |number: &usize| {
            let path = format!("p/{number}");
            NewTable { key: key(*number), location: format!("file:///{path}"), path, suffix: String::new() }
        };
        metastore.register_tables(&some.iter().map(new).collect::<Vec<_>>()).await?;
        let state = |number: &usize| RecordedState {
            version: Some(7),
            schema: Some(schema.clone()),
            rows: *number as i64,
            files: 3,
            bytes: 5 << 20,
            ..RecordedState::default()
        };
        let states: Vec<_> = some.iter().map(|number| (key(*number), state(number))).collect();
        metastore.record_commits(&states).await?;
    }
    Ok(())
}

//! Maintenance of a table that has seen many changes: how long ingest waits beside it, and what readers gain.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use lake_writer::table_store::TableStore;
use lake_writer::table_store::delta::DeltaTableStore;
use serde::{Deserialize, Serialize};

use super::aims::{self, Figure, Findings};
use super::arguments::{Arguments, Part};
use super::home::{self, Home};
use super::made::MadeTables;
use super::measure::{Memory, Spread, TableFolder, Written};
use super::phase::Phase;
use super::upsert::{Upserted, Upserts, keys_within, milliseconds};
use super::{rows, scan, table};

/// Batches at a steady pace.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Ingest {
    /// Rows that the table was made with.
    pub rows: u64,
    /// Keys of a batch.
    pub keys: u64,
    /// How many, without maintenance.
    pub batches: u64,
    /// Pause between two batches, milliseconds.
    pub pause_ms: u64,
    /// Whether maintenance runs beside; the batches go on until it is done.
    pub maintained: bool,
    /// The round of the first batch; greater than any that the table has seen.
    pub first_round: u64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ingested {
    /// Times of the batches that began before maintenance was done; of all batches when there was none.
    pub times_ms: Vec<f64>,
    /// What maintenance did.
    pub maintenance: Option<Maintenance>,
    /// Memory at the end.
    pub memory: Memory,
}

/// Maintenance of a table.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Maintenance {
    /// Time of all rounds together.
    pub seconds: f64,
    /// Rounds, the last of which found nothing to compact (or was one too many).
    pub rounds: u64,
    /// Data files that compaction wrote.
    pub files_compacted: u64,
    /// Longest time for which a batch may have waited for it, milliseconds.
    pub held_up_ms: f64,
    /// Memory at the end.
    pub memory: Memory,
}

/// Rounds of maintenance at most; beside ingest there is always something new.
const ROUNDS_ALONE_MAX: u64 = 10;
const ROUNDS_BESIDE_MAX: u64 = 3;
/// Share of the rows that are replaced before, and in how many commits.
const REPLACED_PERCENT: u64 = 15;
const REPLACED_IN_COMMITS: u64 = 20;
const KEYS: u64 = 1_000;

impl Ingest {
    /// Applies the batches.
    pub async fn run(self, home: &Home) -> anyhow::Result<Ingested> {
        let store = home.open().await?;
        // The start of the engine is not what is measured.
        self.apply(&store, 0).await?;
        let folder = TableFolder::of(home)?;
        let maintaining = self.maintained.then(|| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { maintained(&store, &folder, ROUNDS_BESIDE_MAX).await })
        });
        let mut times_ms = Vec::new();
        for number in 1.. {
            let under_way = maintaining.as_ref().is_some_and(|task| !task.is_finished());
            let enough = if self.maintained { !under_way } else { number > self.batches };
            if enough {
                break;
            }
            times_ms.push(self.apply(&store, number).await?);
            tokio::time::sleep(Duration::from_millis(self.pause_ms)).await;
        }
        let maintenance = match maintaining {
            Some(task) => Some(task.await??),
            None => None,
        };
        let memory = Memory::now();
        store.close().await;
        Ok(Ingested { times_ms, maintenance, memory })
    }

    async fn apply(&self, store: &DeltaTableStore, number: u64) -> anyhow::Result<f64> {
        let round = self.first_round + number;
        let made = rows::record_batch(&rows::drawn(round, self.keys, self.rows), round, &home::document_type());
        let batch = rows::space_batch(home::space(), home::document_type(), made);
        let began = Instant::now();
        store.apply(batch).await.context("apply a batch")?;
        Ok(milliseconds(began))
    }
}

/// Maintains the table of a home until nothing is left to compact.
pub async fn maintain(home: &Home) -> anyhow::Result<Maintenance> {
    let store = home.open().await?;
    let maintenance = maintained(&store, &TableFolder::of(home)?, ROUNDS_ALONE_MAX).await?;
    store.close().await;
    Ok(maintenance)
}

async fn maintained(store: &DeltaTableStore, folder: &TableFolder, rounds_max: u64) -> anyhow::Result<Maintenance> {
    let mut maintenance = Maintenance::default();
    while maintenance.rounds < rounds_max {
        let before = folder.files().await?;
        let began = Instant::now();
        let done = store.maintain(&home::space()).await.context("maintain the space")?;
        maintenance.held_up_ms = maintenance.held_up_ms.max(done.held_up_max.as_secs_f64() * 1e3);
        maintenance.seconds += began.elapsed().as_secs_f64();
        maintenance.rounds += 1;
        let written: Written = folder.written_since(&before).await?;
        maintenance.files_compacted += written.files_compacted;
        if written.files_compacted == 0 {
            break;
        }
    }
    maintenance.memory = Memory::now();
    Ok(maintenance)
}

/// Measures ingest without and with maintenance, and scans before and after.
pub fn report(arguments: &Arguments, made: &MadeTables, findings: &mut Findings) -> anyhow::Result<()> {
    let rows = arguments.rows_compacted();
    let home = made.fresh(rows)?;
    let keys = keys_within((rows * REPLACED_PERCENT / 100 / REPLACED_IN_COMMITS).max(1), rows);
    let replaced = Upserts { rows, keys, new_percent: 0, repeats: REPLACED_IN_COMMITS - 1, first_round: 1 };
    let scans = arguments.parts.contains(&Part::Scan);
    let mut scanned = Vec::new();
    if scans {
        scanned.push(("as it was made", scan::scan(arguments, &home)?));
    }
    let _: Upserted = Phase::Upsert(replaced).run_on(&home)?;
    if scans {
        scanned.push(("changed, before compaction", scan::scan(arguments, &home)?));
    }
    if arguments.parts.contains(&Part::Compaction) {
        report_ingest(arguments, &home, rows, findings)?;
    }
    let rest: Maintenance = Phase::Maintain.run_on(&home)?;
    note(rows, rest.held_up_ms, rest.memory, findings);
    println!(
        "\nCompaction alone, until nothing was left: {} s, {} rounds, {} files written, peak {} MiB.",
        table::figure(rest.seconds),
        rest.rounds,
        rest.files_compacted,
        table::mebibytes(rest.memory.peak as f64)
    );
    if scans {
        scanned.push(("after compaction", scan::scan(arguments, &home)?));
        scan::print(rows, &scanned);
    }
    home.remove()
}

fn note(rows: u64, held_up_ms: f64, memory: Memory, findings: &mut Findings) {
    findings.note(Figure::Hold, rows, held_up_ms);
    findings.note(Figure::CompactionPeak, rows, aims::megabytes(memory.peak));
}

fn report_ingest(arguments: &Arguments, home: &Home, rows: u64, findings: &mut Findings) -> anyhow::Result<()> {
    let keys = keys_within(KEYS, rows);
    let title = format!(
        "Ingest while maintenance runs: {} rows, {REPLACED_PERCENT} % of them replaced before, batches of {} keys, {} ms apart",
        table::number(rows),
        table::number(keys),
        arguments.ingest_pause_ms
    );
    let columns = [
        "maintenance",
        "batches",
        "median",
        "p95",
        "max",
        "peak MiB",
        "maintenance s",
        "files compacted",
        "longest hold ms",
    ];
    let mut lines = Vec::new();
    for (maintained, first_round) in [(false, 1_000), (true, 5_000)] {
        let (batches, pause_ms) = (arguments.ingest_batches, arguments.ingest_pause_ms);
        let ingest = Ingest { rows, keys, batches, pause_ms, maintained, first_round };
        let ingested: Ingested = Phase::Ingest(ingest).run_on(home)?;
        let spread = Spread::of(&ingested.times_ms);
        if let Some(maintenance) = &ingested.maintenance {
            note(rows, maintenance.held_up_ms, ingested.memory, findings);
        }
        let done = |of: fn(&Maintenance) -> String| ingested.maintenance.as_ref().map_or(table::NOTHING.into(), of);
        lines.push([
            if maintained { "beside" } else { "none" }.to_owned(),
            spread.count.to_string(),
            table::figure(spread.median),
            table::figure(spread.p95),
            table::figure(spread.max),
            table::mebibytes(ingested.memory.peak as f64),
            done(|maintenance| table::figure(maintenance.seconds)),
            done(|maintenance| maintenance.files_compacted.to_string()),
            done(|maintenance| format!("{:.1}", maintenance.held_up_ms)),
        ]);
    }
    table::begin(&title, &columns);
    lines.iter().for_each(|line| table::line(line));
    Ok(())
}

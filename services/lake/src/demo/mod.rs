//! `lake demo`: a small health programme goes through the whole path in one process, on an HQ that is simulated in memory. Fetcher, enricher and
//! writer are the code of production; simulated are HQ and the servers (Kafka, NATS, Postgres).

mod form_name;
mod report;
mod table_list;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use lake_enricher::options::EnricherOptions;
use lake_fetcher::allow_list::TakeConfig;
use lake_fetcher::change_feed::memory::MemoryFeed;
use lake_fetcher::service::FetcherOptions;
use lake_hq::documents::case::CaseOptions;
use lake_shared::service::{self, ProcessConfig};
use lake_shared::shutdown;
use lake_shared::telemetry::{self, LogFormat, TelemetryConfig};
use lake_simulated_hq::life::{Life, LifeOptions};
use lake_simulated_hq::memory_hq::MemoryHq;
use lake_simulated_hq::turn::Turn;
use lake_writer::catalog::CatalogOptions;
use lake_writer::ingest::IngestOptions;
use lake_writer::lease::LeaseOptions;
use lake_writer::maintenance::MaintenanceOptions;
use lake_writer::metastore::Metastore;
use lake_writer::metastore::connect::MetastoreConfig;
use lake_writer::table_store::delta::DeltaOptions;
use lake_writer::table_store::lake_store::LakeStoreConfig;
use lake_writer::writer::{BackfillOptions, ReconcileOptions, Writer, WriterOptions};
use tokio_util::sync::CancellationToken;

use crate::config::embedded_fetch;
use crate::embedded::Embedded;

/// What to play and where
#[derive(Args, Debug)]
pub struct DemoArguments {
    /// Folder for the tables; a folder of an earlier demo is replaced
    #[arg(long, default_value = "lake-demo")]
    folder: PathBuf,
    /// Changes to play
    #[arg(long, default_value_t = 6_000)]
    changes: u64,
    /// Seed of the random programme: the same seed plays the same changes
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Go on with a few changes a second until interrupted
    #[arg(long)]
    keep_running: bool,
    /// Show log lines as well
    #[arg(long)]
    verbose: bool,
}

/// File that marks a folder as one of a demo, which the next demo may replace.
const MARK: &str = ".commcare-lake-demo";
/// Messages that may be on their way into the lake before playing waits.
const AHEAD_MAX: usize = 4_000;
/// How long the messages on their way may take at the end.
const DRAIN_WITHIN: Duration = Duration::from_secs(30);
/// Turns that are played before the number of messages on their way is looked at.
const TURNS_AT_ONCE: usize = 50;

/// Plays the demo; the exit code says whether every change came into the lake.
pub fn run(arguments: &DemoArguments) -> ExitCode {
    let log_filter = if arguments.verbose { "info" } else { "error" }.to_owned();
    let logs = TelemetryConfig { log_format: LogFormat::Text, log_filter, ..TelemetryConfig::default() };
    let outcome = telemetry::install_logs(&logs)
        .and_then(|()| service::runtime(&ProcessConfig::default()))
        .and_then(|runtime| runtime.block_on(play(arguments)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lake demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn play(arguments: &DemoArguments) -> anyhow::Result<()> {
    let folder = prepare(&arguments.folder)?;
    let writer = Writer::open(writer_options(&folder)).await?;
    let metastore = Arc::clone(&writer.metastore);
    let (feed, hq) = (Arc::new(MemoryFeed::default()), MemoryHq::new());
    let fetcher =
        FetcherOptions { take: TakeConfig::EVERYTHING, case_options: CaseOptions::default(), fetch: embedded_fetch() };
    let embedded = Embedded::build(feed.clone(), hq.hq(), fetcher, EnricherOptions::default(), writer);
    let shutdown = CancellationToken::new();
    let mut lake = tokio::spawn(embedded.run(shutdown.clone()));
    let life = Life::new(LifeOptions { seed: arguments.seed, ..LifeOptions::default() });
    let mut stage = Stage { feed, hq, life };

    // Nothing comes into a lake that has ended: it is not waited for then.
    let ended = tokio::select! {
        performed = stage.perform_and_report(arguments, &*metastore, &folder) => performed.map(|()| None)?,
        () = shutdown::signal() => None,
        ended = &mut lake => Some(ended),
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            shutdown.cancel();
            let draining = tokio::time::timeout(DRAIN_WITHIN, lake).await;
            draining.context("the lake could not write everything that was on its way in time; see --verbose")?
        }
    };
    ended.context("the lake panicked")??;
    anyhow::ensure!(shutdown.is_cancelled(), "the lake ended by itself; see --verbose");
    println!("\nEnded cleanly. The tables stay in {}.", folder.display());
    Ok(())
}

/// Creates the folder for the demo, empty, and returns its absolute path. A folder that holds anything but an earlier demo is refused.
fn prepare(folder: &Path) -> anyhow::Result<PathBuf> {
    if folder.exists() {
        let empty = std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?.next().is_none();
        anyhow::ensure!(
            empty || folder.join(MARK).exists(),
            "{} holds something else; choose another one with --folder",
            folder.display()
        );
        std::fs::remove_dir_all(folder).with_context(|| format!("replace {}", folder.display()))?;
    }
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    std::fs::write(folder.join(MARK), "tables of `lake demo`; replaced by the next one\n")?;
    Ok(folder.canonicalize()?)
}

fn writer_options(folder: &Path) -> WriterOptions {
    WriterOptions {
        // Without forcing files to disk: a power cut may take the tables of a demo.
        store: LakeStoreConfig { sync: false, ..LakeStoreConfig::of_root(folder.join("tables").display().to_string()) },
        metastore: MetastoreConfig {
            url: format!("sqlite:{}", folder.join("metastore.sqlite").display()).into(),
            connections_max: 1,
        },
        tables: DeltaOptions { index_folder: Some(folder.join("index")), ..DeltaOptions::default() },
        ingest: IngestOptions::default(),
        maintenance: MaintenanceOptions::default(),
        backfill: BackfillOptions::default(),
        reconcile: ReconcileOptions::default(),
        lease: LeaseOptions::default(),
        admin: None,
        catalog: CatalogOptions::default(),
    }
}

/// The simulated HQ and its feed.
struct Stage {
    feed: Arc<MemoryFeed>,
    hq: Arc<MemoryHq>,
    life: Life,
}

impl Stage {
    /// Plays the changes that are asked for, says what came of them, and goes on where that is asked for.
    async fn perform_and_report(
        &mut self,
        arguments: &DemoArguments,
        metastore: &dyn Metastore,
        folder: &Path,
    ) -> anyhow::Result<()> {
        self.perform(arguments.changes).await;
        report::print(metastore, folder, self.life.changes()).await?;
        if arguments.keep_running {
            println!("\nThe programme goes on; interrupt to end it.");
            self.live_on(metastore).await;
        }
        Ok(())
    }

    /// Plays at least `changes` changes and waits until the lake has all of them.
    async fn perform(&mut self, changes: u64) {
        let style = ProgressStyle::with_template("{msg:9} {bar:40.cyan/blue} {pos:>6} of {len} changes  {elapsed}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(changes).with_style(style).with_message("in lake");
        println!("In a simulated HQ workers register households, visit, edit, archive, move ...\n");
        let opening = self.life.opening();
        self.apply(&opening);
        while self.life.changes() < changes {
            for _ in 0..TURNS_AT_ONCE {
                let turn = self.life.turn();
                self.apply(&turn);
            }
            self.wait_until_at_most(AHEAD_MAX, &bar).await;
        }
        let last = self.life.settle();
        self.apply(&last);
        bar.set_length(self.life.changes());
        self.wait_until_at_most(0, &bar).await;
        bar.finish();
    }

    /// Plays four turns a second, without end, and prints a line every 20 turns. While too much is on its way into the lake, nothing happens.
    async fn live_on(&mut self, metastore: &dyn Metastore) {
        let mut quarter_second = tokio::time::interval(Duration::from_millis(250));
        let mut turns = 0_u64;
        loop {
            quarter_second.tick().await;
            if self.feed.unfinished() > AHEAD_MAX {
                continue;
            }
            let turn = self.life.turn();
            self.apply(&turn);
            turns += 1;
            if turns.is_multiple_of(20) {
                report::print_line(metastore, self.life.changes(), self.feed.unfinished()).await;
            }
        }
    }

    fn apply(&self, turn: &Turn) {
        // As in HQ, a message is sent after the record that it announces was saved.
        self.hq.apply(turn);
        for message in &turn.messages {
            self.feed.publish(message.topic, message.value.clone());
        }
    }

    async fn wait_until_at_most(&self, unfinished: usize, bar: &ProgressBar) {
        loop {
            let behind = self.feed.unfinished();
            bar.set_position(self.life.changes().saturating_sub(behind as u64));
            if behind <= unfinished {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

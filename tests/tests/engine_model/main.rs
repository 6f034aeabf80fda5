//! Random histories against a plain map, through the engine's port alone: whatever is repeated, reordered, interrupted, configured otherwise
//! or committed by concurrent writers, the tables end up equal to the source, and every reader sees that.
//!
//! After each step the files themselves are read (deletion vectors applied as the protocol says, statistics compared with the values); at
//! the end of each history DuckDB, Polars and DataFusion read every table, now and as it was within the retention, and Spark on a sample of
//! the histories: all rows, `count(*)`, and some questions with conditions. Hours pass now and then, so that the clean-up has something to
//! do; in the end nothing but the files of the last version is left.
//!
//! `LAKE_MODEL_SEEDS` is the number of histories, or a range such as `100..5000`. A history that fails tells how to repeat it.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod external_commit;
mod model;
mod options;
mod tally;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lake_test_kit::dice::history_seeds;
use lake_test_kit::history::{Observation, TYPES, history, shuffle};
use lake_test_kit::log::{LogFigures, ensure_log_is_sound, removals_of};
use lake_test_kit::time::{data_files, pass_time};
use lake_test_kit::waiting::Interrupted;
use lake_tests::engine::{DeltaOptions, EngineLake, LAYOUTS, partition_by, small, space};
use lake_tests::readers::{Inquiry, Reader, Readers, Snapshot};
use lake_writer::table_store::delta::DeltaTableStore;
use lake_writer::table_store::{Applied, StoreError, TableStore};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use self::external_commit::ExternalCommit;
use self::model::{Model, cells, space_batch};
use self::options::redraw;
use self::tally::Tally;

/// Histories that failed once; they run first. Whoever meets a failing seed adds it, with what it found. A change of what is drawn at
/// random makes other histories of the same seeds, so the list starts anew then. 75 and 170: deltalake's vacuum took files of past
/// versions. 780: a checkpoint was made of an entry that the test had emptied in order to write it with other times.
const FAILED: &[u64] = &[75, 170, 780];
/// Histories when nothing else is asked for.
const SEEDS: u64 = 16;
/// One history in so many is also read, and intruded upon, by Spark.
const SPARK_SAMPLE: u64 = 16;
/// Histories that run at once: most of their time goes into waiting for the disk.
const WORKERS: usize = 3;
/// A run of many histories tells how far it is after so many.
const TOLD_EVERY: usize = 50;
/// Ids of a history.
const IDS: usize = 25;
/// How long an engine may say that it cannot just now.
const PATIENCE: Duration = Duration::from_secs(20);
/// Past versions of a table that every reader is asked for.
const PAST_VERSIONS: usize = 2;
/// Questions with conditions about a table as it is, and as it was.
const QUESTIONS: usize = 4;
const PAST_QUESTIONS: usize = 1;
/// Longer than any retention.
const LONG_HOURS: u64 = 1_000;
/// So many clean-ups leave nothing behind.
const CLEAN_UPS: usize = 5;

/// Tries again as the port asks for: the last tasks of an engine that crashed may still hold its key index, for a moment.
async fn patiently<T, F: Future<Output = Result<T, StoreError>>>(work: impl Fn() -> F) -> Result<T, StoreError> {
    let patience = Instant::now() + PATIENCE;
    loop {
        match work().await {
            Err(StoreError::Unavailable { .. }) if Instant::now() < patience => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            outcome => return outcome,
        }
    }
}

async fn apply(store: &DeltaTableStore, observations: &[Observation]) -> anyhow::Result<Applied> {
    patiently(|| store.apply(space_batch(observations))).await.context("apply a batch")
}

/// A table when its version was the latest after a step.
struct Past {
    table: Snapshot,
    /// The hour at which a newer version was seen.
    superseded_at: Option<u64>,
}

/// A lake with a history behind it.
struct Trial<'worker> {
    random: StdRng,
    options: DeltaOptions,
    lake: EngineLake,
    store: DeltaTableStore,
    model: Model,
    /// Hours that have passed.
    clock: u64,
    /// By table and version.
    past: BTreeMap<(usize, u64), Past>,
    readers: &'worker mut Readers,
    tally: &'worker mut Tally,
    with_spark: bool,
}

impl Trial<'_> {
    /// The options of this life of the engine are drawn here.
    fn open_again(&mut self) -> anyhow::Result<()> {
        self.store = open(&self.lake, &mut self.options, &mut self.random)?;
        Ok(())
    }

    async fn crash_in<T>(&mut self, work: impl AsyncFnOnce(&EngineLake, &DeltaTableStore) -> T) -> anyhow::Result<()> {
        let polls_left = self.random.random_range(0..90);
        let finished = Interrupted { future: Box::pin(work(&self.lake, &self.store)), polls_left }.await;
        self.tally.crashes += u64::from(finished.is_none());
        self.open_again()
    }

    /// One batch, perhaps with a crash before it is delivered again.
    async fn deliver(&mut self, observations: &[Observation]) -> anyhow::Result<()> {
        if self.random.random_range(0..4) == 0 {
            self.open_again()?;
        }
        if self.random.random_range(0..3) == 0 {
            let beside = self.random.random_range(0..3) == 0;
            self.crash_in(async |lake, store| {
                let applying = store.apply(space_batch(observations));
                if beside {
                    let _ = lake.beside_compaction(store, applying).await;
                } else {
                    let _ = applying.await;
                    let _ = store.compact(&space()).await;
                }
            })
            .await?;
        }
        if self.random.random_range(0..3) == 0 {
            // The engine has to know the space before it compacts. Whatever becomes of compaction, the batch enters.
            apply(&self.store, &[]).await?;
            self.lake.beside_compaction(&self.store, apply(&self.store, observations)).await?;
        } else {
            apply(&self.store, observations).await?;
        }
        self.tally.batches += 1;
        for observation in observations {
            self.model.delivered(observation);
        }
        Ok(())
    }

    async fn maintain(&mut self) -> anyhow::Result<()> {
        if self.random.random_range(0..3) == 0 {
            self.crash_in(async |_, store| store.maintain(&space()).await.is_ok()).await?;
        }
        let before = self.files()?;
        let space = space();
        let maintained = patiently(|| self.store.maintain(&space)).await.context("maintain")?;
        let after = self.files()?;
        let vectors = before.difference(&after).filter(|path| path.extension().is_some_and(|end| end == "bin"));
        self.tally.maintained += 1;
        self.tally.files_deleted += maintained.files_deleted;
        self.tally.vector_files_deleted += vectors.count() as u64;
        Ok(())
    }

    /// Data files and deletion vectors of all tables, in use or not.
    fn files(&self) -> anyhow::Result<BTreeSet<PathBuf>> {
        let mut files = BTreeSet::new();
        for table in self.folders() {
            files.extend(data_files(&table)?);
        }
        Ok(files)
    }

    /// Folders of the tables that are there.
    fn folders(&self) -> Vec<PathBuf> {
        let folders = TYPES.into_iter().map(|document_type| self.lake.table(document_type));
        folders.filter(|folder| folder.join("_delta_log").exists()).collect()
    }

    /// Hours pass; perhaps a crash `leaves` files behind that no log speaks of.
    fn pass_time(&mut self, hours: u64, leaves: bool) -> anyhow::Result<()> {
        for table in self.folders() {
            if leaves && self.random.random_range(0..3) == 0 {
                let number: u32 = self.random.random();
                let id = format!("0d9e2c4e-1111-4222-8333-4444{number:08x}");
                fs::write(table.join(format!("part-00000-{id}-c000.zstd.parquet")), "half a file")?;
                fs::write(table.join(format!("deletion_vector_{id}.bin")), "half a file")?;
            }
            pass_time(&table, hours, None).with_context(|| format!("time passes for {}", table.display()))?;
        }
        self.clock += hours;
        Ok(())
    }

    async fn tables(&self) -> anyhow::Result<BTreeMap<usize, Snapshot>> {
        let mut tables = BTreeMap::new();
        for (number, document_type) in TYPES.into_iter().enumerate() {
            if let Some(table) = self.lake.snapshot(document_type).await? {
                tables.insert(number, table);
            }
        }
        Ok(tables)
    }

    /// The lake is as the model; what it looks like is noted for later.
    async fn look(&mut self) -> anyhow::Result<BTreeMap<usize, Snapshot>> {
        let tables = self.tables().await?;
        self.model.ensure_is_in(&tables)?;
        for (&number, table) in &tables {
            self.tally.hidden_rows += table.hidden_rows;
            ensure!(
                table.vectors_in_escaped_folders == 0 || self.with_spark,
                "table {number} has vectors in folders with escaped characters, which Polars does not find"
            );
            for (_, past) in self.past.range_mut((number, 0)..(number, table.version)) {
                past.superseded_at.get_or_insert(self.clock);
            }
            let now = || Past { table: table.clone(), superseded_at: None };
            let held = self.past.entry((number, table.version)).or_insert_with(now);
            ensure!(held.table.rows == table.rows, "version {} of table {number} has changed", table.version);
        }
        Ok(tables)
    }

    /// Versions before the last that must be as they were.
    fn past_of(&self, number: usize, version: u64) -> Vec<u64> {
        let within =
            |past: &Past| past.superseded_at.is_none_or(|hour| self.clock - hour < self.options.retention_hours);
        self.past.range((number, 0)..(number, version)).filter(|(_, past)| within(past)).map(|(key, _)| key.1).collect()
    }

    /// Everyone who reads a table rightly. Polars does not find vectors in folders with escaped characters (see `delta_readers.rs`): the
    /// engine writes none, but Spark does.
    fn asked_about(&self, table: &Snapshot) -> Vec<Reader> {
        let takes_part = |reader: &Reader| match reader {
            Reader::Polars => table.vectors_in_escaped_folders == 0,
            Reader::Spark | Reader::Spark3 => self.with_spark,
            Reader::DuckDb | Reader::DataFusion => true,
        };
        Reader::ALL.into_iter().filter(takes_part).collect()
    }

    /// Every reader sees what the files hold, now and, within the retention, then.
    fn ask_readers(&mut self, tables: &BTreeMap<usize, Snapshot>) -> anyhow::Result<()> {
        for (&number, table) in tables {
            let folder = self.lake.table(TYPES[number]);
            let mut versions = self.past_of(number, table.version);
            shuffle(&mut self.random, &mut versions);
            versions.truncate(PAST_VERSIONS);
            let inquiry = Inquiry::drawn(&mut self.random, table, QUESTIONS);
            for reader in self.asked_about(table) {
                self.tally.readings += 1;
                self.tally.spark_readings += u64::from(reader == Reader::Spark);
                self.tally.questions += inquiry.questions.len() as u64;
                self.readers
                    .ensure_sees(reader, &folder, None, &inquiry, &table.rows)
                    .with_context(|| format!("table {number}, version {}", table.version))?;
            }
            for version in versions {
                let past = &self.past[&(number, version)];
                let inquiry = Inquiry::drawn(&mut self.random, &past.table, PAST_QUESTIONS);
                for reader in self.asked_about(&past.table) {
                    self.tally.past_readings += 1;
                    self.readers
                        .ensure_sees(reader, &folder, Some(version), &inquiry, &past.table.rows)
                        .with_context(|| format!("table {number}, past version {version}"))?;
                }
            }
        }
        Ok(())
    }

    async fn intrude(&mut self, tables: &BTreeMap<usize, Snapshot>) -> anyhow::Result<()> {
        let retention_hours = self.options.retention_hours;
        let before = self.files()?;
        let Self { random, lake, model, readers, with_spark, .. } = &mut *self;
        let mut external =
            ExternalCommit { random, lake, model, readers, as_spark: *with_spark, retention_hours, vacuumed: None };
        let done = external.happen(tables)?;
        if let Some(number) = external.vacuumed {
            let taken = before.difference(&self.files()?).cloned().collect();
            self.forget_taken(number, &taken)?;
        }
        self.tally.external_commits += u64::from(done.is_some());
        self.look().await.with_context(|| format!("after {done:?}"))?;
        Ok(())
    }

    /// Past versions that lost files to deltalake's vacuum. It goes by the first removal of a file, and a file that got deletion vectors is
    /// removed several times: versions before the last removal lose it although they are within the retention.
    fn forget_taken(&mut self, number: usize, taken: &BTreeSet<PathBuf>) -> anyhow::Result<()> {
        let folder = self.lake.table(TYPES[number]);
        let lost = self.past_of(number, u64::MAX).into_iter().filter(|version| {
            let used = &self.past[&(number, *version)].table.used;
            !used.is_disjoint(taken)
        });
        for version in lost.collect::<Vec<_>>() {
            for file in self.past[&(number, version)].table.used.intersection(taken) {
                let removals = removals_of(&folder, file)?;
                ensure!(removals > 1, "deltalake's vacuum took {} of version {version}", file.display());
            }
            self.past.remove(&(number, version));
        }
        Ok(())
    }

    /// The log is as readers take for granted, and when the past is older than any retention, nothing is left of it.
    async fn finish(&mut self) -> anyhow::Result<()> {
        for table in self.folders() {
            ensure_log_is_sound(&table, |info| !info["lakeCommit"].is_null())?;
            self.tally.log += LogFigures::of(&table)?;
        }
        // The first clean-up takes note of superseded vectors only, and each may compact before.
        let mut left = Vec::new();
        for _ in 0..CLEAN_UPS {
            self.pass_time(LONG_HOURS, false)?;
            let space = space();
            patiently(|| self.store.maintain(&space)).await.context("clean up")?;
            let tables = self.look().await.context("after the last clean-up")?;
            let used: BTreeSet<PathBuf> = tables.into_values().flat_map(|table| table.used).collect();
            left = self.files()?.difference(&used).cloned().collect();
            if left.is_empty() {
                break;
            }
        }
        ensure!(left.is_empty(), "files that the last version does not use are still there: {left:#?}");
        Ok(())
    }

    async fn run(&mut self) -> anyhow::Result<()> {
        let odd = self.random.random_range(0..2) == 0;
        let mut all: Vec<Observation> =
            (0..IDS).flat_map(|id| history(&mut self.random, id, |random| cells(random, odd))).collect();
        let repeated: Vec<Observation> = all.iter().filter(|_| self.random.random_range(0..4) == 0).cloned().collect();
        all.extend(repeated);
        shuffle(&mut self.random, &mut all);
        let mut rest = all.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(self.random.random_range(1..=rest.len().min(12)));
            rest = later;
            let now: Vec<Observation> = now.iter().filter(|one| self.model.may_deliver(one)).cloned().collect();
            self.deliver(&now).await?;
            let tables = self.look().await.context("after a batch")?;
            if self.random.random_range(0..4) == 0 {
                let hours = self.random.random_range(1..4);
                self.pass_time(hours, true)?;
            }
            if self.random.random_range(0..5) == 0 {
                self.maintain().await?;
                self.look().await.context("after maintenance")?;
            }
            if self.random.random_range(0..8) == 0 {
                self.intrude(&tables).await?;
            }
        }
        // All of it once more changes nothing.
        let again: Vec<Observation> = all.into_iter().filter(|one| self.model.may_deliver(one)).collect();
        let applied = apply(&self.store, &again).await?;
        self.look().await.context("after everything was delivered again")?;
        ensure!(applied.tables.is_empty(), "everything delivered again made commits: {applied:?}");
        self.maintain().await?;
        let tables = self.look().await.context("after the last maintenance")?;
        self.ask_readers(&tables)?;
        self.finish().await
    }
}

/// Opens an engine with other options than before: with the key index as it was left, or with none.
fn open(lake: &EngineLake, options: &mut DeltaOptions, random: &mut StdRng) -> anyhow::Result<DeltaTableStore> {
    if redraw(options, random) { lake.open(options) } else { lake.open_with_index(options, None) }
}

async fn run(seed: u64, readers: &mut Readers, tally: &mut Tally) -> anyhow::Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let partition_by = partition_by(LAYOUTS[random.random_range(0..LAYOUTS.len())]);
    let mut options = DeltaOptions { partition_by, retention_hours: random.random_range(0..5), ..small() };
    let lake = EngineLake::new().await?;
    let store = open(&lake, &mut options, &mut random)?;
    let with_spark = seed.is_multiple_of(SPARK_SAMPLE);
    let (model, past) = (Model::default(), BTreeMap::new());
    let mut trial = Trial { random, options, lake, store, model, clock: 0, past, readers, tally, with_spark };
    let ended = trial.run().await;
    ended.map_err(|trouble| trouble.context(format!("its tables stay in {}", trial.lake.keep().display())))
}

/// Runs histories until there are none left; gives those that failed and what the others had in them.
fn work_off(left: &Mutex<VecDeque<u64>>, ended: &AtomicUsize) -> (Vec<u64>, Tally) {
    let mut readers = Readers::of_folders().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut failed = Vec::new();
    let mut tally = Tally::default();
    loop {
        let next = left.lock().unwrap().pop_front();
        let Some(seed) = next else { return (failed, tally) };
        // A panic is a finding as well, and the other histories still count.
        let run = AssertUnwindSafe(|| runtime.block_on(run(seed, &mut readers, &mut tally)));
        let trouble = match std::panic::catch_unwind(run) {
            Ok(Ok(())) => {
                let ended = ended.fetch_add(1, Ordering::Relaxed) + 1;
                if ended.is_multiple_of(TOLD_EVERY) {
                    println!("{ended} histories ended equal, the last of seed {seed}");
                }
                continue;
            }
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "a panic, shown above".to_owned(),
        };
        println!("history {seed}: {trouble}\n  repeat: LAKE_MODEL_SEEDS={seed}..{} tests/run engine_model", seed + 1);
        failed.push(seed);
    }
}

#[test]
fn random_histories_end_equal_to_the_source() {
    let seeds = VecDeque::from(history_seeds(FAILED, SEEDS));
    let (asked, started) = (seeds.len(), Instant::now());
    let (left, ended) = (Mutex::new(seeds), AtomicUsize::new(0));
    let (mut failed, mut total) = (Vec::new(), Tally::default());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(|| work_off(&left, &ended))).collect();
        for worker in workers {
            let (theirs, tally) = worker.join().unwrap();
            failed.extend(theirs);
            total.add(&tally);
        }
    });
    let pace = asked as f64 / started.elapsed().as_secs_f64();
    println!("{asked} histories, {pace:.2} a second: {total:?}");
    assert!(failed.is_empty(), "histories that failed: {failed:?}; what they told is above");
    if asked >= SEEDS as usize {
        assert!(total.has_everything(asked), "something never happened");
    }
}

//! Random histories against a plain map, through the engine's port alone: whatever is repeated, reordered, interrupted, configured otherwise
//! or done by strangers, the tables end up equal to the source, and every reader sees that.
//!
//! After each step the files themselves are read (deletion vectors applied as the protocol says); at the end of each history DuckDB, Polars
//! and DataFusion read every table, now and as it was, and Spark on a sample of the histories; `count(*)` each time.
//!
//! `LAKE_MODEL_SEEDS` is the number of histories, or a range such as `100..5000`. A history that fails tells how to repeat it.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "engine_model/history.rs"]
mod history;
#[path = "engine_model/stranger.rs"]
mod stranger;

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lake_tests::engine::{EngineLake, Setting, space};
use lake_tests::readers::{Reader, Readers, Row, Snapshot};
use lake_writer::table_store::delta::DeltaTableStore;
use lake_writer::table_store::{Applied, StoreError, TableStore};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use self::history::{Model, Observation, TYPES, history, shuffle, space_batch};

/// Histories when nothing else is asked for.
const SEEDS: u64 = 16;
/// One history in so many is also read, and intruded upon, by Spark.
const SPARK_SAMPLE: u64 = 16;
/// Histories that run at once: most of their time goes into waiting for the disk.
const WORKERS: usize = 3;
/// Ids of a history.
const IDS: usize = 25;
/// How long an engine may say that it cannot just now.
const PATIENCE: Duration = Duration::from_secs(20);
/// Past versions of a table that every reader is asked for.
const PAST_VERSIONS: usize = 2;

/// Polls a future so many times, then drops it: a crash at an arbitrary point.
struct Interrupted<F> {
    future: Pin<Box<F>>,
    polls_left: u32,
}

impl<F: Future> Future for Interrupted<F> {
    type Output = Option<F::Output>;
    fn poll(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<Self::Output> {
        if self.polls_left == 0 {
            return Poll::Ready(None);
        }
        self.polls_left -= 1;
        self.future.as_mut().poll(context).map(Some)
    }
}

/// What happened in the histories, so that it shows when something never does.
#[derive(Debug, Default)]
struct Tally {
    batches: u64,
    crashes: u64,
    maintained: u64,
    files_deleted: u64,
    intrusions: u64,
    readings: u64,
    past_readings: u64,
    /// Rows that deletion vectors hid, over all looks.
    hidden_rows: u64,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.batches += other.batches;
        self.crashes += other.crashes;
        self.maintained += other.maintained;
        self.files_deleted += other.files_deleted;
        self.intrusions += other.intrusions;
        self.readings += other.readings;
        self.past_readings += other.past_readings;
        self.hidden_rows += other.hidden_rows;
    }
}

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

/// A lake with a history behind it.
struct Trial<'worker> {
    random: StdRng,
    setting: Setting,
    lake: EngineLake,
    store: DeltaTableStore,
    model: Model,
    /// Rows of (table, version) when that version was the latest after a step.
    past: BTreeMap<(usize, u64), Vec<Row>>,
    readers: &'worker mut Readers,
    tally: &'worker mut Tally,
    with_spark: bool,
}

impl Trial<'_> {
    /// The options of this life of the engine are drawn here; see [`Setting`] for what becomes of them.
    fn open_again(&mut self) -> anyhow::Result<()> {
        self.setting.redraw(&mut self.random);
        self.store = self.lake.open(&self.setting)?;
        Ok(())
    }

    async fn crash_in<T>(&mut self, work: impl AsyncFnOnce(&DeltaTableStore) -> T) -> anyhow::Result<()> {
        let polls_left = self.random.random_range(0..90);
        let finished = Interrupted { future: Box::pin(work(&self.store)), polls_left }.await;
        self.tally.crashes += u64::from(finished.is_none());
        self.open_again()
    }

    /// One batch, perhaps with a crash before it is delivered again.
    async fn deliver(&mut self, observations: &[Observation]) -> anyhow::Result<()> {
        if self.random.random_range(0..4) == 0 {
            self.open_again()?;
        }
        if self.random.random_range(0..3) == 0 {
            self.crash_in(async |store| {
                let _ = store.apply(space_batch(observations)).await;
                let _ = store.compact(&space()).await;
            })
            .await?;
        }
        if self.random.random_range(0..4) == 0 {
            // Compaction goes on meanwhile; whatever becomes of it, the batch enters.
            let space = space();
            let (applied, _) = futures::join!(apply(&self.store, observations), self.store.compact(&space));
            applied?;
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
            self.crash_in(async |store| store.maintain(&space()).await.is_ok()).await?;
        }
        let space = space();
        let maintained = patiently(|| self.store.maintain(&space)).await.context("maintain")?;
        self.tally.maintained += 1;
        self.tally.files_deleted += maintained.files_deleted;
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
        for (number, table) in &tables {
            self.tally.hidden_rows += table.hidden_rows;
            self.past.insert((*number, table.version), table.rows.clone());
        }
        Ok(tables)
    }

    /// Everyone who reads a table rightly. Polars mistakes partition values that must be escaped (see `delta_readers.rs`).
    fn asked_about(&self, table: &Snapshot) -> Vec<Reader> {
        let plain = |text: &String| text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        let polars_can = table.partition_values.iter().all(plain);
        let takes_part = |reader: &Reader| match reader {
            Reader::Polars => polars_can,
            Reader::Spark => self.with_spark,
            Reader::DuckDb | Reader::DataFusion => true,
        };
        Reader::ALL.into_iter().filter(takes_part).collect()
    }

    /// Every reader sees what the files hold, now and, within the retention, then.
    fn ask_readers(&mut self, tables: &BTreeMap<usize, Snapshot>) -> anyhow::Result<()> {
        for (&number, table) in tables {
            let folder = self.lake.table(TYPES[number]);
            let mut versions: Vec<u64> =
                self.past.keys().filter(|key| key.0 == number && key.1 < table.version).map(|key| key.1).collect();
            if self.setting.retention_hours == 0 {
                versions.clear();
            }
            shuffle(&mut self.random, &mut versions);
            versions.truncate(PAST_VERSIONS);
            for reader in self.asked_about(table) {
                self.readers
                    .read(reader, &folder, None)?
                    .ensure_is(&table.rows)
                    .with_context(|| format!("{reader}, table {number}, version {}", table.version))?;
                self.tally.readings += 1;
                for &version in &versions {
                    self.tally.past_readings += 1;
                    self.readers
                        .read(reader, &folder, Some(version))?
                        .ensure_is(&self.past[&(number, version)])
                        .with_context(|| format!("{reader}, table {number}, past version {version}"))?;
                }
            }
        }
        Ok(())
    }

    async fn run(&mut self) -> anyhow::Result<()> {
        let odd = self.random.random_range(0..2) == 0;
        let mut all: Vec<Observation> = (0..IDS).flat_map(|id| history(&mut self.random, id, odd)).collect();
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
            if self.random.random_range(0..5) == 0 {
                self.maintain().await?;
                self.look().await.context("after maintenance")?;
            }
            if self.random.random_range(0..8) == 0 {
                let Self { random, lake, model, readers, with_spark, .. } = &mut *self;
                let done = stranger::intrude(random, lake, &tables, model, readers, *with_spark)?;
                self.tally.intrusions += u64::from(done.is_some());
                self.look().await.with_context(|| format!("after {done:?}"))?;
            }
        }
        // All of it once more changes nothing.
        let again: Vec<Observation> = all.into_iter().filter(|one| self.model.may_deliver(one)).collect();
        let applied = apply(&self.store, &again).await?;
        self.look().await.context("after everything was delivered again")?;
        ensure!(applied.tables.is_empty(), "everything delivered again made commits: {applied:?}");
        self.maintain().await?;
        let tables = self.look().await.context("after the last maintenance")?;
        self.ask_readers(&tables)
    }
}

async fn run(seed: u64, readers: &mut Readers, tally: &mut Tally) -> anyhow::Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut setting = Setting::small();
    setting.partition_by = Setting::LAYOUTS[random.random_range(0..Setting::LAYOUTS.len())];
    setting.retention_hours = random.random_range(0..2);
    setting.redraw(&mut random);
    let lake = EngineLake::new().await?;
    let store = lake.open(&setting)?;
    let with_spark = seed.is_multiple_of(SPARK_SAMPLE);
    let (model, past) = (Model::default(), BTreeMap::new());
    Trial { random, setting, lake, store, model, past, readers, tally, with_spark }.run().await
}

fn seeds() -> Range<u64> {
    let Ok(asked) = std::env::var("LAKE_MODEL_SEEDS") else { return 0..SEEDS };
    match asked.split_once("..") {
        Some((first, end)) => first.parse().unwrap()..end.parse().unwrap(),
        None => 0..asked.parse().unwrap(),
    }
}

/// Runs histories until there are none left; gives those that failed and what the others had in them.
fn work_off(left: &Mutex<Range<u64>>) -> (Vec<u64>, Tally) {
    let mut readers = Readers::of_folders().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut failed = Vec::new();
    let mut tally = Tally::default();
    loop {
        let next = left.lock().unwrap().next();
        let Some(seed) = next else { return (failed, tally) };
        // A panic is a finding as well, and the other histories still count.
        let run = AssertUnwindSafe(|| runtime.block_on(run(seed, &mut readers, &mut tally)));
        let trouble = match std::panic::catch_unwind(run) {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "a panic, shown above".to_owned(),
        };
        println!(
            "history {seed}: {trouble}\n  repeat: LAKE_MODEL_SEEDS={seed}..{} tests/run -p lake-tests --test engine_model",
            seed + 1
        );
        failed.push(seed);
    }
}

#[test]
fn random_histories_end_equal_to_the_source() {
    let seeds = seeds();
    let asked = seeds.end.saturating_sub(seeds.start);
    let left = Mutex::new(seeds);
    let (mut failed, mut total) = (Vec::new(), Tally::default());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(|| work_off(&left))).collect();
        for worker in workers {
            let (theirs, tally) = worker.join().unwrap();
            failed.extend(theirs);
            total.add(&tally);
        }
    });
    println!("{asked} histories: {total:?}");
    assert!(failed.is_empty(), "histories that failed: {failed:?}; what they told is above");
    if asked >= SEEDS {
        let Tally { batches, crashes, intrusions, readings, past_readings, .. } = total;
        assert!(
            [batches, crashes, intrusions, readings, past_readings].iter().all(|&n| n > 0),
            "something never happened"
        );
    }
}

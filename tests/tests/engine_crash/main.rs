//! The process dies at every write, before and after it, and in the middle of a put to the log: what is left is a state between two batches,
//! and when everything is delivered again, the tables equal the source in every reader.
//!
//! The test starts itself again and again as a process that lives through a short history ([`history`]) on an empty folder and aborts at the
//! n-th writing request, for n = 1, 2, 3 … until it gets through. Whoever dies leaves nothing behind but files: no destructor runs,
//! no task ends what it began.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod death;
mod history;
mod life;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, ensure};
use lake_test_kit::log::ensure_log_is_sound;
use lake_test_kit::time::{data_files, pass_time};
use lake_tests::engine::{Expected, Word, space, space_batch};
use lake_tests::readers::{Reader, Readers, Snapshot};
use lake_writer::table_store::TableStore;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use self::death::{Death, When};
use self::history::{Deed, PERSON, TYPES, VISIT, lives};
use self::life::{DEEDS_DONE, folder_of, has_log, in_a_life, index_of, live_through};

/// Tells the process that dies where the lake is, and when to die.
const FOLDER: &str = "LAKE_TEST_CRASH_FOLDER";
const DEATH: &str = "LAKE_TEST_CRASH_AT";
/// Processes that live and die at once.
const WORKERS: usize = 2;
/// Fewer requests than the history has, and more than it can have.
const REQUESTS_MIN: u64 = 25;
const REQUESTS_MAX: u64 = 400;
/// Of so many crashes one is followed by each of these.
const INDEX_LOST: u64 = 3;
const READERS_SAMPLE: u64 = 8;
const CLEAN_UP_SAMPLE: u64 = 4;
/// So many clean-ups leave nothing behind, if more time than any retention passes before each.
const CLEAN_UPS: usize = 5;
const LONG_HOURS: u64 = 1_000;

/// The process that dies; without an order to do so it does nothing.
#[test]
fn a_process_that_dies() -> anyhow::Result<()> {
    let Some(folder) = std::env::var_os(FOLDER) else { return Ok(()) };
    let death: Death = std::env::var(DEATH)?.parse()?;
    live_through(Path::new(&folder), &death.report())
}

/// What happened, so that it shows when something never does.
#[derive(Debug, Default)]
struct Tally {
    /// In the order of [`When::ALL`].
    crashes: [u64; 3],
    /// Crashes in the middle of a batch of which a part was there.
    halfway: u64,
    readings: u64,
    clean_ups: u64,
}

/// Somebody who starts processes, and judges what they leave behind.
struct Judge {
    runtime: Runtime,
    readers: Readers,
    tally: Tally,
}

/// What a source has said up to a deed of the history, that one excluded.
fn heard(deeds: &[Deed]) -> Expected {
    let mut expected = Expected::default();
    words(deeds).for_each(|word| expected.hear(word));
    expected
}

fn words(deeds: &[Deed]) -> impl Iterator<Item = &Word> {
    deeds.iter().flat_map(Deed::words)
}

/// Folders of the tables that are there.
fn folders(folder: &Path) -> Vec<PathBuf> {
    TYPES.into_iter().map(|name| folder_of(folder, name)).filter(|table| has_log(table)).collect()
}

impl Judge {
    fn new() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Self { runtime, readers: Readers::of_folders()?, tally: Tally::default() })
    }

    /// Lets processes die at the next requests, until none is left at which one could.
    fn work_off(&mut self, next: &AtomicU64) -> anyhow::Result<()> {
        let mut left = When::ALL.to_vec();
        while !left.is_empty() {
            let number = next.fetch_add(1, Ordering::Relaxed);
            ensure!(number <= REQUESTS_MAX, "the history does not come to its end");
            let mut still = Vec::new();
            for when in left {
                let death = Death { when, number };
                if self.try_out(death).with_context(|| format!("a crash `{death}`"))? {
                    still.push(when);
                }
            }
            left = still;
        }
        Ok(())
    }

    /// One process, and what becomes of what it leaves behind. Whether it died.
    fn try_out(&mut self, death: Death) -> anyhow::Result<bool> {
        let folder = TempDir::with_prefix("lake-test-crash-")?;
        let folder = folder.path();
        let has_died = death.happens("a_process_that_dies", &[(FOLDER, folder.as_os_str())], DEATH)?;
        let deeds: Vec<Deed> = lives().into_iter().flatten().collect();
        let done = fs::read(folder.join(DEEDS_DONE))?.len();
        ensure!(has_died || done == deeds.len(), "{done} of {} deeds, and no crash", deeds.len());
        self.look_at_ruins(folder, &deeds, done).context("after the crash")?;
        self.tally.crashes[death.when as usize] += u64::from(has_died);
        if !has_died {
            self.ensure_history_has_everything(folder)?;
        }
        if death.number.is_multiple_of(INDEX_LOST) && index_of(folder).exists() {
            fs::remove_dir_all(index_of(folder))?;
        }
        self.recover(folder, &deeds, death.number).context("after everything was delivered again")?;
        if death.number.is_multiple_of(CLEAN_UP_SAMPLE) {
            self.clean_up(folder, &heard(&deeds))?;
        }
        Ok(has_died)
    }

    fn tables(&self, folder: &Path) -> anyhow::Result<BTreeMap<&'static str, Snapshot>> {
        let mut tables = BTreeMap::new();
        for name in TYPES {
            let table = folder_of(folder, name);
            // A half-written first entry does not make a table.
            if has_log(&table)
                && let Some(snapshot) = self.runtime.block_on(Snapshot::read(&table, None))?
            {
                tables.insert(name, snapshot);
            }
        }
        Ok(tables)
    }

    /// What was acknowledged is there; of the deed that was under way a part may be.
    fn look_at_ruins(&mut self, folder: &Path, deeds: &[Deed], done: usize) -> anyhow::Result<()> {
        let tables = self.tables(folder)?;
        let before = heard(&deeds[..done]);
        let after = heard(&deeds[..deeds.len().min(done + 1)]);
        before.ensure_is_on_the_way_to(&after, &tables)?;
        let is_at = |expected: &Expected| expected.ensure_is_in(&tables).is_ok();
        self.tally.halfway += u64::from(!is_at(&before) && !is_at(&after));
        Ok(())
    }

    /// Another process takes over: everything is delivered again, and the lake lives on.
    fn recover(&mut self, folder: &Path, deeds: &[Deed], number: u64) -> anyhow::Result<()> {
        let all: Vec<Word> = words(deeds).cloned().collect();
        // At once, or as it came.
        let mut batches: Vec<Vec<Word>> = vec![all.clone()];
        if number.is_multiple_of(2) {
            batches = deeds.iter().map(|deed| deed.words().to_vec()).filter(|words| !words.is_empty()).collect();
        }
        in_a_life(folder, None, async |store| {
            for batch in &batches {
                store.apply(space_batch(batch)).await?;
            }
            let again = store.apply(space_batch(&all)).await?;
            ensure!(again.tables.is_empty(), "delivered a third time it makes commits: {again:?}");
            store.compact(&space()).await?;
            store.maintain(&space()).await?;
            Ok(())
        })?;
        let tables = self.tables(folder)?;
        heard(deeds).ensure_is_in(&tables)?;
        for (name, table) in &tables {
            let path = folder_of(folder, name);
            ensure_log_is_sound(&path, |_| true)?;
            if number.is_multiple_of(READERS_SAMPLE) {
                for reader in Reader::QUICK {
                    let content = self.readers.read(reader, &path, None)?;
                    content.ensure_is(&table.rows).with_context(|| format!("{reader} reads {name}"))?;
                    self.tally.readings += 1;
                }
            }
        }
        Ok(())
    }

    /// What the dead have written in vain goes, too.
    fn clean_up(&mut self, folder: &Path, expected: &Expected) -> anyhow::Result<()> {
        let mut left = Vec::new();
        for _ in 0..CLEAN_UPS {
            // Nobody is at work now: the last life has ended, with all its tasks.
            for table in folders(folder) {
                pass_time(&table, LONG_HOURS, None)?;
            }
            in_a_life(folder, None, async |store| Ok(store.maintain(&space()).await?))?;
            let tables = self.tables(folder)?;
            expected.ensure_is_in(&tables).context("after a clean-up")?;
            let used: BTreeSet<PathBuf> = tables.into_values().flat_map(|table| table.used).collect();
            let mut files = Vec::new();
            for table in folders(folder) {
                files.extend(data_files(&table)?);
            }
            left = files.into_iter().filter(|file| !used.contains(file)).collect();
            if left.is_empty() {
                break;
            }
        }
        ensure!(left.is_empty(), "files that nobody needs are still there: {left:#?}");
        self.tally.clean_ups += 1;
        Ok(())
    }

    /// The history has what it is meant to have, so that a crash meets it.
    fn ensure_history_has_everything(&self, folder: &Path) -> anyhow::Result<()> {
        let has_vectors = |name| {
            let files = data_files(&folder_of(folder, name))?;
            anyhow::Ok(files.iter().any(|file| file.extension().is_some_and(|end| end == "bin")))
        };
        ensure!(has_vectors(PERSON)?, "the large table has no deletion vectors");
        ensure!(!has_vectors(VISIT)?, "the small table is not rewritten, it has deletion vectors");
        for table in folders(folder) {
            ensure!(table.join("_delta_log/_last_checkpoint").exists(), "{} has no checkpoint", table.display());
        }
        Ok(())
    }
}

#[test]
fn a_crash_at_any_write_loses_and_duplicates_nothing() -> anyhow::Result<()> {
    let (next, started) = (AtomicU64::new(1), Instant::now());
    let judge = || {
        let mut judge = Judge::new()?;
        judge.work_off(&next)?;
        anyhow::Ok(judge.tally)
    };
    let tallies: Vec<anyhow::Result<Tally>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(judge)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let mut total = Tally::default();
    for tally in tallies {
        let tally = tally?;
        total.crashes.iter_mut().zip(tally.crashes).for_each(|(sum, crashes)| *sum += crashes);
        total.halfway += tally.halfway;
        total.readings += tally.readings;
        total.clean_ups += tally.clean_ups;
    }
    println!("{total:?} in {:.1} s", started.elapsed().as_secs_f64());
    let [before, half, after] = total.crashes;
    ensure!(before.min(after) >= REQUESTS_MIN && half > 0, "too few crashes: {total:?}");
    ensure!(total.halfway > 0 && total.readings > 0 && total.clean_ups > 0, "something never happened: {total:?}");
    Ok(())
}

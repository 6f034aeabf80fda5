//! Random histories against a plain map: whatever is repeated, reordered, interrupted or fails, the lake ends up equal to the source, its past
//! within the retention is as it was, and in the end nothing but the files of the last version is left.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::Ordering;

use lake_test_kit::dice::history_seeds;
use lake_test_kit::history::{Observation, State, TYPES, fields, history, rows_and_tombstones, shuffle};
use lake_test_kit::log::LogFigures;
use lake_test_kit::waiting::{self, Interrupted};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use self::past::Past;
use super::lake::{Cell, Lake, batch, read_all, small, space};
use crate::table_store::delta::{DeletionVectors, DeltaOptions, DeltaTableStore};
use crate::table_store::{SpaceBatch, TableStore};

mod past;

/// Seeds whose histories failed once; they run first. Whoever meets a failing one adds it, with what it found. A change of what is drawn at
/// random makes other histories of the same seeds, so the list starts anew then: none has failed with what is drawn now.
const FAILED: &[u64] = &[];

/// Histories when nothing else is asked for.
const HISTORIES: u64 = 20;

/// A run of many histories tells how far it is after so many.
const TOLD_EVERY: u64 = 100;

/// Longer than any retention.
const LONG_HOURS: u64 = 1_000;

/// Both partition columns, where they are not left out, and fields.
fn cells(random: &mut StdRng) -> BTreeMap<String, Cell> {
    let mut cells = BTreeMap::new();
    if random.random_range(0..4) > 0 {
        let supervisor = ["s1", "s-2", "odd / \u{fc} 100%", "", "s.3"][random.random_range(0..5)];
        cells.insert("+supervisor_id".to_owned(), Cell::Text(supervisor.into()));
    }
    if random.random_range(0..4) > 0 {
        let month = ["2024-01-01", "2024-02-01"][random.random_range(0..2)];
        cells.insert("+month".to_owned(), Cell::Text(month.into()));
    }
    cells.extend(fields(random));
    cells
}

fn space_batch(observations: &[Observation]) -> SpaceBatch {
    let (rows, tombstones) = rows_and_tombstones(observations);
    batch(&rows, tombstones)
}

/// The lake must hold exactly the newest observation of each id that was delivered.
async fn compare(lake: &Lake, newest: &HashMap<usize, Observation>, partitioned: bool, seed: u64) {
    let read = read_all(lake, &TYPES).await;
    let mut expected = 0;
    for (id, observation) in newest {
        let found = read.get(&format!("id-{id}"));
        let State::Row { document_type, version_us, cells } = &observation.state else {
            assert!(found.is_none(), "seed {seed}: id {id} is gone, the lake has {found:?}");
            continue;
        };
        expected += 1;
        let (table, row) = found.unwrap_or_else(|| panic!("seed {seed}: id {id} is missing: {observation:?}"));
        assert_eq!(table, TYPES[*document_type], "seed {seed}: id {id}");
        assert_eq!(row["+_lake_version"], version_us.to_string(), "seed {seed}: id {id}");
        // Delta has no empty text as a partition value; a table has the partition columns that its first batch had.
        let is_shown = |source: &str, text: &str| !(partitioned && source == "+supervisor_id" && text.is_empty());
        let overflow: BTreeMap<String, String> =
            row.get("+_lake_overflow").map(|json| serde_json::from_str(json).unwrap()).unwrap_or_default();
        let mut shown: BTreeMap<&str, &str> =
            overflow.iter().map(|(source, text)| (source.as_str(), text.as_str())).collect();
        let own = row.iter().filter(|(source, _)| {
            source.starts_with('/') && *source != "/_id" || ["+month", "+supervisor_id"].contains(&source.as_str())
        });
        shown.extend(own.map(|(source, text)| (source.as_str(), text.as_str())));
        shown.retain(|source, text| is_shown(source, text));
        let wanted: BTreeMap<&str, String> =
            cells.iter().map(|(source, cell)| (source.as_str(), cell.text())).collect();
        let wanted: BTreeMap<&str, String> =
            wanted.into_iter().filter(|(source, text)| is_shown(source, text)).collect();
        let wanted: BTreeMap<&str, &str> = wanted.iter().map(|(source, text)| (*source, text.as_str())).collect();
        assert_eq!(shown, wanted, "seed {seed}: id {id}");
    }
    assert_eq!(read.len(), expected, "seed {seed}: the lake holds ids that nobody delivered");
}

/// Does something while compaction writes the files that it has chosen, or after it if it writes none.
async fn beside_compaction<T>(lake: &Lake, store: &DeltaTableStore, work: impl Future<Output = T>) -> T {
    let space = space();
    // Whether compaction succeeds is not what is tested.
    waiting::beside(&lake.faults.writing, store.compact(&space), work).await
}

/// What stays as it is for a whole history.
#[derive(Clone, Copy)]
struct Setting {
    partitioned: bool,
    retention_hours: u64,
    checkpoint_every_commits: u64,
}

/// The options of one start. Deletion vectors may be switched at any time; partitions are those that a table was made with.
fn options(random: &mut StdRng, setting: Setting) -> DeltaOptions {
    let mut deletion_vectors = [DeletionVectors::Auto, DeletionVectors::On, DeletionVectors::On, DeletionVectors::Off]
        [random.random_range(0..4)];
    let Setting { partitioned, retention_hours, checkpoint_every_commits } = setting;
    let partition_by = if partitioned { vec!["month".to_owned(), "supervisor_id".to_owned()] } else { Vec::new() };
    // Often so few that every upsert folds files.
    let mut small_files_max = [1, 1, 2, 3][random.random_range(0..4)];
    let mut small_file_bytes = small().small_file_bytes;
    let mut tiny_file_bytes = [0, 4_000, 64 << 10][random.random_range(0..3)];
    let copy_on_write_bytes_per_second = [0, 500, 8 << 20][random.random_range(0..3)];
    let mut deleted_share_max = [0.01, 0.15, 0.6, 1.0][random.random_range(0..4)];
    let orphan_hours = random.random_range(1..3);
    // Often compaction finds something to do, and batches mark the files that it is about.
    if random.random_range(0..2) == 0 {
        deletion_vectors = DeletionVectors::On;
        (small_files_max, tiny_file_bytes) = (1, 0);
        small_file_bytes = 64 << 10;
        deleted_share_max = [0.01, 0.15][random.random_range(0..2)];
    }
    DeltaOptions {
        deletion_vectors,
        partition_by,
        small_file_bytes,
        small_files_max,
        tiny_file_bytes,
        copy_on_write_bytes_per_second,
        checkpoint_every_commits,
        retention_hours,
        deleted_share_max,
        orphan_hours,
        ..small()
    }
}

/// One history under way.
struct Run {
    seed: u64,
    random: StdRng,
    setting: Setting,
    /// Whether hours pass between deliveries.
    time_passes: bool,
    lake: Lake,
    past: Past,
    /// `None` only while it is opened again.
    store: Option<DeltaTableStore>,
    /// The newest observation of each id that was delivered.
    newest: HashMap<usize, Observation>,
}

impl Run {
    /// Draws a history: what it is about, and its deliveries in their order.
    async fn begin(seed: u64) -> (Self, Vec<Observation>) {
        let mut random = StdRng::seed_from_u64(seed);
        let partitioned = random.random_range(0..2) == 0;
        let retention_hours = random.random_range(0..5);
        // Time passes by changes of the log's entries, so then there must not be checkpoints, which say the same.
        let time_passes = random.random_range(0..2) == 0;
        let checkpoint_every_commits = if time_passes { 1_000 } else { random.random_range(1..6) };
        let setting = Setting { partitioned, retention_hours, checkpoint_every_commits };
        let lake = Lake::new().await;
        let mut deliveries: Vec<Observation> = (0..25).flat_map(|id| history(&mut random, id, cells)).collect();
        let repeated: Vec<Observation> =
            deliveries.iter().filter(|_| random.random_range(0..4) == 0).cloned().collect();
        deliveries.extend(repeated);
        shuffle(&mut random, &mut deliveries);
        let store = Some(lake.open(options(&mut random, setting)));
        let (past, newest) = (Past::default(), HashMap::new());
        (Self { seed, random, setting, time_passes, lake, past, store, newest }, deliveries)
    }

    /// Whether something happens that happens once in so many times.
    fn once_in(&mut self, times: u32) -> bool {
        self.random.random_range(0..times) == 0
    }

    fn store(&self) -> &DeltaTableStore {
        self.store.as_ref().unwrap()
    }

    fn reopen(&mut self) {
        self.store = None;
        self.store = Some(self.lake.open(options(&mut self.random, self.setting)));
    }

    /// A part of the deliveries, with what may happen around it.
    async fn step(&mut self, now: &[Observation]) {
        let one_in = [0, 0, 4, 8][self.random.random_range(0..4)];
        self.lake.faults.one_in.store(one_in, Ordering::Relaxed);
        if self.once_in(3) {
            self.restart().await;
        }
        if self.once_in(3) {
            self.crash(now).await;
        }
        if self.once_in(6) {
            self.apply_elsewhere(now).await;
        }
        self.deliver(now).await;
        for observation in now {
            let held = self.newest.entry(observation.id).or_insert_with(|| observation.clone());
            if observation.moment > held.moment {
                *held = observation.clone();
            }
        }
        if self.time_passes && self.once_in(4) {
            self.past.pass_time(&self.lake, self.random.random_range(1..4));
        }
        if self.once_in(4) {
            let _ = self.store().maintain(&space()).await;
        }
        self.compare().await;
        self.past.note(&self.lake, self.random.random_range(0..TYPES.len())).await;
    }

    async fn restart(&mut self) {
        if self.once_in(2) {
            self.store().close().await;
        }
        self.store = None;
        if self.once_in(4) {
            self.lake.lose_index().await;
        }
        self.reopen();
    }

    /// A crash: the call is dropped somewhere, perhaps after it has done everything; then the queue delivers again.
    async fn crash(&mut self, now: &[Observation]) {
        let polls_left = self.random.random_range(0..90);
        let beside = self.once_in(3);
        let (space, store) = (space(), self.store());
        let work = async {
            if beside {
                let _ = beside_compaction(&self.lake, store, store.apply(space_batch(now))).await;
            } else {
                let _ = store.apply(space_batch(now)).await;
                let _ = store.compact(&space).await;
            }
        };
        Interrupted { future: Box::pin(work), polls_left }.await;
        self.reopen();
    }

    /// Another program, which knows nothing of our index, applies a part of it.
    async fn apply_elsewhere(&mut self, now: &[Observation]) {
        let other = self.lake.open_elsewhere(options(&mut self.random, self.setting));
        let part = &now[..self.random.random_range(0..=now.len())];
        let _ = other.apply(space_batch(part)).await;
        let _ = other.compact(&space()).await;
        self.reopen();
    }

    /// Applies a batch until that succeeds, sometimes beside compaction.
    async fn deliver(&mut self, now: &[Observation]) {
        let beside = self.random.random_range(0..6);
        let (store, lake, seed) = (self.store(), &self.lake, self.seed);
        let applying = async {
            let mut tries = 0;
            while let Err(error) = store.apply(space_batch(now)).await {
                tries += 1;
                assert!(tries < 300, "seed {seed}: {error:?}");
                // A commit of a dozen files hardly ever gets through where every other write fails.
                if tries % 50 == 0 {
                    lake.faults.one_in.store(2 * lake.faults.one_in.load(Ordering::Relaxed), Ordering::Relaxed);
                }
            }
        };
        match beside {
            0 => {
                let space = space();
                let _ = tokio::join!(applying, store.compact(&space));
            }
            1 | 2 => {
                // The engine has to know the space before it compacts.
                let _ = store.apply(space_batch(&[])).await;
                beside_compaction(lake, store, applying).await;
            }
            _ => applying.await,
        }
    }

    async fn compare(&self) {
        compare(&self.lake, &self.newest, self.setting.partitioned, self.seed).await;
    }

    /// In the end nothing but the files of the last version is left.
    async fn clean_up(&mut self) {
        let seed = self.seed;
        // The first clean-up takes note of superseded vectors only, and each may compact before.
        for _ in 0..4 {
            self.past.pass_time(&self.lake, LONG_HOURS);
            self.store().maintain(&space()).await.unwrap();
        }
        self.compare().await;
        for (number, log) in Past::logs(&self.lake) {
            let active = log.active();
            assert_eq!(log.files("parquet").len(), active.len(), "seed {seed}: data files of table {number}");
            let vectors: BTreeSet<&str> =
                active.values().filter_map(|add| add["deletionVector"]["pathOrInlineDv"].as_str()).collect();
            assert_eq!(log.files("bin").len(), vectors.len(), "seed {seed}: vectors of table {number}");
        }
    }
}

async fn run(seed: u64, tally: &mut LogFigures) {
    let (mut run, deliveries) = Run::begin(seed).await;
    let mut rest = deliveries.as_slice();
    while !rest.is_empty() {
        let (now, later) = rest.split_at(run.random.random_range(1..=rest.len().min(12)));
        rest = later;
        run.step(now).await;
    }
    // All of it once more changes nothing.
    run.lake.faults.one_in.store(0, Ordering::Relaxed);
    assert!(run.store().apply(space_batch(&deliveries)).await.unwrap().tables.is_empty(), "seed {seed}");
    run.past.ensure_is_there(&run.lake, run.setting.retention_hours, seed).await;
    for (_, log) in Past::logs(&run.lake) {
        *tally += LogFigures::of(&log.folder).unwrap();
    }
    if run.time_passes {
        run.clean_up().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_end_equal_to_the_source() {
    let (mut ended, mut tally) = (0, LogFigures::default());
    for seed in history_seeds(FAILED, HISTORIES) {
        run(seed, &mut tally).await;
        ended += 1;
        // Long runs are for people, who may have to end them early.
        if ended % TOLD_EVERY == 0 {
            println!("{ended} histories, the last of seed {seed}: all equal; {tally:?}");
        }
    }
    println!("{ended} histories: {tally:?}");
    let LogFigures { compactions, remapped_files, schemas, type_changes } = tally;
    assert!(ended < 20 || compactions.min(schemas).min(type_changes) > 0, "something never happened: {tally:?}");
    // Few of the batches beside compaction are about rows of just the files that it writes anew.
    assert!(ended < 300 || remapped_files > 0, "something never happened: {tally:?}");
}

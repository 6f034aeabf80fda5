//! Figures of the key index on disk: building, look-ups, updates with the merges that they cause.
//!
//! `cargo bench --bench key_index -- 1000000 100000000` (numbers of keys; 24 bytes of disk for each, and as much again while
//! the index is built; it runs in the target directory).

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lake_writer::key_index::{FileNumber, IdHash, IndexEntry, IndexError, IndexOptions, KeyIndex, Liveness, Position};

const BATCHES: u64 = 500;
const BATCH_KEYS: u64 = 10_000;
/// Of a batch's keys, those that are new: one in five.
const NEW_KEYS: u64 = BATCH_KEYS / 5;
const BATCHES_PER_CHECKPOINT: u64 = 25;
const FILE_ROWS: u64 = 1 << 20;

/// Evenly spread numbers (SplitMix64).
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

fn key(number: u64) -> IdHash {
    u128::from(mix(number)) << 64 | u128::from(mix(number ^ 1 << 63))
}

/// One bit for each row that is dead: files of [`FILE_ROWS`] rows first, then one of each batch.
struct Rows {
    base_files: u64,
    dead: Vec<AtomicU64>,
}

impl Rows {
    fn new(keys: u64) -> Self {
        let base_files = keys.div_ceil(FILE_ROWS);
        let rows = base_files * FILE_ROWS + BATCHES * BATCH_KEYS;
        Self { base_files, dead: (0..rows.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() }
    }

    fn number(&self, position: Position) -> u64 {
        let (file, row) = (u64::from(position.file.get()), u64::from(position.row.get()));
        match file.checked_sub(self.base_files) {
            None => file * FILE_ROWS + row,
            Some(batch) => self.base_files * FILE_ROWS + batch * BATCH_KEYS + row,
        }
    }

    fn kill(&self, position: Position) {
        let number = self.number(position);
        self.dead[(number / 64) as usize].fetch_or(1 << (number % 64), Ordering::Relaxed);
    }
}

impl Liveness for Rows {
    fn is_live(&self, position: Position) -> bool {
        let number = self.number(position);
        self.dead[(number / 64) as usize].load(Ordering::Relaxed) >> (number % 64) & 1 == 0
    }

    fn file_is_live(&self, _file: FileNumber) -> bool {
        true
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut sizes: Vec<u64> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    if sizes.is_empty() {
        sizes = vec![1_000_000, 10_000_000];
    }
    for keys in sizes {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("key-index-{}", std::process::id()));
        let outcome = measure(keys, &folder);
        std::fs::remove_dir_all(&folder)?;
        outcome?;
    }
    Ok(())
}

fn measure(keys: u64, folder: &Path) -> Result<(), IndexError> {
    println!("\n{keys} keys");
    let rows = Rows::new(keys);
    let options = IndexOptions::default();
    build(keys, folder, options)?;
    let started = Instant::now();
    let Some((index, _)) = KeyIndex::open(folder, options)? else {
        println!("  the index was not found again");
        return Ok(());
    };
    figure("open", format!("{:.1} ms", ms(started.elapsed())));
    figure("bytes a key on disk", format!("{:.2}", index.bytes() as f64 / keys as f64));
    figure("memory of the opened index", format!("{:.2} MB", index.memory_bytes() as f64 / 1e6));
    if forget_pages(folder) {
        look_up(&index, &rows, keys, "not in the page cache: 10000 present", 10_000, 1, 0)?;
    }
    read_all(folder);
    look_up_all(&index, &rows, keys, "")?;
    update(&index, &rows, keys)?;
    look_up_all(&index, &rows, keys, "after that: ")?;
    figure("peak memory (VmHWM)", peak_memory());
    drop(index);
    merge_all(&rows, folder)
}

/// The greatest merge that there is; it is due once in as many updates as half the keys.
fn merge_all(rows: &Rows, folder: &Path) -> Result<(), IndexError> {
    reset_peak_memory();
    let options = IndexOptions { run_size_ratio: u64::MAX, ..IndexOptions::default() };
    if let Some((index, _)) = KeyIndex::open(folder, options)?
        && let Some(job) = index.merge_due()
    {
        let (entries, started) = (job.entries(), Instant::now());
        assert!(index.install(job.run(rows)?));
        let took = started.elapsed().as_secs_f64();
        figure("merge of all runs", format!("{took:.2} s, {:.1} M entries/s", entries as f64 / 1e6 / took));
        figure("its peak memory (VmHWM)", peak_memory());
    }
    Ok(())
}

fn build(keys: u64, folder: &Path, options: IndexOptions) -> Result<(), IndexError> {
    reset_peak_memory();
    let index = KeyIndex::create(folder, options)?;
    let mut builder = index.run_builder()?;
    let started = Instant::now();
    for number in 0..keys {
        let position = Position::new((number / FILE_ROWS) as u32, (number % FILE_ROWS) as u32);
        builder.push(IndexEntry { id: key(number), position, observed_us: number as i64 })?;
    }
    let pushed = started.elapsed();
    let run = builder.finish(&mut |_, _| {})?;
    let built = started.elapsed();
    index.attach(run);
    index.checkpoint(b"built")?;
    let rate = keys as f64 / built.as_secs_f64() / 1e6;
    let text =
        format!("{:.2} s ({:.2} s of it pushing), {rate:.1} M keys/s", built.as_secs_f64(), pushed.as_secs_f64());
    figure("build", text);
    figure("build's peak memory (VmHWM)", peak_memory());
    figure("build's checkpoint (fsync)", format!("{:.2} s", (started.elapsed() - built).as_secs_f64()));
    Ok(())
}

fn look_up_all(index: &KeyIndex, rows: &Rows, keys: u64, when: &str) -> Result<(), IndexError> {
    look_up(index, rows, keys, &format!("{when}10000 present"), 10_000, 30, 0)?;
    look_up(index, rows, keys, &format!("{when}10000 absent"), 10_000, 30, 1 << 40)?;
    look_up(index, rows, keys, &format!("{when}100 present"), 100, 300, 0)?;
    look_up(index, rows, keys, &format!("{when}100000 present"), 100_000, 5, 0)
}

/// Looks up `count` random keys, `times` over. Numbers from `offset` on: 0 are present, others are not.
fn look_up(
    index: &KeyIndex,
    rows: &Rows,
    keys: u64,
    what: &str,
    count: u64,
    times: u64,
    offset: u64,
) -> Result<(), IndexError> {
    let mut took = Vec::new();
    for time in 0..times {
        let ids: Vec<IdHash> = (0..count).map(|n| key(offset + mix(time << 32 ^ n ^ count << 50) % keys)).collect();
        let started = Instant::now();
        let found = index.lookup(&ids, rows)?.iter().flatten().count() as u64;
        took.push(started.elapsed());
        assert_eq!(found, if offset == 0 { count } else { 0 });
    }
    took.sort_unstable();
    let text = format!("median {:.2} ms, worst {:.2} ms", ms(took[took.len() / 2]), ms(took[took.len() - 1]));
    figure(&format!("look-up, {what}"), text);
    Ok(())
}

fn update(index: &KeyIndex, rows: &Rows, keys: u64) -> Result<(), IndexError> {
    reset_peak_memory();
    let (mut looking, mut putting, mut merging, mut storing) =
        (Laps::default(), Laps::default(), Laps::default(), Laps::default());
    let (mut merged, mut most_runs) = (0, 0);
    for batch in 0..BATCHES {
        let known = |n: u64| mix(batch << 32 ^ n ^ 1 << 60) % keys;
        let number = |n: u64| if n < NEW_KEYS { keys + batch * NEW_KEYS + n } else { known(n) };
        let mut ids: Vec<IdHash> = (0..BATCH_KEYS).map(|n| key(number(n))).collect();
        ids.sort_unstable();
        ids.dedup();
        let located = looking.time(|| index.lookup(&ids, rows))?;
        assert!(located.iter().flatten().count() as u64 + NEW_KEYS >= ids.len() as u64);
        located.iter().flatten().for_each(|old| rows.kill(old.position));
        let file = (rows.base_files + batch) as u32;
        let position = |row: usize| Position::new(file, row as u32);
        let observed_us = (keys + batch) as i64;
        let entries =
            ids.iter().enumerate().map(|(row, id)| IndexEntry { id: *id, position: position(row), observed_us });
        putting.time(|| index.put(entries));
        while let Some(job) = index.merge_due() {
            merged += job.entries();
            let output = merging.time(|| job.run(rows))?;
            assert!(index.install(output));
        }
        most_runs = most_runs.max(index.runs());
        if batch % BATCHES_PER_CHECKPOINT == BATCHES_PER_CHECKPOINT - 1 {
            storing.time(|| index.checkpoint(&batch.to_le_bytes()))?;
        }
    }
    let laps = format!("{BATCHES} batches of {BATCH_KEYS}");
    figure(&format!("{laps}: look-up"), looking.figures());
    figure(&format!("{laps}: put with flush"), putting.figures());
    figure(
        &format!("{laps}: merges"),
        format!("{} ({:.1} M entries/s)", merging.figures(), merged as f64 / 1e6 / merging.total.as_secs_f64()),
    );
    figure(&format!("{laps}: checkpoints"), storing.figures());
    let total = looking.total + putting.total + merging.total + storing.total;
    figure("all of it for each batch", format!("{:.2} ms", ms(total) / BATCHES as f64));
    figure("entries copied by merges for each put", format!("{:.1}", merged as f64 / (BATCHES * BATCH_KEYS) as f64));
    figure("runs", format!("at most {most_runs}, now {}", index.runs()));
    figure("memory of the index", format!("{:.2} MB", index.memory_bytes() as f64 / 1e6));
    Ok(())
}

#[derive(Default)]
struct Laps {
    count: u32,
    total: Duration,
    worst: Duration,
}

impl Laps {
    fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let done = work();
        let took = started.elapsed();
        self.count += 1;
        self.total += took;
        self.worst = self.worst.max(took);
        done
    }

    fn figures(&self) -> String {
        let each = ms(self.total) / f64::from(self.count.max(1));
        format!(
            "{} times {each:.2} ms, worst {:.1} ms, {:.2} s in all",
            self.count,
            ms(self.worst),
            self.total.as_secs_f64()
        )
    }
}

fn figure(what: &str, value: String) {
    println!("  {what:<48} {value}");
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn reset_peak_memory() {
    // Refused on some systems: the peak is then that of the whole process.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.map_or_else(|| "unknown".to_owned(), |value| value.trim().to_owned())
}

/// Brings the folder's files into the page cache.
fn read_all(folder: &Path) {
    for file in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if let Ok(mut file) = std::fs::File::open(file.path()) {
            let _ = std::io::copy(&mut file, &mut std::io::sink());
        }
    }
}

/// Drops the folder's files from the page cache, where there is GNU dd.
fn forget_pages(folder: &Path) -> bool {
    std::fs::read_dir(folder).into_iter().flatten().flatten().all(|file| {
        let input = format!("if={}", file.path().display());
        Command::new("dd").args([&input, "iflag=nocache", "count=0", "status=none"]).status().is_ok_and(|s| s.success())
    })
}

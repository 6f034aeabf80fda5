//! Random histories of a small engine against a plain map of its rows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

use super::*;

const IDS: u32 = 80;

/// The tables of a space, as far as an index has to do with them.
#[derive(Clone, Debug, Default)]
struct Tables {
    /// The row of each id.
    rows: BTreeMap<u32, IndexEntry>,
    live: BTreeSet<Position>,
    files: u32,
    observations: i64,
}

impl Liveness for Tables {
    fn is_live(&self, position: Position) -> bool {
        self.live.contains(&position)
    }
    fn file_is_live(&self, file: FileNumber) -> bool {
        let row = |row| Position { file, row: RowNumber::new(row) };
        self.live.range(row(0)..=row(u32::MAX)).next().is_some()
    }
}

impl Tables {
    fn new_file(&mut self) -> u32 {
        self.files += 1;
        self.files
    }

    fn set(&mut self, number: u32, position: Position, observed_us: i64) -> IndexEntry {
        self.delete(number);
        let entry = IndexEntry { id: model_id(number), position, observed_us };
        self.live.insert(position);
        self.rows.insert(number, entry);
        entry
    }

    fn delete(&mut self, number: u32) {
        if let Some(before) = self.rows.remove(&number) {
            self.live.remove(&before.position);
        }
    }
}

/// Some share their beginnings.
fn model_id(number: u32) -> IdHash {
    match number % 4 {
        0 => 0xabcd_u128 << 64 | u128::from(number) << 48,
        1 => 0x1234_5678_u128 << 96 | u128::from(number) << 70,
        _ => number_id(number),
    }
}

/// A row that is moved: its id, the row as it was copied, where to.
type Moved = (u32, IndexEntry, Position);

struct History {
    random: StdRng,
    folder: TempDir,
    options: IndexOptions,
    index: Option<KeyIndex>,
    tables: Tables,
    /// The rows at the last checkpoint, and its stamp.
    stored: Option<(Tables, Vec<u8>)>,
    /// A merge that was begun.
    job: Option<MergeJob>,
    merged: Option<MergedRuns>,
    /// Compactions that are under way: a run and the rows that it is to move.
    moves: Vec<(FinishedRun, Vec<Moved>)>,
}

impl History {
    fn begin(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let folder = tempfile::tempdir().unwrap();
        let options = IndexOptions {
            entries_in_memory_max: random.random_range(1..60),
            builder_memory_bytes: random.random_range(0..3_000),
            run_size_ratio: random.random_range(1..4),
            lookup_threads: random.random_range(0..3),
        };
        let index = Some(KeyIndex::create(folder.path(), options).unwrap());
        let tables = Tables::default();
        Self { random, folder, options, index, tables, stored: None, job: None, merged: None, moves: Vec::new() }
    }

    fn index(&self) -> &KeyIndex {
        self.index.as_ref().unwrap()
    }

    fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..35 => self.upsert(),
            35..42 => self.delete(),
            42..52 => self.begin_move(),
            52..62 => self.end_move(),
            62..82 => self.merge(),
            82..92 => self.checkpoint(),
            92..97 => self.crash(),
            _ => self.crash_in_checkpoint(),
        }
        self.check(|tables, number| tables.rows.get(&number).copied());
    }

    fn some_ids(&mut self) -> Vec<u32> {
        let count = self.random.random_range(1..25);
        let mut ids: Vec<u32> = (0..count).map(|_| self.random.random_range(0..IDS)).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.shuffle(&mut self.random);
        ids
    }

    fn upsert(&mut self) {
        let ids = self.some_ids();
        let file = self.tables.new_file();
        self.tables.observations += 1;
        let observed_us = self.tables.observations;
        let rows = ids.iter().zip(0..);
        let entries: Vec<IndexEntry> =
            rows.map(|(id, row)| self.tables.set(*id, Position::new(file, row), observed_us)).collect();
        self.index().put(entries);
    }

    fn delete(&mut self) {
        for id in self.some_ids() {
            self.tables.delete(id);
        }
    }

    /// Copies some rows into a new file that is not part of the table yet.
    fn begin_move(&mut self) {
        let file = self.tables.new_file();
        let mut builder = self.index().run_builder().unwrap();
        let mut rows = Vec::new();
        for (number, row) in self.some_ids().into_iter().zip(0..) {
            if let Some(entry) = self.tables.rows.get(&number) {
                let position = Position::new(file, row);
                builder.push(IndexEntry { position, ..*entry }).unwrap();
                rows.push((number, *entry, position));
            }
        }
        let run = builder.finish(&mut |kept, other| panic!("{kept:?} and {other:?}")).unwrap();
        self.moves.push((run, rows));
    }

    /// The new file becomes part of the table, without the rows that were changed meanwhile.
    fn end_move(&mut self) {
        if self.moves.is_empty() {
            return;
        }
        let (run, rows) = self.moves.remove(0);
        if self.random.random_bool(0.2) {
            return;
        }
        for (number, copied, position) in rows {
            if self.tables.rows.get(&number) == Some(&copied) {
                self.tables.set(number, position, copied.observed_us);
            }
        }
        self.index().attach(run);
    }

    /// The next part of a merge.
    fn merge(&mut self) {
        if let Some(merged) = self.merged.take() {
            if self.random.random_bool(0.9) {
                assert!(self.index().install(merged));
            }
        } else if let Some(job) = self.job.take() {
            self.merged = Some(job.run(&self.tables).unwrap());
        } else {
            self.job = self.index().merge_due();
        }
    }

    fn checkpoint(&mut self) {
        let stamp: Vec<u8> = (0..self.random.random_range(0..40)).map(|_| self.random.random()).collect();
        self.index().checkpoint(&stamp).unwrap();
        self.stored = Some((self.tables.clone(), stamp));
        let unattached = self.moves.iter().filter(|(run, _)| run.entries() > 0).count();
        let merged = self.merged.iter().filter(|merged| merged.entries() > 0).count();
        assert_eq!(files(self.folder.path()).len(), 2 + self.index().runs() + unattached + merged);
    }

    fn crash(&mut self) {
        // The files as they are: what is dropped deletes its files, a crash does not.
        let folder = tempfile::tempdir().unwrap();
        copy_files(self.folder.path(), folder.path());
        self.restart(folder);
    }

    /// The runs of a checkpoint were written, its manifest in part, and nothing was deleted.
    fn crash_in_checkpoint(&mut self) {
        let folder = tempfile::tempdir().unwrap();
        copy_files(self.folder.path(), folder.path());
        self.index().checkpoint(b"never seen").unwrap();
        let manifest = fs::read(self.folder.path().join("manifest")).unwrap();
        let written = self.random.random_range(0..=manifest.len());
        copy_files(self.folder.path(), folder.path());
        fs::write(folder.path().join("manifest.next"), &manifest[..written]).unwrap();
        self.restart(folder);
    }

    fn restart(&mut self, folder: TempDir) {
        (self.job, self.merged, self.index) = (None, None, None);
        self.moves.clear();
        self.folder = folder;
        let opened = KeyIndex::open(self.folder.path(), self.options).unwrap();
        let Some((before, stamp)) = self.stored.clone() else {
            assert!(opened.is_none());
            return self.rebuild();
        };
        let (index, found_stamp) = opened.unwrap();
        assert_eq!(found_stamp, stamp);
        self.index = Some(index);
        // Exactly what was there at the checkpoint and is still live.
        let known = |entry: &IndexEntry, number| before.rows.get(&number) == Some(entry);
        self.check(|tables, number| tables.rows.get(&number).copied().filter(|entry| known(entry, number)));
        let rows = self.tables.rows.iter();
        let mut missing: Vec<IndexEntry> =
            rows.filter(|(number, entry)| !known(entry, **number)).map(|(_, entry)| *entry).collect();
        missing.shuffle(&mut self.random);
        self.index().put(missing);
    }

    fn rebuild(&mut self) {
        let index = KeyIndex::create(self.folder.path(), self.options).unwrap();
        index.attach(run_of(&index, self.tables.rows.values().copied()));
        self.index = Some(index);
    }

    fn check(&mut self, expected: impl Fn(&Tables, u32) -> Option<IndexEntry>) {
        let mut numbers: Vec<u32> = (0..IDS + 5).collect();
        numbers.extend((0..10).filter_map(|_| numbers.choose(&mut self.random)).copied().collect::<Vec<_>>());
        numbers.shuffle(&mut self.random);
        let ids: Vec<IdHash> = numbers.iter().copied().map(model_id).collect();
        let found = self.index().lookup(&ids, &self.tables).unwrap();
        let expected = numbers.iter().map(|number| expected(&self.tables, *number).map(located));
        assert_eq!(found, expected.collect::<Vec<_>>());
    }
}

/// Adds the files that are not there yet. The manifest is there, or was not yet made.
fn copy_files(from: &Path, to: &Path) {
    let first = files(to).is_empty();
    for name in files(from) {
        if !to.join(&name).exists() && (first || name != "manifest") {
            fs::copy(from.join(&name), to.join(&name)).unwrap();
        }
    }
}

fn histories(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        println!("seed {seed}");
        let mut history = History::begin(seed);
        for _ in 0..60 {
            history.step();
        }
    }
}

#[test]
fn histories_0_to_150() {
    histories(0..150);
}

#[test]
fn histories_150_to_300() {
    histories(150..300);
}

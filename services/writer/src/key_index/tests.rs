//! Tests of the whole index.
#![allow(clippy::unwrap_used)]

mod damage;
mod life;
mod model;

use std::collections::HashSet;
use std::path::Path;

use super::*;

fn entry(id: IdHash, file: u32, row: u32, observed_us: i64) -> IndexEntry {
    IndexEntry { id, position: Position::new(file, row), observed_us }
}

const fn located(entry: IndexEntry) -> Located {
    Located { position: entry.position, observed_us: entry.observed_us }
}

fn number_id(number: u32) -> IdHash {
    id_hash(&format!("id {number}"))
}

/// Small enough for everything to happen: flushes, merges, chunks.
const SMALL: IndexOptions =
    IndexOptions { entries_in_memory_max: 50, builder_memory_bytes: 1_000, run_size_ratio: 2, lookup_threads: 2 };

/// All positions are live but these.
#[derive(Debug, Default)]
struct Dead(HashSet<Position>);

impl Liveness for Dead {
    fn is_live(&self, position: Position) -> bool {
        !self.0.contains(&position)
    }
    fn file_is_live(&self, _file: FileNumber) -> bool {
        true
    }
}

/// Names of the files in a folder, in order.
fn files(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

fn run_of(index: &KeyIndex, entries: impl IntoIterator<Item = IndexEntry>) -> FinishedRun {
    let mut builder = index.run_builder().unwrap();
    entries.into_iter().for_each(|entry| builder.push(entry).unwrap());
    builder.finish(&mut |kept, other| panic!("{kept:?} and {other:?}")).unwrap()
}

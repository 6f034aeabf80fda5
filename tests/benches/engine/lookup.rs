//! Look-ups in the key index itself, as the engine left it in its folder: no batch, no commit, nothing but the index. Measured as it was
//! made, and after upserts, when an id has entries of rows that are no more.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context;
use lake_shared::escaped_names;
use lake_writer::key_index::{FileNumber, IdHash, IndexError, IndexOptions, KeyIndex, Liveness, Position, id_hash};
use serde::{Deserialize, Serialize};

use super::aims::{self, Figure, Findings};
use super::arguments::Arguments;
use super::home::{self, Home};
use super::made::MadeTables;
use super::measure::Spread;
use super::phase::Phase;
use super::upsert::{Upserted, Upserts, keys_within, milliseconds};
use super::{rows, table};

/// Look-ups of random keys, each of other ones; the first is the warm-up.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct LookUps {
    /// Rows that the table was made with.
    pub rows: u64,
    /// Keys of one look-up.
    pub keys: u64,
    /// Measured look-ups.
    pub repeats: u64,
}

/// What came of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LookedUp {
    /// Opening the index, milliseconds.
    pub open_ms: f64,
    /// The look-ups.
    pub times_ms: Vec<f64>,
    /// Bytes of the index on disk.
    pub bytes: u64,
    /// Entries in it, dead ones included.
    pub entries: u64,
    /// Files in which they are.
    pub runs: usize,
    /// Bytes that the opened index holds in memory.
    pub memory_bytes: usize,
}

const REPEATS: u64 = 30;
/// Upserts between the two measurements.
const UPSERTS: u64 = 20;

/// Notes what an index holds of an id: every entry is called dead, so that it goes on to ask for the next.
#[derive(Default)]
struct Asked(Mutex<Vec<Position>>);

impl Asked {
    fn take(&self) -> Vec<Position> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Liveness for Asked {
    fn is_live(&self, position: Position) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(position);
        false
    }

    fn file_is_live(&self, _file: FileNumber) -> bool {
        true
    }
}

/// Positions of rows that were replaced; all others are live.
struct Replaced(HashSet<Position>);

impl Replaced {
    /// Of the entries of an id, the one in the newest file counts. Asking for each id brings its pages into memory, too.
    fn among(index: &KeyIndex, ids: &[Vec<IdHash>]) -> Result<Self, IndexError> {
        let (asked, mut replaced) = (Asked::default(), HashSet::new());
        for id in ids.iter().flatten() {
            index.lookup(&[*id], &asked)?;
            let positions = asked.take();
            let newest = positions.iter().map(|position| position.file).max();
            replaced.extend(positions.into_iter().filter(|position| Some(position.file) != newest));
        }
        Ok(Self(replaced))
    }
}

impl Liveness for Replaced {
    fn is_live(&self, position: Position) -> bool {
        !self.0.contains(&position)
    }

    fn file_is_live(&self, _file: FileNumber) -> bool {
        true
    }
}

impl LookUps {
    /// Opens the index of a home that no engine uses, and looks up.
    pub fn run(self, home: &Home) -> anyhow::Result<LookedUp> {
        let folder = home.index_folder().join(escaped_names::space_path(&home::space()));
        let began = Instant::now();
        let opened = KeyIndex::open(&folder, IndexOptions::default())?;
        let (index, _) = opened.with_context(|| format!("there is no key index in {}", folder.display()))?;
        let open_ms = milliseconds(began);
        let drawn: Vec<Vec<IdHash>> = (0..=self.repeats).map(|number| self.ids(number)).collect();
        let replaced = Replaced::among(&index, &drawn)?;
        let mut times_ms = Vec::new();
        for ids in &drawn {
            let began = Instant::now();
            let located = index.lookup(ids, &replaced)?;
            times_ms.push(milliseconds(began));
            let found = located.iter().flatten().count();
            anyhow::ensure!(found == ids.len(), "only {found} of {} keys were found", ids.len());
        }
        times_ms.remove(0);
        Ok(LookedUp {
            open_ms,
            times_ms,
            bytes: index.bytes(),
            entries: index.entries(),
            runs: index.runs(),
            memory_bytes: index.memory_bytes(),
        })
    }

    fn ids(&self, number: u64) -> Vec<IdHash> {
        rows::drawn(!number, self.keys, self.rows).into_iter().map(|row| id_hash(&rows::id_of(row))).collect()
    }
}

/// Measures indexes of all sizes, and prints a line for each.
pub fn report(arguments: &Arguments, made: &MadeTables, findings: &mut Findings) -> anyhow::Result<()> {
    table::begin(
        "Key index itself: look-up of random keys that are there, warm",
        &[
            "rows",
            "index",
            "keys",
            "n",
            "median",
            "p95",
            "max",
            "open",
            "bytes a key",
            "entries",
            "runs",
            "MiB in memory",
        ],
    );
    for rows in &arguments.rows {
        let home = made.fresh(*rows)?;
        let keys = keys_within(aims::KEYS, *rows);
        let look_ups = LookUps { rows: *rows, keys, repeats: REPEATS };
        let as_made: LookedUp = Phase::LookUp(look_ups).run_on(&home)?;
        print(look_ups, "as it was made", &as_made);
        note(look_ups, &as_made, Figure::BytesAKey, findings);
        let upserts = Upserts { rows: *rows, keys, new_percent: 0, repeats: UPSERTS - 1, first_round: 1 };
        let _: Upserted = Phase::Upsert(upserts).run_on(&home)?;
        let updated: LookedUp = Phase::LookUp(look_ups).run_on(&home)?;
        print(look_ups, &format!("after {UPSERTS} upserts of as many keys"), &updated);
        note(look_ups, &updated, Figure::BytesAKeyUpdated, findings);
        home.remove()?;
    }
    Ok(())
}

fn note(look_ups: LookUps, looked_up: &LookedUp, bytes_a_key: Figure, findings: &mut Findings) {
    findings.note(bytes_a_key, look_ups.rows, looked_up.bytes as f64 / look_ups.rows.max(1) as f64);
    if look_ups.keys == aims::KEYS {
        findings.note(Figure::LookUp, look_ups.rows, Spread::of(&looked_up.times_ms).median);
    }
}

fn print(look_ups: LookUps, what: &str, looked_up: &LookedUp) {
    let spread = Spread::of(&looked_up.times_ms);
    table::line(&[
        table::number(look_ups.rows),
        what.to_owned(),
        table::number(look_ups.keys),
        spread.count.to_string(),
        table::figure(spread.median),
        table::figure(spread.p95),
        table::figure(spread.max),
        table::figure(looked_up.open_ms),
        table::figure(looked_up.bytes as f64 / look_ups.rows.max(1) as f64),
        table::number(looked_up.entries),
        looked_up.runs.to_string(),
        table::mebibytes(looked_up.memory_bytes as f64),
    ]);
}

//! What a source says about ids, and what a lake must hold then: a plain map.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};
use lake_test_kit::rows::{Cell, NewRow, tombstone};
use lake_writer::table_store::SpaceBatch;

use super::batch;
use crate::readers::{Row, Snapshot};

/// What a source says about an id.
#[derive(Clone, Debug)]
pub enum State {
    /// It has a row.
    Row {
        /// The type of the record, and so its table.
        document_type: &'static str,
        /// Source path to value.
        cells: BTreeMap<String, Cell>,
    },
    /// It has left.
    Gone,
}

/// What a source says about an id at one moment.
#[derive(Clone, Debug)]
pub struct Word {
    /// Id of the record.
    pub id: String,
    /// Of the words about an id the one with the latest moment counts.
    pub moment: i64,
    /// What the source says.
    pub state: State,
}

impl Word {
    /// Each word has its own. It goes back from one word to the next, as HQ's may.
    fn version_us(&self) -> i64 {
        1_000_000 - self.moment
    }

    fn is_row(&self) -> bool {
        matches!(self.state, State::Row { .. })
    }

    /// Whether a row of a table is this one, as far as its version tells.
    fn is_at(&self, document_type: &str, row: &Row) -> bool {
        let is_here = matches!(&self.state, State::Row { document_type: named, .. } if *named == document_type);
        is_here && row.get("_lake_version") == Some(&self.version_us().to_string())
    }
}

/// Words as a batch.
pub fn space_batch(words: &[Word]) -> SpaceBatch {
    let mut rows: BTreeMap<&str, Vec<NewRow>> = BTreeMap::new();
    let mut tombstones = Vec::new();
    for word in words {
        let Word { id, moment, state } = word;
        let (version_us, observed_us) = (word.version_us(), 1_000_000 + moment);
        match state {
            State::Gone => tombstones.push(tombstone(id, Some(version_us), observed_us)),
            State::Row { document_type, cells } => {
                let row = NewRow { id: id.clone(), version_us, observed_us, cells: cells.clone() };
                rows.entry(*document_type).or_default().push(row);
            }
        }
    }
    let rows: Vec<(&str, Vec<NewRow>)> = rows.into_iter().collect();
    batch(&rows, tombstones)
}

/// What a lake must hold: of each id the newest word.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    newest: BTreeMap<String, Word>,
}

/// A row, in its table.
type Found<'tables> = (&'tables str, &'tables Snapshot, &'tables Row);

impl Expected {
    /// Takes a word in.
    pub fn hear(&mut self, word: &Word) {
        let held = self.newest.entry(word.id.clone()).or_insert_with(|| word.clone());
        if word.moment > held.moment {
            *held = word.clone();
        }
    }

    /// Compares with all tables of a lake, by their types.
    ///
    /// # Errors
    /// At the first difference.
    pub fn ensure_is_in(&self, tables: &BTreeMap<&str, Snapshot>) -> anyhow::Result<()> {
        let found = rows_by_id(tables)?;
        for (id, word) in &self.newest {
            let rows = found.get(id.as_str()).map(Vec::as_slice).unwrap_or_default();
            let State::Row { cells, .. } = &word.state else {
                ensure!(rows.is_empty(), "id {id} is gone, the lake has {:?}", summary(rows));
                continue;
            };
            let [(name, table, row)] = rows else {
                anyhow::bail!("id {id} has {} rows: {:?}", rows.len(), summary(rows));
            };
            ensure!(word.is_at(name, row), "id {id} is in table {name} as {row:?} instead of {word:?}");
            let wanted: BTreeMap<&str, String> =
                cells.iter().map(|(source, cell)| (source.as_str(), cell.text())).collect();
            let shown = table.fields_of(row)?;
            let is_same = shown.iter().map(|(source, text)| (source.as_str(), text.as_str()));
            let is_same = is_same.eq(wanted.iter().map(|(source, text)| (*source, text.as_str())));
            ensure!(is_same, "id {id} is {shown:?} instead of {wanted:?}");
        }
        let expected = self.newest.values().filter(|word| word.is_row()).count();
        ensure!(
            found.len() == expected,
            "{} ids instead of {expected}: the source has never named some of them",
            found.len()
        );
        Ok(())
    }

    /// Compares with tables in the middle of a batch: every id is as before it, or already as `after` it. While a row moves its id may
    /// be in two tables, never in none.
    ///
    /// # Errors
    /// At the first id of which that does not hold.
    pub fn ensure_is_on_the_way_to(&self, after: &Self, tables: &BTreeMap<&str, Snapshot>) -> anyhow::Result<()> {
        let found = rows_by_id(tables)?;
        let known = self.newest.keys().chain(after.newest.keys()).map(String::as_str);
        let ids: BTreeSet<&str> = known.chain(found.keys().copied()).collect();
        for id in ids {
            let words = [self.newest.get(id), after.newest.get(id)];
            let rows = found.get(id).map(Vec::as_slice).unwrap_or_default();
            let may_be_absent = words.iter().any(|word| !word.is_some_and(Word::is_row));
            ensure!(!rows.is_empty() || may_be_absent, "id {id} is missing: {words:?}");
            let homes: BTreeSet<&str> = rows.iter().map(|(name, _, _)| *name).collect();
            ensure!(homes.len() == rows.len(), "id {id} is twice in a table: {:?}", summary(rows));
            for (name, _, row) in rows {
                let is_said = words.iter().flatten().any(|word| word.is_at(name, row));
                ensure!(is_said, "id {id} is in table {name} as {row:?}, the words are {words:?}");
            }
        }
        Ok(())
    }
}

fn rows_by_id<'tables>(
    tables: &'tables BTreeMap<&str, Snapshot>,
) -> anyhow::Result<BTreeMap<&'tables str, Vec<Found<'tables>>>> {
    let mut found: BTreeMap<&str, Vec<Found<'tables>>> = BTreeMap::new();
    for (name, table) in tables {
        for row in &table.rows {
            let id = row.get("_id").context("a row without id")?;
            found.entry(id).or_default().push((*name, table, row));
        }
    }
    Ok(found)
}

/// Where rows are and which they are, for errors.
fn summary<'tables>(rows: &[Found<'tables>]) -> Vec<(&'tables str, Option<&'tables String>)> {
    rows.iter().map(|(name, _, row)| (*name, row.get("_lake_version"))).collect()
}

//! What a source says over time, drawn at random, and what of it a lake must hold: a plain map.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, ensure};
use chrono::NaiveDate;
use lake_test_kit::history::{Observation, State, fields, id_text, rows_and_tombstones};
use lake_tests::engine::{Cell, NewRow, batch};
use lake_tests::readers::{Row, Snapshot};
use lake_writer::table_store::SpaceBatch;
use rand::RngExt;
use rand::rngs::StdRng;

/// Values of the column by which tables may be partitioned. Those of the second list must be escaped in paths. Left out is what Polars
/// mistakes whoever writes it: values too long for a folder's name, and `__HIVE_DEFAULT_PARTITION__` (see `delta_layouts.rs`).
const SUPERVISORS: [&str; 5] = ["anna", "Anna", "B-0_1.x", "0", "4f1c9e0d5a"];
const ODD_SUPERVISORS: [&str; 8] = ["a b", "c/d=e", "100%25", "अनीता", "a\\b", "it's \"?\"", "x?y#z", "~ü+&"];

/// Moments that are not whole milliseconds, as statistics may be cut to those.
const MOMENTS: [i64; 6] = [0, 1, -1, 1_706_745_600_123_456, 1_706_745_600_123_999, -1_000_000_000_000_007];

pub fn cells(random: &mut StdRng, odd: bool) -> BTreeMap<String, Cell> {
    let mut cells = fields(random);
    if random.random_range(0..4) > 0 {
        let month = NaiveDate::from_ymd_opt(2024, random.random_range(1..4), 1).expect("a day");
        cells.insert("+month".to_owned(), Cell::Date(month));
    }
    if random.random_range(0..4) > 0 {
        cells.insert("+supervisor_id".to_owned(), Cell::Text(supervisor(random, odd).to_owned()));
    }
    if random.random_range(0..3) > 0 {
        let moment = MOMENTS[random.random_range(0..MOMENTS.len())] + random.random_range(0..2_000);
        cells.insert("/server_modified_on".to_owned(), Cell::Moment(moment));
    }
    cells
}

pub fn supervisor(random: &mut StdRng, odd: bool) -> &'static str {
    let names = if odd && random.random_range(0..3) == 0 { ODD_SUPERVISORS.as_slice() } else { &SUPERVISORS };
    names[random.random_range(0..names.len())]
}

pub fn space_batch(observations: &[Observation]) -> SpaceBatch {
    let (rows, tombstones) = rows_and_tombstones(observations);
    batch(&rows, tombstones)
}

/// What the lake must hold: of each id the newest observation that was delivered, as concurrent writers have changed it since.
#[derive(Debug, Default)]
pub struct Model {
    newest: HashMap<usize, Observation>,
    /// Ids whose rows a concurrent writer took away at this moment of their history. The engine remembers no such deletion, so whether
    /// what is not newer brings them back depends on when it notices: it is not delivered any more.
    taken: HashMap<usize, usize>,
    /// Properties that concurrent writers set, by table.
    properties: BTreeMap<(usize, String), String>,
}

impl Model {
    /// Whether the outcome of delivering this is settled.
    pub fn may_deliver(&self, observation: &Observation) -> bool {
        self.taken.get(&observation.id).is_none_or(|&moment| observation.moment > moment)
    }

    pub fn delivered(&mut self, observation: &Observation) {
        let held = self.newest.entry(observation.id).or_insert_with(|| observation.clone());
        if observation.moment > held.moment {
            *held = observation.clone();
        }
    }

    /// Ids with rows in a table, in order.
    pub fn ids_in(&self, number: usize) -> Vec<usize> {
        let here = |state: &State| matches!(state, State::Row { document_type, .. } if *document_type == number);
        let mut ids: Vec<usize> =
            self.newest.values().filter(|newest| here(&newest.state)).map(|newest| newest.id).collect();
        ids.sort_unstable();
        ids
    }

    /// A concurrent writer deletes the row of an id.
    pub fn take(&mut self, id: usize) {
        if let Some(newest) = self.newest.remove(&id) {
            self.taken.insert(id, newest.moment);
        }
    }

    /// A concurrent writer sets a text in the row of an id.
    pub fn set(&mut self, id: usize, source: &str, text: &str) {
        if let Some(State::Row { cells, .. }) = self.newest.get_mut(&id).map(|newest| &mut newest.state) {
            cells.insert(source.to_owned(), Cell::Text(text.to_owned()));
        }
    }

    /// A concurrent writer appends a row.
    pub fn append(&mut self, id: usize, document_type: usize, row: &NewRow) {
        let state = State::Row { document_type, version_us: row.version_us, cells: row.cells.clone() };
        self.newest.insert(id, Observation { id, moment: 0, observed_us: row.observed_us, state });
    }

    /// A concurrent writer sets a property of a table.
    pub fn note_property(&mut self, number: usize, name: &str, value: &str) {
        self.properties.insert((number, name.to_owned()), value.to_owned());
    }

    /// Compares with all tables of the lake.
    pub fn ensure_is_in(&self, tables: &BTreeMap<usize, Snapshot>) -> anyhow::Result<()> {
        for ((number, name), value) in &self.properties {
            let found = tables.get(number).and_then(|table| table.properties.get(name));
            ensure!(found == Some(value), "property {name} of table {number} is {found:?} instead of {value}");
        }
        let mut found: BTreeMap<&str, (usize, &Snapshot, &Row)> = BTreeMap::new();
        for (number, table) in tables {
            for row in &table.rows {
                let id = row.get("_id").context("a row without id")?;
                let other = found.insert(id, (*number, table, row));
                ensure!(other.is_none(), "{id} is in table {number} and, again or before, in {other:?}");
            }
        }
        let mut expected = 0;
        for (id, newest) in &self.newest {
            let held = found.get(id_text(*id).as_str());
            let State::Row { document_type, version_us, cells } = &newest.state else {
                ensure!(held.is_none(), "id {id} is gone, the lake has {held:?}");
                continue;
            };
            expected += 1;
            let (number, table, row) = held.with_context(|| format!("id {id} is missing: {newest:?}"))?;
            ensure!(number == document_type, "id {id} is in table {number} instead of {document_type}");
            ensure!(row.get("_lake_version") == Some(&version_us.to_string()), "id {id} has another version: {row:?}");
            let shown = table.fields_of(row)?;
            let wanted: BTreeMap<String, String> =
                cells.iter().map(|(source, cell)| (source.clone(), cell.text())).collect();
            ensure!(shown == wanted, "id {id} is {shown:?} instead of {wanted:?}");
        }
        ensure!(
            found.len() == expected,
            "{} rows instead of {expected}: the source has never named some of them",
            found.len()
        );
        Ok(())
    }
}

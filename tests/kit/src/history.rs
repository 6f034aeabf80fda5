//! Random histories of ids: what a source says about each of them over time, in an order that a test may shuffle.

use std::collections::BTreeMap;

use lake_proto::queue::v1::Tombstone;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::rows::{Cell, NewRow, tombstone};

/// The types between which ids move, and so the tables; most of the names must be escaped.
pub const TYPES: [&str; 4] = ["person", "", "House hold", "घर"];

/// What the source says about an id at one moment.
#[derive(Clone, Debug)]
pub enum State {
    /// It has a row.
    Row {
        /// Number of its type in [`TYPES`].
        document_type: usize,
        /// Version, microseconds.
        version_us: i64,
        /// Source path to value.
        cells: BTreeMap<String, Cell>,
    },
    /// It has left.
    Gone {
        /// Version of the deletion, microseconds, where the source knows it.
        version_us: Option<i64>,
    },
}

/// One observation of an id. Those of an id are ordered by their place in its history, as they are by instant, then version.
#[derive(Clone, Debug)]
pub struct Observation {
    /// Number of the id.
    pub id: usize,
    /// Place in the history of the id, from 0.
    pub moment: usize,
    /// When it was observed, microseconds.
    pub observed_us: i64,
    /// What was observed.
    pub state: State,
}

impl State {
    /// What orders it among states that were observed at the same instant.
    fn tie_breaker(&self) -> i64 {
        match self {
            Self::Row { version_us, .. } => *version_us,
            Self::Gone { version_us } => version_us.unwrap_or(i64::MAX),
        }
    }
}

/// An id, by its number.
pub fn id_text(id: usize) -> String {
    format!("id-{id}")
}

/// Up to five fields, among them names that differ only by case, names that become the same column name, and a number that is text now
/// and then.
pub fn fields(random: &mut StdRng) -> BTreeMap<String, Cell> {
    let mut cells = BTreeMap::new();
    for field in 0..random.random_range(0..6) {
        let source = match random.random_range(0..12_u32) {
            0 => "/odd name".to_owned(),
            1 => "/Odd Name".to_owned(),
            2 => "/number".to_owned(),
            3 => "/a/b".to_owned(),
            4 => "/a__b".to_owned(),
            other => format!("/p{}", other as usize * 4 + field),
        };
        let cell = match (source.as_str(), random.random_range(0..20_u32)) {
            ("/number", 0) => Cell::Text("007".into()),
            ("/number", _) => Cell::Number(random.random_range(-5..5)),
            (_, 0) => Cell::Text(String::new()),
            (_, n) => Cell::Text(format!("text {n}")),
        };
        cells.insert(source, cell);
    }
    cells
}

/// The history of an id. Versions go back as often as on, as HQ's do; observations go on, and now and then stand still, where the version goes on.
/// `cells` draws the fields of a row.
pub fn history(
    random: &mut StdRng,
    id: usize,
    mut cells: impl FnMut(&mut StdRng) -> BTreeMap<String, Cell>,
) -> Vec<Observation> {
    let mut version_us: i64 = random.random_range(0..5);
    let (mut observed_us, mut last_tie_breaker) = (1_000, i64::MAX);
    let mut document_type = random.random_range(0..TYPES.len());
    (0..random.random_range(1..8))
        .map(|moment| {
            let gone = random.random_range(0..4) == 0;
            if random.random_range(0..3) > 0 {
                version_us += random.random_range(-2..3);
            }
            if random.random_range(0..5) == 0 {
                document_type = random.random_range(0..TYPES.len());
            }
            let state = if gone {
                State::Gone { version_us: (random.random_range(0..2) == 0).then_some(version_us) }
            } else {
                State::Row { document_type, version_us, cells: cells(random) }
            };
            let stands_still = state.tie_breaker() > last_tie_breaker && random.random_range(0..3) == 0;
            observed_us += i64::from(!stands_still);
            last_tie_breaker = state.tie_breaker();
            Observation { id, moment, observed_us, state }
        })
        .collect()
}

/// Puts items into another order.
pub fn shuffle<T>(random: &mut StdRng, items: &mut [T]) {
    for at in (1..items.len()).rev() {
        items.swap(at, random.random_range(0..=at));
    }
}

/// What a batch of observations has for the engine: rows by type, and tombstones.
pub fn rows_and_tombstones(observations: &[Observation]) -> (Vec<(&'static str, Vec<NewRow>)>, Vec<Tombstone>) {
    let mut rows: BTreeMap<usize, Vec<NewRow>> = BTreeMap::new();
    let mut tombstones = Vec::new();
    for observation in observations {
        let (id, observed_us) = (id_text(observation.id), observation.observed_us);
        match &observation.state {
            State::Gone { version_us } => tombstones.push(tombstone(&id, *version_us, observed_us)),
            State::Row { document_type, version_us, cells } => {
                let row = NewRow { id, version_us: *version_us, observed_us, cells: cells.clone() };
                rows.entry(*document_type).or_default().push(row);
            }
        }
    }
    (rows.into_iter().map(|(number, rows)| (TYPES[number], rows)).collect(), tombstones)
}

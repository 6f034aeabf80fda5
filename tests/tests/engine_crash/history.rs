//! A short history that has a bit of everything.

use std::collections::BTreeMap;
use std::ops::Range;

use lake_tests::engine::{Cell, State, Word};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Large enough for deletion vectors.
pub const PERSON: &str = "person";
/// Small enough to be rewritten.
pub const VISIT: &str = "visit";
pub const TYPES: [&str; 2] = [PERSON, VISIT];

const PERSONS: usize = 400;
const VISITS: usize = 8;
/// Characters of a text that cannot be compressed to less than half.
const TEXT: usize = 80;

/// What is done to a lake.
#[derive(Clone, Debug)]
pub enum Deed {
    Apply(Vec<Word>),
    /// Waits until the log of the large table has a checkpoint, which is made beside what else happens.
    AwaitCheckpoint,
    /// Has something to do.
    Compact,
    /// Has something to delete.
    Maintain,
}

impl Deed {
    pub fn words(&self) -> &[Word] {
        match self {
            Self::Apply(words) => words,
            _ => &[],
        }
    }
}

/// Says things that are new each time, and the same in each process.
struct Source {
    random: StdRng,
    moment: i64,
    words: Vec<Word>,
}

impl Source {
    fn say(&mut self, kind: &str, number: usize, state: State) {
        self.moment += 1;
        self.words.push(Word { id: format!("{kind}-{number}"), moment: self.moment, state });
    }

    /// An id has a row in a table, with these cells among others.
    fn row(&mut self, kind: &str, number: usize, document_type: &'static str, more: &[(&str, Cell)]) {
        let text = (0..TEXT).map(|_| char::from(b'a' + self.random.random_range(0..26_u8))).collect();
        let mut cells = BTreeMap::from([
            ("/text".to_owned(), Cell::Text(text)),
            ("/number".to_owned(), Cell::Number(i64::try_from(number).unwrap_or_default())),
            ("+supervisor_id".to_owned(), Cell::Text(["anna", "berta"][number % 2].to_owned())),
        ]);
        cells.extend(more.iter().map(|(source, cell)| ((*source).to_owned(), cell.clone())));
        self.say(kind, number, State::Row { document_type, cells });
    }

    fn persons(&mut self, numbers: Range<usize>, more: &[(&str, Cell)]) {
        numbers.for_each(|number| self.row(PERSON, number, PERSON, more));
    }

    fn visits(&mut self, numbers: Range<usize>) {
        numbers.for_each(|number| self.row(VISIT, number, VISIT, &[]));
    }

    fn gone(&mut self, kind: &str, numbers: Range<usize>) {
        numbers.for_each(|number| self.say(kind, number, State::Gone));
    }

    fn apply(&mut self) -> Deed {
        Deed::Apply(std::mem::take(&mut self.words))
    }
}

/// The deeds, in lives of the process between which hours pass.
pub fn lives() -> Vec<Vec<Deed>> {
    let mut source = Source { random: StdRng::seed_from_u64(1), moment: 0, words: Vec::new() };
    // Two tables are made.
    source.persons(0..PERSONS, &[]);
    source.visits(0..VISITS);
    let mut first = vec![source.apply()];
    // Deletion vectors, copy on write.
    source.persons(0..60, &[]);
    source.visits(0..3);
    first.push(source.apply());
    // Rows move both ways.
    source.row(PERSON, 100, VISIT, &[]);
    source.row(VISIT, 1, PERSON, &[]);
    first.extend([source.apply(), Deed::AwaitCheckpoint]);
    // Ids leave.
    source.gone(PERSON, 200..220);
    source.gone(VISIT, 7..8);
    first.push(source.apply());
    // A new column; with it a third of the rows of the first file is dead.
    source.persons(300..360, &[("/late", Cell::Text("late".to_owned()))]);
    first.extend([source.apply(), Deed::Compact]);
    // A column changes its type, so that all files are rewritten.
    source.persons(10..11, &[("/number", Cell::Text("many".to_owned()))]);
    source.persons(11..14, &[]);
    first.push(source.apply());

    let mut second = vec![Deed::Maintain];
    // An id comes back, others come, change and leave.
    source.persons(20..30, &[]);
    source.persons(200..201, &[]);
    source.persons(PERSONS..PERSONS + 1, &[]);
    source.visits(0..1);
    source.gone(PERSON, 399..400);
    source.gone(VISIT, 2..3);
    second.push(source.apply());
    vec![first, second, vec![Deed::Maintain]]
}

//! What a source says over time, drawn at random.

use std::collections::BTreeMap;

use chrono::NaiveDate;
use lake_tests::engine::{Cell, State, Word};
use rand::RngExt;
use rand::rngs::StdRng;

/// Tables between which ids move.
const SMALL: [&str; 3] = ["person", "visit", "household"];
/// A table whose file is so large that it is uploaded in parts.
const LARGE: &str = "album";
pub const TYPES: [&str; 4] = [SMALL[0], SMALL[1], SMALL[2], LARGE];

/// Ids of the small tables.
const IDS: u32 = 80;
/// Rows of the large one.
const PHOTOS: u32 = 6_000;
/// Bytes of each, which cannot be compressed to less than three quarters.
const PHOTO_BYTES: usize = 2_000;
/// The round that brings the large table, and the one that replaces a quarter of it, which is reason enough to compact it.
const PHOTOS_COME: u32 = 3;
const PHOTOS_CHANGE: u32 = 6;
/// The round that brings a row with more columns than a table may have.
const WIDE_ROUND: u32 = 5;
const WIDE_FIELDS: u32 = 350;
/// Most columns of a table.
pub const COLUMNS_MAX: usize = 300;
/// From this round on a column may change its type.
const TYPES_CHANGE: u32 = 4;

/// The source.
#[derive(Debug, Default)]
pub struct Source {
    moment: i64,
    /// In which of the small tables ids are.
    homes: BTreeMap<u32, usize>,
}

impl Source {
    /// What it says in a round.
    pub fn words(&mut self, random: &mut StdRng, round: u32) -> Vec<Word> {
        let mut words: Vec<Word> = (0..random.random_range(10..60)).map(|_| self.word(random, round)).collect();
        match round {
            WIDE_ROUND => {
                let fields = (0..WIDE_FIELDS).map(|n| (format!("/wide{n}"), Cell::Text(format!("answer {n}"))));
                let mut cells = cells(random, round);
                cells.extend(fields);
                words.push(self.say("wide".to_owned(), State::Row { document_type: SMALL[0], cells }));
            }
            PHOTOS_COME => words.extend((0..PHOTOS).map(|number| self.photo(random, number))),
            PHOTOS_CHANGE => words.extend((0..PHOTOS).step_by(4).map(|number| self.photo(random, number))),
            _ => {}
        }
        words
    }

    fn say(&mut self, id: String, state: State) -> Word {
        self.moment += 1;
        Word { id, moment: self.moment, state }
    }

    fn word(&mut self, random: &mut StdRng, round: u32) -> Word {
        let number = random.random_range(0..IDS);
        let id = format!("id-{number}");
        if random.random_range(0..6) == 0 {
            return self.say(id, State::Gone);
        }
        let home = self.homes.entry(number).or_insert_with(|| random.random_range(0..SMALL.len()));
        if random.random_range(0..6) == 0 {
            *home = random.random_range(0..SMALL.len());
        }
        let document_type = SMALL[*home];
        let cells = cells(random, round);
        self.say(id, State::Row { document_type, cells })
    }

    /// All of them in one partition, so that they are in one file.
    fn photo(&mut self, random: &mut StdRng, number: u32) -> Word {
        let cells = BTreeMap::from([
            ("+supervisor_id".to_owned(), Cell::Text("anna".to_owned())),
            ("/content".to_owned(), Cell::Text(noise(random))),
        ]);
        self.say(format!("photo-{number}"), State::Row { document_type: LARGE, cells })
    }
}

/// Each round may bring a new column.
fn cells(random: &mut StdRng, round: u32) -> BTreeMap<String, Cell> {
    let supervisor = ["anna", "berta"][random.random_range(0..2)];
    let mut cells = BTreeMap::from([("+supervisor_id".to_owned(), Cell::Text(supervisor.to_owned()))]);
    for _ in 0..random.random_range(0..5) {
        let field = random.random_range(0..3 + round);
        cells.insert(format!("/p{field}"), Cell::Text(format!("text {}", random.random_range(0..1_000))));
    }
    if random.random_range(0..2) == 0 {
        let number = match random.random_range(0..20) {
            0 if round >= TYPES_CHANGE => Cell::Text("many".to_owned()),
            number => Cell::Number(number),
        };
        cells.insert("/number".to_owned(), number);
    }
    if random.random_range(0..2) == 0
        && let Some(month) = NaiveDate::from_ymd_opt(2024, random.random_range(1..4), 1)
    {
        cells.insert("+month".to_owned(), Cell::Date(month));
    }
    cells
}

fn noise(random: &mut StdRng) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::with_capacity(PHOTO_BYTES);
    while text.len() < PHOTO_BYTES {
        let mut bits: u64 = random.random();
        for _ in 0..10 {
            text.push(char::from(DIGITS[(bits % 64) as usize]));
            bits /= 64;
        }
    }
    text
}

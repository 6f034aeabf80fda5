//! Rows of a case table, made from their numbers: the same number always has the same id, so that random existing ids can be drawn
//! later without having been stored.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Int64Array, StringArray, StringBuilder, TimestampMicrosecondArray,
};
use arrow::record_batch::RecordBatch;
use lake_shared::identity::{DocumentType, Space};
pub use lake_test_kit::dice::mixed;
use lake_writer::table_store::{SpaceBatch, TableRows};

/// Changes when other rows are made, so that kept tables are made anew.
pub const REVISION: u32 = 1;

/// Columns of a table: the 19 made here, and the time of the commit that the writer adds.
pub const COLUMNS: usize = 20;

/// 2023-01-01, in microseconds and in days.
const FIRST_US: i64 = 1_672_531_200_000_000;
const FIRST_MONTH_DAYS: [i32; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
const YEAR_BEGINS_DAYS: [i32; 4] = [19_358, 19_723, 20_089, 20_454];
const LEAP_YEAR: usize = 1;
const MONTHS: u64 = 48;
/// In round 0, rows were last modified within three years after [`FIRST_US`].
const FIRST_ROUND_US: i64 = 3 * 365 * 86_400_000_000;
/// Each later round takes a minute.
const ROUND_US: i64 = 60_000_000;
const SUPERVISORS: u64 = 500;
const OWNERS_OF_A_SUPERVISOR: u64 = 12;

const GIVEN_NAMES: [&str; 16] = [
    "Asha", "Sunita", "Ravi", "Mohan", "Fatima", "Grace", "Kamala", "Lakshmi", "Amina", "Joseph", "Priya", "Rekha",
    "Salma", "Thandiwe", "Usha", "Wanjiru",
];
const FAMILY_NAMES: [&str; 16] = [
    "Devi", "Kumari", "Singh", "Okafor", "Begum", "Mwangi", "Patel", "Sharma", "Ndlovu", "Banda", "Yadav", "Khatun",
    "Diallo", "Prasad", "Achieng", "Das",
];

/// Different numbers below `below`, at random.
pub fn drawn(seed: u64, count: u64, below: u64) -> Vec<u64> {
    let mut seen = HashSet::new();
    let seed = mixed(seed);
    (0..).map(|at| mixed(seed ^ at) % below).filter(|number| seen.insert(*number)).take(count as usize).collect()
}

/// A supervisor's id.
pub fn supervisor(number: u64) -> String {
    let mut text = String::new();
    hex(&mut text, mixed(number ^ 0x5155), 16);
    hex(&mut text, mixed(number ^ 0xAA55), 16);
    text
}

/// First day of a month, in days since 1970.
pub fn month(number: u64) -> i32 {
    let (year, month) = ((number / 12) as usize, (number % 12) as usize);
    YEAR_BEGINS_DAYS[year] + FIRST_MONTH_DAYS[month] + i32::from(year == LEAP_YEAR && month >= 2)
}

/// A month that rows have, as `2024-03-01`.
pub fn month_text(number: u64) -> String {
    format!("{}-{:02}-01", 2023 + number / 12, number % 12 + 1)
}

fn hex(text: &mut String, value: u64, digits: u32) {
    for digit in (0..digits).rev() {
        text.push(char::from(b"0123456789abcdef"[(value >> (digit * 4)) as usize & 15]));
    }
}

fn decimal(text: &mut String, value: u64, digits: u32) {
    for digit in (0..digits).rev() {
        text.push(char::from(b'0' + (value / 10_u64.pow(digit) % 10) as u8));
    }
}

/// As `mixed(number)`, with more than 64 bits: `8-4-4-4-12` hexadecimal digits.
fn id(text: &mut String, number: u64) {
    let (high, low) = (mixed(number), mixed(number ^ 0xFFFF_0000_FFFF_0000));
    hex(text, high >> 32, 8);
    text.push('-');
    hex(text, high >> 16, 4);
    text.push('-');
    hex(text, high, 4);
    text.push('-');
    hex(text, low >> 48, 4);
    text.push('-');
    hex(text, low, 12);
}

/// The id of a row.
pub fn id_of(number: u64) -> String {
    let mut text = String::with_capacity(36);
    id(&mut text, number);
    text
}

/// The rows of some numbers, as they are in a round; 0 is the first.
pub fn record_batch(numbers: &[u64], round: u64, document_type: &DocumentType) -> RecordBatch {
    let mixes: Vec<u64> = numbers.iter().map(|number| mixed(number ^ 0x00C0_FFEE)).collect();
    let rounds: Vec<u64> = mixes.iter().map(|mix| mixed(mix ^ round)).collect();
    let modified: Vec<i64> = rounds.iter().map(|mix| modified_us(*mix, round)).collect();
    let later = |by: i64| instants(modified.iter().map(|us| us + by));
    let supervisors: Vec<String> = (0..SUPERVISORS).map(supervisor).collect();
    let constant = |text: &str| Arc::new(StringArray::from_iter_values(numbers.iter().map(|_| text))) as ArrayRef;
    let columns: [(&str, ArrayRef); COLUMNS - 1] = [
        ("/_id", texts(numbers, 36, |text, number| id(text, *number))),
        ("/domain", constant("bench")),
        ("+type", constant(document_type.as_str())),
        ("/doc_type", constant("CommCareCase")),
        ("+month", Arc::new(Date32Array::from_iter_values(mixes.iter().map(|mix| month(mix % MONTHS))))),
        ("+supervisor_id", texts(&mixes, 32, |text, mix| text.push_str(&supervisors[supervisor_of(*mix)]))),
        ("/owner_id", texts(&mixes, 32, owner)),
        ("/name", texts(&mixes, 14, |text, mix| name(text, *mix))),
        ("/opened_on", instants(mixes.iter().map(|mix| opened_us(*mix)))),
        ("/server_modified_on", later(0)),
        ("/closed", Arc::new(BooleanArray::from_iter(rounds.iter().map(|mix| Some(mix % 11 == 0))))),
        ("/case_json/dob", texts(&mixes, 10, |text, mix| birthday(text, *mix))),
        ("/case_json/sex", texts(&mixes, 6, |text, mix| text.push_str(["female", "male"][(mix >> 9) as usize % 2]))),
        ("/case_json/phone_number", optional_texts(&mixes, phone_number)),
        ("/case_json/weight_kg", texts(&rounds, 4, weight)),
        ("/case_json/visit_count", texts(&rounds, 2, |text, mix| text.push_str(&(mix % 40).to_string()))),
        ("+_lake_version", Arc::new(Int64Array::from_iter_values(modified.iter().copied()))),
        ("+_lake_observed_at", later(400_000)),
        ("+_lake_published_at", later(150_000)),
    ];
    // Columns of one length each: this cannot fail.
    RecordBatch::try_from_iter_with_nullable(columns.map(|(source, array)| (source, array, true)))
        .unwrap_or_else(|error| panic!("columns do not fit together: {error}"))
}

fn supervisor_of(mix: u64) -> usize {
    ((mix >> 20) % SUPERVISORS) as usize
}

fn opened_us(mix: u64) -> i64 {
    i64::from(month(mix % MONTHS)) * 86_400_000_000 + ((mix >> 8) % (28 * 86_400)) as i64 * 1_000_000
}

fn modified_us(round_mix: u64, round: u64) -> i64 {
    let (begins, lasts) = match round {
        0 => (0, FIRST_ROUND_US),
        _ => (FIRST_ROUND_US + round as i64 * ROUND_US, ROUND_US),
    };
    FIRST_US + begins + (round_mix % lasts as u64) as i64
}

fn owner(text: &mut String, mix: &u64) {
    let owner = supervisor_of(*mix) as u64 * OWNERS_OF_A_SUPERVISOR + (mix >> 40) % OWNERS_OF_A_SUPERVISOR;
    hex(text, mixed(owner ^ 0x0FF1_CE00), 16);
    hex(text, mixed(owner ^ 0xDE5C), 16);
}

fn name(text: &mut String, mix: u64) {
    text.push_str(GIVEN_NAMES[(mix >> 12) as usize % 16]);
    text.push(' ');
    text.push_str(FAMILY_NAMES[(mix >> 16) as usize % 16]);
}

fn birthday(text: &mut String, mix: u64) {
    decimal(text, 1940 + (mix >> 30) % 84, 4);
    text.push('-');
    decimal(text, 1 + (mix >> 37) % 12, 2);
    text.push('-');
    decimal(text, 1 + (mix >> 41) % 28, 2);
}

/// One in four has none.
fn phone_number(text: &mut String, mix: u64) -> bool {
    text.push_str("+9198");
    decimal(text, mix >> 33, 8);
    !(mix >> 5).is_multiple_of(4)
}

fn weight(text: &mut String, mix: &u64) {
    decimal(text, 30 + (mix >> 8) % 60, 2);
    text.push('.');
    decimal(text, mix >> 16, 1);
}

fn instants(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_iter_values(values).with_timezone("UTC"))
}

fn texts(from: &[u64], bytes_each: usize, write: impl Fn(&mut String, &u64)) -> ArrayRef {
    let mut builder = StringBuilder::with_capacity(from.len(), from.len() * bytes_each);
    let mut text = String::new();
    for number in from {
        text.clear();
        write(&mut text, number);
        builder.append_value(&text);
    }
    Arc::new(builder.finish())
}

fn optional_texts(from: &[u64], write: impl Fn(&mut String, u64) -> bool) -> ArrayRef {
    let mut builder = StringBuilder::new();
    let mut text = String::new();
    for number in from {
        text.clear();
        let there = write(&mut text, *number);
        builder.append_option(there.then_some(&text));
    }
    Arc::new(builder.finish())
}

/// A batch for one table.
pub fn space_batch(space: Space, document_type: DocumentType, rows: RecordBatch) -> SpaceBatch {
    SpaceBatch { space, upserts: vec![TableRows { document_type, rows: vec![rows] }], tombstones: Vec::new() }
}

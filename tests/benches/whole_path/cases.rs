//! Cases as a field programme has them, made from their numbers.

use std::fmt::Write as _;

use chrono::{DateTime, SecondsFormat, Utc};
use lake_simulated_hq::turn::ChangeMessage;
use serde_json::{Map, Value, json};
use uuid::Uuid;

/// Locations of one domain that own its cases.
pub const OWNERS: u64 = 100;
/// Transactions of a case.
pub const TRANSACTIONS: u64 = 3;

const WORDS: [&str; 32] = [
    "household",
    "visit",
    "completed",
    "without",
    "complaint",
    "mother",
    "absent",
    "during",
    "second",
    "reported",
    "fever",
    "since",
    "morning",
    "referred",
    "to",
    "the",
    "health",
    "post",
    "tablets",
    "given",
    "counselled",
    "on",
    "nutrition",
    "next",
    "due",
    "after",
    "harvest",
    "रामपुर",
    "आशा",
    "agreed",
    "weight",
    "normal",
];

/// A programme.
#[derive(Clone, Copy, Debug)]
pub struct Programme {
    /// Project spaces.
    pub domains: u64,
    /// Case types of each.
    pub types: u64,
    /// Properties of a case.
    pub properties: u64,
}

/// Numbers that look random and depend on nothing but their seed (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn of(case: u64, purpose: u64) -> Self {
        Self(case.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ purpose.wrapping_mul(0xd1b5_4a32_d192_ed03))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

/// Id of a case.
pub fn case_id(number: u64) -> String {
    id(number, 1)
}

fn id(number: u64, purpose: u64) -> String {
    let mut numbers = Numbers::of(number, purpose);
    Uuid::from_u64_pair(numbers.next(), numbers.next()).to_string()
}

/// As HQ writes instants.
pub fn instant(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Name of a domain.
pub fn domain_name(number: u64) -> String {
    format!("programme-{number}")
}

/// Id of the location of a domain that owns cases.
pub fn owner_id(domain: u64, number: u64) -> String {
    format!("location-{domain}-{number}")
}

impl Programme {
    fn domain(&self, case: u64) -> u64 {
        Numbers::of(case, 2).below(self.domains)
    }

    fn case_type(&self, case: u64) -> u64 {
        Numbers::of(case, 3).below(self.types)
    }

    /// The properties of a case after so many changes, as HQ stores them.
    pub fn case_json(&self, case: u64, changes: u64) -> String {
        let case_type = self.case_type(case);
        let mut numbers = Numbers::of(case, 4);
        let mut properties = Map::new();
        for number in 0..self.properties {
            let mut numbers = if number % 4 == 0 {
                Numbers::of(case ^ (changes << 40), number + 100)
            } else {
                Numbers(numbers.next())
            };
            let name = format!("{}_of_visit_{case_type}_{number}", WORDS[(number * 7 % 20) as usize]);
            properties.insert(name, Value::String(answer(number, &mut numbers)));
        }
        Value::Object(properties).to_string()
    }

    /// Lines of `copy` for a case: of the table of cases, of its index, of its transactions.
    pub fn copy_lines(&self, case: u64, now: DateTime<Utc>, lines: &mut [String; 3]) {
        let mut numbers = Numbers::of(case, 5);
        let domain_number = self.domain(case);
        let (id, domain, case_type) = (case_id(case), domain_name(domain_number), self.case_type(case));
        let owner = owner_id(domain_number, numbers.below(OWNERS));
        let user = format!("{:032x}", domain_number * 1_000 + numbers.below(200));
        let opened = now - chrono::Duration::minutes(i64::try_from(numbers.below(500_000)).unwrap_or_default() + 3_000);
        let modified = now - chrono::Duration::minutes(i64::try_from(numbers.below(2_000)).unwrap_or_default() + 500);
        let (opened, modified) = (instant(opened), instant(modified));
        let case_json = self.case_json(case, 0);
        // Writing to a String cannot fail.
        let _ = writeln!(
            lines[0],
            "{id}\t{domain}\ttype_{case_type}\tname of {case}\t{owner}\t{opened}\t{user}\t{modified}\t{modified}\t{user}\tf\tf\t\t\\N\t{case_json}"
        );
        let _ = writeln!(lines[1], "{id}\t{domain}\tparent\t{}\thousehold\t1", case_id(case / 5));
        for number in 0..TRANSACTIONS {
            let _ = writeln!(lines[2], "{id}\t{}\t{modified}\t1\tf", self::id(case * TRANSACTIONS + number, 6));
        }
    }

    /// HQ's message about a case.
    pub fn message(&self, case: u64, now: DateTime<Utc>) -> ChangeMessage {
        let (id, now) = (case_id(case), instant(now));
        let value = json!({
            "document_id": id,
            "document_rev": null,
            "data_source_type": "sql",
            "data_source_name": "case-sql",
            "document_type": "CommCareCase",
            "document_subtype": format!("type_{}", self.case_type(case)),
            "domain": domain_name(self.domain(case)),
            "is_deletion": false,
            "publish_timestamp": now,
            "attempts": 0,
            "original_publication_datetime": now,
            "associated_document_id": self::id(case * TRANSACTIONS, 6),
        });
        ChangeMessage { topic: "case-sql", key: Some(id), value: value.to_string().into_bytes() }
    }
}

/// Short codes, dates, numbers and sentences, as answers are.
fn answer(property: u64, numbers: &mut Numbers) -> String {
    match property % 7 {
        0 => format!("20{:02}-{:02}-{:02}", 20 + numbers.below(7), 1 + numbers.below(12), 1 + numbers.below(28)),
        1 => numbers.below(1_000).to_string(),
        2 => ["yes", "no", "unknown", ""][numbers.below(4) as usize].to_owned(),
        3 => Uuid::from_u64_pair(numbers.next(), numbers.next()).to_string(),
        _ => {
            let count = 5 + numbers.below(12);
            (0..count).map(|_| WORDS[numbers.below(32) as usize]).collect::<Vec<_>>().join(" ")
        }
    }
}

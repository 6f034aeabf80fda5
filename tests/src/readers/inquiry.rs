//! Questions about a part of a table, and what the right answers are.
//!
//! `SELECT *` reads everything, so it tells nothing about the statistics, partitions and row groups by which readers leave files out. These
//! questions do: a reader that leaves out too much misses ids, one that trusts wrong statistics counts wrongly.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use rand::RngExt;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use super::Snapshot;
use super::content::{Content, Row};

/// Columns whose least and greatest values are asked for when questions are drawn: planning is what costs.
const EXTREMES: usize = 6;

/// How a cell is looked at. Values are written as in a [`Row`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "test", content = "values", rename_all = "lowercase")]
pub enum Test {
    /// It is this value.
    Is([String; 1]),
    /// It is NULL.
    Null([String; 0]),
    /// It is not NULL.
    #[serde(rename = "not null")]
    NotNull([String; 0]),
    /// It is this value or a later one.
    From([String; 1]),
    /// It is between these values, both included.
    Within([String; 2]),
}

/// A condition on one column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    column: String,
    kind: String,
    #[serde(flatten)]
    test: Test,
}

impl Condition {
    /// A condition; `kind` is the column's type in the Delta schema.
    pub fn new(column: &str, kind: &str, test: Test) -> Self {
        Self { column: column.into(), kind: kind.into(), test }
    }

    /// `column = value`.
    pub fn is(column: &str, kind: &str, value: &str) -> Self {
        Self::new(column, kind, Test::Is([value.into()]))
    }

    fn holds(&self, row: &Row) -> bool {
        let cell = row.get(&self.column);
        let order = |value: &String| cell.map(|cell| order(&self.kind, cell, value));
        match &self.test {
            Test::Is([value]) => order(value).is_some_and(Ordering::is_eq),
            Test::Null([]) => cell.is_none(),
            Test::NotNull([]) => cell.is_some(),
            Test::From([value]) => order(value).is_some_and(Ordering::is_ge),
            Test::Within([from, to]) => {
                order(from).is_some_and(Ordering::is_ge) && order(to).is_some_and(Ordering::is_le)
            }
        }
    }
}

/// How values of a type follow each other in every reader.
pub(super) fn order(kind: &str, one: &str, other: &str) -> Ordering {
    match kind {
        "long" | "integer" => one.parse::<i64>().ok().cmp(&other.parse().ok()),
        "double" => one.parse::<f64>().unwrap_or(f64::NAN).total_cmp(&other.parse().unwrap_or(f64::NAN)),
        _ => one.cmp(other),
    }
}

/// What a reader is asked about a table at one version.
#[derive(Clone, Debug, Default)]
pub struct Inquiry {
    /// Whether all rows are wanted, and their number by SQL.
    pub whole: bool,
    /// Each a list of conditions that must all hold: the ids of the rows, and their number by SQL.
    pub questions: Vec<Vec<Condition>>,
    /// Names and types of columns whose values are counted, and the least and the greatest of them.
    pub columns: Vec<(String, String)>,
}

/// What a reader answers.
#[derive(Clone, Debug, Deserialize)]
pub struct Answer {
    content: Option<Content>,
    found: Vec<Found>,
    extremes: Vec<[Option<String>; 3]>,
}

#[derive(Clone, Debug, Deserialize)]
struct Found {
    ids: Vec<String>,
    count: usize,
}

impl Inquiry {
    /// All rows and `count` questions about columns that the table has, among them ids that are there and that are not.
    pub fn drawn(random: &mut StdRng, table: &Snapshot, count: usize) -> Self {
        let columns: Vec<(&String, &String)> = table.kinds.iter().collect();
        let favoured: Vec<(&String, &String)> =
            columns.iter().filter(|(name, _)| ["month", "supervisor_id"].contains(&name.as_str())).copied().collect();
        let question = |number: usize| {
            if number == 0 {
                return vec![drawn_condition(random, table, "_id", "string")];
            }
            let among = if !favoured.is_empty() && number % 2 == 1 { &favoured } else { &columns };
            let conditions = if random.random_range(0..4) == 0 { 2 } else { 1 };
            let column = |_| {
                let (name, kind) = among[random.random_range(0..among.len())];
                drawn_condition(random, table, name, kind)
            };
            (0..conditions).map(column).collect()
        };
        let questions = (0..count).map(question).collect();
        let mut drawn = BTreeMap::new();
        for _ in 0..EXTREMES {
            let (name, kind) = columns[random.random_range(0..columns.len())];
            drawn.insert(name.clone(), kind.clone());
        }
        Self { whole: true, questions, columns: drawn.into_iter().collect() }
    }

    /// Every kind of question about each of the columns, with up to `values_max` of their values.
    pub fn of_columns(table: &Snapshot, columns: &[&str], values_max: usize) -> Self {
        let mut inquiry = Self { whole: true, ..Self::default() };
        for &name in columns {
            let Some(kind) = table.kinds.get(name) else { continue };
            inquiry.columns.push((name.to_owned(), kind.clone()));
            let mut values: Vec<&String> = table.rows.iter().filter_map(|row| row.get(name)).collect();
            values.sort_by(|one, other| order(kind, one, other));
            values.dedup();
            let step = values.len().div_ceil(values_max).max(1);
            let mut ask = |test| inquiry.questions.push(vec![Condition::new(name, kind, test)]);
            ask(Test::Null([]));
            ask(Test::NotNull([]));
            ask(Test::Is([absent(kind)]));
            for (number, value) in values.iter().step_by(step).enumerate() {
                ask(Test::Is([(*value).clone()]));
                if number.is_multiple_of(4) {
                    let last = values[(number * step + 2 * step).min(values.len() - 1)].clone();
                    ask(Test::From([(*value).clone()]));
                    ask(Test::Within([(*value).clone(), last]));
                }
            }
        }
        inquiry
    }

    /// Compares the answer with the rows that should be there, which are sorted.
    ///
    /// # Errors
    /// When it is not right; the error names the question.
    pub fn ensure_answered(&self, answer: &Answer, expected: &[Row]) -> anyhow::Result<()> {
        if self.whole {
            answer.content.as_ref().context("no content")?.ensure_is(expected)?;
        }
        ensure!(answer.found.len() == self.questions.len(), "{} answers", answer.found.len());
        for (question, found) in self.questions.iter().zip(&answer.found) {
            let rows = expected.iter().filter(|row| question.iter().all(|condition| condition.holds(row)));
            let mut wanted: Vec<&str> = rows.filter_map(|row| row.get("_id")).map(String::as_str).collect();
            wanted.sort_unstable();
            let mut ids: Vec<&str> = found.ids.iter().map(String::as_str).collect();
            ids.sort_unstable();
            let missing: Vec<&&str> = wanted.iter().filter(|id| ids.binary_search(id).is_err()).take(3).collect();
            let extra: Vec<&&str> = ids.iter().filter(|id| wanted.binary_search(id).is_err()).take(3).collect();
            ensure!(
                ids == wanted,
                "{question:?}: {} rows instead of {}; missing: {missing:?}; not expected: {extra:?}",
                ids.len(),
                wanted.len()
            );
            ensure!(found.count == wanted.len(), "{question:?}: count(*) says {} of {}", found.count, wanted.len());
        }
        ensure!(answer.extremes.len() == self.columns.len(), "{} columns", answer.extremes.len());
        for ((name, kind), found) in self.columns.iter().zip(&answer.extremes) {
            let values: Vec<&String> = expected.iter().filter_map(|row| row.get(name)).collect();
            let least = values.iter().min_by(|one, other| order(kind, one, other)).map(|value| (*value).clone());
            let greatest = values.iter().max_by(|one, other| order(kind, one, other)).map(|value| (*value).clone());
            let wanted = [Some(values.len().to_string()), least, greatest];
            ensure!(*found == wanted, "count, min, max of {name}: {found:?} instead of {wanted:?}");
        }
        Ok(())
    }
}

/// A value that no test writes.
fn absent(kind: &str) -> String {
    let value = match kind {
        "long" | "integer" => "-77",
        "double" => "-77.25",
        "boolean" => "false",
        "date" => "1999-12-01",
        "timestamp" => "1999-12-31T23:59:59.000001Z",
        _ => "a value of no row",
    };
    value.to_owned()
}

fn drawn_condition(random: &mut StdRng, table: &Snapshot, column: &str, kind: &str) -> Condition {
    let mut value = || {
        let row = &table.rows.get(random.random_range(0..table.rows.len().max(1)));
        row.and_then(|row| row.get(column)).cloned().unwrap_or_else(|| absent(kind))
    };
    let (one, other) = (value(), value());
    let test = match random.random_range(0..10) {
        0 => Test::Is([absent(kind)]),
        1 => Test::Null([]),
        2 => Test::NotNull([]),
        3 | 4 => Test::From([one]),
        5 | 6 if order(kind, &one, &other).is_le() => Test::Within([one, other]),
        5 | 6 => Test::Within([other, one]),
        _ => Test::Is([one]),
    };
    Condition::new(column, kind, test)
}

/// An inquiry as the reading processes take it.
pub(crate) fn spoken(inquiry: &Inquiry, version: Option<u64>) -> serde_json::Value {
    let columns: Vec<&String> = inquiry.columns.iter().map(|(name, _)| name).collect();
    serde_json::json!({"version": version, "whole": inquiry.whole, "questions": inquiry.questions, "columns": columns})
}

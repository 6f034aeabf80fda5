//! The statistics of a data file in the log: readers leave files out by them, so they must hold for every value in the file.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use chrono::{DateTime, TimeDelta};
use serde_json::Value;

use super::inquiry::order;

/// What the log says about the values of one file.
pub(super) struct Statistics(Value);

impl Statistics {
    /// Out of an action; a file may have none.
    pub(super) fn of(text: Option<&str>) -> anyhow::Result<Self> {
        Ok(Self(serde_json::from_str(text.unwrap_or("{}")).context("statistics that are not JSON")?))
    }

    /// Whether they claim to be exact, as they do unless they say otherwise.
    pub(super) fn are_tight(&self) -> bool {
        self.0["tightBounds"].as_bool() != Some(false) && self.0.get("minValues").is_some()
    }

    /// No value of a column is outside of the bounds. Hidden rows may be, but the lake's statistics are those of the whole file.
    pub(super) fn ensure_hold(&self, name: &str, kind: &str, cells: &[Option<String>]) -> anyhow::Result<()> {
        let (least, greatest) = (bound(&self.0["minValues"][name]), bound(&self.0["maxValues"][name]));
        for cell in cells.iter().flatten() {
            let below = least.as_ref().is_some_and(|least| distance(kind, cell, least).is_lt());
            let above = greatest.as_ref().is_some_and(|greatest| distance(kind, cell, greatest).is_gt());
            ensure!(
                !below && !above,
                "{cell} of column {name} is outside of the statistics: {least:?} to {greatest:?}"
            );
        }
        Ok(())
    }

    /// The numbers of NULLs are those of the file; of a column that is not in it, all rows.
    pub(super) fn ensure_nulls(&self, nulls: &BTreeMap<String, usize>, rows: usize) -> anyhow::Result<()> {
        for (name, said) in self.0["nullCount"].as_object().into_iter().flatten() {
            let found = nulls.get(name).copied().unwrap_or(rows) as u64;
            ensure!(
                said.as_u64().is_none_or(|said| said == found),
                "column {name}: {found} NULLs, the log says {said}"
            );
        }
        Ok(())
    }
}

fn bound(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// Where a value is beside a bound. Moments are cut to milliseconds in the log, which readers know.
fn distance(kind: &str, cell: &str, bound: &str) -> Ordering {
    if kind != "timestamp" {
        return order(kind, cell, bound);
    }
    let (Ok(cell), Ok(bound)) = (DateTime::parse_from_rfc3339(cell), DateTime::parse_from_rfc3339(bound)) else {
        return Ordering::Equal;
    };
    if cell >= bound && cell - bound < TimeDelta::milliseconds(1) { Ordering::Equal } else { cell.cmp(&bound) }
}

//! What a faithful lake must contain, written to files that a comparison reads. Computed from the world alone.
//!
//! A directory holds `tables.json`, a list of `{"domain", "topic", "type", "path", "rows"}`, and for each table the NDJSON file
//! named by `rows`, one `{"id", "cells", "either", "optional"}` a line. Cells that are not given are NULL. `either` lists what may
//! come on top of `cells`: exactly one of these sets. An `optional` row may be absent.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use lake_shared::escaped_names;
use lake_shared::identity::{DocumentType, Domain as DomainName, Kind, Space, TableKey};
use serde_json::{Map, Value, json};

use crate::expected_cells::{Cells, case_cells, form_cells, form_user, place_cells};
use crate::life::Life;
use crate::rows;
use crate::world::{Domain, Person, World};

/// Who and what the ids of records mean.
struct Register<'w> {
    people: HashMap<&'w str, &'w Person>,
    places: HashMap<&'w str, u32>,
}

/// What is left open.
#[derive(Clone, Copy, Debug)]
pub struct ExpectationOptions {
    /// How many turns before a record's last change its user's place may be taken from: what caches may lag behind. Location
    /// columns of cases and forms are those of the time when the lake took the record in.
    pub place_slack_turns: u64,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpectationSummary {
    /// Number of tables.
    pub tables: usize,
    /// Rows of all tables, optional ones included.
    pub rows: usize,
}

#[derive(Clone, Copy)]
enum Record {
    Case(u32),
    Form(u32),
    Place(u32),
}

/// One expected row.
#[derive(Debug)]
pub(crate) struct ExpectedRow {
    pub(crate) id: Arc<str>,
    pub(crate) cells: Cells,
    pub(crate) either: Vec<Cells>,
    pub(crate) optional: bool,
}

impl Life {
    /// Writes what the lake must contain once it has taken in everything delivered so far, [`Life::settle`] included.
    ///
    /// # Errors
    /// The directory cannot be made or written to.
    pub fn write_expectation(
        &self,
        directory: &Path,
        options: &ExpectationOptions,
    ) -> anyhow::Result<ExpectationSummary> {
        std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        let register = self.register();
        let tables = self.expected_tables();
        let mut list = Vec::with_capacity(tables.len());
        let mut rows = 0;
        for (number, (table, records)) in tables.iter().enumerate() {
            let name = format!("{number}.ndjson");
            let path = directory.join(&name);
            let file = File::create(&path).with_context(|| format!("make {}", path.display()))?;
            let mut file = BufWriter::new(file);
            for record in records {
                let row = self.expected_row(*record, &register, options);
                let line = json!({"id": &*row.id, "cells": row.cells, "either": row.either, "optional": row.optional});
                serde_json::to_writer(&mut file, &line).with_context(|| format!("write {}", path.display()))?;
                file.write_all(b"\n").with_context(|| format!("write {}", path.display()))?;
            }
            file.flush().with_context(|| format!("write {}", path.display()))?;
            rows += records.len();
            list.push(json!({"domain": table.space.domain.as_str(), "topic": table.space.kind.topic(),
                "type": table.document_type.as_str(), "path": escaped_names::table_path(table), "rows": name}));
        }
        let path = directory.join("tables.json");
        let text = serde_json::to_string_pretty(&list).context("write the list of tables")?;
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(ExpectationSummary { tables: tables.len(), rows })
    }

    fn register(&self) -> Register<'_> {
        let people = self.world.people.iter().map(|person| (&*person.id, person)).collect();
        let places = self.world.places.iter().zip(0..).map(|(place, index)| (&*place.location_id, index)).collect();
        Register { people, places }
    }

    fn expected_tables(&self) -> BTreeMap<TableKey, Vec<Record>> {
        let world = &self.world;
        let key = |domain: usize, kind: Kind, document_type: DocumentType| TableKey {
            space: Space { domain: DomainName::from(&*world.domains[domain].name), kind },
            document_type,
        };
        let mut tables: BTreeMap<TableKey, Vec<Record>> = BTreeMap::new();
        for (index, case) in world.cases.iter().enumerate() {
            if case.presence.is_live() || case.presence.may_linger() {
                let table = key(case.domain, Kind::Case, DocumentType::from(&*case.case_type));
                tables.entry(table).or_default().push(Record::Case(index as u32));
            }
        }
        for (index, form) in world.forms.iter().enumerate() {
            if form.state == 1 && (form.presence.is_live() || form.presence.may_linger()) {
                let xmlns = rows::form_xmlns(&world.domains[form.domain], form);
                let table = key(form.domain, Kind::Form, DocumentType::of_form(xmlns));
                tables.entry(table).or_default().push(Record::Form(index as u32));
            }
        }
        for (index, place) in world.places.iter().enumerate().filter(|(_, place)| !place.gone) {
            let table = key(place.domain, Kind::Location, DocumentType::location());
            tables.entry(table).or_default().push(Record::Place(index as u32));
        }
        tables
    }

    fn expected_row(&self, record: Record, register: &Register<'_>, options: &ExpectationOptions) -> ExpectedRow {
        let world = &self.world;
        let either = |user: Option<&str>, owner: Option<&str>, domain: &Domain, changed: u64| {
            let person = user.and_then(|user| register.people.get(user));
            let owner = owner.and_then(|owner| register.places.get(owner));
            let from = changed.saturating_sub(options.place_slack_turns);
            possible_places(domain, person.copied(), owner.copied(), from)
        };
        match record {
            Record::Case(index) => {
                let case = &world.cases[index as usize];
                let domain = &world.domains[case.domain];
                ExpectedRow {
                    id: Arc::clone(&case.id),
                    cells: case_cells(domain, case),
                    either: either(Some(&case.modified_by), Some(&case.owner_id), domain, case.changed),
                    optional: !case.presence.is_live(),
                }
            }
            Record::Form(index) => {
                let form = &world.forms[index as usize];
                let domain = &world.domains[form.domain];
                ExpectedRow {
                    id: Arc::clone(&form.id),
                    cells: form_cells(world, domain, form),
                    either: either(form_user(world, form).as_deref(), None, domain, form.changed),
                    optional: !form.presence.is_live(),
                }
            }
            Record::Place(index) => expected_place(world, index),
        }
    }

    /// All expected rows with their tables.
    #[cfg(test)]
    pub(crate) fn expected_rows(&self, options: &ExpectationOptions) -> Vec<(TableKey, ExpectedRow)> {
        let register = self.register();
        let mut rows = Vec::new();
        for (table, records) in self.expected_tables() {
            rows.extend(
                records.into_iter().map(|record| (table.clone(), self.expected_row(record, &register, options))),
            );
        }
        rows
    }
}

/// Location rows follow their tree at once: nothing is left open.
fn expected_place(world: &World, index: u32) -> ExpectedRow {
    let place = &world.places[index as usize];
    ExpectedRow {
        id: Arc::clone(&place.location_id),
        cells: place_cells(world, &world.domains[place.domain], place),
        either: vec![Map::new()],
        optional: false,
    }
}

/// The different sets of location columns that a row of a user may have got from some turn `from` on. The lake asks for the user and for the
/// tree at different moments, so any assignment goes with any tree of that time. Where the user is nowhere, a case belongs to the place that
/// owns it.
fn possible_places(domain: &Domain, person: Option<&Person>, owner: Option<u32>, from: u64) -> Vec<Cells> {
    let mut possible: Vec<Cells> = Vec::new();
    let mut add = |cells: Cells| {
        if !possible.contains(&cells) {
            possible.push(cells);
        }
    };
    let name = |level: &usize| format!("+{}_id", domain.place_types[*level].key());
    let mut assignments: Vec<Option<u32>> =
        person.iter().flat_map(|person| true_since(&person.assignments, from).copied()).collect();
    if person.is_none_or(|person| person.retired) {
        // User services differ in whether retired users still have a place.
        assignments.push(None);
    }
    let trees: Vec<_> = true_since(&domain.trees, from).collect();
    for assignment in assignments {
        for tree in &trees {
            // A place that is gone lies nowhere: its way is empty.
            let way = |place: u32| tree.get(&place).filter(|way| !way.is_empty());
            let whereabouts = [assignment, owner].into_iter().flatten().find_map(way);
            let levels = whereabouts.into_iter().flatten();
            add(levels.map(|(level, id)| (name(level), Value::String(id.to_string()))).collect());
        }
    }
    if trees.is_empty() {
        add(Map::new());
    }
    possible
}

/// What was true in some turn from `from` on. What changes in a turn is true in that turn, too, until the change.
fn true_since<T>(noted: &[(u64, T)], from: u64) -> impl Iterator<Item = &T> {
    let over = move |number: usize| noted.get(number + 1).is_some_and(|(next, _)| *next < from);
    noted.iter().enumerate().filter(move |(number, _)| !over(*number)).map(|(_, (_, noted))| noted)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::life::LifeOptions;

    #[test]
    fn files_hold_what_they_say() {
        let mut life = Life::new(LifeOptions { seed: 21, sabotage: true, ..LifeOptions::default() });
        life.opening();
        for _ in 0..800 {
            life.turn();
        }
        life.settle();
        let directory = std::env::temp_dir().join(format!("expectation-{}", std::process::id()));
        let summary = life.write_expectation(&directory, &ExpectationOptions { place_slack_turns: 5 }).unwrap();
        let list: Vec<Value> = serde_json::from_slice(&std::fs::read(directory.join("tables.json")).unwrap()).unwrap();
        assert_eq!(list.len(), summary.tables);
        let mut rows = 0;
        for table in &list {
            let text = std::fs::read_to_string(directory.join(table["rows"].as_str().unwrap())).unwrap();
            for line in text.lines() {
                let row: Value = serde_json::from_str(line).unwrap();
                assert_eq!(row["id"], row["cells"]["/_id"]);
                assert_eq!(row["cells"]["+type"], table["type"]);
                assert!(!row["either"].as_array().unwrap().is_empty());
                assert!(row["cells"].as_object().unwrap().keys().all(|path| path.starts_with(['/', '+'])));
                rows += 1;
            }
        }
        assert_eq!(rows, summary.rows);
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_record_may_carry_any_place_since_its_last_change() {
        let mut life = Life::new(LifeOptions { mischief: false, ..LifeOptions::default() });
        life.opening();
        for _ in 0..6_000 {
            life.turn();
        }
        let options = |place_slack_turns| ExpectationOptions { place_slack_turns };
        let count = |slack| life.expected_rows(&options(slack)).iter().map(|(_, row)| row.either.len()).sum::<usize>();
        let (strict, lax, all) = (count(0), count(500), count(u64::MAX));
        assert!(strict < lax && lax < all, "{strict} {lax} {all}");
        for (_, row) in life.expected_rows(&options(0)) {
            let distinct: std::collections::HashSet<String> = row.either.iter().map(|set| format!("{set:?}")).collect();
            assert_eq!(distinct.len(), row.either.len());
        }
    }
}

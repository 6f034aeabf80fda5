#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeSet, HashMap, HashSet};

use lake_hq::source::{Columns, HqDatabase, ReadFrom, TreeExtent, TreeRow};
use serde_json::Value;

use super::*;
use crate::expectation::ExpectationOptions;
use crate::memory_hq::MemoryHq;

const STRICT: ExpectationOptions = ExpectationOptions { place_slack_turns: 0 };

fn lived(options: LifeOptions, turns: usize) -> (Life, std::sync::Arc<MemoryHq>, Vec<Turn>) {
    let (mut life, hq) = (Life::new(options), MemoryHq::new());
    let mut played = vec![life.opening()];
    played.extend((0..turns).map(|_| life.turn()));
    played.push(life.settle());
    for turn in &played {
        hq.apply(turn);
    }
    (life, hq, played)
}

fn text<'a>(row: &'a Columns, name: &str) -> &'a str {
    row[name].as_str().unwrap_or_default()
}

#[test]
fn the_same_seed_gives_the_same_life() {
    let options = LifeOptions { seed: 7, sabotage: true, ..LifeOptions::default() };
    let (one, _, first) = lived(options.clone(), 1_500);
    let (two, _, second) = lived(options.clone(), 1_500);
    assert!(first == second);
    assert_eq!(one.changes(), two.changes());
    assert_eq!(one.changes() as usize, first.iter().map(|turn| turn.messages.len()).sum::<usize>());
    let (_, _, other) = lived(LifeOptions { seed: 8, ..options }, 10);
    assert!(other[0] != first[0]);
}

#[test]
fn an_orderly_life_announces_at_once_and_only_what_parses() {
    let (life, _, played) = lived(LifeOptions { mischief: false, ..LifeOptions::default() }, 2_000);
    assert!(played.last().unwrap().messages.is_empty());
    let domains: HashSet<String> = life.domains().into_iter().collect();
    for message in played.iter().flat_map(|turn| &turn.messages) {
        let value: Value = serde_json::from_slice(&message.value).unwrap();
        assert_eq!(value["document_id"].as_str(), message.key.as_deref());
        assert!(domains.contains(value["domain"].as_str().unwrap()));
        assert!(value["publish_timestamp"].as_str().unwrap().ends_with('Z'));
    }
}

/// Every change of a row has a message at the same time or later, except of rows that nobody is told of.
#[test]
fn no_change_stays_unannounced_and_no_message_precedes_its_change() {
    let (life, _, played) = lived(LifeOptions { seed: 3, ..LifeOptions::default() }, 4_000);
    let mut last_change: HashMap<(&str, String), usize> = HashMap::new();
    let mut last_message: HashMap<(&str, String), usize> = HashMap::new();
    for (number, turn) in played.iter().enumerate() {
        for mutation in &turn.mutations {
            let Mutation::Put { table, row } = mutation else { continue };
            let (topic, id) = match table {
                crate::turn::Table::Case => ("case-sql", text(row, "case_id")),
                crate::turn::Table::Form if row["state"] != 4 => ("form-sql", text(row, "form_id")),
                crate::turn::Table::Location => ("location", text(row, "location_id")),
                _ => continue,
            };
            last_change.insert((topic, id.to_owned()), number);
        }
        for message in &turn.messages {
            let value: Value = serde_json::from_slice(&message.value).unwrap();
            let key = (message.topic, value["document_id"].as_str().unwrap().to_owned());
            assert!(
                matches!(message.topic, "commcare-user" | "web-user") || last_change.contains_key(&key),
                "{key:?} came early"
            );
            last_message.insert(key, number);
        }
    }
    for (key, changed) in last_change {
        let said = last_message.get(&key).copied();
        assert!(said.is_some_and(|said| said >= changed), "{key:?} changed in turn {changed}, last said {said:?}");
    }
    let gone = life.world.cases.iter().filter(|case| case.presence.may_linger()).count();
    assert!(gone > 0, "the life is too short to have silent deletions");
}

/// HQ's time of modification is no order: it goes back when forms wait for locks, and stays when a case is deleted.
#[test]
fn the_time_of_modification_goes_back_and_stays() {
    let (_, _, played) = lived(LifeOptions { seed: 11, ..LifeOptions::default() }, 4_000);
    let mut held: HashMap<String, (String, bool)> = HashMap::new();
    let (mut went_back, mut deleted_at_the_same) = (0, 0);
    for mutation in played.iter().flat_map(|turn| &turn.mutations) {
        let Mutation::Put { table: crate::turn::Table::Case, row } = mutation else { continue };
        let (modified, deleted) = (text(row, "server_modified_on").to_owned(), row["deleted"] == true);
        if let Some((before, was_deleted)) = held.insert(text(row, "case_id").to_owned(), (modified.clone(), deleted)) {
            went_back += usize::from(modified < before);
            deleted_at_the_same += usize::from(deleted && !was_deleted && modified == before);
        }
    }
    assert!(went_back > 100 && deleted_at_the_same > 5, "{went_back} {deleted_at_the_same}");
}

#[tokio::test]
async fn what_is_expected_is_live_in_hq_and_the_other_way_round() {
    let (life, hq, _) = lived(LifeOptions { seed: 5, sabotage: true, ..LifeOptions::default() }, 6_000);
    let ports = hq.hq();
    let rows = life.expected_rows(&STRICT);
    let of = |topic: &str, optional: bool| -> Vec<String> {
        rows.iter()
            .filter(|(table, row)| table.space.kind.topic() == topic && row.optional == optional)
            .map(|(_, row)| row.id.to_string())
            .collect()
    };
    let cases = ports.database.cases(&of("case-sql", false), ReadFrom::Replica).await.unwrap();
    assert!(cases.iter().all(|seen| seen.rows.as_ref().unwrap().case["deleted"] == false));
    let forms = ports.database.forms(&of("form-sql", false), ReadFrom::Replica).await.unwrap();
    assert!(forms.iter().all(|seen| {
        let form = &seen.rows.as_ref().unwrap().form;
        form["state"] == 1 && form["deleted_on"].is_null()
    }));
    for gone in ports.database.cases(&of("case-sql", true), ReadFrom::Replica).await.unwrap() {
        assert!(gone.rows.is_none());
    }
    let all_cases: Vec<String> = life.world.cases.iter().map(|case| case.id.to_string()).collect();
    let live = ports.database.cases(&all_cases, ReadFrom::Replica).await.unwrap();
    let live = live.iter().filter(|seen| seen.rows.as_ref().is_some_and(|rows| rows.case["deleted"] == false)).count();
    assert_eq!(live, of("case-sql", false).len());
    for domain in life.domains() {
        let held = location_ids(&*ports.database, &domain).await.len();
        let expected = rows
            .iter()
            .filter(|(table, _)| table.space.kind.topic() == "location" && table.space.domain.as_str() == domain)
            .count();
        assert_eq!(held, expected, "locations of {domain}");
    }
}

async fn location_ids(database: &dyn HqDatabase, domain: &str) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    let mut take = |row: TreeRow<'_>| {
        if let TreeRow::Location(node) = row {
            ids.insert(node.location_id.to_owned());
        }
    };
    database.location_tree(domain, TreeExtent::Whole, &mut take).await.unwrap();
    ids
}

/// The place columns of a case changed in the last turns are those that its user has in HQ.
#[tokio::test]
async fn places_of_users_agree_with_the_user_directory() {
    let (life, hq, _) = lived(LifeOptions { seed: 6, ..LifeOptions::default() }, 3_000);
    let ports = hq.hq();
    for person in &life.world.people {
        let domain = life.world.domains[person.domain].name.to_string();
        let id = person.id.to_string();
        let answers = ports.users.locations(&domain, std::slice::from_ref(&id)).await.unwrap();
        let noted = life.world.whereabouts(person.place);
        let tree = location_ids(&*ports.database, &domain).await;
        let standing = answers[&id].as_ref().filter(|place| tree.contains(*place));
        if !person.retired {
            assert_eq!(standing.map(String::as_str), noted.first().map(|(_, place)| &**place));
        }
    }
}

#[tokio::test]
async fn rows_in_hq_carry_what_is_expected() {
    let (life, hq, _) = lived(LifeOptions { seed: 9, ..LifeOptions::default() }, 4_000);
    let ports = hq.hq();
    for (table, row) in life.expected_rows(&STRICT).iter().filter(|(_, row)| !row.optional) {
        let ids = [row.id.to_string()];
        match table.space.kind.topic() {
            "case-sql" => {
                let held = ports.database.cases(&ids, ReadFrom::Replica).await.unwrap().remove(0).rows.unwrap();
                assert_eq!(held.case["type"], row.cells["+type"]);
                assert_eq!(held.case["server_modified_on"], row.cells["/server_modified_on"]["timestamp"]);
                assert_eq!(held.transactions.len(), row.cells["/actions"]["json"].as_array().unwrap().len());
                let links: Vec<&str> = held.indices.iter().map(|index| text(index, "identifier")).collect();
                let expected = row.cells["/indices"]["json"].as_array().unwrap();
                assert_eq!(
                    links,
                    expected.iter().map(|index| index["identifier"].as_str().unwrap()).collect::<Vec<_>>()
                );
                let properties: Value = serde_json::from_str(text(&held.case, "case_json")).unwrap();
                for name in ["village", "dob", "visit_count"] {
                    assert_eq!(properties.get(name), row.cells.get(&format!("/{name}")));
                }
            }
            "form-sql" => {
                let held = ports.database.forms(&ids, ReadFrom::Replica).await.unwrap().remove(0).rows.unwrap();
                assert_eq!(held.operations.len(), row.cells["/history"]["json"].as_array().unwrap().len());
                let xml = ports.blobs.get(&held.xml.unwrap()).await.unwrap().bytes().unwrap();
                assert!(xml.len() > 200);
            }
            _ => {}
        }
    }
}

#[test]
fn a_life_has_everything_in_it() {
    let (life, _, played) = lived(LifeOptions { seed: 4, sabotage: true, ..LifeOptions::default() }, 8_000);
    let states: HashSet<i64> = life.world.forms.iter().map(|form| form.state).collect();
    assert_eq!(states, HashSet::from([1, 2, 4, 8, 16, 32]));
    let healths: HashSet<String> = life.world.forms.iter().map(|form| format!("{:?}", form.health)).collect();
    assert_eq!(healths.len(), 5);
    assert!(
        life.world.places.iter().any(|place| place.gone)
            && life.world.places.iter().any(|place| place.archived.is_some())
    );
    assert!(played.iter().flat_map(|turn| &turn.messages).any(|message| message.key.is_none()));
    let sizes: Vec<usize> = life.world.forms.iter().map(|form| form.blob.1).collect();
    let mean = sizes.iter().sum::<usize>() / sizes.len();
    assert!((2_000..12_000).contains(&mean), "forms have {mean} bytes on average");
}

/// (name, whether it may be null, longest text) of each column that the schema gives a table, without serials of shards.
fn columns_of(table: crate::turn::Table) -> HashMap<String, (bool, usize)> {
    let head = format!("create table if not exists {} (", table.name());
    let schema = if table.shard_column().is_some() { crate::schema::SHARD } else { crate::schema::MAIN };
    let body = schema.split(&head).nth(1).unwrap().split("\n);").next().unwrap();
    let mut columns = HashMap::new();
    for line in body.lines() {
        let Some((name, rest)) = line.strip_prefix("    ").and_then(|line| line.split_once(' ')) else { continue };
        if name.is_empty() || name == "--" || name == "unique" || (name == "id" && table.shard_column().is_some()) {
            continue;
        }
        let longest = rest.strip_prefix("varchar(").and_then(|rest| rest.split_once(')')?.0.parse().ok());
        let required = rest.contains("not null") || rest.contains("primary key");
        columns.insert(name.to_owned(), (!required, longest.unwrap_or(usize::MAX)));
    }
    columns
}

#[test]
fn rows_are_complete_and_fit_the_schema() {
    let tables: HashMap<_, _> = crate::turn::Table::ALL.into_iter().map(|table| (table, columns_of(table))).collect();
    let (_, _, played) = lived(LifeOptions { seed: 13, sabotage: true, ..LifeOptions::default() }, 4_000);
    for mutation in played.iter().flat_map(|turn| &turn.mutations) {
        let Mutation::Put { table, row } = mutation else { continue };
        let columns = &tables[table];
        assert_eq!(row.len(), columns.len(), "columns of {}: {row:?}", table.name());
        for (name, value) in row {
            let (nullable, longest) = columns[name];
            assert!(nullable || !value.is_null(), "{}.{name} must not be null: {row:?}", table.name());
            let text = value.as_str().unwrap_or_default();
            assert!(text.chars().count() <= longest, "{}.{name} is too long: {text}", table.name());
            assert!(!text.contains('\u{0}'), "{}.{name} holds NUL", table.name());
        }
    }
}

//! What the simulated HQ expects of documents, against what `lake-hq` makes of the simulated HQ's rows and XML. The two were written
//! independently from the reference, so a difference is a fault in one of them.

#![allow(clippy::unwrap_used, reason = "tests")]

use lake_hq::documents;
use lake_hq::locations::AncestorPaths;
use lake_hq::source::{LocationKeys, ReadFrom};
use lake_hq::xform;
use serde_json::{Map, Value};

use super::{Cells, flatten, form_json, is_lake_column};
use crate::expectation::ExpectationOptions;
use crate::life::{Life, LifeOptions};
use crate::memory_hq::MemoryHq;
use crate::world::Health;

fn lived(seed: u64, turns: usize) -> (Life, std::sync::Arc<MemoryHq>) {
    let (mut life, hq) = (Life::new(LifeOptions { seed, sabotage: true, ..LifeOptions::default() }), MemoryHq::new());
    hq.apply(&life.opening());
    for _ in 0..turns {
        hq.apply(&life.turn());
    }
    (life, hq)
}

/// Typed values as the text that a document has.
fn plain(cells: &Cells) -> Map<String, Value> {
    let text = |value: &Value| match value {
        Value::Object(typed) => match typed.iter().next().unwrap() {
            (name, value) if name == "json" => value.clone(),
            (_, value) => {
                Value::String(value.as_str().unwrap().replace(".000000Z", "").trim_end_matches('Z').to_owned())
            }
        },
        Value::String(text) => Value::String(text.replace(".000000Z", "").trim_end_matches('Z').to_owned()),
        other => Value::String(other.to_string()),
    };
    cells.iter().filter(|(path, _)| !path.starts_with('+')).map(|(path, value)| (path.clone(), text(value))).collect()
}

fn flat(document: Map<String, Value>) -> Cells {
    let mut cells = Cells::new();
    flatten(&mut cells, String::new(), Value::Object(document));
    cells
}

#[track_caller]
fn assert_same(id: &str, expected: &Cells, made: &Cells) {
    for (path, value) in expected {
        assert_eq!(made.get(path), Some(value), "{path} of {id}: lake-hq has the left, the life expects the right");
    }
    for path in made.keys() {
        assert!(expected.contains_key(path), "{path} of {id} is not expected: {}", made[path]);
    }
}

#[tokio::test]
async fn forms_are_read_as_the_life_wrote_them() {
    let (life, hq) = lived(11, 6_000);
    let ports = hq.hq();
    for form in life.world.forms.iter().filter(|form| form.presence.is_live() && form.state != 32) {
        let domain = &life.world.domains[form.domain];
        let rows =
            ports.database.forms(&[form.id.to_string()], ReadFrom::Replica).await.unwrap().remove(0).rows.unwrap();
        let Some(reference) = &rows.xml else {
            assert_eq!(form.health, Health::ReferenceMissing);
            continue;
        };
        let Some(xml) = ports.blobs.get(reference).await.unwrap().bytes() else {
            assert_eq!(form.health, Health::BlobMissing);
            continue;
        };
        match xform::form_json(&xml) {
            Ok(made) => {
                assert_eq!(form.health, Health::Fine, "{}", String::from_utf8_lossy(&xml));
                assert_eq!(
                    Value::Object(made),
                    form_json(&life.world, domain, form),
                    "{}",
                    String::from_utf8_lossy(&xml)
                );
            }
            Err(error) => {
                let expected = if error.is_raised() { Health::Raises } else { Health::Broken };
                assert_eq!(form.health, expected, "{error}: {}", String::from_utf8_lossy(&xml));
            }
        }
    }
}

#[tokio::test]
async fn documents_have_the_expected_cells() {
    let (life, hq) = lived(12, 4_000);
    let ports = hq.hq();
    let mut compared = 0;
    for (table, row) in life.expected_rows(&ExpectationOptions { place_slack_turns: 0 }) {
        let ids = [row.id.to_string()];
        let made = match table.space.kind.topic() {
            _ if row.optional => continue,
            "case-sql" => {
                let rows = ports.database.cases(&ids, ReadFrom::Replica).await.unwrap().remove(0).rows.unwrap();
                documents::case::to_json(&rows, documents::case::CaseOptions::default()).unwrap()
            }
            "form-sql" => {
                let rows = ports.database.forms(&ids, ReadFrom::Replica).await.unwrap().remove(0).rows.unwrap();
                let xml = match &rows.xml {
                    Some(reference) => ports.blobs.get(reference).await.unwrap().bytes(),
                    None => None,
                };
                let data = xml.and_then(|xml| xform::form_json(&xml).ok()).unwrap_or_default();
                documents::form::to_json(&rows, data).unwrap()
            }
            _ => {
                let rows = ports.database.location_rows(LocationKeys::LocationIds(&ids)).await.unwrap().rows;
                let ways = AncestorPaths::new(ports.database.location_ancestors(&[rows[0].id]).await.unwrap());
                let lineage: Vec<&str> = ways.above(&rows[0]).iter().map(|step| step.location_id.as_str()).collect();
                documents::location::to_json(&rows[0], &lineage).unwrap()
            }
        };
        let mut made = plain(&flat(made));
        let expected = plain(&row.cells);
        if table.space.kind.topic() == "case-sql" {
            let domain = life.world.domains.iter().find(|domain| *domain.name == *table.space.domain.as_str()).unwrap();
            // Which copies of a property show is the lake's own rule, not HQ's.
            made.retain(|path, _| !path.starts_with("/case_json/") || expected.contains_key(path));
            made.retain(|path, _| !is_lake_column(domain, path[1..].split('/').next().unwrap()) && path != "/type");
        }
        assert_same(&row.id, &expected, &made);
        compared += 1;
    }
    assert!(compared > 3_000, "only {compared} rows were compared");
}

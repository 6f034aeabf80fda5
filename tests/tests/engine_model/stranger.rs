//! Somebody else who commits to the lake's tables: python deltalake, or Spark.

use std::collections::BTreeMap;
use std::path::Path;

use lake_tests::engine::{Cell, EngineLake, NewRow, write_parquet};
use lake_tests::parts::{Spark, sql_name};
use lake_tests::readers::{Readers, Snapshot};
use rand::RngExt;
use rand::rngs::StdRng;

use crate::history::{Model, TYPES, id_text};

/// Does something to a random table that has rows, and to the model the same. Tells what it did.
pub fn intrude(
    random: &mut StdRng,
    lake: &EngineLake,
    tables: &BTreeMap<usize, Snapshot>,
    model: &mut Model,
    readers: &mut Readers,
    as_spark: bool,
) -> anyhow::Result<Option<String>> {
    let filled: Vec<(&usize, &Snapshot)> = tables.iter().filter(|(_, table)| !table.rows.is_empty()).collect();
    if filled.is_empty() {
        return Ok(None);
    }
    let (&number, table) = filled[random.random_range(0..filled.len())];
    let folder = lake.table(TYPES[number]);
    let ids = model.ids_in(number);
    let Some(&id) = ids.get(random.random_range(0..ids.len().max(1))) else { return Ok(None) };
    let target = format!("_id = '{}'", id_text(id));
    let name = sql_name(&folder);
    let done = match random.random_range(0..6) {
        0 | 1 => {
            either(as_spark, &[&format!("DELETE FROM {name} WHERE {target}")], || readers.delete(&folder, &target))?;
            model.take(id);
            format!("deleted {target}")
        }
        2 => {
            // Only a column that the lake made: what a stranger adds means nothing to it.
            let texts = |(_, source): &(&String, &String)| source.starts_with("/p");
            let Some((column, source)) = table.sources.iter().find(texts) else { return Ok(None) };
            let statement = format!("UPDATE {name} SET `{column}` = 'strange' WHERE {target}");
            either(as_spark, &[&statement], || readers.update(&folder, column, "'strange'", &target))?;
            model.set(id, source, "strange");
            format!("updated {column} of {target}")
        }
        3 => append(random, lake, &folder, number, table, model, readers)?,
        4 => {
            if table.sources.contains_key("stranger") {
                return Ok(None);
            }
            let statement = format!("ALTER TABLE {name} ADD COLUMN stranger STRING");
            either(as_spark, &[&statement], || readers.add_column(&folder, "stranger"))?;
            "added a column".to_owned()
        }
        _ => {
            either(as_spark, &[&format!("OPTIMIZE {name}")], || readers.optimize(&folder))?;
            "optimized".to_owned()
        }
    };
    Ok(Some(format!("a stranger {done} in table {number}")))
}

fn either(as_spark: bool, statements: &[&str], otherwise: impl FnOnce() -> anyhow::Result<u64>) -> anyhow::Result<()> {
    if as_spark { Spark::shared(|spark| spark.sql(statements)).map(drop) } else { otherwise().map(drop) }
}

/// Appends a row with an id that nobody has.
fn append(
    random: &mut StdRng,
    lake: &EngineLake,
    folder: &Path,
    number: usize,
    table: &Snapshot,
    model: &mut Model,
    readers: &mut Readers,
) -> anyhow::Result<String> {
    let id = random.random_range(1_000_000..2_000_000);
    let texts = table.sources.iter().find(|(_, source)| source.starts_with("/p"));
    let cells: BTreeMap<String, Cell> =
        texts.iter().map(|(_, source)| ((*source).clone(), Cell::Text("appended".into()))).collect();
    let row = NewRow { id: id_text(id), version_us: 3, observed_us: 5, cells };
    let file = lake.scratch().join("append.parquet");
    let name_of = |source: &str| {
        let column = table.sources.iter().find(|(_, held)| *held == source);
        column.map_or_else(|| source.to_owned(), |(name, _)| name.clone())
    };
    write_parquet(&file, std::slice::from_ref(&row), None, name_of)?;
    readers.append(folder, &file)?;
    model.append(id, number, &row);
    Ok(format!("appended {}", row.id))
}

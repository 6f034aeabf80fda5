//! Readers of a table: DuckDB and Polars, through the script beside this file.

use std::path::PathBuf;
use std::process::Command;

use lake_tests::parts;
use serde::Deserialize;

use super::arguments::Arguments;
use super::home::Home;
use super::phase::output_of;
use super::{rows, table};

/// What one reader took for one query.
#[derive(Clone, Debug, Deserialize)]
pub struct Query {
    reader: String,
    query: String,
    milliseconds: f64,
    /// What the query found, to compare the readers.
    found: i64,
}

/// One look at a table by all readers.
#[derive(Clone, Debug, Deserialize)]
pub struct Scanned {
    files: u64,
    queries: Vec<Query>,
}

/// The Python that has the readers.
pub fn python(arguments: &Arguments) -> anyhow::Result<PathBuf> {
    match &arguments.python {
        Some(python) => Ok(python.clone()),
        None => Ok(parts::parts_dir()?.join("python/bin/python")),
    }
}

/// A script beside this file.
pub fn script(name: &str) -> PathBuf {
    lake_tests::package_file("benches/engine").join(name)
}

/// Reads the table of a home.
pub fn scan(arguments: &Arguments, home: &Home) -> anyhow::Result<Scanned> {
    let mut command = Command::new(python(arguments)?);
    command.arg(script("scan.py")).arg("--table").arg(home.table_folder());
    command.args(["--month", &rows::month_text(30), "--supervisor", &rows::supervisor(7)]);
    output_of(command)
}

/// Prints the scans of one table in several states.
pub fn print(rows: u64, scanned: &[(&str, Scanned)]) {
    let title = format!("Readers, {} rows (median milliseconds, opening the table included)", table::number(rows));
    let Some((_, first)) = scanned.first() else { return };
    let queries: Vec<String> = first.queries.iter().map(|query| format!("{} {}", query.reader, query.query)).collect();
    let mut columns = vec!["table", "files"];
    columns.extend(queries.iter().map(String::as_str));
    columns.push("readers agree");
    table::begin(&title, &columns);
    for (state, scanned) in scanned {
        let mut cells = vec![(*state).to_owned(), table::number(scanned.files)];
        cells.extend(scanned.queries.iter().map(|query| table::figure(query.milliseconds)));
        cells.push(if scanned.agree() { "yes" } else { "NO" }.to_owned());
        table::line(&cells);
    }
}

impl Scanned {
    fn agree(&self) -> bool {
        self.queries
            .iter()
            .all(|one| self.queries.iter().all(|other| one.query != other.query || one.found == other.found))
    }
}

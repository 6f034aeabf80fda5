//! What the demo shows at its end: the tables, and how to open one.

use std::path::{Path, PathBuf};

use chrono::Utc;
use lake_shared::error_chain::Chain;
use lake_shared::identity::Kind;
use lake_writer::metastore::{Metastore, TableRecord};
use object_store::local::LocalFileSystem;

use super::form_name;
use super::table_list::{self, Line};

/// Tables shown; the rest is counted.
const TABLES_SHOWN_MAX: usize = 40;

/// Width of the list where standard output is not a terminal.
const WIDTH_WITHOUT_TERMINAL: usize = 120;

/// Prints all tables with rows and freshness, and lines to open the largest one.
///
/// # Errors
/// The metastore does not answer.
pub async fn print(metastore: &dyn Metastore, folder: &Path, changes: u64) -> anyhow::Result<()> {
    let mut tables = metastore.tables(None).await?;
    tables.sort_by(|one, other| one.key.cmp(&other.key));
    let now = Utc::now().timestamp_micros();
    println!("\n{changes} changes are in the lake. Tables below {}:\n", folder.join("tables").display());
    let mut shown = Vec::new();
    for table in tables.iter().take(TABLES_SHOWN_MAX) {
        shown.push(line(metastore, table, now).await);
    }
    let rows = tables.iter().map(|table| table.state.rows).sum();
    let width = console::Term::stdout().size_checked().map_or(WIDTH_WITHOUT_TERMINAL, |(_, columns)| columns.into());
    for line in table_list::lines(&shown, tables.len(), rows, width) {
        println!("{line}");
    }
    if tables.len() > TABLES_SHOWN_MAX {
        println!("  {} of them are not shown", tables.len() - TABLES_SHOWN_MAX);
    }
    // A case table is what people look at first.
    let largest = tables.iter().filter(|table| table.key.space.kind == Kind::Case).max_by_key(|table| table.state.rows);
    if let Some(table) = largest.or(tables.first()) {
        open_lines(table);
    }
    Ok(())
}

async fn line(metastore: &dyn Metastore, table: &TableRecord, now_us: i64) -> Line {
    let state = &table.state;
    Line {
        path: table.path.clone(),
        name: form_name_of(metastore, table).await.unwrap_or_default(),
        rows: state.rows,
        files: state.files,
        version: state.version,
        age: age(state.last_commit_us, now_us),
    }
}

/// The name that people gave the form of a table; `None` for cases and locations, and where it cannot be read.
async fn form_name_of(metastore: &dyn Metastore, table: &TableRecord) -> Option<String> {
    if table.key.space.kind != Kind::Form {
        return None;
    }
    let read = async {
        let store = LocalFileSystem::new_with_prefix(local_folder(table)?)?;
        // With its schema, which lists do not have.
        let Some(table) = metastore.table(&table.key).await? else { return Ok(None) };
        form_name::newest(&store, &table.state).await
    };
    read.await.unwrap_or_else(|error| {
        tracing::warn!(table = table.name, error = %Chain(&*error), "the form's name cannot be read");
        None
    })
}

fn local_folder(table: &TableRecord) -> anyhow::Result<PathBuf> {
    let folder = url::Url::parse(&table.location)?.to_file_path();
    folder.map_err(|()| anyhow::anyhow!("{} is no local folder", table.location))
}

fn open_lines(table: &TableRecord) {
    let path = table.location.strip_prefix("file://").unwrap_or(&table.location).trim_end_matches('/');
    println!("\nOpen one with DuckDB (pip install duckdb):\n");
    println!("  python3 -c \"import duckdb; duckdb.sql(\\\"select * from delta_scan('{path}') limit 10\\\").show()\"");
    println!("\nor with Polars (pip install polars deltalake):\n");
    println!("  python3 -c \"import polars; print(polars.read_delta('{path}'))\"");
}

/// Prints how many changes were made, how many are on their way into the lake, and what is in it, in one line.
pub async fn print_line(metastore: &dyn Metastore, changes: u64, waiting: usize) {
    if let Ok(tables) = metastore.tables(None).await {
        let rows: i64 = tables.iter().map(|table| table.state.rows).sum();
        println!("{changes} changes, {waiting} on their way; {} tables, {rows} rows", tables.len());
    }
}

/// Time between two instants in microseconds, in the unit that suits it.
fn age(then_us: Option<i64>, now_us: i64) -> String {
    let Some(then) = then_us else { return "-".into() };
    let seconds = (now_us - then).max(0) / 1_000_000;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3_600),
    }
}

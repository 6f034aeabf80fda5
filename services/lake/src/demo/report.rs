//! What the demo shows at its end: the tables, and how to open one.

use std::path::Path;

use chrono::Utc;
use lake_shared::identity::Kind;
use lake_writer::metastore::{Metastore, TableRecord};

/// Tables shown; the rest is counted.
const TABLES_SHOWN_MAX: usize = 40;

/// Prints all tables with rows and freshness, and lines to open the largest one.
pub async fn print(metastore: &dyn Metastore, folder: &Path, changes: u64) -> anyhow::Result<()> {
    let mut tables = metastore.tables(None).await?;
    tables.sort_by(|one, other| one.key.cmp(&other.key));
    let now = Utc::now().timestamp_micros();
    println!("\n{changes} changes are in the lake. Tables below {}:\n", folder.join("tables").display());
    println!("  {:<54} {:<12} {:>7} {:>6} {:>8} {:>8}", "table", "", "rows", "files", "version", "fresh");
    let rows_most = tables.iter().map(|table| table.state.rows).max().unwrap_or(0);
    for table in tables.iter().take(TABLES_SHOWN_MAX) {
        let state = &table.state;
        let version = state.version.map_or_else(|| "-".to_owned(), |version| version.to_string());
        println!(
            "  {:<54} {:<12} {:>7} {:>6} {:>8} {:>8}",
            table.path,
            bar(state.rows, rows_most),
            state.rows,
            state.files,
            version,
            age(state.last_commit_us, now)
        );
    }
    if tables.len() > TABLES_SHOWN_MAX {
        println!("  ... and {} more", tables.len() - TABLES_SHOWN_MAX);
    }
    let rows: i64 = tables.iter().map(|table| table.state.rows).sum();
    println!("  {:<54} {:<12} {rows:>7}", format!("{} tables", tables.len()), "");
    // A case table is what people look at first.
    let largest = tables.iter().filter(|table| table.key.space.kind == Kind::Case).max_by_key(|table| table.state.rows);
    if let Some(table) = largest.or(tables.first()) {
        open_lines(table);
    }
    Ok(())
}

fn open_lines(table: &TableRecord) {
    let path = table.location.strip_prefix("file://").unwrap_or(&table.location).trim_end_matches('/');
    println!("\nOpen one with DuckDB (pip install duckdb):\n");
    println!("  python3 -c \"import duckdb; duckdb.sql(\\\"select * from delta_scan('{path}') limit 10\\\").show()\"");
    println!("\nor with Polars (pip install polars deltalake):\n");
    println!("  python3 -c \"import polars; print(polars.read_delta('{path}'))\"");
}

/// One line on how things are.
pub async fn print_line(metastore: &dyn Metastore, changes: u64, waiting: usize) {
    if let Ok(tables) = metastore.tables(None).await {
        let rows: i64 = tables.iter().map(|table| table.state.rows).sum();
        println!("{changes} changes, {waiting} on their way; {} tables, {rows} rows", tables.len());
    }
}

/// A bar of at most 12 blocks, so that the eye finds the large tables.
fn bar(rows: i64, most: i64) -> String {
    let eighths = if most > 0 { rows.max(0) * 12 * 8 / most } else { 0 };
    let (blocks, rest) = (eighths / 8, eighths % 8);
    let partial = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let partial = usize::try_from(rest).ok().and_then(|rest| partial.get(rest)).copied().unwrap_or_default();
    "█".repeat(usize::try_from(blocks).unwrap_or_default()) + partial
}

fn age(then_us: Option<i64>, now_us: i64) -> String {
    let Some(then) = then_us else { return "-".into() };
    let seconds = (now_us - then).max(0) / 1_000_000;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3_600),
    }
}

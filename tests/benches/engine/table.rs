//! Tables on standard output. Lines are printed as they are known, since a run takes long.

use std::fmt::Display;

/// Prints a title and the head of a table.
pub fn begin(title: &str, columns: &[&str]) {
    println!("\n## {title}\n");
    head(columns);
}

/// Prints the head of a table.
pub fn head(columns: &[&str]) {
    println!("| {} |", columns.join(" | "));
    println!("|{}", "-|".repeat(columns.len()));
}

/// Prints a line of a table.
pub fn line(cells: &[String]) {
    println!("| {} |", cells.join(" | "));
}

/// An integer with its thousands apart.
pub fn number(value: impl Display) -> String {
    let digits = value.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A figure with as many decimals as are worth reading.
pub fn figure(value: f64) -> String {
    match value {
        value if value >= 1_000.0 => number(value.round() as u64),
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// Bytes as MiB.
pub fn mebibytes(bytes: f64) -> String {
    figure(bytes / f64::from(1 << 20))
}

/// For what was not measured.
pub const NOTHING: &str = "–";

//! The figures that the engine is to reach: those of the design (§8) and of the issue about the engine. At its end a run says which of
//! those that it measured are met; it asserts nothing.

use super::table;

/// Keys of the upserts, merges and look-ups that aims are about.
pub const KEYS: u64 = 10_000;
/// The sizes between which the time of an upsert may grow only so much.
pub const ROWS_FEW: u64 = 1_000_000;
/// See [`ROWS_FEW`].
pub const ROWS_MANY: u64 = 100_000_000;
/// Size of the table in which the engine is compared with MERGE.
pub const ROWS_MERGED: u64 = 5_000_000;
/// Tables that one writer has at least when its memory is judged.
pub const TABLES: u64 = 1_000;

/// What is measured; its unit is with the aim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Median of upserts of [`KEYS`] keys.
    Upsert,
    /// That median with [`ROWS_MANY`] rows, divided by that with [`ROWS_FEW`].
    UpsertGrowth,
    /// Peak memory of these upserts.
    UpsertPeak,
    /// Median of deltalake's MERGE, divided by ours.
    MergeTime,
    /// Its peak memory, divided by ours.
    MergePeak,
    /// Median of look-ups of [`KEYS`] keys in the key index itself.
    LookUp,
    /// Longest trace of a record, its row read.
    Trace,
    /// Bytes on disk of an index as it was made, for each key.
    BytesAKey,
    /// The same after updates.
    BytesAKeyUpdated,
    /// Keys a second while an index is built anew.
    Rebuild,
    /// Longest time for which compaction may have held a batch up.
    Hold,
    /// Peak memory beside and during compaction.
    CompactionPeak,
    /// Peak memory of one engine with many tables; its size is their number.
    TablesPeak,
}

/// Which sizes an aim is about.
#[derive(Clone, Copy, Debug)]
enum Sizes {
    /// All that were measured.
    All,
    /// The largest that was measured.
    Largest,
    /// Only the table of this size, rows.
    Only(u64),
}

#[derive(Clone, Copy, Debug)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

/// A figure to reach.
#[derive(Clone, Copy, Debug)]
struct Aim {
    figure: Figure,
    sizes: Sizes,
    name: &'static str,
    bound: Bound,
    unit: &'static str,
}

const AIMS: [Aim; 14] = [
    aim(Figure::Upsert, Sizes::Only(ROWS_FEW), "upsert of 10,000 keys, median", Bound::AtMost(100.0), "ms"),
    aim(Figure::Upsert, Sizes::Only(ROWS_MANY), "upsert of 10,000 keys, median", Bound::AtMost(200.0), "ms"),
    aim(
        Figure::UpsertGrowth,
        Sizes::All,
        "upsert of 10,000 keys, growth since 1 million rows",
        Bound::AtMost(2.0),
        "times",
    ),
    aim(Figure::UpsertPeak, Sizes::All, "upsert of 10,000 keys, peak memory", Bound::AtMost(512.0), "MB"),
    aim(Figure::MergeTime, Sizes::Only(ROWS_MERGED), "deltalake's MERGE, our time", Bound::AtLeast(100.0), "times"),
    aim(Figure::MergePeak, Sizes::Only(ROWS_MERGED), "deltalake's MERGE, our memory", Bound::AtLeast(8.0), "times"),
    aim(Figure::LookUp, Sizes::Largest, "look-up of 10,000 keys, median, warm", Bound::AtMost(50.0), "ms"),
    aim(Figure::Trace, Sizes::Largest, "trace of a record, the slowest", Bound::AtMost(1_000.0), "ms"),
    aim(Figure::BytesAKey, Sizes::Largest, "index as it was made", Bound::AtMost(24.5), "bytes a key"),
    aim(Figure::BytesAKeyUpdated, Sizes::Largest, "index that was updated", Bound::AtMost(24.5), "bytes a key"),
    aim(Figure::Rebuild, Sizes::Largest, "rebuild of the index", Bound::AtLeast(1e6), "keys/s"),
    aim(Figure::Hold, Sizes::All, "longest hold of ingest by compaction", Bound::AtMost(100.0), "ms"),
    aim(Figure::CompactionPeak, Sizes::All, "writer's peak memory during compaction", Bound::AtMost(1_000.0), "MB"),
    aim(Figure::TablesPeak, Sizes::All, "writer's peak memory with its tables", Bound::AtMost(1_000.0), "MB"),
];

const fn aim(figure: Figure, sizes: Sizes, name: &'static str, bound: Bound, unit: &'static str) -> Aim {
    Aim { figure, sizes, name, bound, unit }
}

#[derive(Clone, Copy, Debug)]
struct Finding {
    figure: Figure,
    size: u64,
    value: f64,
}

/// What a run has found about the aims.
#[derive(Debug, Default)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// Notes a figure of a table with so many rows. Of several figures of one size, the worst counts.
    pub fn note(&mut self, figure: Figure, size: u64, value: f64) {
        self.0.push(Finding { figure, size, value });
    }

    /// Prints the aims of which something was found.
    pub fn print(&self) {
        let lines: Vec<[String; 4]> = AIMS.iter().filter_map(|aim| aim.line(&self.0)).collect();
        if !lines.is_empty() {
            table::begin("Aims, as far as this run measured them", &["aim", "bound", "found", "met"]);
            lines.iter().for_each(|line| table::line(line));
        }
    }
}

/// Bytes in the unit of the aims, which is a little less than the MiB of the other tables.
pub fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

impl Aim {
    fn line(&self, findings: &[Finding]) -> Option<[String; 4]> {
        let of_figure: Vec<&Finding> = findings.iter().filter(|finding| finding.figure == self.figure).collect();
        let largest = of_figure.iter().map(|finding| finding.size).max();
        let counts = |size: u64| match self.sizes {
            Sizes::All => true,
            Sizes::Largest => Some(size) == largest,
            Sizes::Only(only) => size == only,
        };
        let counting = of_figure.into_iter().filter(|finding| counts(finding.size));
        let worse = |one: &Finding, other: &Finding| self.bound.is_worse(one.value, other.value);
        let worst = counting.reduce(|one, other| if worse(one, other) { one } else { other })?;
        let of_what = if self.figure == Figure::TablesPeak { "tables" } else { "rows" };
        Some([
            self.name.to_owned(),
            format!("{} {}", self.bound.text(), self.unit),
            format!("{} {} ({} {of_what})", table::figure(worst.value), self.unit, table::number(worst.size)),
            if self.bound.is_met(worst.value) { "yes" } else { "NO" }.to_owned(),
        ])
    }
}

impl Bound {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }

    fn is_worse(self, value: f64, other: f64) -> bool {
        match self {
            Self::AtMost(_) => value > other,
            Self::AtLeast(_) => value < other,
        }
    }

    fn text(self) -> String {
        let (sign, value) = match self {
            Self::AtMost(most) => ("≤", most),
            Self::AtLeast(least) => ("≥", least),
        };
        let value = if value.fract() == 0.0 { table::number(value as u64) } else { value.to_string() };
        format!("{sign} {value}")
    }
}

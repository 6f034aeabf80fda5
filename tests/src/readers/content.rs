//! What a reader found in a table, so that readers can be compared with each other and with what should be there.

use std::collections::BTreeMap;

use anyhow::ensure;
use serde::Deserialize;

/// A row: column name to the text of its cell. NULL is absent. Moments are `2024-01-31T10:00:00.000000Z`, days `2024-01-31`.
pub type Row = BTreeMap<String, String>;

/// A table as one reader sees it.
#[derive(Clone, Debug, Deserialize)]
pub struct Content {
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Cells as text, in the order of the columns; the order of the rows means nothing.
    pub rows: Vec<Vec<Option<String>>>,
    /// What the reader's SQL says to `count(*)`.
    pub count: u64,
}

impl Content {
    /// The rows, sorted, so that two readers of one table give the same.
    ///
    /// # Errors
    /// When `count(*)` is not the number of rows.
    pub fn sorted(&self) -> anyhow::Result<Vec<Row>> {
        let found = self.rows.len();
        ensure!(self.count == found as u64, "count(*) says {}, but {found} rows are there", self.count);
        let named = |row: &Vec<Option<String>>| {
            let cells = self.columns.iter().zip(row);
            cells.filter_map(|(name, cell)| Some((name.clone(), cell.clone()?))).collect()
        };
        let mut rows: Vec<Row> = self.rows.iter().map(named).collect();
        rows.sort();
        Ok(rows)
    }

    /// Compares with the rows that should be there, which are sorted; the error names the first that differ.
    ///
    /// # Errors
    /// When rows or `count(*)` differ.
    pub fn ensure_is(&self, expected: &[Row]) -> anyhow::Result<()> {
        let found = self.sorted()?;
        let missing: Vec<&Row> = expected.iter().filter(|row| found.binary_search(row).is_err()).take(3).collect();
        let extra: Vec<&Row> = found.iter().filter(|row| expected.binary_search(row).is_err()).take(3).collect();
        ensure!(
            found == expected,
            "{} rows instead of {}; missing: {missing:#?}; not expected: {extra:#?}",
            found.len(),
            expected.len()
        );
        Ok(())
    }
}

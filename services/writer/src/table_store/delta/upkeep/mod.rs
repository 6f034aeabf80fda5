//! Upkeep of tables: cleaning up, dropping, restoring, commits of other programs, the check at the start, where single rows are,
//! and what is compared of rows.

pub(crate) mod compared_rows;
pub(crate) mod drop_tables;
pub(crate) mod external_changes;
pub(crate) mod locate;
pub(crate) mod restore;
pub(crate) mod startup_check;
pub(crate) mod status_table;
pub(crate) mod vacuum;

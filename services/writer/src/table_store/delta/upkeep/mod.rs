//! Upkeep of tables: cleaning up, commits of other programs, the check at the start.

pub(crate) mod drop_tables;
pub(crate) mod external_changes;
pub(crate) mod startup_check;
pub(crate) mod vacuum;

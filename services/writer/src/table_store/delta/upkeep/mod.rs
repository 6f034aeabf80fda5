//! Upkeep of tables: cleaning up, commits of others, the check at the start.

pub(crate) mod startup_check;
pub(crate) mod vacuum;

//! What is known of a space: its tables, their files, where the row of each id is, which ids were deleted.

pub(crate) mod cell;
pub(crate) mod delays;
pub(crate) mod eviction;
pub(crate) mod index;
pub(crate) mod live_files;
pub(crate) mod load;
pub(crate) mod loader;
pub(crate) mod memory_size;
pub(crate) mod reconcile;
pub(crate) mod registration;
pub(crate) mod report;
pub(crate) mod state;
pub(crate) mod table;
pub(crate) mod tombstones;
pub(crate) mod unusable;

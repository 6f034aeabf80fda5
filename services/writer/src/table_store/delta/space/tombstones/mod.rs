//! Remembered deletions.

pub(crate) mod dropped_types;
pub(crate) mod filter;
pub(crate) mod remembered;

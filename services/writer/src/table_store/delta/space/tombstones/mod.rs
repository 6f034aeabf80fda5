//! Remembered deletions.

pub(crate) mod dropped_types;
pub(crate) mod filter;
pub(crate) mod kept_out;
pub(crate) mod remembered;

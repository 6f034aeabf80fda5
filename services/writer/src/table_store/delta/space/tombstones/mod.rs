//! Remembered deletions.

pub(crate) mod filter;
pub(crate) mod remembered;

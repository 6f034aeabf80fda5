//! Tables that cannot be used.

pub(crate) mod reason;
pub(crate) mod tables;

//! The rows of a batch on their way into a table.

pub(crate) mod column_values;
pub(crate) mod incoming;
pub(crate) mod restored;
pub(crate) mod sorted;
pub(crate) mod stored;

//! Memory that the rows of an answer may take.

use super::failure::RowsTooLarge;
use crate::source::{Columns, memory_of};

/// Adds up the memory that rows take, and ends the reading when it is too much.
pub(super) struct Memory {
    bytes: usize,
    bytes_max: usize,
}

impl Memory {
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes: 0, bytes_max }
    }

    /// Counts a row; the error is [`RowsTooLarge`].
    pub fn add(&mut self, row: &Columns) -> Result<(), sqlx::Error> {
        self.bytes += memory_of(row);
        match self.bytes > self.bytes_max {
            true => Err(sqlx::Error::Decode(Box::new(RowsTooLarge { bytes_max: self.bytes_max }))),
            false => Ok(()),
        }
    }
}

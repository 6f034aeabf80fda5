//! Where a row is: the number of its data file, and the number of the row in that file.
//!
//! Each number has a type of its own, so that the compiler tells them apart; none takes more than the 4 bytes of its number.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Number of a data file within its space, from 1; never used twice. Stored as the bare number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FileNumber(u32);

impl FileNumber {
    /// The file with this number.
    #[inline]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number after this one.
    #[inline]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The number so many files further on, or the greatest one there is.
    #[inline]
    pub const fn ahead(self, files: u32) -> Self {
        Self(self.0.saturating_add(files))
    }

    /// How many files were numbered after `earlier`, up to this one; none if it is no earlier one.
    #[inline]
    pub const fn files_after(self, earlier: Self) -> u32 {
        self.0.saturating_sub(earlier.0)
    }

    /// The bare number, for what stores it.
    #[inline]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for FileNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// Physical row of a data file, from 0. Stored as the bare number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RowNumber(u32);

impl RowNumber {
    /// The first row of a file.
    pub const FIRST: Self = Self(0);

    /// The row with this number, such as a bitmap of deleted rows holds it.
    #[inline]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The bare number, as a bitmap of deleted rows takes it.
    #[inline]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The place of this row in a list of all rows of its file.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The row that stands so many rows after this one.
    #[inline]
    pub const fn offset(self, rows: u32) -> Self {
        Self(self.0 + rows)
    }
}

impl fmt::Display for RowNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// A row of a data file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The data file.
    pub file: FileNumber,
    /// Row within the file; less than [`ROWS_PER_FILE_MAX`].
    pub row: RowNumber,
}

/// Rows that a file of the index may have: 2^24.
pub const ROWS_PER_FILE_MAX: u32 = 1 << 24;

// Millions of these are held in memory.
const _: () = assert!(size_of::<Position>() == 8);

impl Position {
    /// The row with this number in the file with that number.
    #[inline]
    pub const fn new(file: u32, row: u32) -> Self {
        Self { file: FileNumber::new(file), row: RowNumber::new(row) }
    }

    /// The position so many rows further on in the same file.
    #[inline]
    pub const fn offset(self, rows: u32) -> Self {
        Self { file: self.file, row: self.row.offset(rows) }
    }
}

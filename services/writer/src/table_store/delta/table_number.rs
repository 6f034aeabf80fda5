//! Numbers of tables.

/// Number of a table within its space, in the order in which the tables became known; means nothing after the space is loaded anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TableNumber(u32);

impl TableNumber {
    /// The first table of a space.
    pub(crate) const FIRST: Self = Self(0);

    /// The table after this one.
    #[inline]
    pub(crate) const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The number of the table that has this place in the list of the tables of its space.
    #[inline]
    pub(crate) const fn of_index(index: usize) -> Self {
        Self(index as u32)
    }

    /// The place of the table in the list of the tables of its space.
    #[inline]
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

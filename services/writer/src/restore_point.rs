//! Which earlier version of a table is meant.

/// An earlier version of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestorePoint {
    /// The version of this number.
    Version(u64),
    /// The version that was the newest one at this instant.
    Instant {
        /// Microseconds since 1970.
        at_us: i64,
    },
}

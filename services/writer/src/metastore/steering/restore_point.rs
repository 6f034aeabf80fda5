//! Which earlier version of a table is meant.

use serde::{Deserialize, Serialize};

/// An earlier version of a table. An operation keeps it as JSON.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RestorePoint {
    /// The version of this number.
    Version(u64),
    /// The version that was the newest one at this instant.
    Instant {
        /// Microseconds since 1970.
        at_us: i64,
    },
}

impl RestorePoint {
    /// As an operation keeps it.
    pub(crate) fn details(self) -> String {
        serde_json::to_string(&self).unwrap_or_default()
    }

    /// Out of what an operation has kept; `None`: it is about something else.
    pub(crate) fn of_details(details: &str) -> Option<Self> {
        serde_json::from_str(details).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_keeps_it() {
        for point in [RestorePoint::Version(7), RestorePoint::Instant { at_us: -5 }] {
            assert_eq!(RestorePoint::of_details(&point.details()), Some(point));
        }
        assert_eq!((RestorePoint::of_details(""), RestorePoint::of_details("{}")), (None, None));
    }
}

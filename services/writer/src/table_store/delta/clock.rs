//! The clock of this process.

use chrono::Utc;

/// Now, in microseconds since 1970.
pub(crate) fn now_us() -> i64 {
    Utc::now().timestamp_micros()
}

//! What can be configured about fetching.

use serde::Deserialize;

/// Section `[fetch]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FetchOptions {
    /// Most ids read from HQ at once, and most records in one queue message.
    pub max_records: usize,
    /// How long to wait for more messages before a batch that is not full is read, in milliseconds.
    pub linger_ms: u64,
    /// Batches that are read and published at the same time.
    pub batches_in_flight_max: usize,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self { max_records: 500, linger_ms: 100, batches_in_flight_max: 4 }
    }
}

impl FetchOptions {
    /// Rules beyond types. The error names the key.
    pub fn validate(&self) -> anyhow::Result<()> {
        anyhow::ensure!((1..=5_000).contains(&self.max_records), "key `fetch.max_records`: must be 1 to 5000");
        anyhow::ensure!(self.batches_in_flight_max >= 1, "key `fetch.batches_in_flight_max`: must be at least 1");
        Ok(())
    }
}

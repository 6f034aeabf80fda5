//! Section `[fetch]` of the configuration: sizes of batches and pace of domains.

use serde::Deserialize;

/// Section `[fetch]`: sizes of batches and pace of domains.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FetchOptions {
    /// Most ids read from HQ at once, and most records in one queue message.
    pub max_records: usize,
    /// How long to wait for more messages before a batch that is not full is read, in milliseconds.
    pub linger_ms: u64,
    /// Batches that are read and published at the same time.
    pub batches_in_flight_max: usize,
    /// Messages by which the lake itself asks for records, for example of a backfill, that are worked on at the same time, behind HQ's own messages.
    pub requests_in_flight_max: usize,
    /// Records that are read for one domain in a second, on average; 0: no limit. Further records of the domain wait; the others go on.
    pub domain_records_per_second: u32,
    /// Records of one domain that are read without waiting after it was quiet.
    pub domain_burst_records: usize,
    /// Records of all domains together that may wait for their turn. Beyond that the feed waits too.
    pub waiting_records_max: usize,
    /// Most bytes of memory for what is read from HQ and not safe on the queue yet: half of it for rows, half for the XML of forms and what is
    /// made of it. A form that is larger is handled alone, and so is a case for which `hq.database.record_bytes_max` may be needed.
    pub held_bytes_max: usize,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self {
            max_records: 1_000,
            linger_ms: 100,
            batches_in_flight_max: 2,
            requests_in_flight_max: 2,
            domain_records_per_second: 0,
            domain_burst_records: 1_000,
            waiting_records_max: 20_000,
            held_bytes_max: 128 << 20,
        }
    }
}

impl FetchOptions {
    /// Checks rules that types cannot express.
    ///
    /// # Errors
    /// Where a value is out of its range; the error names the key.
    pub fn validate(&self) -> anyhow::Result<()> {
        anyhow::ensure!((1..=5_000).contains(&self.max_records), "key `fetch.max_records`: must be 1 to 5000");
        anyhow::ensure!(self.batches_in_flight_max >= 1, "key `fetch.batches_in_flight_max`: must be at least 1");
        anyhow::ensure!(self.requests_in_flight_max >= 1, "key `fetch.requests_in_flight_max`: must be at least 1");
        anyhow::ensure!(self.domain_burst_records >= 1, "key `fetch.domain_burst_records`: must be at least 1");
        anyhow::ensure!(self.waiting_records_max >= 1, "key `fetch.waiting_records_max`: must be at least 1");
        anyhow::ensure!(self.held_bytes_max >= 1 << 20, "key `fetch.held_bytes_max`: must be at least 1048576");
        Ok(())
    }
}

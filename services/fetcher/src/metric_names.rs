//! Names of the fetcher's metrics.

/// Gauge: messages on Kafka that this fetcher has not been handed yet; labels `topic`, `partition`.
pub const KAFKA_LAG: &str = "lake_fetcher_kafka_lag";
/// Counter: positions that Kafka did not have any more when they were to be read; label `topic`.
pub const POSITIONS_GONE_TOTAL: &str = "lake_fetcher_positions_gone_total";
/// Counter: change messages taken from the feed; label `topic`.
pub const MESSAGES_TOTAL: &str = "lake_fetcher_messages_total";
/// Counter: change messages left out by the allow-lists or not concerning the lake; label `reason`.
pub const MESSAGES_SKIPPED_TOTAL: &str = "lake_fetcher_messages_skipped_total";
/// Counter: documents published; label `kind`.
pub const RECORDS_TOTAL: &str = "lake_fetcher_records_total";
/// Counter: tombstones published; labels `kind`, `reason`.
pub const TOMBSTONES_TOTAL: &str = "lake_fetcher_tombstones_total";
/// Histogram: seconds to read one batch from HQ; label `kind`.
pub const READ_SECONDS: &str = "lake_fetcher_read_seconds";
/// Histogram: seconds from taking a batch to all of it being safe on the queue.
pub const BATCH_SECONDS: &str = "lake_fetcher_batch_seconds";
/// Histogram: seconds that a portion of a domain's records has to wait, because the domain has had its share.
pub const DOMAIN_WAIT_SECONDS: &str = "lake_fetcher_domain_wait_seconds";
/// Counter: documents that the lake itself asked for and that were read; labels `kind`, `cause`.
pub const REQUESTED_TOTAL: &str = "lake_fetcher_requested_total";
/// Counter: documents in HQ's databases that were compared with the lake; label `kind`.
pub const COMPARED_TOTAL: &str = "lake_fetcher_compared_total";
/// Histogram: seconds that such a portion has to wait, because HQ's own messages come first or its domain has had its share.
pub const REQUEST_WAIT_SECONDS: &str = "lake_fetcher_request_wait_seconds";
/// Gauge: records that wait because their domains have had their share.
pub const WAITING_RECORDS: &str = "lake_fetcher_waiting_records";

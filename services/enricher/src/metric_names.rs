//! Names of the enricher's metrics. Labels are of low cardinality: kind, cache, reason.

/// Counter: records made into rows, label `kind`.
pub const RECORDS_TOTAL: &str = "lake_enricher_records_total";

/// Counter: tombstones passed on, label `kind`.
pub const TOMBSTONES_TOTAL: &str = "lake_enricher_tombstones_total";

/// Counter: messages with rows that were queued, label `kind`.
pub const MESSAGES_TOTAL: &str = "lake_enricher_messages_total";

/// Counter: bytes of those messages.
pub const MESSAGE_BYTES_TOTAL: &str = "lake_enricher_message_bytes_total";

/// Histogram: seconds from parsing a message to its encoded rows, waiting for HQ included.
pub const ENRICH_SECONDS: &str = "lake_enricher_enrich_seconds";

/// Gauge: messages held, from being handed out until they are acknowledged.
pub const IN_FLIGHT: &str = "lake_enricher_in_flight";

/// Counter: tries that HQ did not answer, label `reason` (`unavailable`, `refused`).
pub const SOURCE_RETRIES_TOTAL: &str = "lake_enricher_source_retries_total";

/// Counter: look-ups answered from memory, label `cache` (`locations`, `users`).
pub const CACHE_HITS_TOTAL: &str = "lake_enricher_cache_hits_total";

/// Counter: look-ups that had to ask HQ, label `cache`.
pub const CACHE_MISSES_TOTAL: &str = "lake_enricher_cache_misses_total";

/// Counter: location trees dropped from memory because `caches.location_nodes_max` was reached; a domain in use reads its whole tree again.
pub const TREES_DROPPED_TOTAL: &str = "lake_enricher_location_trees_dropped_total";

/// Gauge: entries held, label `cache`: locations over all domains, users.
pub const CACHE_ENTRIES: &str = "lake_enricher_cache_entries";

/// Gauge: location types without columns, because their domain has more than `location_types_max`; over all domains whose trees are cached.
pub const LOCATION_TYPES_LEFT_OUT: &str = "lake_enricher_location_types_left_out";

/// Counter: invalidations heard, label `cache`.
pub const INVALIDATIONS_TOTAL: &str = "lake_enricher_invalidations_total";

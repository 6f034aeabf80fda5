//! Names of the metrics of reading HQ. Where there is a label `source`, it is `database` (all of HQ's databases together) or `blobs`.

/// Gauge: most reads in flight at once now; falls when HQ answers slowly, label `source`.
pub const IN_FLIGHT_LIMIT: &str = "lake_hq_in_flight_limit";

/// Gauge: reads in flight, label `source`. A read is one batch at one database (its statements run one after the other), or one blob.
pub const IN_FLIGHT: &str = "lake_hq_in_flight";

/// Histogram: seconds that a read waited until the limits let it go, label `source`.
pub const TURN_WAIT_SECONDS: &str = "lake_hq_turn_wait_seconds";

/// Histogram: seconds from a statement or a request for a blob to the end of its answer, label `source`.
pub const ANSWER_SECONDS: &str = "lake_hq_answer_seconds";

/// Counter: times that the limit was lowered, label `source`.
pub const SLOWED_DOWN_TOTAL: &str = "lake_hq_slowed_down_total";

/// Counter: times that the clock of a database was found to have stepped back.
pub const CLOCK_STEPS_TOTAL: &str = "lake_hq_clock_steps_total";

/// Gauge: 1 while every id is asked on all shards, because they do not hold the rows that their ranges promise, or because of `sharding = "all"`.
pub const ALL_SHARDS_ASKED: &str = "lake_hq_all_shards_asked";

/// Gauge: share of the last 200 live forms whose XML no blob store has, 0 to 1. From 0.1 on an alarm is raised.
pub const FORM_XML_MISSING_SHARE: &str = "lake_hq_form_xml_missing_share";

//! The enricher: full documents from the queue, location columns added, flattened into rows, back onto the queue.
//!
//! What a row looks like is decided by plain functions on values ([`flatten`], [`month`], [`location_columns`], [`rows`], [`transform`]); around them
//! [`pipeline`] reads and publishes, and [`caches`] remembers what HQ said about locations and users.
//! Knows neither Kafka nor Delta.

pub mod caches;
pub mod config;
pub mod document;
pub mod fields;
pub mod flatten;
pub mod location_columns;
pub mod metric_names;
pub mod month;
pub mod options;
pub mod pipeline;
pub mod process;
pub mod rows;
pub mod service;
pub mod timestamp;
pub mod transform;

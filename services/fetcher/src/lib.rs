//! The fetcher: turns HQ's change messages, which carry only ids, into full documents and tombstones on the queue.
//!
//! Start reading at [`pipeline::run`]. Only this crate knows Kafka.

pub mod allow_list;
pub mod change_feed;
pub mod coalesce;
pub mod config;
mod domain_pace;
mod fetch;
mod fetcher;
pub mod metric_names;
pub mod options;
pub mod pipeline;
pub mod process;
pub mod publisher;
pub mod service;

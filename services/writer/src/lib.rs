//! The writer: owns every Delta commit and the metastore.
//!
//! Rows come from the queue ([`ingest`]), become table versions through the port [`table_store::TableStore`], and what is known
//! about tables, deleted ids and records that could not be handled is kept in the [`metastore`]. Readers find the tables by name in a
//! [`catalog`], where there is one. Only this crate knows Delta.
//!
//! Invariants: one owner per space; a queue message is acknowledged only after its rows are committed; doing anything
//! twice changes nothing.

pub mod admin;
pub mod boot_clock;
pub mod catalog;
pub mod change_requests;
pub mod compaction;
pub mod config;
pub mod consent;
pub mod handle;
mod handle_error;
pub mod ingest;
pub mod key_index;
pub mod lease;
pub mod maintenance;
pub mod metastore;
pub mod metric_names;
mod operations;
pub mod order_guard;
mod pipeline_watch;
pub mod process;
pub mod quarantine;
mod scaling;
mod status_page;
pub mod table_store;
pub mod writer;

//! What two or more services of CommCare Lake need: names, the queue port with its adapters, configuration,
//! telemetry and orderly shutdown. Nothing here knows HQ, Kafka or Delta.

pub mod byte_budget;
pub mod comparison;
pub mod config;
pub mod error_chain;
pub mod escaped_names;
pub mod identity;
pub mod panics;
pub mod quarantine;
pub mod queue;
pub mod retry;
pub mod secret;
pub mod service;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
pub mod wire;

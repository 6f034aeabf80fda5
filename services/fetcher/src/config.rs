//! The fetcher's configuration file.

use std::path::Path;

use lake_hq::connect::HqConfig;
use lake_shared::config::{self, ConfigError};
use lake_shared::queue::jetstream::JetStreamConfig;
use lake_shared::service::{ProcessConfig, ServiceConfig};
use lake_shared::telemetry::TelemetryConfig;
use serde::Deserialize;

use crate::allow_list::TakeConfig;
use crate::change_feed::kafka::KafkaConfig;
use crate::options::FetchOptions;

/// Everything.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FetcherConfig {
    /// Logs and HTTP.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
    /// Threads and shutdown.
    #[serde(default)]
    pub process: ProcessConfig,
    /// HQ's change feed.
    pub kafka: KafkaConfig,
    /// HQ's stores.
    pub hq: HqConfig,
    /// The queue to the enrichers.
    pub queue: JetStreamConfig,
    /// Allow-lists.
    pub take: TakeConfig,
    /// Batches.
    #[serde(default)]
    pub fetch: FetchOptions,
}

impl ServiceConfig for FetcherConfig {
    fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        config::load(path)
    }

    fn telemetry(&self) -> &TelemetryConfig {
        &self.telemetry
    }

    fn process(&self) -> &ProcessConfig {
        &self.process
    }

    fn validate(&self) -> anyhow::Result<()> {
        self.kafka
            .validate()
            .and_then(|()| self.hq.validate())
            .and_then(|()| self.queue.validate())
            .map_err(anyhow::Error::msg)?;
        self.fetch.validate()
    }
}

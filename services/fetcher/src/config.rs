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

/// The whole configuration file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FetcherConfig {
    /// Section `[telemetry]`: logs, and the HTTP address of `/live`, `/ready` and `/metrics`.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
    /// Section `[process]`: number of threads and time to shut down.
    #[serde(default)]
    pub process: ProcessConfig,
    /// Section `[kafka]`: HQ's change feed.
    pub kafka: KafkaConfig,
    /// Section `[hq]`: HQ's databases, blob stores and users.
    pub hq: HqConfig,
    /// Section `[queue]`: the queue to the enrichers.
    pub queue: JetStreamConfig,
    /// Section `[take]`: the domains, case types and forms that are taken.
    pub take: TakeConfig,
    /// Section `[fetch]`: sizes of batches and pace of domains.
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

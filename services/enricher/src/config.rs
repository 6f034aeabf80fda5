//! The enricher's configuration file.

use std::path::Path;

use lake_hq::connect::HqConfig;
use lake_shared::config::{self, ConfigError};
use lake_shared::queue::jetstream::JetStreamConfig;
use lake_shared::service::{ProcessConfig, ServiceConfig};
use lake_shared::telemetry::TelemetryConfig;
use serde::Deserialize;

use crate::options::EnricherOptions;

/// The whole configuration file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnricherConfig {
    /// Section `[telemetry]`: logs, and the HTTP address of `/live`, `/ready` and `/metrics`.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
    /// Section `[process]`: number of threads and time to shut down.
    #[serde(default)]
    pub process: ProcessConfig,
    /// Section `[hq]`: HQ's databases and users; locations are read from the main database.
    pub hq: HqConfig,
    /// Section `[queue]`: the queue from the fetchers and to the writer.
    pub queue: JetStreamConfig,
    /// Section `[enricher]`: how rows are made.
    #[serde(default)]
    pub enricher: EnricherOptions,
}

impl ServiceConfig for EnricherConfig {
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
        self.hq.validate().and_then(|()| self.queue.validate()).map_err(anyhow::Error::msg)?;
        self.enricher.validate().map_err(|reason| anyhow::anyhow!("configuration: {reason}"))
    }
}

//! Configuration of the process that holds all services.

use std::path::Path;

use lake_enricher::options::EnricherOptions;
use lake_fetcher::allow_list::TakeConfig;
use lake_fetcher::change_feed::kafka::KafkaConfig;
use lake_fetcher::options::FetchOptions;
use lake_hq::connect::HqConfig;
use lake_shared::config::{self, ConfigError};
use lake_shared::service::{ProcessConfig, ServiceConfig};
use lake_shared::telemetry::TelemetryConfig;
use lake_writer::writer::WriterOptions;
use serde::Deserialize;

/// All sections of the lake's file.
#[derive(Clone, Debug)]
pub struct LakeConfig {
    /// The sections about the process, the fetcher and the enricher.
    pub source: SourceConfig,
    /// The sections about the writer, as the writer's own process has them.
    pub writer: WriterOptions,
}

/// The sections about the process and about the way from HQ to the writer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Section `[telemetry]`: logs, metrics and the address of `/ready`.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
    /// Section `[process]`: threads and the time to drain at the end.
    #[serde(default)]
    pub process: ProcessConfig,
    /// Section `[kafka]`: HQ's change feed.
    pub kafka: KafkaConfig,
    /// Section `[hq]`: HQ's databases, blob stores and users.
    pub hq: HqConfig,
    /// Section `[take]`: the domains and documents that are fetched.
    pub take: TakeConfig,
    /// Section `[fetch]`: how much is read from HQ at once, and how fast.
    #[serde(default = "embedded_fetch")]
    pub fetch: FetchOptions,
    /// Section `[enricher]`: how documents become rows.
    #[serde(default)]
    pub enricher: EnricherOptions,
}

/// Without a durable queue a batch is in flight until it is committed: more of them at once keep the writer's commits large.
pub fn embedded_fetch() -> FetchOptions {
    FetchOptions { batches_in_flight_max: 8, ..FetchOptions::default() }
}

impl ServiceConfig for LakeConfig {
    fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let (source, writer) = config::load_parts(path)?;
        Ok(Self { source, writer })
    }

    fn telemetry(&self) -> &TelemetryConfig {
        &self.source.telemetry
    }

    fn process(&self) -> &ProcessConfig {
        &self.source.process
    }

    fn validate(&self) -> anyhow::Result<()> {
        let SourceConfig { kafka, hq, fetch, enricher, .. } = &self.source;
        kafka.validate().and_then(|()| hq.validate()).map_err(anyhow::Error::msg)?;
        self.writer.validate().map_err(anyhow::Error::msg)?;
        fetch.validate()?;
        enricher.validate().map_err(|reason| anyhow::anyhow!("configuration: {reason}"))
    }
}

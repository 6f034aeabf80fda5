//! The writer's configuration file.

use std::path::Path;

use lake_shared::config::{self, ConfigError};
use lake_shared::queue::jetstream::JetStreamConfig;
use lake_shared::service::{ProcessConfig, ServiceConfig};
use lake_shared::telemetry::TelemetryConfig;
use serde::Deserialize;

use crate::writer::WriterOptions;

/// All sections of the writer's file.
#[derive(Clone, Debug)]
pub struct WriterConfig {
    /// The sections about the process.
    pub process: WriterProcessConfig,
    /// The sections about the writer, which the lake in one process has as well.
    pub writer: WriterOptions,
}

/// The sections about the process in which the writer runs alone.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriterProcessConfig {
    /// Section `[telemetry]`: logs, metrics and the address of `/ready`.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
    /// Section `[process]`: threads and the time to drain at the end.
    #[serde(default)]
    pub process: ProcessConfig,
    /// Section `[queue]`: the queue from the enrichers.
    pub queue: JetStreamConfig,
}

impl ServiceConfig for WriterConfig {
    fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let (process, writer) = config::load_parts(path)?;
        Ok(Self { process, writer })
    }

    fn telemetry(&self) -> &TelemetryConfig {
        &self.process.telemetry
    }

    fn process(&self) -> &ProcessConfig {
        &self.process.process
    }

    fn validate(&self) -> anyhow::Result<()> {
        self.process.queue.validate().and_then(|()| self.writer.validate()).map_err(anyhow::Error::msg)
    }
}

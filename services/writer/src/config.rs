//! The writer's configuration file.

use lake_shared::queue::jetstream::JetStreamConfig;
use lake_shared::service::{ProcessConfig, ServiceConfig};
use lake_shared::telemetry::TelemetryConfig;
use serde::Deserialize;

use crate::writer::WriterOptions;

/// Everything.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriterConfig {
    /// Logs and HTTP.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
    /// Threads and shutdown.
    #[serde(default)]
    pub process: ProcessConfig,
    /// The queue from the enrichers.
    pub queue: JetStreamConfig,
    /// Where the tables are.
    pub store: crate::table_store::lake_store::LakeStoreConfig,
    /// What is known about them.
    pub metastore: crate::metastore::connect::MetastoreConfig,
    /// How tables are written.
    #[serde(default)]
    pub tables: crate::table_store::delta::DeltaOptions,
    /// When rows are committed.
    #[serde(default)]
    pub ingest: crate::ingest::IngestOptions,
    /// Clean-up.
    #[serde(default)]
    pub maintenance: crate::maintenance::MaintenanceOptions,
    /// The right to commit.
    #[serde(default)]
    pub lease: crate::lease::LeaseOptions,
}

impl WriterConfig {
    /// What the writer itself needs.
    pub fn options(&self) -> WriterOptions {
        WriterOptions {
            store: self.store.clone(),
            metastore: self.metastore.clone(),
            tables: self.tables.clone(),
            ingest: self.ingest.clone(),
            maintenance: self.maintenance.clone(),
            lease: self.lease.clone(),
        }
    }
}

impl ServiceConfig for WriterConfig {
    fn telemetry(&self) -> &TelemetryConfig {
        &self.telemetry
    }

    fn process(&self) -> &ProcessConfig {
        &self.process
    }

    fn validate(&self) -> anyhow::Result<()> {
        self.queue.validate().and_then(|()| self.store.validate()).map_err(anyhow::Error::msg)?;
        self.metastore.validate().and_then(|()| self.tables.validate()).map_err(anyhow::Error::msg)
    }
}

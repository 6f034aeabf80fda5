//! Configuration of the process that holds all services.

use lake_enricher::options::EnricherOptions;
use lake_fetcher::allow_list::TakeConfig;
use lake_fetcher::change_feed::kafka::KafkaConfig;
use lake_fetcher::options::FetchOptions;
use lake_hq::connect::HqConfig;
use lake_shared::service::{ProcessConfig, ServiceConfig};
use lake_shared::telemetry::TelemetryConfig;
use lake_writer::ingest::IngestOptions;
use lake_writer::lease::LeaseOptions;
use lake_writer::maintenance::MaintenanceOptions;
use lake_writer::metastore::connect::MetastoreConfig;
use lake_writer::table_store::delta::DeltaOptions;
use lake_writer::table_store::lake_store::LakeStoreConfig;
use lake_writer::writer::WriterOptions;
use serde::Deserialize;

/// Everything.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LakeConfig {
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
    /// Allow-lists.
    pub take: TakeConfig,
    /// Batches from HQ.
    #[serde(default = "embedded_fetch")]
    pub fetch: FetchOptions,
    /// Rows.
    #[serde(default)]
    pub enricher: EnricherOptions,
    /// Where the tables are.
    pub store: LakeStoreConfig,
    /// What is known about them; usually `sqlite:` and a file.
    pub metastore: MetastoreConfig,
    /// How tables are written.
    #[serde(default)]
    pub tables: DeltaOptions,
    /// When rows are committed.
    #[serde(default)]
    pub ingest: IngestOptions,
    /// Clean-up.
    #[serde(default)]
    pub maintenance: MaintenanceOptions,
    /// The right to commit.
    #[serde(default)]
    pub lease: LeaseOptions,
}

/// Without a durable queue a batch is in flight until it is committed: more of them at once keep the writer's commits large.
pub fn embedded_fetch() -> FetchOptions {
    FetchOptions { batches_in_flight_max: 8, ..FetchOptions::default() }
}

impl LakeConfig {
    /// The writer's part.
    pub fn writer_options(&self) -> WriterOptions {
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

impl ServiceConfig for LakeConfig {
    fn telemetry(&self) -> &TelemetryConfig {
        &self.telemetry
    }

    fn process(&self) -> &ProcessConfig {
        &self.process
    }

    fn validate(&self) -> anyhow::Result<()> {
        self.kafka.validate().and_then(|()| self.hq.validate()).map_err(anyhow::Error::msg)?;
        self.store.validate().and_then(|()| self.metastore.validate()).map_err(anyhow::Error::msg)?;
        self.tables.validate().map_err(anyhow::Error::msg)?;
        self.fetch.validate()?;
        self.enricher.validate().map_err(|reason| anyhow::anyhow!("configuration: {reason}"))
    }
}

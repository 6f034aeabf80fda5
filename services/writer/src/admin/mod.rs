//! The gRPC interface for operators, `lake.admin.v1` (see the `.proto` files in `proto/lake/admin/v1`), with gRPC's health and reflection.
//!
//! Every writer serves it, also one that stands by. What is to be done is written into the metastore
//! ([`crate::metastore::steering`]), where the holder of the lease finds it; so nothing has to be forwarded. Only what the holder has in its memory
//! (rows that wait, for instance) is missing in the answers of the others, which name the holder.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use lake_proto::admin::v1::FILE_DESCRIPTOR_SET;
use lake_proto::admin::v1::catalog_service_server::CatalogServiceServer;
use lake_proto::admin::v1::lake_service_server::LakeServiceServer;
use lake_proto::admin::v1::operation_service_server::OperationServiceServer;
use lake_proto::admin::v1::quarantine_service_server::QuarantineServiceServer;
use lake_proto::admin::v1::record_service_server::RecordServiceServer;
use lake_proto::admin::v1::table_service_server::TableServiceServer;
use lake_proto::admin::v1::trust_service_server::TrustServiceServer;
use lake_proto::external_scaler;
use lake_proto::external_scaler::external_scaler_server::ExternalScalerServer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use self::access::Gate;
pub use self::options::{AdminOptions, AdminTls, AdminToken, Role};
pub(crate) use self::services::ServedParts;
use self::services::Services;
use self::tls::Encryption;
use crate::scaling::{Scaler, ScalerService};

mod access;
mod catalog;
mod convert;
mod convert_pipeline;
mod erasures;
mod lake;
mod operations;
mod options;
mod problem;
mod quarantine;
mod reconcile;
mod record;
mod services;
mod table_work;
mod tables;
#[cfg(test)]
mod tests;
mod tls;
mod trust;

/// Largest message that is read from a client, bytes. Nothing that may be asked is large.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// The same where a list of ids may be asked for.
const IDS_BYTES_MAX: usize = 4 << 20;

/// Longest time for which a call may take, but for a stream.
const CALL_WITHIN: Duration = Duration::from_secs(60);

/// Most calls at the same time over one connection.
const CALLS_AT_ONCE: usize = 64;

/// How often an idle connection is asked whether its other end is there.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(30);

/// An address that is listened on, with what is needed to serve it.
pub(crate) struct AdminServer {
    listener: TcpListener,
    server: Server,
    encryption: Option<Encryption>,
    gate: Gate,
    /// Whether KEDA may ask.
    scaler: bool,
}

impl AdminServer {
    /// Takes the configured address, so that a wrong one is noticed at once.
    ///
    /// # Errors
    /// The address cannot be bound, or a file for TLS cannot be read or used.
    pub(crate) async fn bind(options: &AdminOptions) -> anyhow::Result<Self> {
        let server = Server::builder()
            .timeout(CALL_WITHIN)
            .concurrency_limit_per_connection(CALLS_AT_ONCE)
            .http2_keepalive_interval(Some(KEEP_ALIVE_EVERY));
        let encryption = match &options.tls {
            Some(tls) => Some(Encryption::read(tls).await?),
            None => None,
        };
        let (address, listener) = (options.address, TcpListener::bind(options.address).await);
        let listener =
            listener.with_context(|| format!("admin.address {address} cannot be bound; choose a free address"))?;
        Ok(Self { listener, server, encryption, gate: Gate::new(options), scaler: options.scaler })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The operating system does not tell.
    pub(crate) fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`.
    ///
    /// # Errors
    /// The listener fails.
    pub(crate) async fn serve(self, parts: ServedParts, shutdown: CancellationToken) -> anyhow::Result<()> {
        let scaler = match self.scaler {
            true => Some(scaler(&parts, &shutdown)),
            false => None,
        };
        let (scaler, _observing) = scaler.unzip();
        let services = Arc::new(Services::new(self.gate, parts, shutdown.clone()));
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<TableServiceServer<Services>>().await;
        health.set_serving::<OperationServiceServer<Services>>().await;
        health.set_serving::<LakeServiceServer<Services>>().await;
        health.set_serving::<TrustServiceServer<Services>>().await;
        health.set_serving::<QuarantineServiceServer<Services>>().await;
        health.set_serving::<RecordServiceServer<Services>>().await;
        health.set_serving::<CatalogServiceServer<Services>>().await;
        // Clients ask for the one or the other version.
        let reflection = reflection_builder(self.scaler).build_v1().context(NO_REFLECTION)?;
        let older_reflection = reflection_builder(self.scaler).build_v1alpha().context(NO_REFLECTION)?;
        let tables = TableServiceServer::from_arc(Arc::clone(&services));
        let operations = OperationServiceServer::from_arc(Arc::clone(&services));
        let trust = TrustServiceServer::from_arc(Arc::clone(&services));
        let quarantine = QuarantineServiceServer::from_arc(Arc::clone(&services));
        let records = RecordServiceServer::from_arc(Arc::clone(&services));
        let catalog = CatalogServiceServer::from_arc(Arc::clone(&services));
        let lake = LakeServiceServer::from_arc(services);
        if scaler.is_some() {
            health.set_serving::<ExternalScalerServer<ScalerService>>().await;
        }
        let mut server = self.server;
        let router = server
            .add_service(health_service)
            .add_service(reflection)
            .add_service(older_reflection)
            .add_service(tables.max_decoding_message_size(MESSAGE_BYTES_MAX))
            .add_service(trust.max_decoding_message_size(IDS_BYTES_MAX))
            .add_service(operations.max_decoding_message_size(MESSAGE_BYTES_MAX))
            .add_service(catalog.max_decoding_message_size(MESSAGE_BYTES_MAX))
            .add_service(quarantine.max_decoding_message_size(MESSAGE_BYTES_MAX))
            .add_service(records.max_decoding_message_size(MESSAGE_BYTES_MAX))
            .add_service(lake.max_decoding_message_size(MESSAGE_BYTES_MAX))
            .add_optional_service(scaler);
        let shutdown = shutdown.cancelled_owned();
        let served = match self.encryption {
            Some(encryption) => {
                let connections = Box::pin(encryption.connections(self.listener));
                router.serve_with_incoming_shutdown(connections, shutdown).await
            }
            None => router.serve_with_incoming_shutdown(TcpIncoming::from(self.listener), shutdown).await,
        };
        served.context("admin: serving failed")
    }
}

/// What answers KEDA, and the observing that it needs.
fn scaler(
    parts: &ServedParts,
    shutdown: &CancellationToken,
) -> (ExternalScalerServer<ScalerService>, AbortOnDropHandle<()>) {
    let scaler = Scaler::new();
    let observing = scaler.clone().run(Arc::clone(&parts.queue), parts.pipeline.clone(), shutdown.clone());
    let service = ExternalScalerServer::new(ScalerService::new(scaler, shutdown.clone()));
    (service.max_decoding_message_size(MESSAGE_BYTES_MAX), AbortOnDropHandle::new(tokio::spawn(observing)))
}

const NO_REFLECTION: &str = "admin: the contract cannot be offered for reflection";

fn reflection_builder(scaler: bool) -> tonic_reflection::server::Builder<'static> {
    let builder = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
    match scaler {
        true => builder.register_encoded_file_descriptor_set(external_scaler::FILE_DESCRIPTOR_SET),
        false => builder,
    }
}

//! A connection to a writer.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lake_proto::admin::v1::catalog_service_client::CatalogServiceClient;
use lake_proto::admin::v1::lake_service_client::LakeServiceClient;
use lake_proto::admin::v1::operation_service_client::OperationServiceClient;
use lake_proto::admin::v1::quarantine_service_client::QuarantineServiceClient;
use lake_proto::admin::v1::record_service_client::RecordServiceClient;
use lake_proto::admin::v1::table_service_client::TableServiceClient;
use lake_proto::admin::v1::trust_service_client::TrustServiceClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

use crate::context::Context;

/// How long a connection may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Largest answer, bytes: a table with thousands of columns.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A connection that carries the token.
pub(crate) type Connection = InterceptedService<Channel, Bearer>;

/// Adds the token to each call.
#[derive(Clone)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// The services of a writer.
pub(crate) struct Clients {
    pub(crate) tables: TableServiceClient<Connection>,
    pub(crate) operations: OperationServiceClient<Connection>,
    pub(crate) quarantine: QuarantineServiceClient<Connection>,
    pub(crate) records: RecordServiceClient<Connection>,
    pub(crate) lake: LakeServiceClient<Connection>,
    pub(crate) catalog: CatalogServiceClient<Connection>,
    pub(crate) trust: TrustServiceClient<Connection>,
}

impl Clients {
    /// Connects to the writer of a context.
    ///
    /// # Errors
    /// The address or a file cannot be used, or no writer answers.
    pub(crate) async fn connect(context: &Context) -> Result<Self> {
        let server = &context.server;
        let mut endpoint = Endpoint::from_shared(server.clone())
            .with_context(|| format!("`{server}` is no address such as https://writer.lake:9700"))?
            .connect_timeout(CONNECT_WITHIN);
        let is_encrypted = server.starts_with("https://");
        if is_encrypted {
            endpoint = endpoint.tls_config(tls(context)?).context("the certificates of the context cannot be used")?;
        }
        let bearer = match &context.token {
            Some(token) => {
                anyhow::ensure!(
                    is_encrypted || is_loopback(&endpoint),
                    "the token of this context would go to {server} in plain text; use https://"
                );
                let mut value = format!("Bearer {}", token.0)
                    .parse::<MetadataValue<Ascii>>()
                    .map_err(|_| anyhow::anyhow!("the token has letters that no token has"))?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        let channel = endpoint
            .connect()
            .await
            .with_context(|| format!("no writer answers at {server}; is it running, with a section [admin]?"))?;
        let connection = InterceptedService::new(channel, Bearer(bearer));
        Ok(Self {
            tables: TableServiceClient::new(connection.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
            operations: OperationServiceClient::new(connection.clone()),
            catalog: CatalogServiceClient::new(connection.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
            quarantine: QuarantineServiceClient::new(connection.clone()),
            records: RecordServiceClient::new(connection.clone()),
            lake: LakeServiceClient::new(connection.clone()),
            trust: TrustServiceClient::new(connection),
        })
    }
}

fn is_loopback(endpoint: &Endpoint) -> bool {
    let host = endpoint.uri().host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn tls(context: &Context) -> Result<ClientTlsConfig> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()));
    let mut tls = match &context.ca {
        Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(path)?)),
        None => ClientTlsConfig::new().with_native_roots(),
    };
    if let (Some(certificate), Some(key)) = (&context.client_certificate, &context.client_key) {
        tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    Ok(tls)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::context::Token;

    #[tokio::test]
    async fn a_token_does_not_travel_in_plain_text() {
        let token = Some(Token("secret".into()));
        let at = |server: &str| Context {
            server: server.into(),
            ca: None,
            client_certificate: None,
            client_key: None,
            token: token.clone(),
        };
        let Err(refused) = Clients::connect(&at("http://198.51.100.1:9700")).await else { panic!("it is not sent") };
        assert!(refused.to_string().contains("plain text") && !format!("{refused:?}").contains("secret"));
        for local in ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1"] {
            assert!(is_loopback(&Endpoint::from_shared(local).unwrap()), "{local}");
        }
        assert!(!is_loopback(&Endpoint::from_shared("http://localhost.example.org:1").unwrap()));
        let Err(refused) = Clients::connect(&at("not an address")).await else { panic!("there is none") };
        assert!(refused.to_string().contains("is no address"), "{refused}");
    }
}

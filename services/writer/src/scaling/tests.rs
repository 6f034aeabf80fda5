//! KEDA's calls over a real connection, and a day of load.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lake_proto::external_scaler as proto;
use lake_proto::external_scaler::external_scaler_client::ExternalScalerClient;
use lake_proto::external_scaler::external_scaler_server::ExternalScalerServer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};

use super::scaler::Scaler;
use super::service::ScalerService;

mod day;
mod simulated_cluster;
mod simulated_pipeline;

/// A scaler that is served, its clock set by hand.
struct Served {
    scaler: Scaler,
    seconds: Arc<AtomicU64>,
    client: ExternalScalerClient<Channel>,
    shutdown: CancellationToken,
}

impl Served {
    async fn start() -> Self {
        let seconds = Arc::new(AtomicU64::new(0));
        let clock = Arc::clone(&seconds);
        let scaler = Scaler::with_clock(Arc::new(move || Duration::from_secs(clock.load(Ordering::SeqCst))));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let service = ExternalScalerServer::new(ScalerService::new(scaler.clone(), shutdown.clone()));
        let served = Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(TcpIncoming::from(listener), shutdown.clone().cancelled_owned());
        tokio::spawn(served);
        let client = ExternalScalerClient::connect(format!("http://{address}")).await.unwrap();
        Self { scaler, seconds, client, shutdown }
    }

    /// What KEDA does in each round: the metrics of the specification, then whether the stage is active.
    async fn poll(&mut self, stage: &str) -> Option<f64> {
        let scaled = scaled(&[("stage", stage), ("secondsBehindTarget", "60")]);
        let spec = self.client.get_metric_spec(scaled.clone()).await.unwrap().into_inner().metric_specs.remove(0);
        assert_eq!((spec.target_size, spec.target_size_float), (1, 1.0));
        let asked = proto::GetMetricsRequest { scaled_object_ref: Some(scaled.clone()), metric_name: spec.metric_name };
        let told = match self.client.get_metrics(asked).await {
            Ok(told) => told.into_inner().metric_values.remove(0),
            Err(unknown) => {
                assert_eq!(unknown.code(), Code::Unavailable, "{unknown}");
                return None;
            }
        };
        assert_eq!(told.metric_value as f64, told.metric_value_float);
        assert!(self.client.is_active(scaled).await.unwrap().into_inner().result);
        Some(told.metric_value_float)
    }
}

fn scaled(metadata: &[(&str, &str)]) -> proto::ScaledObjectRef {
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let scaler_metadata: HashMap<String, String> = metadata.collect();
    proto::ScaledObjectRef { name: "lake-fetcher".into(), namespace: "lake".into(), scaler_metadata }
}

#[tokio::test]
async fn a_trigger_that_says_too_little_is_told_what_to_write() {
    let mut served = Served::start().await;
    let wrong: [(&[(&str, &str)], &str); 5] = [
        (&[], "stage"),
        (&[("stage", "writer")], "stage"),
        (&[("stage", "fetcher"), ("secondsBehindTarget", "soon")], "secondsBehindTarget"),
        (&[("stage", "fetcher"), ("secondsBehindTarget", "NaN")], "secondsBehindTarget"),
        (&[("stage", "fetcher"), ("secondsBehindTarget", "0")], "secondsBehindTarget"),
    ];
    for (metadata, names) in wrong {
        let refused = served.client.get_metric_spec(scaled(metadata)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(names) && refused.message().contains("lake/lake-fetcher"), "{refused}");
        assert!(served.client.is_active(scaled(metadata)).await.is_err());
        assert!(served.client.stream_is_active(scaled(metadata)).await.is_err());
    }
    let other = proto::GetMetricsRequest {
        scaled_object_ref: Some(scaled(&[("stage", "fetcher")])),
        metric_name: "cpu".into(),
    };
    assert_eq!(served.client.get_metrics(other).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(
        served.client.get_metrics(proto::GetMetricsRequest::default()).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    assert_eq!(served.poll("fetcher").await, None, "nothing was seen yet");
}

#[tokio::test]
async fn a_stream_says_active_at_once_and_ends_with_the_writer() {
    let mut served = Served::start().await;
    let mut stream = served.client.stream_is_active(scaled(&[("stage", "enricher")])).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().unwrap().result);
    served.shutdown.cancel();
    assert!(stream.message().await.unwrap().is_none());
}

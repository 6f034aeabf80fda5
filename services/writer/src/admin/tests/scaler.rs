//! KEDA asks a whole writer.

use lake_proto::external_scaler as keda;
use lake_proto::external_scaler::external_scaler_client::ExternalScalerClient;
use lake_proto::queue::v1::Announcement;
use lake_shared::queue::Queue;
use lake_shared::wire;
use tempfile::TempDir;
use tonic::Code;

use super::{AdminOptions, Duration, PATIENCE, Running, options};

async fn client(writer: &Running) -> ExternalScalerClient<super::Channel> {
    ExternalScalerClient::connect(format!("http://{}", writer.admin_address.unwrap())).await.unwrap()
}

fn scaled() -> keda::ScaledObjectRef {
    let scaler_metadata = [("stage".to_owned(), "fetcher".to_owned())].into();
    keda::ScaledObjectRef { name: "lake".into(), namespace: "lake".into(), scaler_metadata }
}

fn metric() -> keda::GetMetricsRequest {
    keda::GetMetricsRequest { scaled_object_ref: Some(scaled()), metric_name: "lake-fetcher-replicas".into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn keda_learns_without_a_token_how_many_fetchers_there_are() {
    let folder = TempDir::new().unwrap();
    let writer = Running::start_with_admin(&folder, "w", "", Some(options())).await;
    let mut keda = client(&writer).await;
    assert!(keda.is_active(scaled()).await.unwrap().into_inner().result);
    let told = async {
        loop {
            // They say it again and again, as who is silent counts as gone.
            for instance in ["one", "two"] {
                let announcement =
                    Announcement { service: "fetcher".into(), instance: instance.into(), ..Announcement::default() };
                writer.queue.broadcast("lake.announce.fetcher", wire::encode(&announcement)).await.unwrap();
            }
            match keda.get_metrics(metric()).await {
                Ok(told) => return told.into_inner(),
                Err(unknown) => assert_eq!(unknown.code(), Code::Unavailable, "{unknown}"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let told = tokio::time::timeout(PATIENCE, told).await.unwrap();
    assert_eq!(told.metric_values[0].metric_value, 2);
    writer.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_option_keda_is_not_answered() {
    let folder = TempDir::new().unwrap();
    let closed = AdminOptions { scaler: false, ..options() };
    let writer = Running::start_with_admin(&folder, "w", "", Some(closed)).await;
    assert_eq!(client(&writer).await.get_metrics(metric()).await.unwrap_err().code(), Code::Unimplemented);
    writer.end().await;
}

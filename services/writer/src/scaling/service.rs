//! KEDA's external scaler. KEDA makes a HorizontalPodAutoscaler of the metric: with a target of 1 for each replica its formula gives
//! the metric itself, so what is decided here is what happens, within the bounds of the ScaledObject.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt, stream};
use lake_proto::external_scaler as proto;
use lake_proto::external_scaler::external_scaler_server::ExternalScaler;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, async_trait};

use super::scaler::{Scaler, Stage};

/// How far a stage may be behind where the trigger does not say it, seconds.
const SECONDS_BEHIND_TARGET: f64 = 60.0;

/// Most streams at the same time.
const STREAMS_MAX: usize = 16;

/// Longest name of something in Kubernetes.
const NAME_LETTERS_MAX: usize = 253;

/// Answers KEDA.
pub(crate) struct ScalerService {
    scaler: Scaler,
    streams: Arc<Semaphore>,
    /// Ends streams.
    shutdown: CancellationToken,
}

/// What a trigger asks for.
struct Trigger {
    stage: Stage,
    target_seconds: f64,
}

impl ScalerService {
    pub(crate) fn new(scaler: Scaler, shutdown: CancellationToken) -> Self {
        Self { scaler, streams: Arc::new(Semaphore::new(STREAMS_MAX)), shutdown }
    }
}

impl Trigger {
    /// Reads the trigger's metadata; the error says what to write there.
    fn of(scaled: &proto::ScaledObjectRef) -> Result<Self, Status> {
        let wrong = |reason: String| {
            let [namespace, name] = [&scaled.namespace, &scaled.name].map(|name| beginning(name));
            Status::invalid_argument(format!("trigger of the ScaledObject {namespace}/{name}: {reason}"))
        };
        let stage = scaled.scaler_metadata.get("stage").map_or("", String::as_str);
        let stage = Stage::named(stage).ok_or_else(|| wrong("set stage to fetcher or enricher".into()))?;
        let target_seconds = match scaled.scaler_metadata.get("secondsBehindTarget") {
            None => SECONDS_BEHIND_TARGET,
            Some(given) => {
                let seconds = given.parse().ok().filter(|seconds: &f64| seconds.is_finite() && *seconds >= 1.0);
                seconds.ok_or_else(|| wrong("set secondsBehindTarget to a number of seconds, at least 1".into()))?
            }
        };
        Ok(Self { stage, target_seconds })
    }

    fn metric_name(&self) -> String {
        format!("lake-{}-replicas", self.stage.name())
    }
}

/// As much of a name as Kubernetes allows: an answer with more would be larger than a client takes.
fn beginning(name: &str) -> String {
    name.chars().take(NAME_LETTERS_MAX).collect()
}

#[async_trait]
impl ExternalScaler for ScalerService {
    type StreamIsActiveStream = Pin<Box<dyn Stream<Item = Result<proto::IsActiveResponse, Status>> + Send>>;

    async fn is_active(
        &self,
        request: Request<proto::ScaledObjectRef>,
    ) -> Result<Response<proto::IsActiveResponse>, Status> {
        Trigger::of(request.get_ref())?;
        Ok(Response::new(proto::IsActiveResponse { result: true }))
    }

    async fn stream_is_active(
        &self,
        request: Request<proto::ScaledObjectRef>,
    ) -> Result<Response<Self::StreamIsActiveStream>, Status> {
        Trigger::of(request.get_ref())?;
        let too_many = |_| Status::resource_exhausted(format!("{STREAMS_MAX} streams are open; ask with IsActive"));
        let permit = Arc::clone(&self.streams).try_acquire_owned().map_err(too_many)?;
        let ended = self.shutdown.clone().cancelled_owned();
        // It never changes: the stream stays open, so that KEDA does not ask again and again.
        let active = stream::iter([Ok(proto::IsActiveResponse { result: true })]).chain(stream::pending());
        let active = active.take_until(async move {
            ended.await;
            drop(permit);
        });
        Ok(Response::new(Box::pin(active)))
    }

    async fn get_metric_spec(
        &self,
        request: Request<proto::ScaledObjectRef>,
    ) -> Result<Response<proto::GetMetricSpecResponse>, Status> {
        let metric_name = Trigger::of(request.get_ref())?.metric_name();
        let spec = proto::MetricSpec { metric_name, target_size: 1, target_size_float: 1.0 };
        Ok(Response::new(proto::GetMetricSpecResponse { metric_specs: vec![spec] }))
    }

    async fn get_metrics(
        &self,
        request: Request<proto::GetMetricsRequest>,
    ) -> Result<Response<proto::GetMetricsResponse>, Status> {
        let asked = request.into_inner();
        let trigger = Trigger::of(&asked.scaled_object_ref.unwrap_or_default())?;
        let metric_name = trigger.metric_name();
        if asked.metric_name != metric_name {
            return Err(Status::not_found(format!("there is no metric of that name; ask for {metric_name}")));
        }
        // Without an answer Kubernetes leaves the replicas as they are.
        let wanted = self.scaler.wanted(trigger.stage, trigger.target_seconds).ok_or_else(|| {
            let stage = trigger.stage.name();
            Status::unavailable(format!("no {stage} has announced itself to this writer yet; ask again in a minute"))
        })?;
        let value =
            proto::MetricValue { metric_name, metric_value: wanted.into(), metric_value_float: f64::from(wanted) };
        Ok(Response::new(proto::GetMetricsResponse { metric_values: vec![value] }))
    }
}

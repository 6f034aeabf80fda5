//! Logs, metrics and the HTTP endpoints `/live`, `/ready`, `/metrics`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use futures::future::BoxFuture;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Section `[telemetry]` of every service.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// Address of `/live`, `/ready` and `/metrics`.
    pub http_address: SocketAddr,
    /// `json` or `text`.
    pub log_format: LogFormat,
    /// Filter in the syntax of tracing's `EnvFilter`, for example `info,lake_writer=debug`; `LAKE_LOG` overrides it.
    pub log_filter: String,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            http_address: SocketAddr::from(([127, 0, 0, 1], 9600)),
            log_format: LogFormat::Json,
            log_filter: "info".into(),
        }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line, for machines.
    Json,
    /// For people.
    Text,
}

/// Starts logging to standard error. A filter that cannot be parsed is an error that names it.
pub fn install_logs(config: &TelemetryConfig) -> anyhow::Result<()> {
    let filter = std::env::var("LAKE_LOG").unwrap_or_else(|_| config.log_filter.clone());
    let filter = EnvFilter::try_new(&filter)
        .map_err(|error| anyhow::anyhow!("telemetry.log_filter `{filter}` is not valid: {error}"))?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let installed = match config.log_format {
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
        LogFormat::Text => subscriber.try_init(),
    };
    installed.map_err(|error| anyhow::anyhow!("logging cannot be started: {error}"))
}

/// Starts collecting metrics for [`serve`].
pub fn install_metrics() -> anyhow::Result<PrometheusHandle> {
    const SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];
    Ok(PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)?
        .install_recorder()?)
}

/// One dependency that `/ready` asks.
pub struct Check {
    /// What is asked, for example `queue`.
    pub name: &'static str,
    /// Asks it; the error is shown to the operator.
    pub ask: Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>,
}

impl Check {
    /// A check from an async closure.
    pub fn new<F, Fut>(name: &'static str, ask: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), String>> + Send + 'static,
    {
        Self { name, ask: Arc::new(move || Box::pin(ask())) }
    }
}

/// Longest time a check may take before it counts as failed.
const CHECK_WITHIN: Duration = Duration::from_secs(3);

/// Serves `/live` (the process runs), `/ready` (every check passes; 503 with one line per failure otherwise) and `/metrics`.
pub async fn serve(
    address: SocketAddr,
    metrics: PrometheusHandle,
    checks: Vec<Check>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await.map_err(|error| {
        anyhow::anyhow!("telemetry.http_address {address} cannot be bound ({error}); choose a free address")
    })?;
    tracing::info!(%address, "serving /live, /ready and /metrics");
    let checks = Arc::new(checks);
    let stopping = shutdown.clone();
    let router = Router::new()
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(move || readiness(Arc::clone(&checks), stopping.is_cancelled())))
        .route("/metrics", get(move || std::future::ready(metrics.render())));
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await?;
    Ok(())
}

/// Asks `/ready` of a service on this machine. The error says what is not ready.
pub fn ask_ready(address: SocketAddr) -> anyhow::Result<()> {
    use std::io::{Read, Write};
    let mut address = address;
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let unreachable =
        |error: std::io::Error| anyhow::anyhow!("{address} does not answer: {error}; is the service running?");
    let mut connection = std::net::TcpStream::connect_timeout(&address, CHECK_WITHIN).map_err(unreachable)?;
    connection.set_read_timeout(Some(CHECK_WITHIN * 2))?;
    connection.write_all(b"GET /ready HTTP/1.0\r\n\r\n").map_err(unreachable)?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).map_err(unreachable)?;
    let ready = answer.lines().next().is_some_and(|status| status.contains(" 200"));
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body.trim());
    anyhow::ensure!(ready, "not ready: {body}");
    Ok(())
}

async fn readiness(checks: Arc<Vec<Check>>, stopping: bool) -> (StatusCode, String) {
    if stopping {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n".into());
    }
    let asked = checks.iter().map(|check| async {
        let answer = tokio::time::timeout(CHECK_WITHIN, (check.ask)()).await;
        (check.name, answer.unwrap_or_else(|_| Err(format!("no answer within {} s", CHECK_WITHIN.as_secs()))))
    });
    let answers = futures::future::join_all(asked).await;
    let failed: Vec<String> = answers
        .into_iter()
        .filter_map(|(name, answer)| answer.err().map(|error| format!("{name}: {error}\n")))
        .collect();
    if failed.is_empty() {
        (StatusCode::OK, "ready\n".into())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, failed.concat())
    }
}

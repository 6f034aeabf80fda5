//! Logs, metrics and the HTTP endpoints `/live`, `/ready`, `/metrics`.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::future::BoxFuture;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_service::Service;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::queue::Queue;

/// Section `[telemetry]` of every service.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// Address of `/live`, `/ready` and `/metrics`.
    pub http_address: SocketAddr,
    /// Form of the log lines: `json` or `text`.
    pub log_format: LogFormat,
    /// Filter in the syntax of tracing's `EnvFilter`, for example `info,lake_writer=debug`; `LAKE_LOG` overrides it. A level alone is that of the
    /// lake's own parts: libraries log from `warn` on unless they are named.
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
    /// Plain lines, for people.
    Text,
}

/// The filter that decides what is logged: `LAKE_LOG`, else `telemetry.log_filter`.
///
/// # Errors
/// Where the filter cannot be parsed; the text names the variable or key.
pub fn log_filter(config: &TelemetryConfig) -> anyhow::Result<EnvFilter> {
    let (key, filter) = match std::env::var("LAKE_LOG") {
        Ok(filter) => ("variable `LAKE_LOG`", filter),
        Err(_) => ("key `telemetry.log_filter`", config.log_filter.clone()),
    };
    const ADVICE: &str = "write a level such as info, or levels of parts such as info,lake_writer=debug";
    for word in filter.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        // The parser takes a misspelt level for the name of a part, and then nothing else is logged.
        let is_level = word.parse::<LevelFilter>().is_ok();
        anyhow::ensure!(is_level || word.contains(['=', '[', ']']), "{key}: `{word}` is not a level; {ADVICE}");
    }
    EnvFilter::try_new(own_parts(&filter))
        .map_err(|error| anyhow::anyhow!("{key}: `{filter}` is not valid ({error}); {ADVICE}"))
}

/// First letters of the targets of the lake's own crates and programs.
const OWN_PARTS: [&str; 4] = ["lake", "fetcher", "enricher", "writer"];

/// The filter with levels that stand alone applied to the lake's own parts; everything else is logged from `warn` on, as some libraries tell each
/// of their steps at `info`.
fn own_parts(filter: &str) -> String {
    let words = filter.split(',').map(str::trim).filter(|word| !word.is_empty());
    let words = words.map(|word| match word.parse::<LevelFilter>() {
        Ok(level) if level > LevelFilter::WARN => {
            let own = OWN_PARTS.map(|part| format!("{part}={word}")).join(",");
            format!("{},{own}", LevelFilter::WARN)
        }
        _ => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(",")
}

/// Starts logging to standard error.
///
/// # Errors
/// As [`log_filter`]; and where logging was started before in this process.
pub fn install_logs(config: &TelemetryConfig) -> anyhow::Result<()> {
    let filter = log_filter(config)?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let installed = match config.log_format {
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
        LogFormat::Text => subscriber.try_init(),
    };
    installed.map_err(|error| anyhow::anyhow!("logging cannot be started: {error}"))
}

/// Starts collecting metrics for [`serve`].
///
/// # Errors
/// Where metrics are collected already in this process.
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
    /// Asks the dependency; the error is shown to the operator.
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

    /// Whether messages can be queued.
    pub fn queue(queue: Arc<dyn Queue>) -> Self {
        Self::new("queue", move || {
            let queue = Arc::clone(&queue);
            async move { queue.check().await.map_err(|error| error.to_string()) }
        })
    }
}

/// Time between two rounds of [`keep_up`].
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Longest time a check may take before it counts as failed.
const CHECK_WITHIN: Duration = Duration::from_secs(3);

/// What a service answers on its HTTP port, once it is put together.
#[derive(Default)]
pub struct Endpoints {
    /// What `/ready` asks.
    pub checks: Vec<Check>,
    /// Pages of its own.
    pub pages: Router,
}

impl From<Vec<Check>> for Endpoints {
    fn from(checks: Vec<Check>) -> Self {
        Self { checks, pages: Router::new() }
    }
}

/// What is served; until it is set `/ready` answers "starting".
pub type Served = Arc<OnceLock<Endpoints>>;

/// Binds the address for [`serve`], so that a wrong one is noticed at once.
///
/// # Errors
/// Where the address cannot be bound.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        anyhow::anyhow!("telemetry.http_address {address} cannot be bound ({error}); choose a free address")
    })
}

/// Serves `/live` (the process runs), `/ready` (every check passes; 503 with one line per failure otherwise), `/metrics`, and the pages of the
/// service.
///
/// # Errors
/// Where the listener fails.
pub async fn serve(
    listener: TcpListener,
    metrics: PrometheusHandle,
    served: Served,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    tracing::info!(address = %listener.local_addr()?, "serving /live, /ready and /metrics");
    let (stopping, upkeep) = (shutdown.clone(), metrics.clone());
    let pages = Arc::clone(&served);
    let router = Router::new()
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(move || readiness(Arc::clone(&served), stopping.is_cancelled())))
        .route("/metrics", get(move || std::future::ready(metrics.render())))
        .fallback(move |request| page(Arc::clone(&pages), request));
    let serving = axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned());
    tokio::select! {
        served = serving => Ok(served?),
        () = keep_up(upkeep) => Ok(()),
    }
}

/// Folds the values of histograms, which would otherwise stay in memory one by one until `/metrics` is read.
async fn keep_up(metrics: PrometheusHandle) {
    loop {
        tokio::time::sleep(UPKEEP_EVERY).await;
        metrics.run_upkeep();
    }
}

/// Asks `/ready` of a service on this machine.
///
/// # Errors
/// Where the service does not answer or is not ready; the text says what is not.
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

/// Answers with a page of the service.
async fn page(served: Served, request: Request) -> Response {
    match served.get() {
        Some(endpoints) => endpoints.pages.clone().call(request).await.into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "starting: waiting for other parts, see the log\n").into_response(),
    }
}

async fn readiness(served: Served, stopping: bool) -> (StatusCode, String) {
    if stopping {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n".into());
    }
    let Some(Endpoints { checks, .. }) = served.get() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "starting: waiting for other parts, see the log\n".into());
    };
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

#[cfg(test)]
mod tests {
    use super::own_parts;

    #[test]
    fn a_level_alone_is_that_of_the_lake_and_libraries_are_heard_from_warn_on() {
        let own = "warn,lake=info,fetcher=info,enricher=info,writer=info";
        for (filter, becomes) in [
            ("info", own),
            ("error", "error"),
            ("warn", "warn"),
            ("off", "off"),
            ("lake_writer=debug", "lake_writer=debug"),
            (" info , lake_writer=debug,delta_kernel=info", &format!("{own},lake_writer=debug,delta_kernel=info")),
        ] {
            assert_eq!(own_parts(filter), becomes);
        }
    }
}

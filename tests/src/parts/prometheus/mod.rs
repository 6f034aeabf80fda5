//! A Prometheus server that asks services for their metrics each second.

use std::fmt::Write;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::port::Port;
use super::probe::http_status;
use super::process::Process;
use super::{installed, with_fresh_ports};

/// A running Prometheus server.
#[derive(Debug)]
pub struct Prometheus {
    _server: Process,
    port: Port,
    _folder: TempDir,
}

impl Prometheus {
    /// Starts a server without history. A target is `host:port`, of which `/metrics` is asked.
    ///
    /// # Errors
    /// When the server is not installed, or does not come up.
    pub fn start(targets: &[String]) -> anyhow::Result<Self> {
        with_fresh_ports(|| Self::start_once(targets))
    }

    fn start_once(targets: &[String]) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("lake-test-prometheus-").tempdir()?;
        let mut config = String::from("global: { scrape_interval: 1s }\nscrape_configs:\n  - job_name: lake\n");
        writeln!(config, "    static_configs: [{{ targets: {} }}]", serde_json::to_string(targets)?)?;
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, config)?;
        let port = Port::free()?;
        let mut command = Command::new(installed("tools/bin/prometheus")?);
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{}", port.number()));
        let number = port.number();
        let ready = Box::new(move || http_status(number, "GET", "/-/ready", "") == Some(200));
        let log = folder.path().join("server.log");
        let server = Process::start("Prometheus", command, &log, "TERM", vec![folder.path().to_owned()], ready)?;
        Ok(Self { _server: server, port, _folder: folder })
    }

    /// The series that an expression gives now.
    ///
    /// # Errors
    /// When the expression is not understood, or the server does not answer.
    pub async fn query(&self, expression: &str) -> anyhow::Result<Vec<Value>> {
        let url = format!("http://127.0.0.1:{}/api/v1/query", self.port.number());
        let url = url::Url::parse_with_params(&url, [("query", expression)])?;
        let answer: Value = reqwest::get(url).await?.json().await?;
        ensure!(answer["status"] == "success", "{expression}: {answer}");
        Ok(answer["data"]["result"].as_array().with_context(|| format!("{expression}: {answer}"))?.clone())
    }
}

//! A NATS server with JetStream, its streams on disk.

use std::process::Command;

use anyhow::Context;
use tempfile::TempDir;

use super::port::Port;
use super::probe::http_status;
use super::process::Process;
use super::{installed, with_fresh_ports};
use crate::certificates::Certificates;

/// A running NATS server. Streams survive [`Nats::restart`].
#[derive(Debug)]
pub struct Nats {
    server: Process,
    port: Port,
    scheme: &'static str,
    _monitor: Port,
    folder: TempDir,
}

impl Nats {
    /// Starts a server with an empty JetStream store.
    ///
    /// # Errors
    /// When the server is not installed, or does not come up.
    pub fn start() -> anyhow::Result<Self> {
        with_fresh_ports(|| Self::start_once(None))
    }

    /// Starts a server that speaks only TLS, and only with clients that have a certificate of the same root.
    ///
    /// # Errors
    /// When the server is not installed, or does not come up.
    pub fn start_with_tls(certificates: &Certificates) -> anyhow::Result<Self> {
        with_fresh_ports(|| Self::start_once(Some(certificates)))
    }

    fn start_once(certificates: Option<&Certificates>) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("lake-test-nats-").tempdir()?;
        let (port, monitor) = (Port::free()?, Port::free()?);
        let mut command = Command::new(installed("python/bin/nats-server")?);
        command.args(["-a", "127.0.0.1", "-p", &port.number().to_string(), "-m", &monitor.number().to_string()]);
        command.arg("-js").arg("-sd").arg(folder.path().join("store"));
        if let Some(certificates) = certificates {
            command.arg("--tlsverify").arg("--tlscacert").arg(certificates.file("ca.pem"));
            command.arg("--tlscert").arg(certificates.file("server.pem"));
            command.arg("--tlskey").arg(certificates.file("server.key"));
        }
        let health = monitor.number();
        let ready = Box::new(move || http_status(health, "GET", "/healthz", "") == Some(200));
        let log = folder.path().join("server.log");
        let server = Process::start("NATS", command, &log, "TERM", vec![folder.path().to_owned()], ready)?;
        let scheme = if certificates.is_some() { "tls" } else { "nats" };
        Ok(Self { server, port, scheme, _monitor: monitor, folder })
    }

    /// The address for clients, as `nats://…` or `tls://…`.
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port.number())
    }

    /// Kills the server hard and starts it again on the same port and streams.
    ///
    /// # Errors
    /// When it does not come up again.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.server.restart()
    }

    /// Stops the server, takes all messages out of its store but leaves the consumers there, and starts it again: what the loss of power
    /// may leave of a store that is not synchronized with each message. It is stopped in good order, so that the consumers are on disk.
    ///
    /// # Errors
    /// When nothing is in the store, or the server does not come up again.
    pub fn lose_messages(&mut self) -> anyhow::Result<()> {
        self.server.stop()?;
        let streams = self.folder.path().join("store/jetstream/$G/streams");
        let mut removed = 0;
        for stream in std::fs::read_dir(&streams).with_context(|| streams.display().to_string())? {
            for file in std::fs::read_dir(stream?.path().join("msgs"))? {
                std::fs::remove_file(file?.path())?;
                removed += 1;
            }
        }
        anyhow::ensure!(removed > 0, "there are no messages in {}", streams.display());
        self.server.start_again()
    }

    /// The server process, to be stopped, killed, frozen or started again.
    pub fn server(&mut self) -> &mut Process {
        &mut self.server
    }
}

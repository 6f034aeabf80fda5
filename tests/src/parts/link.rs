//! A way to a server that a test can cut.

use std::net::Ipv4Addr;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Port;

/// Bytes that are passed on at once.
const CHUNK: usize = 16 << 10;

/// Passes connections on to a port of this machine. While it is cut, connections stay open and nothing comes through, as when a cable is
/// pulled; what was sent meanwhile arrives when it is mended.
#[derive(Debug)]
pub struct Link {
    port: Port,
    is_cut: watch::Sender<bool>,
    /// Ends with the link.
    _passing: JoinSet<()>,
}

impl Link {
    /// A way to a server on this port.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn to(server: u16) -> anyhow::Result<Self> {
        let port = Port::free()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.number())).await.context("listen for a link")?;
        let (is_cut, cut) = watch::channel(false);
        let mut passing = JoinSet::new();
        passing.spawn(accept(listener, server, cut));
        Ok(Self { port, is_cut, _passing: passing })
    }

    /// The port to connect to instead of the server's.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Nothing comes through any more.
    pub fn cut(&self) {
        self.is_cut.send_replace(true);
    }

    /// Everything comes through again.
    pub fn mend(&self) {
        self.is_cut.send_replace(false);
    }
}

async fn accept(listener: TcpListener, server: u16, cut: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                connections.spawn(connect(client, server, cut.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connect(client: TcpStream, server: u16, mut cut: watch::Receiver<bool>) {
    if cut.wait_for(|is_cut| !is_cut).await.is_err() {
        return;
    }
    // Who cannot be reached closes the connection.
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::join!(pass(from_client, to_server, cut.clone()), pass(from_server, to_client, cut));
}

async fn pass(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin, mut cut: watch::Receiver<bool>) {
    let mut chunk = vec![0; CHUNK];
    while let Ok(length @ 1..) = from.read(&mut chunk).await {
        let is_mended = cut.wait_for(|is_cut| !is_cut).await.is_ok();
        if !is_mended || to.write_all(&chunk[..length]).await.is_err() {
            return;
        }
    }
    // One side has closed; the other one is told.
    let _ = to.shutdown().await;
}

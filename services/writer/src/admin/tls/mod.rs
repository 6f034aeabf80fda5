//! Encrypted connections of the interface. Certificates are replaced while the writer runs: their files are looked at again and again, and new
//! connections get what is in them then.

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::{Stream, stream};
use lake_shared::error_chain::Chain;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::AdminTls;

/// Time between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Longest time for which the beginning of a connection may take.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// Most connections that begin at the same time; further ones are closed.
const HANDSHAKES_AT_ONCE: usize = 64;

/// Wait after a connection could not be accepted, for instance as too many files are open.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// Connections that are ready and not taken yet.
const READY_MAX: usize = 16;

/// The contents of the files, and what was made of them.
pub(super) struct Encryption {
    files: AdminTls,
    contents: Contents,
    config: Arc<ServerConfig>,
}

#[derive(PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Encryption {
    /// Reads the files.
    ///
    /// # Errors
    /// A file cannot be read or used, or certificate and key do not belong together.
    pub(super) async fn read(files: &AdminTls) -> anyhow::Result<Self> {
        lake_shared::tls::choose_cryptography();
        let contents = contents(files).await?;
        let config = config(&contents).context("admin.tls: certificate, key or client_ca cannot be used")?;
        Ok(Self { files: files.clone(), contents, config })
    }

    /// Reads the files again where they have changed. What cannot be used is told, and the certificate of before stays.
    async fn read_again(&mut self) {
        let contents = match contents(&self.files).await {
            Ok(contents) if contents == self.contents => return,
            Ok(contents) => contents,
            Err(error) => {
                tracing::warn!(error = %Chain(&*error), "the files of admin.tls cannot be read; the certificate of before stays in use");
                return;
            }
        };
        match config(&contents) {
            Ok(config) => {
                tracing::info!("admin.tls has changed: new connections get the new certificate");
                self.config = config;
                self.contents = contents;
            }
            // Perhaps one of the files is not replaced yet.
            Err(error) => {
                tracing::warn!(error = %Chain(&*error), "what is in the files of admin.tls cannot be used; the certificate of before stays in use");
            }
        }
    }

    /// The connections that are accepted, until the stream is dropped.
    pub(super) fn connections(
        self,
        listener: TcpListener,
    ) -> impl Stream<Item = std::io::Result<TlsStream<TcpStream>>> {
        let (ready, taken) = mpsc::channel(READY_MAX);
        tokio::spawn(self.accept(listener, ready));
        stream::unfold(taken, |mut taken| async move {
            let connection = taken.recv().await?;
            Some((Ok(connection), taken))
        })
    }

    async fn accept(mut self, listener: TcpListener, ready: mpsc::Sender<TlsStream<TcpStream>>) {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_AT_ONCE));
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let accepted = tokio::select! {
                () = ready.closed() => return,
                _ = look.tick() => {
                    self.read_again().await;
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            let connection = match accepted {
                Ok((connection, _)) => connection,
                Err(error) => {
                    tracing::warn!(%error, "admin: a connection cannot be accepted now");
                    sleep(ACCEPT_AGAIN_AFTER).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else { continue };
            let (acceptor, ready) = (TlsAcceptor::from(Arc::clone(&self.config)), ready.clone());
            tokio::spawn(async move {
                // A delay of small packets is of no use to calls.
                let _ = connection.set_nodelay(true);
                match timeout(HANDSHAKE_WITHIN, acceptor.accept(connection)).await {
                    Ok(Ok(connection)) => drop(ready.send(connection).await),
                    Ok(Err(error)) => tracing::debug!(%error, "admin: a connection was not encrypted as it should be"),
                    Err(_) => tracing::debug!("admin: a connection took too long to begin"),
                }
                drop(permit);
            });
        }
    }
}

async fn contents(files: &AdminTls) -> anyhow::Result<Contents> {
    let read = async |key: &str, path: &Path| {
        tokio::fs::read(path).await.with_context(|| format!("admin.tls.{key}: {} cannot be read", path.display()))
    };
    Ok(Contents {
        certificate: read("certificate", &files.certificate).await?,
        key: read("key", &files.key).await?,
        client_ca: match &files.client_ca {
            Some(path) => Some(read("client_ca", path).await?),
            None => None,
        },
    })
}

fn config(contents: &Contents) -> anyhow::Result<Arc<ServerConfig>> {
    let certificates = |of: &[u8]| CertificateDer::pem_reader_iter(Cursor::new(of)).collect::<Result<Vec<_>, _>>();
    let builder = match &contents.client_ca {
        None => ServerConfig::builder().with_no_client_auth(),
        Some(client_ca) => {
            let mut roots = RootCertStore::empty();
            for root in certificates(client_ca).context("client_ca")? {
                roots.add(root).context("client_ca")?;
            }
            let verifier = WebPkiClientVerifier::builder(roots.into()).build().context("client_ca")?;
            ServerConfig::builder().with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::from_pem_reader(Cursor::new(&contents.key)).context("key")?;
    let chain = certificates(&contents.certificate).context("certificate")?;
    let mut config = builder.with_single_cert(chain, key).context("certificate and key")?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

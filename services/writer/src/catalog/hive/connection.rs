//! A connection to a Thrift service: the binary protocol over TCP, with or without TLS. It blocks, within its time-outs.

use std::io::{self, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lake_shared::error_chain::Chain;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use thrift::TConfiguration;
use thrift::protocol::{
    TBinaryInputProtocol, TBinaryOutputProtocol, TInputProtocol, TMessageIdentifier, TMessageType, TOutputProtocol,
};

use super::wire::{self, Fields, Value};

/// Longest text and most elements of an answer. A hundred wide tables with their columns are far below.
const TEXT_BYTES_MAX: usize = 64 << 20;
const ELEMENTS_MAX: usize = 4 << 20;

/// How long the parts of a connection may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    pub(super) connect: Duration,
    pub(super) request: Duration,
}

/// A service that is connected to.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) timeouts: Timeouts,
    pub(super) tls: Option<Arc<ClientConfig>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The connection cannot be used any more.
    #[error("{0}")]
    Broken(String),
    /// The service cannot do what is asked for, and says why.
    #[error("{0}")]
    Exception(String),
}

impl From<io::Error> for CallError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Broken("no answer in time".into()),
            io::ErrorKind::UnexpectedEof => Self::Broken(
                "it closed the connection; a service that wants SASL (Kerberos) or TLS does so as well".into(),
            ),
            _ => Self::Broken(Chain(&error).to_string()),
        }
    }
}

impl From<thrift::Error> for CallError {
    fn from(error: thrift::Error) -> Self {
        match error {
            thrift::Error::Transport(error) if error.kind == thrift::TransportErrorKind::EndOfFile => {
                io::Error::from(io::ErrorKind::UnexpectedEof).into()
            }
            thrift::Error::Transport(error) if error.kind == thrift::TransportErrorKind::TimedOut => {
                io::Error::from(io::ErrorKind::TimedOut).into()
            }
            error => Self::Broken(Chain(&error).to_string()),
        }
    }
}

/// TLS that trusts who has signed with the certificates of a file.
///
/// # Errors
/// The file cannot be read or has no certificate.
pub(super) fn tls(ca_file: &Path) -> Result<Arc<ClientConfig>, String> {
    let unusable = |error: &dyn std::fmt::Display| {
        format!("key `catalog.ca_file`: {} cannot be used: {error}; give certificates in PEM", ca_file.display())
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca_file).map_err(|error| unusable(&error))? {
        roots.add(certificate.map_err(|error| unusable(&error))?).map_err(|error| unusable(&error))?;
    }
    if roots.is_empty() {
        return Err(unusable(&"it has no certificate"));
    }
    lake_shared::tls::choose_cryptography();
    Ok(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
}

/// Where bytes go and come from.
trait Channel: Read + Write + Send {}

impl<T: Read + Write + Send> Channel for T {}

/// An open connection.
pub(super) struct Connection {
    channel: BufReader<Box<dyn Channel>>,
    sequence: i32,
}

impl Connection {
    /// Connects.
    pub(super) fn open(server: &Server) -> Result<Self, CallError> {
        let Server { host, port, timeouts, tls } = server;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in (host.as_str(), *port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, timeouts.connect) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    stream.set_read_timeout(Some(timeouts.request))?;
                    stream.set_write_timeout(Some(timeouts.request))?;
                    return Ok(Self { channel: BufReader::new(channel(stream, host, tls.as_ref())?), sequence: 0 });
                }
                Err(error) => last = error,
            }
        }
        Err(last.into())
    }

    /// Asks and waits for the answer: the fields of its result. After [`CallError::Broken`] the connection is not to be used again.
    pub(super) fn call(&mut self, method: &str, arguments: &Fields) -> Result<Fields, CallError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut question = Vec::new();
        let mut to = TBinaryOutputProtocol::new(&mut question, true);
        to.write_message_begin(&TMessageIdentifier::new(method, TMessageType::Call, self.sequence))?;
        wire::write_fields(&mut to, arguments)?;
        to.write_message_end()?;
        let channel = self.channel.get_mut();
        channel.write_all(&question)?;
        channel.flush()?;
        let limits = TConfiguration::builder()
            .max_string_size(Some(TEXT_BYTES_MAX))
            .max_container_size(Some(ELEMENTS_MAX))
            .build()?;
        let mut from = TBinaryInputProtocol::with_config(&mut self.channel, true, limits);
        let message = from.read_message_begin()?;
        let fields = wire::read_fields(&mut from)?;
        from.read_message_end()?;
        if message.sequence_number != self.sequence {
            return Err(CallError::Broken("it answered another question".into()));
        }
        match message.message_type {
            TMessageType::Reply => Ok(fields),
            _ => {
                let told = fields.get(&1).and_then(Value::as_text).unwrap_or("it does not say why");
                Err(CallError::Exception(told.to_owned()))
            }
        }
    }
}

fn channel(stream: TcpStream, host: &str, tls: Option<&Arc<ClientConfig>>) -> Result<Box<dyn Channel>, CallError> {
    let Some(tls) = tls else { return Ok(Box::new(stream)) };
    let name = ServerName::try_from(host.to_owned()).map_err(|error| CallError::Broken(error.to_string()))?;
    let connection = ClientConnection::new(Arc::clone(tls), name);
    let connection = connection.map_err(|error| CallError::Broken(Chain(&error).to_string()))?;
    Ok(Box::new(StreamOwned::new(connection, stream)))
}

//! How to reach the NATS servers and how large the streams are.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::{ConnectOptions, ServerAddr};
use futures::FutureExt;
use serde::Deserialize;

use crate::queue::QueueError;
use crate::secret::Secret;
use crate::wire;

/// Configuration of the queue on JetStream.
#[derive(Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JetStreamConfig {
    /// Addresses of the servers, `nats://host:4222` or `tls://host:4222`; one that answers is enough. Default: `nats://127.0.0.1:4222`.
    pub servers: Vec<String>,
    /// File with a JWT and its key, as `nsc` writes it.
    pub credentials_file: Option<PathBuf>,
    /// User name; goes with `password`.
    pub user: Option<String>,
    /// Password that goes with `user`.
    pub password: Option<Secret>,
    /// Token, where the servers ask for one.
    pub token: Option<Secret>,
    /// File in PEM with the roots by which certificates of the servers are judged, instead of those of the system; with it, TLS is a must.
    pub ca_file: Option<PathBuf>,
    /// File in PEM with a certificate to show to servers that ask for one; goes with `key_file`.
    pub certificate_file: Option<PathBuf>,
    /// File in PEM with the private key that goes with `certificate_file`.
    pub key_file: Option<PathBuf>,
    /// Room of each of the streams of records and of rows, in bytes. A full stream makes producers wait. The servers reserve it:
    /// their file store needs room for twice this, twice `parts_size_bytes_max`, twice `changes_size_bytes_max` and the quarantine. Default: 4 GiB.
    pub stream_size_bytes_max: u64,
    /// Room of each of the streams with the parts of large records and rows, in bytes. A full one makes producers wait. Default: 1 GiB.
    pub parts_size_bytes_max: u64,
    /// How long parts may lie before the message that names them is queued, in seconds; a third of it is how long storing all parts of a message may
    /// take. Older ones that no queued message can name were left by a service that was killed, and are dropped. Default: 900.
    pub parts_abandoned_after_seconds: u64,
    /// Room of the stream of quarantined records, in bytes. Default: 1 GiB.
    pub quarantine_size_bytes_max: u64,
    /// Room of each of the streams of what the lake asks fetchers for and of what they report, in bytes. A full one makes whoever asks wait.
    /// Default: 128 MiB.
    pub changes_size_bytes_max: u64,
    /// Copies of each message: 1, or 3 or 5 in a cluster. With 1, a message that was just queued survives the end of the server
    /// process, but the loss of power only if the server has `sync_interval: always`. Default: 1.
    pub replicas: usize,
    /// How long the streams remember ids, to drop repetitions; in seconds. Default: 120.
    pub dedupe_window_seconds: u64,
    /// Largest payload, in bytes, compressed; at most half of `parts_size_bytes_max`. What is larger than the `max_payload` of the server travels in
    /// parts; in quarantine it is cut. Default: 64 MiB.
    pub payload_size_max: usize,
    /// Longest time for one try to connect, in milliseconds. Default: 5,000.
    pub connect_timeout_ms: u64,
    /// Longest time for one answer of a server, in milliseconds; then the request counts as failed. Default: 10,000.
    pub request_timeout_ms: u64,
    /// How often to try at start, while no server is ready. Default: none, keep trying.
    pub connect_attempts_max: Option<u32>,
}

impl Default for JetStreamConfig {
    fn default() -> Self {
        Self {
            servers: vec!["nats://127.0.0.1:4222".into()],
            credentials_file: None,
            user: None,
            password: None,
            token: None,
            ca_file: None,
            certificate_file: None,
            key_file: None,
            stream_size_bytes_max: 4 << 30,
            parts_size_bytes_max: 1 << 30,
            parts_abandoned_after_seconds: 900,
            quarantine_size_bytes_max: 1 << 30,
            changes_size_bytes_max: 128 << 20,
            replicas: 1,
            dedupe_window_seconds: 120,
            payload_size_max: 64 << 20,
            connect_timeout_ms: 5_000,
            request_timeout_ms: 10_000,
            connect_attempts_max: None,
        }
    }
}

impl fmt::Debug for JetStreamConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JetStreamConfig")
            .field("servers", &self.servers_shown())
            .field("credentials_file", &self.credentials_file)
            .field("user", &self.user)
            .field("ca_file", &self.ca_file)
            .field("certificate_file", &self.certificate_file)
            .field("key_file", &self.key_file)
            .field("stream_size_bytes_max", &self.stream_size_bytes_max)
            .field("parts_size_bytes_max", &self.parts_size_bytes_max)
            .field("parts_abandoned_after_seconds", &self.parts_abandoned_after_seconds)
            .field("quarantine_size_bytes_max", &self.quarantine_size_bytes_max)
            .field("changes_size_bytes_max", &self.changes_size_bytes_max)
            .field("replicas", &self.replicas)
            .field("dedupe_window_seconds", &self.dedupe_window_seconds)
            .field("payload_size_max", &self.payload_size_max)
            .finish_non_exhaustive()
    }
}

impl JetStreamConfig {
    /// Checks rules that types cannot express, as far as that is possible without a server.
    ///
    /// # Errors
    /// The key and what to do about it.
    pub fn validate(&self) -> Result<(), String> {
        self.addresses().map_err(|error| format!("key `queue.servers`: {}", error.reason))?;
        if self.certificate_file.is_some() != self.key_file.is_some() {
            return Err("section `queue`: give both certificate_file and key_file, or none of them".into());
        }
        if self.payload_size_max as u64 > self.parts_size_bytes_max / 2 {
            let most = self.parts_size_bytes_max / 2;
            return Err(format!(
                "key `queue.payload_size_max`: at most half of queue.parts_size_bytes_max, which is {most}"
            ));
        }
        if self.payload_size_max > wire::DECODED_SIZE_MAX {
            return Err(format!(
                "key `queue.payload_size_max`: at most {}, more is not unpacked",
                wire::DECODED_SIZE_MAX
            ));
        }
        if self.parts_abandoned_after_seconds == 0 {
            return Err("key `queue.parts_abandoned_after_seconds`: at least 1".into());
        }
        // Only a login by file waits for anything, namely for the file.
        match self.login().now_or_never() {
            Some(Err(error)) if self.credentials_file.is_none() => Err(format!("section `queue`: {}", error.reason)),
            _ => Ok(()),
        }
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms.max(1))
    }

    pub(super) fn parts_abandoned_after(&self) -> Duration {
        Duration::from_secs(self.parts_abandoned_after_seconds.max(1))
    }

    pub(super) fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms.max(1))
    }

    /// The addresses without user, password or token.
    pub(super) fn servers_shown(&self) -> String {
        self.servers.iter().map(|address| without_login(address)).collect::<Vec<_>>().join(", ")
    }

    /// The addresses, freed of logins: those go into the options, so that no address holds a secret that could be logged.
    pub(super) fn addresses(&self) -> Result<Vec<ServerAddr>, QueueError> {
        if self.servers.is_empty() {
            return Err(refused("no server is named; set queue.servers to something like nats://host:4222"));
        }
        let addresses = self.servers.iter().map(|address| {
            let shown = without_login(address);
            // The reason of the parser could show what was parsed.
            shown.parse().map_err(|_| refused(&format!("{shown} is not an address like nats://host:4222")))
        });
        addresses.collect()
    }

    /// Connection options with the login that is configured, if any.
    pub(super) async fn login(&self) -> Result<ConnectOptions, QueueError> {
        let (mut user, mut password, mut token) = (self.user.clone(), self.password.clone(), self.token.clone());
        let in_addresses: Vec<&str> = self.servers.iter().filter_map(|address| login_of(address)).collect();
        if let Some(login) = in_addresses.first() {
            let named = user.is_some() || token.is_some() || self.credentials_file.is_some();
            if named || in_addresses.iter().any(|other| other != login) {
                return Err(refused("more than one login is given; remove those in queue.servers"));
            }
            match login.split_once(':') {
                Some((name, secret)) => {
                    (user, password) = (Some(decoded(name)), Some(decoded(secret).into()));
                }
                None => token = Some(decoded(login).into()),
            }
        }
        let options = ConnectOptions::new();
        match (user, password, token, &self.credentials_file) {
            (None, None, None, None) => Ok(options),
            (Some(user), Some(password), None, None) => {
                Ok(options.user_and_password(user, password.expose().to_owned()))
            }
            (None, None, Some(token), None) => Ok(options.token(token.expose().to_owned())),
            // The parser's error is left out, as it may show the file's content.
            (None, None, None, Some(path)) => options.credentials_file(path).await.map_err(|error| {
                refused(&format!("credentials file {} cannot be used ({})", path.display(), error.kind()))
            }),
            _ => Err(refused("give user and password, or token, or credentials_file, not several of them")),
        }
    }
}

impl JetStreamConfig {
    /// The options with what is configured for TLS. The files are looked at here: the client library would name none of them in its errors.
    pub(super) fn encrypted(&self, mut options: ConnectOptions) -> Result<ConnectOptions, QueueError> {
        for file in [&self.ca_file, &self.certificate_file, &self.key_file].into_iter().flatten() {
            if let Err(error) = std::fs::File::open(file) {
                return Err(refused(&format!("file {} of section queue cannot be read ({error})", file.display())));
            }
        }
        if let Some(roots) = &self.ca_file {
            options = options.add_root_certificates(roots.clone()).require_tls(true);
        }
        if let (Some(certificate), Some(key)) = (&self.certificate_file, &self.key_file) {
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        Ok(options)
    }
}

fn refused(reason: &str) -> QueueError {
    QueueError { action: "use the configuration of the queue".into(), reason: reason.to_owned() }
}

/// `user:password` or `token` of `scheme://login@host`.
fn login_of(address: &str) -> Option<&str> {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    // The last `@`, wherever it stands: a password may hold a `/` or `@` that was not escaped, and must not be shown.
    rest.rsplit_once('@').map(|(login, _)| login)
}

/// The address as it may be shown.
fn without_login(address: &str) -> String {
    match login_of(address) {
        Some(login) => address.replacen(&format!("{login}@"), "", 1),
        None => address.to_owned(),
    }
}

/// Undoes `%HH`; what is not such an escape stays.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escape = after.get(..2).filter(|_| first == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = escape.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            bytes.push(byte);
            rest = &after[2..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn config(servers: &[&str]) -> JetStreamConfig {
        JetStreamConfig { servers: servers.iter().map(|&address| address.to_owned()).collect(), ..Default::default() }
    }

    #[test]
    fn logins_in_addresses_are_never_shown() {
        for address in [
            "nats://lake:s3cret@host:4222",
            "lake:s3cret@host:4222",
            "nats://s3cret@host",
            "nats://lake:s3cret@",
            "tls://lake:a@s3cret/@host:4222",
        ] {
            let config = config(&[address]);
            let mut shown = format!("{config:?} {}", config.servers_shown());
            if let Err(error) = config.addresses() {
                shown.push_str(&error.to_string());
            }
            assert!(!shown.contains("s3cret") && !shown.contains("lake"), "{shown}");
        }
        assert_eq!(config(&["nats://a:b@host:1", "host"]).servers_shown(), "nats://host:1, host");
        assert_eq!(config(&["nats://a:b@host:1"]).addresses().unwrap()[0].as_url_str(), "nats://host:1");
    }

    #[tokio::test]
    async fn one_login_is_taken_and_two_are_refused() {
        assert!(config(&["nats://host"]).login().await.is_ok());
        assert!(config(&["nats://a:b@host", "nats://a:b@other"]).login().await.is_ok());
        assert!(config(&["nats://a:b@host", "nats://a:c@other"]).login().await.is_err());
        let user_alone = JetStreamConfig { user: Some("a".into()), ..config(&["host"]) };
        assert!(user_alone.login().await.is_err());
        let both = JetStreamConfig { token: Some("t".into()), ..config(&["nats://a:b@host"]) };
        assert!(both.login().await.is_err());
        let file = JetStreamConfig { credentials_file: Some("does-not-exist".into()), ..config(&["host"]) };
        assert!(file.login().await.unwrap_err().to_string().contains("does-not-exist"));
    }

    #[test]
    fn files_for_tls_are_there_and_complete() {
        let half = JetStreamConfig { key_file: Some("key.pem".into()), ..config(&["tls://host"]) };
        assert!(half.validate().unwrap_err().contains("certificate_file"));
        let missing = JetStreamConfig { ca_file: Some("does-not-exist".into()), ..config(&["tls://host"]) };
        let refused = missing.encrypted(ConnectOptions::new()).unwrap_err();
        assert!(refused.to_string().contains("does-not-exist"), "{refused}");
    }

    #[test]
    fn the_largest_payload_has_room_and_can_be_unpacked() {
        assert_eq!(JetStreamConfig::default().validate(), Ok(()));
        let of = |payload_size_max, parts_size_bytes_max| {
            JetStreamConfig { payload_size_max, parts_size_bytes_max, ..JetStreamConfig::default() }.validate()
        };
        assert_eq!(of(50 << 20, 100 << 20), Ok(()));
        assert!(of((50 << 20) + 1, 100 << 20).unwrap_err().contains("queue.parts_size_bytes_max"));
        assert!(of(wire::DECODED_SIZE_MAX + 1, 1 << 40).unwrap_err().contains("queue.payload_size_max"));
    }

    #[test]
    fn escapes_in_logins_are_undone() {
        assert_eq!(decoded("a%40b%2fc"), "a@b/c");
        assert_eq!(decoded("100%"), "100%");
        assert_eq!(decoded("%zz"), "%zz");
    }

    #[test]
    fn unknown_keys_are_errors() {
        let parsed = serde_json::from_str::<JetStreamConfig>(r#"{"servers": ["nats://a"], "replicas": 3}"#).unwrap();
        assert_eq!((parsed.replicas, parsed.dedupe_window_seconds), (3, 120));
        assert!(serde_json::from_str::<JetStreamConfig>(r#"{"server": "nats://a"}"#).is_err());
    }
}

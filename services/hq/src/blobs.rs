//! HQ's blob store: a folder, a bucket, or several of them asked in order, as HQ does while it migrates.
//!
//! Invariants: one blob cannot stop or exhaust the process: keys that HQ would not make and blobs in no store are "missing", blobs over the size
//! limit "too large" (the caller quarantines the form), while a store that does not answer is an error, never "missing"; no more reads are in
//! flight than the turns allow, however many are asked for.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use futures::StreamExt;
use lake_shared::error_chain::Chain;
use lake_shared::secret::Secret;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, Error, GetOptions, ObjectStore, RetryConfig};
use serde::Deserialize;

use crate::pace::limit::{Class, LimitOptions};
use crate::pace::{Pace, Turn, TurnOptions, Turns};
use crate::source::{Blob, BlobReference, BlobStore, SourceError};

/// Compressed blobs over this are expanded on a thread of their own, so that others are not held up.
const EXPAND_ASIDE_BYTES: usize = 256 * 1024;
/// Object stores vary more than databases do: only when reads take so many times as long as usual are fewer in flight.
const SLOW_DOWN_FACTOR: f64 = 2.5;
/// Tries of one read before it counts as failed; the caller tries again later.
const TRIES_MAX: usize = 3;

/// Where form XML is.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlobsConfig {
    /// Stores in the order in which they are asked; the first that has a blob wins. At least one.
    pub stores: Vec<BlobStoreConfig>,
    /// Most reads at one time; fewer while the stores answer slowly.
    #[serde(default = "defaults::reads_max")]
    pub reads_max: usize,
    /// Largest blob, bytes, expanded. A form with a larger one goes to quarantine, and its row is marked as incomplete.
    #[serde(default = "defaults::size_max_bytes")]
    pub size_max_bytes: u64,
    /// How long one request may take, milliseconds.
    #[serde(default = "defaults::timeout_ms")]
    pub timeout_ms: u64,
}

impl BlobsConfig {
    /// Checks rules that types cannot express.
    ///
    /// # Errors
    /// The key and what to do about it.
    pub fn validate(&self) -> Result<(), String> {
        if self.stores.is_empty() {
            return Err("key `hq.blobs.stores`: none is configured; name a folder or an s3_bucket".into());
        }
        for (number, store) in self.stores.iter().enumerate() {
            store.validate().map_err(|reason| format!("key `hq.blobs.stores.{number}`: {reason}"))?;
        }
        Ok(())
    }
}

impl BlobStoreConfig {
    fn validate(&self) -> Result<(), String> {
        if self.folder.is_some() == self.s3_bucket.is_some() {
            return Err("it needs either folder or s3_bucket, not both".into());
        }
        if self.access_key_id.is_some() != self.secret_access_key.is_some() {
            return Err("access_key_id and secret_access_key go together; give both or none".into());
        }
        if !self.allow_http && self.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://")) {
            return Err("the endpoint is without TLS; set allow_http = true if that is meant".into());
        }
        Ok(())
    }
}

/// One store: either `folder`, or `s3_bucket` with what belongs to it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlobStoreConfig {
    /// HQ's blob folder (`<SHARED_DRIVE_ROOT>/blobdb`), mounted here.
    #[serde(default)]
    pub folder: Option<PathBuf>,
    /// HQ's bucket (its setting `s3_bucket`). The role needs `s3:GetObject` and `s3:ListBucket`; without the latter S3 calls missing blobs forbidden.
    #[serde(default)]
    pub s3_bucket: Option<String>,
    /// Address of an S3 look-alike, for example `https://s3.example.org`. Without it, Amazon.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// Region of the bucket; default `us-east-1`.
    #[serde(default)]
    pub region: Option<String>,
    /// Access key. Without it, the usual AWS environment variables and roles apply.
    #[serde(default)]
    pub access_key_id: Option<String>,
    /// Secret of the access key.
    #[serde(default)]
    pub secret_access_key: Option<Secret>,
    /// Whether an `http://` endpoint is allowed.
    #[serde(default)]
    pub allow_http: bool,
}

mod defaults {
    pub fn reads_max() -> usize {
        32
    }

    pub fn size_max_bytes() -> u64 {
        32 * 1024 * 1024
    }

    pub fn timeout_ms() -> u64 {
        30_000
    }
}

/// The port [`BlobStore`] over object_store.
pub struct ObjectBlobs {
    stores: Vec<Store>,
    turns: Arc<Turns>,
    size_max: u64,
}

struct Store {
    /// For messages: `folder /mnt/blobdb`, `bucket blobdb`.
    name: String,
    folder: Option<PathBuf>,
    objects: Box<dyn ObjectStore>,
}

impl ObjectBlobs {
    /// Checks the configuration, opens the stores and asks each whether it is there.
    ///
    /// # Errors
    /// [`SourceError::Unavailable`] where a store does not answer; [`SourceError::Refused`] where the configuration or a permission is wrong.
    pub async fn connect(config: &BlobsConfig) -> Result<Self, SourceError> {
        if config.stores.is_empty() {
            return Err(SourceError::Refused {
                action: "use HQ's blob stores".into(),
                reason: "none is configured; name a folder or an s3_bucket".into(),
            });
        }
        let timeout = Duration::from_millis(config.timeout_ms.max(1));
        let stores = config.stores.iter().map(|store| Store::open(store, timeout)).collect::<Result<_, _>>()?;
        let limit = LimitOptions { in_flight_max: config.reads_max.max(1), slow_down_factor: SLOW_DOWN_FACTOR };
        let turns = Turns::new(TurnOptions { source: "blobs", limit, per_second_max: 0 });
        let blobs = Self { stores, turns, size_max: config.size_max_bytes };
        blobs.check().await?;
        Ok(blobs)
    }

    /// The turns that limit the reads in flight.
    pub fn turns(&self) -> &Arc<Turns> {
        &self.turns
    }
}

#[async_trait]
impl BlobStore for ObjectBlobs {
    fn pace(&self) -> Option<Pace> {
        Some(self.turns.pace())
    }

    async fn get(&self, blob: &BlobReference) -> Result<Blob, SourceError> {
        let Some(path) = path_of_key(&blob.key) else {
            tracing::warn!(key = blob.key, "blob key is not one that HQ makes; not read");
            return Ok(Blob::Missing);
        };
        let turn = self.turns.take().await;
        for (number, store) in self.stores.iter().enumerate() {
            match store.read_timed(&path, self.size_max, &turn, number).await? {
                BlobLookUp::Nothing => {}
                BlobLookUp::TooLarge(bytes) => {
                    tracing::warn!(
                        key = blob.key,
                        store = store.name,
                        bytes,
                        max = self.size_max,
                        "blob is too large; not read"
                    );
                    return Ok(Blob::TooLarge { size_max: self.size_max });
                }
                BlobLookUp::Bytes(stored) => return Ok(self.expand(stored, blob).await),
            }
        }
        Ok(Blob::Missing)
    }

    async fn check(&self) -> Result<(), SourceError> {
        for store in &self.stores {
            store.check().await?;
        }
        Ok(())
    }
}

impl ObjectBlobs {
    async fn expand(&self, stored: Bytes, blob: &BlobReference) -> Blob {
        // XML never begins so. The column alone would fail on blobs that were restored expanded.
        if !stored.starts_with(&[0x1f, 0x8b]) {
            if blob.compressed {
                tracing::debug!(key = blob.key, "blob should be compressed but is not; taken as it is");
            }
            return Blob::Found(stored);
        }
        let size_max = self.size_max;
        let expanded = if stored.len() > EXPAND_ASIDE_BYTES {
            let aside = stored.clone();
            match tokio::task::spawn_blocking(move || gunzip(&aside, size_max)).await {
                Ok(expanded) => expanded,
                Err(error) => Err(std::io::Error::other(error)),
            }
        } else {
            gunzip(&stored, size_max)
        };
        match expanded {
            Ok(Some(bytes)) => Blob::Found(bytes),
            Ok(None) => {
                tracing::warn!(key = blob.key, max = size_max, "blob is too large when expanded; not read");
                Blob::TooLarge { size_max }
            }
            Err(error) => {
                // It is not XML either, so the form goes to quarantine as not well-formed.
                tracing::warn!(key = blob.key, %error, "blob is broken gzip; handed on as it is");
                Blob::Found(stored)
            }
        }
    }
}

/// Expands gzip; `None` where it would be larger than the limit.
fn gunzip(stored: &[u8], size_max: u64) -> std::io::Result<Option<Bytes>> {
    let mut expanded = Vec::with_capacity(stored.len() * 4);
    MultiGzDecoder::new(stored).take(size_max.saturating_add(1)).read_to_end(&mut expanded)?;
    Ok((expanded.len() as u64 <= size_max).then(|| expanded.into()))
}

/// The path of a key, if it is one that HQ makes: `[A-Za-z0-9_./{}-]`, and no part that leads elsewhere.
fn path_of_key(key: &str) -> Option<Path> {
    let safe_character = |c: char| c.is_ascii_alphanumeric() || "_./{}-".contains(c);
    let safe_part = |part: &str| !part.is_empty() && part != "." && !part.contains("..");
    (key.chars().all(safe_character) && key.split('/').all(safe_part)).then(|| Path::parse(key).ok())?
}

/// What a store has under a key.
enum BlobLookUp {
    Nothing,
    /// A blob over the limit, with its size in bytes.
    TooLarge(u64),
    Bytes(Bytes),
}

impl BlobLookUp {
    /// Answers that can be compared: of the same store, and about as large.
    fn class(&self, store: usize) -> Class {
        let size = match self {
            Self::Nothing | Self::TooLarge(_) => 0,
            Self::Bytes(bytes) => 1 + u64::from((bytes.len() + 1).ilog2()),
        };
        store as u64 * 128 + size
    }
}

impl Store {
    fn open(config: &BlobStoreConfig, timeout: Duration) -> Result<Self, SourceError> {
        let refused =
            |name: &str, reason: String| SourceError::Refused { action: format!("use blob store {name}"), reason };
        match (&config.folder, &config.s3_bucket) {
            (Some(folder), None) => {
                let name = format!("folder {}", folder.display());
                let objects = LocalFileSystem::new_with_prefix(folder)
                    .map_err(|error| refused(&name, format!("{}; is it mounted?", Chain(&error))))?;
                Ok(Self { name, folder: Some(folder.clone()), objects: Box::new(objects) })
            }
            (None, Some(bucket)) => {
                let name = format!("bucket {bucket}");
                let objects = s3_builder(bucket, config, timeout)
                    .build()
                    .map_err(|error| refused(&name, Chain(&error).to_string()))?;
                Ok(Self { name, folder: None, objects: Box::new(objects) })
            }
            _ => Err(refused("of the configuration", "it needs either folder or s3_bucket, not both".into())),
        }
    }

    /// Reads, and tells the turn how that went.
    async fn read_timed(
        &self,
        path: &Path,
        size_max: u64,
        turn: &Turn,
        number: usize,
    ) -> Result<BlobLookUp, SourceError> {
        let began = Instant::now();
        let found = self.read(path, size_max).await;
        match &found {
            Ok(found) => turn.answered(found.class(number), began.elapsed()),
            Err(SourceError::Unavailable { .. }) => turn.overloaded(),
            Err(SourceError::Refused { .. } | SourceError::AskLess { .. }) => {}
        }
        found
    }

    async fn read(&self, path: &Path, size_max: u64) -> Result<BlobLookUp, SourceError> {
        let result = match self.objects.get_opts(path, GetOptions::default()).await {
            Ok(result) => result,
            Err(error @ Error::NotFound { .. }) => {
                self.check_still_there(&error).await?;
                return Ok(BlobLookUp::Nothing);
            }
            Err(error) => return Err(self.error("read a blob", &error)),
        };
        if result.meta.size > size_max {
            return Ok(BlobLookUp::TooLarge(result.meta.size));
        }
        result.bytes().await.map(BlobLookUp::Bytes).map_err(|error| self.error("read a blob", &error))
    }

    /// "Not found" also comes from a bucket or a folder that is not there at all. That must not look like thousands of missing blobs.
    async fn check_still_there(&self, error: &Error) -> Result<(), SourceError> {
        let gone =
            |reason: String| SourceError::Unavailable { action: format!("read a blob from {}", self.name), reason };
        if let Some(folder) = &self.folder {
            return match tokio::fs::metadata(folder).await {
                Ok(metadata) if metadata.is_dir() => Ok(()),
                Ok(_) => Err(gone("it is not a folder".into())),
                Err(error) => Err(gone(format!("{error}; is it mounted?"))),
            };
        }
        if Chain(error).to_string().contains("NoSuchBucket") {
            return Err(gone("there is no such bucket".into()));
        }
        Ok(())
    }

    async fn check(&self) -> Result<(), SourceError> {
        let error = match &self.folder {
            Some(_) => Error::NotFound { path: String::new(), source: "".into() },
            // A listing of nothing: cheap, and it needs bucket, key and permission.
            None => match self.objects.list(Some(&Path::from("commcare-lake-asks"))).next().await {
                None | Some(Ok(_)) => return Ok(()),
                Some(Err(error)) => error,
            },
        };
        match error {
            Error::NotFound { .. } if self.folder.is_some() => self.check_still_there(&error).await,
            Error::NotFound { .. } => Err(SourceError::Refused {
                action: format!("list {}", self.name),
                reason: "there is no such bucket; check s3_bucket and endpoint".into(),
            }),
            other => Err(self.error("list", &other)),
        }
    }

    fn error(&self, what: &str, error: &Error) -> SourceError {
        let action = format!("{what} from {}", self.name);
        let reason = Chain(error).to_string();
        match error {
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => SourceError::Refused {
                action,
                reason: format!("{reason}; check the access key, and that it allows s3:GetObject and s3:ListBucket"),
            },
            Error::NotSupported { .. } | Error::NotImplemented { .. } | Error::UnknownConfigurationKey { .. } => {
                SourceError::Refused { action, reason }
            }
            _ => SourceError::Unavailable { action, reason },
        }
    }
}

fn s3_builder(bucket: &str, config: &BlobStoreConfig, timeout: Duration) -> AmazonS3Builder {
    let retry = RetryConfig { backoff: BackoffConfig::default(), max_retries: TRIES_MAX - 1, retry_timeout: timeout };
    let options = ClientOptions::new().with_timeout(timeout).with_allow_http(config.allow_http);
    let mut builder = match (&config.access_key_id, &config.secret_access_key) {
        (Some(id), Some(secret)) => {
            AmazonS3Builder::new().with_access_key_id(id).with_secret_access_key(secret.expose())
        }
        _ => AmazonS3Builder::from_env(),
    };
    builder = builder
        .with_bucket_name(bucket)
        .with_region(config.region.as_deref().unwrap_or("us-east-1"))
        .with_client_options(options)
        .with_allow_http(config.allow_http)
        .with_retry(retry);
    match &config.endpoint {
        Some(endpoint) => builder.with_endpoint(endpoint),
        None => builder,
    }
}

#[cfg(test)]
mod tests;

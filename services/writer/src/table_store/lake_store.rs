//! The lake's root: a local folder, a prefix of a bucket or a folder of HDFS, and the proof that commits can be exclusive there.
//!
//! Every commit relies on one promise of the store: of several writers that create the same object exactly one succeeds. Some S3
//! look-alikes ignore the condition and overwrite silently, so [`LakeStore::probe`] tries it before anything is written.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use deltalake::logstore::{LogStoreRef, StorageConfig, default_logstore};
use futures::future::join_all;
use lake_shared::error_chain::Chain;
use lake_shared::retry::Backoff;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use serde::Deserialize;
use url::Url;
use uuid::Uuid;

use self::remote::ROOTS;
pub use self::remote::{AzureConfig, GcsConfig, HdfsConfig, S3Config};
use super::durable_files::DurableFiles;

mod remote;

/// Where the lake is.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LakeStoreConfig {
    /// A folder, `file:///…`, `s3://bucket/prefix`, `gs://bucket/prefix`, `abfss://container@account.dfs.core.windows.net/prefix` or
    /// `hdfs://namenode:8020/folder`.
    pub root: String,
    /// Whether files of a local lake are forced to disk before a commit counts; without it a power cut may take acknowledged commits with
    /// it.
    #[serde(default = "default_sync")]
    pub sync: bool,
    /// Access to S3; what is absent is taken from the usual `AWS_*` environment variables.
    #[serde(default)]
    pub s3: Option<S3Config>,
    /// Access to Google Cloud Storage; what is absent is taken from the usual `GOOGLE_*` environment variables.
    #[serde(default)]
    pub gcs: Option<GcsConfig>,
    /// Access to Azure's blob storage; what is absent is taken from the usual `AZURE_*` environment variables.
    #[serde(default)]
    pub azure: Option<AzureConfig>,
    /// Access to HDFS; what is absent is taken from the files in `HADOOP_CONF_DIR`.
    #[serde(default)]
    pub hdfs: Option<HdfsConfig>,
}

fn default_sync() -> bool {
    true
}

impl LakeStoreConfig {
    /// A root with the defaults of all other keys.
    pub fn of_root(root: impl Into<String>) -> Self {
        Self { root: root.into(), sync: default_sync(), s3: None, gcs: None, azure: None, hdfs: None }
    }

    /// Rules that types cannot express, as far as they can be checked without the store. The error names the key and what to do.
    pub fn validate(&self) -> Result<(), String> {
        if !self.root.contains("://") {
            return if self.root.is_empty() { Err(format!("key `store.root`: it is empty; {ROOTS}")) } else { Ok(()) };
        }
        let url = remote_url(&self.root).map_err(|reason| format!("key `store.root`: {reason}; {ROOTS}"))?;
        if url.scheme() == "file" {
            return Ok(());
        }
        remote::validate(&url, self)?;
        remote::open(&url, self).map(drop).map_err(|error| format!("section `store`: {}", Chain(&error)))
    }
}

/// Why a lake cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LakeStoreError {
    /// The root is no folder and no known URL, or its options are not usable.
    #[error("lake root `{root}` cannot be used: {reason}; {ROOTS}")]
    Root {
        /// The root as configured.
        root: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The store cannot be reached or refuses access.
    #[error("lake root `{root}`: cannot {action}")]
    Access {
        /// The root as configured.
        root: String,
        /// What was tried.
        action: &'static str,
        /// What the store says.
        #[source]
        source: object_store::Error,
    },
    /// The root was there, and is not any more.
    #[error(
        "lake root `{root}` is gone: `{ROOT_MARK}`, which the writer has put there, is not there any more; is the volume still mounted? \
         Put it back as it was. If the lake was emptied on purpose, start the writer again"
    )]
    Lost {
        /// The root as configured.
        root: String,
    },
    /// The store does not know how to create an object only where there is none.
    #[error(
        "lake root `{root}`: the store writes objects, but refuses to create one only where there is none, so commits cannot be safe \
         there; use a store with conditional puts (If-None-Match), such as AWS S3 or a recent MinIO, or a file system with hard links"
    )]
    NotConditional {
        /// The root as configured.
        root: String,
        /// What the store says.
        #[source]
        source: object_store::Error,
    },
    /// The store does not keep the promise that commits rely on.
    #[error(
        "lake root `{root}`: {winners} of {tries} writers created the same object, so two commits could overwrite each \
         other; use a store with conditional puts (If-None-Match), such as AWS S3 or a recent MinIO"
    )]
    NotExclusive {
        /// The root as configured.
        root: String,
        /// How many succeeded.
        winners: usize,
        /// How many tried.
        tries: usize,
    },
}

impl LakeStoreError {
    /// Whether waiting may help.
    fn may_pass(&self) -> bool {
        use object_store::Error::{InvalidPath, NotImplemented, NotSupported};
        match self {
            Self::Root { .. } | Self::Lost { .. } | Self::NotConditional { .. } | Self::NotExclusive { .. } => false,
            // A bucket may be created, and access granted, by whoever starts the parts beside us.
            Self::Access { source, .. } => {
                !matches!(source, NotSupported { .. } | NotImplemented { .. } | InvalidPath { .. })
            }
        }
    }
}

/// How many writers the probe lets create one object at once.
const PROBE_WRITERS: usize = 8;

/// How often something odd has to be seen, before it is held against the store and not against the line to it.
const PROBES: usize = 3;

/// An object below the root: where it is gone, the lake is.
const ROOT_MARK: &str = "_lake_root";

/// The same path with its last part in capitals.
fn in_capitals(path: &Path) -> Path {
    let mut parts: Vec<String> = path.parts().map(|part| part.as_ref().to_owned()).collect();
    if let Some(name) = parts.last_mut() {
        name.make_ascii_uppercase();
    }
    Path::parse(parts.join("/")).unwrap_or_default()
}

/// Whether a path has what is an escaped character in a URL.
fn looks_escaped(path: &str) -> bool {
    path.as_bytes().windows(3).any(|part| part[0] == b'%' && part[1..].iter().all(u8::is_ascii_hexdigit))
}

/// The opened root.
#[derive(Clone, Debug)]
pub struct LakeStore {
    root: String,
    url: Url,
    prefix: Path,
    store: Arc<dyn ObjectStore>,
    ignores_case: Arc<AtomicBool>,
    is_marked: Arc<AtomicBool>,
}

impl LakeStore {
    /// Opens the root. A folder is created; a bucket must exist. Nothing is read or written yet in a bucket.
    pub fn open(config: &LakeStoreConfig) -> Result<Self, LakeStoreError> {
        let root = config.root.clone();
        let refused = |reason: String| LakeStoreError::Root { root: root.clone(), reason };
        let url = root_url(&root).map_err(refused)?;
        let prefix = Path::from_url_path(url.path()).map_err(|error| refused(error.to_string()))?;
        if looks_escaped(prefix.as_ref()) {
            let reason =
                "its name has `%` before two hexadecimal digits, which Delta libraries take for an escaped character";
            return Err(refused(reason.to_owned()));
        }
        let store: Arc<dyn ObjectStore> = match url.scheme() {
            "file" if config.sync => Arc::new(DurableFiles::new()),
            "file" => Arc::new(LocalFileSystem::new()),
            _ => remote::open(&url, config).map_err(|error| refused(Chain(&error).to_string()))?,
        };
        Ok(Self { root, url, prefix, store, ignores_case: Arc::default(), is_marked: Arc::default() })
    }

    /// The same root behind another store, for tests that make it fail.
    #[doc(hidden)]
    pub fn wrapped(mut self, wrap: impl FnOnce(Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore>) -> Self {
        self.store = wrap(self.store);
        self
    }

    /// As if the probe had found a store that ignores case.
    #[cfg(test)]
    pub(super) fn ignore_case(&self) {
        self.ignores_case.store(true, Ordering::Relaxed);
    }

    /// Address of a table, as other engines open it. `path` is made by `lake_shared::escaped_names::table_path`.
    pub fn location(&self, path: &str) -> String {
        format!("{}/{path}", self.url.as_str().trim_end_matches('/'))
    }

    /// The folder of a table, if it is a local one.
    pub(super) fn local_folder(&self, path: &str) -> Option<PathBuf> {
        let url = Url::parse(&self.location(path)).ok().filter(|url| url.scheme() == "file")?;
        url.to_file_path().ok()
    }

    /// The log store of a table.
    pub(super) fn log_store(&self, path: &str) -> Result<LogStoreRef, LakeStoreError> {
        let refused = |reason: String| LakeStoreError::Root { root: self.root.clone(), reason };
        let location = format!("{}/", self.location(path));
        let location = Url::parse(&location).map_err(|error| refused(error.to_string()))?;
        let prefix = Path::from_url_path(location.path()).map_err(|error| refused(error.to_string()))?;
        let table = Arc::new(PrefixStore::new(Arc::clone(&self.store), prefix));
        Ok(default_logstore(table, Arc::clone(&self.store), &location, &StorageConfig::default()))
    }

    /// Whether the store can be reached; for `/ready`.
    pub async fn check(&self) -> Result<(), LakeStoreError> {
        match self.store.head(&self.probe_path()).await {
            Ok(_) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(LakeStoreError::Access { root: self.root.clone(), action: "reach the store", source }),
        }
    }

    /// Finds out whether the store tells names apart by case, and proves that creating an object is exclusive: once the same name after
    /// another, once by several writers at the same time. The objects of the probe are removed.
    pub async fn probe(&self) -> Result<(), LakeStoreError> {
        let mut probes = 1;
        loop {
            let (one_by_one, at_once) = (self.probe_path(), self.probe_path());
            let outcome = self.probe_at(&one_by_one, &at_once).await;
            for path in [one_by_one, at_once] {
                // What is left behind harms nobody, and the outcome of the probe matters more.
                let _ = self.store.delete(&path).await;
            }
            match outcome {
                // An answer that got lost makes a writer try again and meet its own object.
                Err(LakeStoreError::NotExclusive { winners: 0, .. }) if probes < PROBES => {}
                // The condition may be what is refused, if all else is not.
                Err(LakeStoreError::Access { root, source, .. }) if self.takes_puts().await => {
                    if probes == PROBES {
                        return Err(LakeStoreError::NotConditional { root, source });
                    }
                }
                outcome => return outcome,
            }
            probes += 1;
        }
    }

    async fn probe_at(&self, one_by_one: &Path, at_once: &Path) -> Result<(), LakeStoreError> {
        let first = self.create(one_by_one, 0).await?;
        let second = self.create(one_by_one, 1).await?;
        self.exactly_one(&[first, second])?;
        self.ignores_case.store(self.is_there(&in_capitals(one_by_one)).await?, Ordering::Relaxed);
        let tries = join_all((0..PROBE_WRITERS).map(|writer| self.create(at_once, writer))).await;
        self.exactly_one(&tries.into_iter().collect::<Result<Vec<_>, _>>()?)
    }

    /// Whether an object can be written without a condition.
    async fn takes_puts(&self) -> bool {
        let path = self.probe_path();
        let put = self.store.put(&path, Bytes::from_static(b"probe").into()).await;
        // What is left behind harms nobody.
        let _ = self.store.delete(&path).await;
        put.is_ok()
    }

    /// As [`LakeStore::probe`], but waits for a store that cannot be reached yet. An answer that will not change is returned at once.
    pub async fn probe_when_there(&self) -> Result<(), LakeStoreError> {
        let mut backoff = Backoff::default();
        loop {
            match self.probe().await {
                Err(error) if error.may_pass() => {
                    tracing::warn!(error = %Chain(&error), "lake root cannot be used yet; check store.root and store.s3");
                    tokio::time::sleep(backoff.next_wait()).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Whether the probe has found that the store takes names that differ only by case for one, as the file systems of many laptops do.
    pub(super) fn ignores_case(&self) -> bool {
        self.ignores_case.load(Ordering::Relaxed)
    }

    async fn is_there(&self, path: &Path) -> Result<bool, LakeStoreError> {
        match self.store.head(path).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(source) => {
                Err(LakeStoreError::Access { root: self.root.clone(), action: "look for an object", source })
            }
        }
    }

    /// Leaves a mark below the root, by which [`LakeStore::ensure_marked`] knows it again.
    pub(super) async fn mark(&self) -> Result<(), LakeStoreError> {
        let text = "CommCare Lake keeps its tables here. By this file its writer knows that the volume is mounted.\n";
        let put = self.store.put(&self.mark_path(), Bytes::from_static(text.as_bytes()).into()).await;
        put.map_err(|source| LakeStoreError::Access { root: self.root.clone(), action: "mark the root", source })?;
        self.is_marked.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the root that was marked is there; nothing to find out when none was.
    pub(super) async fn ensure_marked(&self) -> Result<(), LakeStoreError> {
        if self.is_marked.load(Ordering::Relaxed) && !self.is_there(&self.mark_path()).await? {
            return Err(LakeStoreError::Lost { root: self.root.clone() });
        }
        Ok(())
    }

    fn mark_path(&self) -> Path {
        self.prefix.clone().join(ROOT_MARK)
    }

    fn probe_path(&self) -> Path {
        self.prefix.clone().join("_lake_probe").join(Uuid::new_v4().simple().to_string())
    }

    /// Whether this writer created the object.
    async fn create(&self, path: &Path, writer: usize) -> Result<bool, LakeStoreError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.store.put_opts(path, Bytes::from(format!("writer {writer}")).into(), options).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(false),
            Err(source) => Err(LakeStoreError::Access { root: self.root.clone(), action: "create an object", source }),
        }
    }

    fn exactly_one(&self, created: &[bool]) -> Result<(), LakeStoreError> {
        let winners = created.iter().filter(|created| **created).count();
        if winners == 1 {
            return Ok(());
        }
        Err(LakeStoreError::NotExclusive { root: self.root.clone(), winners, tries: created.len() })
    }
}

fn remote_url(root: &str) -> Result<Url, String> {
    remote::checked(Url::parse(root).map_err(|error| error.to_string())?)
}

fn root_url(root: &str) -> Result<Url, String> {
    if root.contains("://") {
        return remote_url(root);
    }
    if root.is_empty() {
        return Err("it is empty".into());
    }
    std::fs::create_dir_all(root).map_err(|error| format!("the folder cannot be created ({error})"))?;
    let folder = std::fs::canonicalize(root).map_err(|error| error.to_string())?;
    Url::from_directory_path(&folder).map_err(|()| format!("{} is no absolute folder", folder.display()))
}

#[cfg(test)]
mod tests;

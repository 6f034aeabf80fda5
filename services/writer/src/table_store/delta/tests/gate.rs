//! An object store that waits, or fails, where a test wants it to, and counts what is read.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::Semaphore;

/// Which files a gate looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Files {
    Data,
    Commits,
    Checkpoints,
}

impl Files {
    fn has(self, path: &Path) -> bool {
        let in_log = path.parts().any(|part| part.as_ref() == "_delta_log");
        match self {
            Self::Data => !in_log && path.extension() == Some("parquet"),
            Self::Commits => in_log && path.extension() == Some("json"),
            Self::Checkpoints => in_log && path.extension() == Some("parquet"),
        }
    }
}

/// What a test says to its store.
#[derive(Debug)]
pub(super) struct Gate {
    holds: Mutex<Option<Files>>,
    held: Semaphore,
    released: Semaphore,
    /// Whether data files cannot be read.
    pub(super) is_blind: AtomicBool,
    /// Whether the answer to the next commit gets lost.
    pub(super) loses_commit: AtomicBool,
    /// How many reads of entries of the log fail after that, as if they had been cleaned up.
    pub(super) hides_log: AtomicU64,
    hidden: AtomicU64,
    /// How often a data file was read.
    pub(super) reads: AtomicU64,
}

impl Default for Gate {
    fn default() -> Self {
        let (holds, is_blind, loses_commit, hides_log, hidden, reads) = Default::default();
        let (held, released) = (Semaphore::new(0), Semaphore::new(0));
        Self { holds, held, released, is_blind, loses_commit, hides_log, hidden, reads }
    }
}

impl Gate {
    /// The next write of such a file waits until it is released; those after it do not.
    pub(super) fn hold_next(&self, files: Files) {
        *self.holds.lock().unwrap() = Some(files);
    }

    /// Returns when a write waits.
    pub(super) async fn held(&self) {
        self.held.acquire().await.unwrap().forget();
    }

    /// Lets the waiting write go on.
    pub(super) fn release(&self) {
        self.released.add_permits(1);
    }

    async fn pass(&self, path: &Path) {
        let waits = self.holds.lock().unwrap().take_if(|files| files.has(path)).is_some();
        if waits {
            self.held.add_permits(1);
            self.released.acquire().await.unwrap().forget();
        }
    }
}

/// A store behind a gate.
#[derive(Debug)]
pub(super) struct Gated {
    pub(super) inner: Arc<dyn ObjectStore>,
    pub(super) gate: Arc<Gate>,
}

impl fmt::Display for Gated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("gated")
    }
}

#[async_trait]
impl ObjectStore for Gated {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.gate.pass(location).await;
        let done = self.inner.put_opts(location, payload, options).await?;
        if Files::Commits.has(location) && self.gate.loses_commit.swap(false, Ordering::Relaxed) {
            self.gate.hidden.store(self.gate.hides_log.load(Ordering::Relaxed), Ordering::Relaxed);
            return Err(Error::Generic { store: "gated", source: "connection lost".into() });
        }
        Ok(done)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.gate.pass(location).await;
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let hides = |left: u64| left.checked_sub(1);
        if Files::Commits.has(location)
            && self.gate.hidden.fetch_update(Ordering::Relaxed, Ordering::Relaxed, hides).is_ok()
        {
            return Err(Error::NotFound { path: location.to_string(), source: "cleaned up".into() });
        }
        if Files::Data.has(location) {
            self.gate.reads.fetch_add(1, Ordering::Relaxed);
            if self.gate.is_blind.load(Ordering::Relaxed) {
                return Err(Error::Generic { store: "gated", source: "connection lost".into() });
            }
        }
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

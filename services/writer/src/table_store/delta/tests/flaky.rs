//! An object store with trouble: writes fail before or after they took effect.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// Fails about one write in `one_in`; 0 never. Writes to paths that have a `broken` part always fail.
#[derive(Debug)]
pub(super) struct Flaky {
    inner: Arc<dyn ObjectStore>,
    pub(super) one_in: Arc<AtomicU64>,
    broken: Arc<Mutex<Option<String>>>,
    /// How often a write to a broken path was refused.
    refused: Arc<AtomicU64>,
    counter: AtomicU64,
}

impl Flaky {
    pub(super) fn new(
        inner: Arc<dyn ObjectStore>,
        one_in: Arc<AtomicU64>,
        broken: Arc<Mutex<Option<String>>>,
        refused: Arc<AtomicU64>,
    ) -> Self {
        Self { inner, one_in, broken, refused, counter: AtomicU64::new(0x9e37_79b9) }
    }

    /// Refuses a write to a broken path.
    fn check(&self, path: &Path) -> Result<()> {
        let is_broken = self.broken.lock().unwrap().as_ref().is_some_and(|part| path.as_ref().contains(part));
        if !is_broken {
            return Ok(());
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        Err(trouble())
    }

    /// A number that looks random and is the same in every run.
    fn next(&self) -> u64 {
        let mut x = self.counter.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 16
    }

    fn fails(&self) -> bool {
        let one_in = self.one_in.load(Ordering::Relaxed);
        one_in > 0 && self.next().is_multiple_of(one_in)
    }
}

fn trouble() -> Error {
    Error::Generic { store: "flaky", source: "connection lost".into() }
}

impl fmt::Display for Flaky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("flaky")
    }
}

#[async_trait]
impl ObjectStore for Flaky {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.check(location)?;
        if self.fails() {
            return Err(trouble());
        }
        let done = self.inner.put_opts(location, payload, options).await?;
        if self.fails() { Err(trouble()) } else { Ok(done) }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.check(location)?;
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
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

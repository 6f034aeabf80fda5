//! An object store with trouble: writes fail before or after they took effect, and reads, lists and deletions fail as well.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use tokio::sync::Notify;

/// Fails about one write in `one_in`, parts of uploads among them, and one other request in many times as many; 0 never. Writes to paths
/// that have a `broken` part always fail.
#[derive(Debug)]
pub(super) struct Flaky {
    inner: Arc<dyn ObjectStore>,
    dice: Arc<Dice>,
    broken: Arc<Mutex<Option<String>>>,
    /// How often a write to a broken path was refused.
    refused: Arc<AtomicU64>,
    /// Objects whose paths have this part cannot be read.
    unreadable: Arc<Mutex<Option<String>>>,
    /// Told when a data file is about to be written.
    writing: Arc<Notify>,
}

/// Says what fails.
#[derive(Debug)]
struct Dice {
    one_in: Arc<AtomicU64>,
    counter: AtomicU64,
}

impl Dice {
    /// A number that looks random and is the same in every run.
    fn next(&self) -> u64 {
        let mut x = self.counter.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 16
    }

    /// Whether a write fails, or the answer to it gets lost.
    fn write(&self) -> Result<()> {
        self.one_in_so_many(self.one_in.load(Ordering::Relaxed))
    }

    /// Whether another request fails; there are many more of them.
    fn other(&self) -> Result<()> {
        self.one_in_so_many(32 * self.one_in.load(Ordering::Relaxed))
    }

    fn one_in_so_many(&self, one_in: u64) -> Result<()> {
        if one_in > 0 && self.next().is_multiple_of(one_in) { Err(trouble()) } else { Ok(()) }
    }
}

impl Flaky {
    pub(super) fn new(
        inner: Arc<dyn ObjectStore>,
        one_in: Arc<AtomicU64>,
        broken: Arc<Mutex<Option<String>>>,
        refused: Arc<AtomicU64>,
        unreadable: Arc<Mutex<Option<String>>>,
        writing: Arc<Notify>,
    ) -> Self {
        let dice = Arc::new(Dice { one_in, counter: AtomicU64::new(0x9e37_79b9) });
        Self { inner, dice, broken, refused, unreadable, writing }
    }

    /// Refuses a write to a broken path.
    fn check(&self, path: &Path) -> Result<()> {
        if path.as_ref().ends_with(".parquet") && !path.as_ref().contains("_delta_log") {
            self.writing.notify_one();
        }
        let is_broken = self.broken.lock().unwrap().as_ref().is_some_and(|part| path.as_ref().contains(part));
        if !is_broken {
            return Ok(());
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        Err(trouble())
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
        self.dice.write()?;
        let done = self.inner.put_opts(location, payload, options).await?;
        self.dice.write()?;
        Ok(done)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.check(location)?;
        self.dice.write()?;
        let inner = self.inner.put_multipart_opts(location, options).await?;
        Ok(Box::new(FlakyUpload { inner, dice: Arc::clone(&self.dice) }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.dice.other()?;
        if self.unreadable.lock().unwrap().as_ref().is_some_and(|part| location.as_ref().contains(part)) {
            return Err(trouble());
        }
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        if self.dice.other().is_err() {
            return locations.map(|_| Err(trouble())).boxed();
        }
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if let Err(error) = self.dice.other() {
            return futures::stream::once(async { Err(error) }).boxed();
        }
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.dice.other()?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct FlakyUpload {
    inner: Box<dyn MultipartUpload>,
    dice: Arc<Dice>,
}

#[async_trait]
impl MultipartUpload for FlakyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (part, dice) = (self.inner.put_part(data), Arc::clone(&self.dice));
        Box::pin(async move {
            dice.write()?;
            part.await?;
            dice.write()
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.dice.write()?;
        let done = self.inner.complete().await?;
        self.dice.write()?;
        Ok(done)
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

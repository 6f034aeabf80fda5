//! An object store that tells somebody of every request, so that something can happen to it, or to the process, in the middle of a call.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Something is about to be read or listed.
    Read,
    /// Something is about to be written: an object, the beginning, a part or the end of an upload, a copy.
    Write,
    /// An object is about to be deleted.
    Delete,
    /// What was written or deleted has taken effect, and whoever asked for it does not know yet.
    Done,
}

/// Who is told: the step and the whole path of the object, below the root of the store.
pub type Watcher = Arc<dyn Fn(Step, &Path) + Send + Sync>;

/// A store before another one.
pub struct Watched {
    inner: Arc<dyn ObjectStore>,
    watcher: Watcher,
}

impl Watched {
    /// A store that does what `inner` does.
    pub fn new(inner: Arc<dyn ObjectStore>, watcher: Watcher) -> Self {
        Self { inner, watcher }
    }

    fn tell(&self, step: Step, path: &Path) {
        (self.watcher)(step, path);
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Watched").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl fmt::Display for Watched {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "watched {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Watched {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.tell(Step::Write, location);
        let put = self.inner.put_opts(location, payload, opts).await?;
        self.tell(Step::Done, location);
        Ok(put)
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.tell(Step::Write, location);
        let inner = self.inner.put_multipart_opts(location, opts).await?;
        self.tell(Step::Done, location);
        Ok(Box::new(WatchedUpload { inner, watcher: Arc::clone(&self.watcher), path: location.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.tell(Step::Read, location);
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.tell(Step::Read, location);
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (before, after) = (Arc::clone(&self.watcher), Arc::clone(&self.watcher));
        let told = move |watcher: &Watcher, step: Step, path: &Result<Path>| {
            if let Ok(path) = path {
                watcher(step, path);
            }
        };
        let locations = locations.inspect(move |path: &Result<Path>| told(&before, Step::Delete, path));
        let deleted = self.inner.delete_stream(locations.boxed());
        deleted.inspect(move |path: &Result<Path>| told(&after, Step::Done, path)).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.tell(Step::Read, prefix.unwrap_or(&Path::default()));
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.tell(Step::Read, prefix.unwrap_or(&Path::default()));
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.tell(Step::Read, prefix.unwrap_or(&Path::default()));
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.tell(Step::Write, to);
        self.inner.copy_opts(from, to, options).await?;
        self.tell(Step::Done, to);
        Ok(())
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.tell(Step::Write, to);
        self.inner.rename_opts(from, to, options).await?;
        self.tell(Step::Done, to);
        Ok(())
    }
}

struct WatchedUpload {
    inner: Box<dyn MultipartUpload>,
    watcher: Watcher,
    path: Path,
}

impl fmt::Debug for WatchedUpload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("WatchedUpload").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[async_trait]
impl MultipartUpload for WatchedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (part, watcher, path) = (self.inner.put_part(data), Arc::clone(&self.watcher), self.path.clone());
        Box::pin(async move {
            watcher(Step::Write, &path);
            part.await?;
            watcher(Step::Done, &path);
            Ok(())
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        (self.watcher)(Step::Write, &self.path);
        let put = self.inner.complete().await?;
        (self.watcher)(Step::Done, &self.path);
        Ok(put)
    }

    async fn abort(&mut self) -> Result<()> {
        (self.watcher)(Step::Delete, &self.path);
        self.inner.abort().await?;
        (self.watcher)(Step::Done, &self.path);
        Ok(())
    }
}

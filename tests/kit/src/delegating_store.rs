//! An object store in front of another one: it passes every request on, and hooks see each of them before and after.
//!
//! The stores that tests need (one that waits, one that fails, one that reports) are hooks; this is the only place that implements
//! [`ObjectStore`] for them.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};

/// The kinds of requests that hooks can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// An object is written as a whole.
    Put,
    /// An upload in parts begins.
    BeginUpload,
    /// A part of an upload is sent.
    UploadPart,
    /// An upload ends: only now is its object there.
    CompleteUpload,
    /// An upload is given up.
    AbortUpload,
    /// An object, or a range of it, is read. A read of several ranges is a request for each range that is fetched.
    Get,
    /// Objects below a prefix are listed.
    List,
    /// One object is deleted.
    Delete,
    /// An object is copied or renamed. Hooks get the path that it is copied to.
    Copy,
}

/// What happens around the requests to a store. By default nothing does.
#[async_trait]
pub trait Hooks: fmt::Debug + Send + Sync + 'static {
    /// Called before a request; it may wait. The request is answered with its error and does not reach the store.
    async fn before(&self, _request: Request, _path: &Path) -> Result<()> {
        Ok(())
    }

    /// Called before an object is put, after [`Hooks::before`]. May put it with other options.
    async fn before_put(&self, _path: &Path, _options: &mut PutOptions) -> Result<()> {
        Ok(())
    }

    /// Called when something was written or deleted, before the caller learns of it. With an error the answer gets lost: the caller is
    /// told of a failure though the request took effect.
    fn after(&self, _request: Request, _path: &Path) -> Result<()> {
        Ok(())
    }

    /// The path under which the store in the back knows an object.
    fn stored_as(&self, _request: Request, path: &Path) -> Path {
        path.clone()
    }

    /// A listed object, as the caller is to see it.
    fn listed(&self, object: ObjectMeta) -> ObjectMeta {
        object
    }
}

/// A store with hooks in front of another store.
#[derive(Debug)]
pub struct DelegatingStore<H> {
    inner: Arc<dyn ObjectStore>,
    hooks: Arc<H>,
}

impl<H: Hooks> DelegatingStore<H> {
    /// A store that does what `inner` does, as far as the hooks let it.
    pub fn over(inner: Arc<dyn ObjectStore>, hooks: Arc<H>) -> Arc<dyn ObjectStore> {
        Arc::new(Self { inner, hooks })
    }

    /// Runs the hook before the listing; its error becomes the only item of the list.
    fn listing(
        &self,
        prefix: Option<&Path>,
        list: impl FnOnce(&dyn ObjectStore, Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> + Send + 'static,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let (inner, hooks, prefix) = (Arc::clone(&self.inner), Arc::clone(&self.hooks), prefix.cloned());
        let objects = async move {
            hooks.before(Request::List, &prefix.clone().unwrap_or_default()).await?;
            Ok::<_, Error>(list(inner.as_ref(), prefix.as_ref()).map_ok(move |object| hooks.listed(object)))
        };
        stream::once(objects).try_flatten().boxed()
    }
}

impl<H: Hooks> fmt::Display for DelegatingStore<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with hooks", self.inner)
    }
}

#[async_trait]
impl<H: Hooks> ObjectStore for DelegatingStore<H> {
    async fn put_opts(&self, location: &Path, payload: PutPayload, mut options: PutOptions) -> Result<PutResult> {
        self.hooks.before(Request::Put, location).await?;
        self.hooks.before_put(location, &mut options).await?;
        let put = self.inner.put_opts(&self.hooks.stored_as(Request::Put, location), payload, options).await?;
        self.hooks.after(Request::Put, location)?;
        Ok(put)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.hooks.before(Request::BeginUpload, location).await?;
        let stored_as = self.hooks.stored_as(Request::BeginUpload, location);
        let inner = self.inner.put_multipart_opts(&stored_as, options).await?;
        self.hooks.after(Request::BeginUpload, location)?;
        Ok(Box::new(Upload { inner, hooks: Arc::clone(&self.hooks), path: location.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.hooks.before(Request::Get, location).await?;
        self.inner.get_opts(&self.hooks.stored_as(Request::Get, location), options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (before, after) = (Arc::clone(&self.hooks), Arc::clone(&self.hooks));
        let locations = locations.and_then(move |path| {
            let hooks = Arc::clone(&before);
            async move {
                hooks.before(Request::Delete, &path).await?;
                Ok(hooks.stored_as(Request::Delete, &path))
            }
        });
        let deleted = self.inner.delete_stream(locations.boxed());
        let answered = move |path: Path| {
            let answer = after.after(Request::Delete, &path).map(|()| path);
            async { answer }
        };
        deleted.and_then(answered).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listing(prefix, |inner, prefix| inner.list(prefix))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        let offset = offset.clone();
        self.listing(prefix, move |inner, prefix| inner.list_with_offset(prefix, &offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.hooks.before(Request::List, prefix.unwrap_or(&Path::default())).await?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.hooks.before(Request::Copy, to).await?;
        let stored_as = |path| self.hooks.stored_as(Request::Copy, path);
        self.inner.copy_opts(&stored_as(from), &stored_as(to), options).await?;
        self.hooks.after(Request::Copy, to)
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.hooks.before(Request::Copy, to).await?;
        let stored_as = |path| self.hooks.stored_as(Request::Copy, path);
        self.inner.rename_opts(&stored_as(from), &stored_as(to), options).await?;
        self.hooks.after(Request::Copy, to)
    }
}

#[derive(Debug)]
struct Upload<H> {
    inner: Box<dyn MultipartUpload>,
    hooks: Arc<H>,
    path: Path,
}

#[async_trait]
impl<H: Hooks> MultipartUpload for Upload<H> {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (part, hooks, path) = (self.inner.put_part(data), Arc::clone(&self.hooks), self.path.clone());
        Box::pin(async move {
            hooks.before(Request::UploadPart, &path).await?;
            part.await?;
            hooks.after(Request::UploadPart, &path)
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.hooks.before(Request::CompleteUpload, &self.path).await?;
        let put = self.inner.complete().await?;
        self.hooks.after(Request::CompleteUpload, &self.path)?;
        Ok(put)
    }

    async fn abort(&mut self) -> Result<()> {
        self.hooks.before(Request::AbortUpload, &self.path).await?;
        self.inner.abort().await?;
        self.hooks.after(Request::AbortUpload, &self.path)
    }
}

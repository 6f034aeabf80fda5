//! A file system that does not tell `Plain` from `plain`: folders are listed in one spelling, and a file is deleted under either.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};

/// Lists folders of partitions in lower case.
#[derive(Debug)]
pub(super) struct Respelled {
    inner: Arc<dyn ObjectStore>,
    /// As listed, to what it is.
    listed: Arc<Mutex<HashMap<Path, Path>>>,
}

impl Respelled {
    pub(super) fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, listed: Arc::default() }
    }
}

fn respelled(path: &Path) -> Path {
    let parts = path.as_ref().split('/');
    let parts: Vec<String> =
        parts.map(|part| if part.contains('=') { part.to_lowercase() } else { part.to_owned() }).collect();
    Path::parse(parts.join("/")).unwrap()
}

impl fmt::Display for Respelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("respelled")
    }
}

#[async_trait]
impl ObjectStore for Respelled {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let listed = Arc::clone(&self.listed);
        let meant = move |path: Path| listed.lock().unwrap().get(&path).cloned().unwrap_or(path);
        self.inner.delete_stream(locations.map_ok(meant).boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let listed = Arc::clone(&self.listed);
        let seen = move |file: ObjectMeta| {
            let location = respelled(&file.location);
            listed.lock().unwrap().insert(location.clone(), file.location);
            ObjectMeta { location, ..file }
        };
        self.inner.list(prefix).map_ok(seen).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

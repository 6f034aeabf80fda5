//! HQ's blob store as a folder or an S3 bucket.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::stream::{self, StreamExt, TryStreamExt};
use lake_shared::secret::Secret;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{Error, ObjectStore, ObjectStoreExt};

use crate::turn::Mutation;

/// Blobs written or removed at once.
const AT_ONCE: usize = 16;

/// Where an S3 bucket is and how to open it.
#[derive(Clone, Debug)]
pub struct BucketAddress {
    /// For example `http://127.0.0.1:8333`.
    pub endpoint: String,
    /// Bucket; it must exist.
    pub bucket: String,
    /// Region; most look-alikes take any.
    pub region: String,
    /// Access key of the S3 store.
    pub access_key: String,
    /// Secret key of the S3 store.
    pub secret_key: Secret,
}

/// HQ's blob store.
#[derive(Clone, Debug)]
pub struct BlobSink {
    store: Arc<dyn ObjectStore>,
}

impl BlobSink {
    /// Any object store; keys become paths as they are.
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store }
    }

    /// A folder, which is made if it is missing.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn folder(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("make the blob folder {}", folder.display()))?;
        let store = LocalFileSystem::new_with_prefix(folder)
            .with_context(|| format!("open the blob folder {}", folder.display()))?;
        Ok(Self::new(Arc::new(store)))
    }

    /// An S3 bucket or a look-alike.
    ///
    /// # Errors
    ///
    /// When the address is not well-formed.
    pub fn bucket(address: &BucketAddress) -> Result<Self> {
        let store = AmazonS3Builder::new()
            .with_endpoint(&address.endpoint)
            .with_allow_http(true)
            .with_bucket_name(&address.bucket)
            .with_region(&address.region)
            .with_access_key_id(&address.access_key)
            .with_secret_access_key(address.secret_key.expose())
            .build()
            .with_context(|| format!("open the blob bucket {}", address.bucket))?;
        Ok(Self::new(Arc::new(store)))
    }

    /// Writes the blobs that exist after these mutations; others are passed over. HQ writes a blob before the row that refers to it.
    ///
    /// # Errors
    ///
    /// When the store does not answer or refuses. It is safe to repeat.
    pub async fn put(&self, mutations: &[Mutation]) -> Result<()> {
        stream::iter(last_words(mutations))
            .map(|mutation| async move {
                let Mutation::PutBlob { key, content, gzip } = mutation else { return Ok(()) };
                let bytes = if *gzip { compressed(content)? } else { content.clone() };
                let path = Key::parse(key).with_context(|| format!("name the blob {key}"))?;
                self.store.put(&path, bytes.into()).await.with_context(|| format!("write the blob {key}"))?;
                anyhow::Ok(())
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    /// Removes the blobs that do not exist after these mutations. A blob that is missing already is no error.
    ///
    /// # Errors
    ///
    /// When the store does not answer or refuses. It is safe to repeat.
    pub async fn remove(&self, mutations: &[Mutation]) -> Result<()> {
        stream::iter(last_words(mutations))
            .map(|mutation| async move {
                let Mutation::RemoveBlob { key } = mutation else { return Ok(()) };
                let path = Key::parse(key).with_context(|| format!("name the blob {key}"))?;
                match self.store.delete(&path).await {
                    Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
                    Err(error) => Err(error).with_context(|| format!("remove the blob {key}")),
                }
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }
}

/// The last mutation of each blob, in order.
fn last_words(mutations: &[Mutation]) -> Vec<&Mutation> {
    let mut seen = std::collections::HashSet::new();
    let mut last: Vec<&Mutation> = mutations
        .iter()
        .rev()
        .filter(|mutation| match mutation {
            Mutation::PutBlob { key, .. } | Mutation::RemoveBlob { key } => seen.insert(key.as_str()),
            _ => false,
        })
        .collect();
    last.reverse();
    last
}

fn compressed(content: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(content.len() / 2), Compression::fast());
    encoder.write_all(content).and_then(|()| encoder.finish()).context("compress a blob")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Read;

    use object_store::memory::InMemory;

    use super::*;

    fn put(key: &str, content: &str, gzip: bool) -> Mutation {
        Mutation::PutBlob { key: key.into(), content: content.into(), gzip }
    }

    async fn stored(store: &InMemory, key: &str) -> Option<Vec<u8>> {
        match store.get(&Key::from(key)).await {
            Ok(found) => Some(found.bytes().await.unwrap().to_vec()),
            Err(_) => None,
        }
    }

    #[tokio::test]
    async fn blobs_are_as_the_last_mutation_says() {
        let store = Arc::new(InMemory::new());
        let sink = BlobSink::new(store.clone());
        let mutations = [
            put("form/raw", "<data/>", false),
            put("packed", "<data>one</data>", true),
            put("gone", "x", false),
            Mutation::RemoveBlob { key: "gone".into() },
            Mutation::RemoveBlob { key: "never".into() },
            Mutation::RemoveBlob { key: "back".into() },
            put("back", "y", false),
        ];
        for _ in 0..2 {
            sink.put(&mutations).await.unwrap();
            sink.remove(&mutations).await.unwrap();
        }
        assert_eq!(stored(&store, "form/raw").await.unwrap(), b"<data/>");
        assert_eq!(stored(&store, "back").await.unwrap(), b"y");
        assert_eq!(stored(&store, "gone").await, None);
        let packed = stored(&store, "packed").await.unwrap();
        let mut unpacked = String::new();
        flate2::read::GzDecoder::new(packed.as_slice()).read_to_string(&mut unpacked).unwrap();
        assert_eq!(unpacked, "<data>one</data>");
    }
}

//! A copy of a store on disk, for whoever reads files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use futures::TryStreamExt;
use object_store::path::Path as Key;
use object_store::{ObjectMeta, ObjectStore as Store, ObjectStoreExt};
use tempfile::TempDir;

/// The copy.
#[derive(Debug)]
pub struct Mirror {
    client: Arc<dyn Store>,
    folder: TempDir,
    /// Objects that were copied, and what they were then.
    held: BTreeMap<Key, ObjectMeta>,
    largest: u64,
}

impl Mirror {
    /// An empty one.
    pub fn of(client: Arc<dyn Store>) -> anyhow::Result<Self> {
        let folder = TempDir::with_prefix("lake-test-mirror-")?;
        Ok(Self { client, folder, held: BTreeMap::new(), largest: 0 })
    }

    /// Brings the copy up to date.
    pub async fn follow(&mut self) -> anyhow::Result<()> {
        let objects: Vec<ObjectMeta> = self.client.list(None).try_collect().await?;
        let mut there = BTreeSet::new();
        for object in objects {
            // A hint only, and a checkpoint that is being made may come after the list and before the hint.
            // A file that a client of HDFS was writing when it died has such a name, and cannot be read.
            let is_passed_over = |name: &str| name == "_last_checkpoint" || name.starts_with('.');
            if object.location.filename().is_some_and(is_passed_over) {
                continue;
            }
            there.insert(object.location.clone());
            if self.held.get(&object.location) == Some(&object) {
                continue;
            }
            let content = match self.client.get(&object.location).await {
                Err(object_store::Error::NotFound { .. }) => continue,
                found => found?.bytes().await?,
            };
            let file = self.folder().join(object.location.as_ref());
            fs::create_dir_all(file.parent().context("every object is in a folder")?)?;
            fs::write(&file, content).with_context(|| file.display().to_string())?;
            self.largest = self.largest.max(object.size);
            self.held.insert(object.location.clone(), object);
        }
        let gone: Vec<Key> = self.held.keys().filter(|path| !there.contains(path)).cloned().collect();
        for path in gone {
            fs::remove_file(self.folder().join(path.as_ref()))?;
            self.held.remove(&path);
        }
        Ok(())
    }

    /// What stands for the store.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Bytes of the largest object that there was.
    pub fn largest(&self) -> u64 {
        self.largest
    }
}

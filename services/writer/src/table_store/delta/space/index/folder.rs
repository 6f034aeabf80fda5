//! Where the key indexes are.

use std::path::{Path, PathBuf};

use uuid::Uuid;

/// A folder of indexes; a temporary one goes with its owner.
#[derive(Debug)]
pub(crate) struct IndexFolder {
    path: PathBuf,
    temporary: bool,
}

impl IndexFolder {
    /// The configured folder, or a temporary one. It is created when something is put there.
    pub(crate) fn new(configured: Option<PathBuf>) -> Self {
        if let Some(path) = configured {
            return Self { path, temporary: false };
        }
        let path = std::env::temp_dir().join(format!("commcare-lake-index-{}", Uuid::new_v4()));
        tracing::warn!(
            folder = %path.display(),
            "key indexes are in a temporary folder and are built anew at every start; set tables.index_folder"
        );
        Self { path, temporary: true }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for IndexFolder {
    fn drop(&mut self) {
        if self.temporary
            && let Err(error) = std::fs::remove_dir_all(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::debug!(folder = %self.path.display(), %error, "temporary key index stays behind");
        }
    }
}

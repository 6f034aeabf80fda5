//! The folder of an index: its lock, the names in it, and what of it may be deleted.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::IndexError;

const LOCK: &str = "lock";
const MANIFEST: &str = "manifest";
const MANIFEST_NEXT: &str = "manifest.next";

/// A folder that this process has locked, until it is dropped.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// Number of the next file: numbers are not used twice.
    next: AtomicU64,
    _lock: File,
}

impl Folder {
    /// Makes the folder if there is none.
    pub fn lock(path: &Path) -> Result<Self, IndexError> {
        fs::create_dir_all(path).map_err(IndexError::io("create", path))?;
        let lock_path = path.join(LOCK);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(IndexError::io("create", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), next: AtomicU64::new(1), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(IndexError::Locked { folder: path.to_owned() }),
            Err(TryLockError::Error(source)) => Err(IndexError::io("lock", &lock_path)(source)),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn manifest(&self) -> PathBuf {
        self.path.join(MANIFEST)
    }

    pub fn manifest_next(&self) -> PathBuf {
        self.path.join(MANIFEST_NEXT)
    }

    pub fn run(&self, number: u64) -> PathBuf {
        self.path.join(format!("run-{number:010}"))
    }

    /// A file of this process only.
    pub fn chunks(&self, number: u64) -> PathBuf {
        self.path.join(format!("chunks-{number:010}"))
    }

    pub fn take_number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub fn next_number(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Numbers below `next` were used by an earlier process.
    pub fn continue_at(&self, next: u64) {
        self.next.fetch_max(next, Ordering::Relaxed);
    }

    /// Makes the names in the folder durable.
    pub fn sync(&self) -> Result<(), IndexError> {
        File::open(&self.path).and_then(|folder| folder.sync_all()).map_err(IndexError::io("sync", &self.path))
    }

    /// Deletes the index's files except those for which `kept` answers yes. Files with other names are left alone.
    pub fn clean(&self, kept: impl Fn(&Path) -> bool) -> Result<(), IndexError> {
        for file in fs::read_dir(&self.path).map_err(IndexError::io("list", &self.path))? {
            let path = file.map_err(IndexError::io("list", &self.path))?.path();
            let ours = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
                name == MANIFEST || name == MANIFEST_NEXT || name.starts_with("run-") || name.starts_with("chunks-")
            });
            if ours && !kept(&path) {
                fs::remove_file(&path).map_err(IndexError::io("delete", &path))?;
            }
        }
        Ok(())
    }
}

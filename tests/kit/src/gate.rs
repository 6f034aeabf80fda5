//! A store that waits, or fails, at a request that the test chooses, and counts reads of data files.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use object_store::path::Path;
use object_store::{Error, Result};
use tokio::sync::Semaphore;

use crate::delegating_store::{Hooks, Request};
use crate::table_file::TableFile;

/// What a test tells its store to do.
#[derive(Debug)]
pub struct Gate {
    holds: Mutex<Option<TableFile>>,
    held: Semaphore,
    released: Semaphore,
    /// Whether data files cannot be read.
    pub is_blind: AtomicBool,
    /// Whether the answer to the next commit gets lost.
    pub loses_commit: AtomicBool,
    /// How many reads of entries of the log fail after a lost commit, as if the entries had been cleaned up.
    pub hides_log: AtomicU64,
    hidden: AtomicU64,
    /// How often a data file was read.
    pub reads: AtomicU64,
}

impl Default for Gate {
    fn default() -> Self {
        let (holds, is_blind, loses_commit, hides_log, hidden, reads) = Default::default();
        let (held, released) = (Semaphore::new(0), Semaphore::new(0));
        Self { holds, held, released, is_blind, loses_commit, hides_log, hidden, reads }
    }
}

impl Gate {
    /// The next write of such a file waits until it is released; the writes after it do not.
    pub fn hold_next(&self, file: TableFile) {
        *self.holds.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
    }

    /// Returns when a write waits.
    pub async fn held(&self) {
        self.held.acquire().await.expect("never closed").forget();
    }

    /// Lets the waiting write go on.
    pub fn release(&self) {
        self.released.add_permits(1);
    }

    /// Whether this is the write that is to wait.
    fn holds(&self, path: &Path) -> bool {
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        holds.take_if(|file| file.is_at(path)).is_some()
    }

    async fn pass(&self, path: &Path) {
        if self.holds(path) {
            self.held.add_permits(1);
            self.released.acquire().await.expect("never closed").forget();
        }
    }

    fn read(&self, path: &Path) -> Result<()> {
        let hides = |left: u64| left.checked_sub(1);
        if TableFile::Commit.is_at(path)
            && self.hidden.fetch_update(Ordering::Relaxed, Ordering::Relaxed, hides).is_ok()
        {
            return Err(Error::NotFound { path: path.to_string(), source: "cleaned up".into() });
        }
        if TableFile::Data.is_at(path) {
            self.reads.fetch_add(1, Ordering::Relaxed);
            if self.is_blind.load(Ordering::Relaxed) {
                return Err(connection_lost());
            }
        }
        Ok(())
    }
}

fn connection_lost() -> Error {
    Error::Generic { store: "gate", source: "connection lost".into() }
}

#[async_trait]
impl Hooks for Gate {
    async fn before(&self, request: Request, path: &Path) -> Result<()> {
        match request {
            Request::Put | Request::BeginUpload => {
                self.pass(path).await;
                Ok(())
            }
            Request::Get => self.read(path),
            _ => Ok(()),
        }
    }

    fn after(&self, request: Request, path: &Path) -> Result<()> {
        let is_commit = request == Request::Put && TableFile::Commit.is_at(path);
        if is_commit && self.loses_commit.swap(false, Ordering::Relaxed) {
            self.hidden.store(self.hides_log.load(Ordering::Relaxed), Ordering::Relaxed);
            return Err(connection_lost());
        }
        Ok(())
    }
}

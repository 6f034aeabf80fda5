//! A store with faults: writes fail before or after they took effect, and reads, lists and deletions fail as well.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use object_store::path::Path;
use object_store::{Error, Result};
use tokio::sync::Notify;

use crate::delegating_store::{Hooks, Request};
use crate::dice::mixed;
use crate::table_file::TableFile;

/// How many times as rarely as writes other requests fail: there are many more of them.
const OTHERS_RARER: u64 = 32;
/// Where the numbers begin that decide what fails.
const FIRST: u64 = 0x9e37_79b9;

/// What fails. Without a word of the test nothing does.
#[derive(Debug, Default)]
pub struct Faults {
    /// About one write in so many fails, parts of uploads among them, and one other request in many times as many; 0: none.
    pub one_in: AtomicU64,
    /// Writes to paths that contain this text fail.
    pub broken: Mutex<Option<String>>,
    /// How often a write to a broken path was refused.
    pub refused: AtomicU64,
    /// Objects whose paths contain this text cannot be read.
    pub unreadable: Mutex<Option<String>>,
    /// Notified when a data file is about to be written.
    pub writing: Notify,
    requests: AtomicU64,
}

impl Faults {
    /// Fails one time in so many, by numbers that look random and are the same in every run.
    fn fail_one_in(&self, one_in: u64) -> Result<()> {
        if one_in == 0 {
            return Ok(());
        }
        let drawn = mixed(FIRST.wrapping_add(self.requests.fetch_add(1, Ordering::Relaxed))) >> 16;
        if drawn.is_multiple_of(one_in) { Err(connection_lost()) } else { Ok(()) }
    }

    /// A write fails, or the answer to it gets lost.
    fn write(&self) -> Result<()> {
        self.fail_one_in(self.one_in.load(Ordering::Relaxed))
    }

    fn other(&self) -> Result<()> {
        self.fail_one_in(OTHERS_RARER * self.one_in.load(Ordering::Relaxed))
    }

    fn begin(&self, path: &Path) -> Result<()> {
        if TableFile::Data.is_at(path) {
            self.writing.notify_one();
        }
        if is_in(&self.broken, path) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(connection_lost());
        }
        self.write()
    }
}

fn is_in(part: &Mutex<Option<String>>, path: &Path) -> bool {
    let part = part.lock().unwrap_or_else(PoisonError::into_inner);
    part.as_ref().is_some_and(|part| path.as_ref().contains(part))
}

fn connection_lost() -> Error {
    Error::Generic { store: "faults", source: "connection lost".into() }
}

#[async_trait]
impl Hooks for Faults {
    async fn before(&self, request: Request, path: &Path) -> Result<()> {
        match request {
            Request::Put | Request::BeginUpload => self.begin(path),
            Request::UploadPart | Request::CompleteUpload => self.write(),
            Request::Get if is_in(&self.unreadable, path) => Err(connection_lost()),
            Request::Get | Request::List | Request::Delete => self.other(),
            Request::AbortUpload | Request::Copy => Ok(()),
        }
    }

    fn after(&self, request: Request, _: &Path) -> Result<()> {
        match request {
            Request::Put | Request::UploadPart | Request::CompleteUpload => self.write(),
            _ => Ok(()),
        }
    }
}

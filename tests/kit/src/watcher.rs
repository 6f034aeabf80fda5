//! A store that reports every request, so that something can happen to it, or to the process, in the middle of a call.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use object_store::path::Path;
use object_store::{ObjectStore, Result};

use crate::delegating_store::{DelegatingStore, Hooks, Request};

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Something is about to be read or listed.
    Read,
    /// Something is about to be written: an object, the beginning, a part or the end of an upload, a copy.
    Write,
    /// An object is about to be deleted.
    Delete,
    /// What was written or deleted has taken effect, and the caller does not know yet.
    Done,
}

impl Step {
    fn before(request: Request) -> Self {
        match request {
            Request::Get | Request::List => Self::Read,
            Request::Delete | Request::AbortUpload => Self::Delete,
            Request::Put | Request::BeginUpload | Request::UploadPart | Request::CompleteUpload | Request::Copy => {
                Self::Write
            }
        }
    }
}

/// A store that does what `inner` does, and reports to a function: the step, and the whole path of the object below the root of the store.
pub fn watched(
    inner: Arc<dyn ObjectStore>,
    report: impl Fn(Step, &Path) + Send + Sync + 'static,
) -> Arc<dyn ObjectStore> {
    DelegatingStore::over(inner, Arc::new(Watcher(report)))
}

struct Watcher<F>(F);

impl<F> fmt::Debug for Watcher<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watcher")
    }
}

#[async_trait]
impl<F: Fn(Step, &Path) + Send + Sync + 'static> Hooks for Watcher<F> {
    async fn before(&self, request: Request, path: &Path) -> Result<()> {
        (self.0)(Step::before(request), path);
        Ok(())
    }

    fn after(&self, _: Request, path: &Path) -> Result<()> {
        (self.0)(Step::Done, path);
        Ok(())
    }
}

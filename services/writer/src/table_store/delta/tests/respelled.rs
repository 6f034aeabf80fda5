//! A file system that does not tell `Plain` from `plain`: folders are listed in one spelling, and a file is deleted under either.

use std::collections::HashMap;
use std::sync::Mutex;

use lake_test_kit::delegating_store::{Hooks, Request};
use object_store::ObjectMeta;
use object_store::path::Path;

/// Lists folders of partitions in lower case.
#[derive(Debug, Default)]
pub(super) struct Respelled {
    /// A path as it was listed, to the path of the file.
    listed: Mutex<HashMap<Path, Path>>,
}

fn respelled(path: &Path) -> Path {
    let parts = path.as_ref().split('/');
    let parts: Vec<String> =
        parts.map(|part| if part.contains('=') { part.to_lowercase() } else { part.to_owned() }).collect();
    Path::parse(parts.join("/")).unwrap()
}

impl Hooks for Respelled {
    fn stored_as(&self, request: Request, path: &Path) -> Path {
        let meant = self.listed.lock().unwrap().get(path).cloned().filter(|_| request == Request::Delete);
        meant.unwrap_or_else(|| path.clone())
    }

    fn listed(&self, object: ObjectMeta) -> ObjectMeta {
        let location = respelled(&object.location);
        self.listed.lock().unwrap().insert(location.clone(), object.location);
        ObjectMeta { location, ..object }
    }
}

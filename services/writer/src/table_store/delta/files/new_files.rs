//! Files that were written for a commit which may not come about.

use std::collections::BTreeSet;
use std::sync::Arc;

use deltalake::kernel::Add;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::key_index::FileNumber;
use crate::table_store::delta::files::data_file::DataFile;
use crate::table_store::delta::files::deletion_vectors::{self, DeletionVector};
use crate::table_store::delta::files::partition::Partition;

/// A written file that is not yet part of its table.
#[derive(Clone, Debug)]
pub(crate) struct NewFile {
    /// Its number.
    pub(crate) number: FileNumber,
    /// Its action, with partition values and statistics.
    pub(crate) add: Add,
    /// Its rows.
    pub(crate) rows: usize,
    /// Where it belongs.
    pub(crate) partition: Partition,
}

impl NewFile {
    /// The file as part of its table.
    pub(crate) fn into_data_file(self, versions_us: Option<(i64, i64)>) -> DataFile {
        DataFile {
            number: self.number,
            path: self.add.path,
            logged: None,
            size: self.add.size,
            rows: self.rows as i64,
            deleted: None,
            partition: self.partition,
            versions_us,
        }
    }
}

/// Paths of data files and deletion vectors that no version of their table names yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct NewFiles(BTreeSet<Path>);

impl NewFiles {
    /// All vectors of one commit stand in one file.
    pub(crate) fn new<'a>(
        data_files: impl IntoIterator<Item = &'a NewFile>,
        vectors: impl IntoIterator<Item = &'a DeletionVector>,
    ) -> Self {
        let data_files = data_files.into_iter().filter_map(|file| Path::parse(&file.add.path).ok());
        let vectors = vectors.into_iter().filter_map(|vector| deletion_vectors::path_of(&vector.descriptor));
        Self(data_files.chain(vectors).collect())
    }

    pub(crate) fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// Deletes the files, of which it is certain that no commit names them. What cannot be deleted now is found by the clean-up.
    pub(crate) async fn discard(&self, store: &Arc<dyn ObjectStore>) {
        for path in &self.0 {
            if let Err(error) = store.delete(path).await {
                tracing::debug!(%path, %error, "a file that no commit names stays for the clean-up");
            }
        }
    }
}

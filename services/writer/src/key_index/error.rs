//! What can go wrong with an index on disk.

use std::io;
use std::path::{Path, PathBuf};

use super::position::{FileNumber, RowNumber};

/// Why an index did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Another process (or another part of this one) has the index open.
    #[error("the key index in {} is in use by another process (stop that one, or give this one a folder of its own), or for a while yet by a \
         compaction of this one", .folder.display())]
    Locked {
        /// The index's folder.
        folder: PathBuf,
    },
    /// The file system refused.
    #[error("could not {doing} {} of the key index: check the disk's space and permissions", .path.display())]
    Io {
        /// What was tried: a verb.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// A file does not hold what was written to it. The index is of no use any more; it can be rebuilt from the tables.
    #[error("{} of the key index is damaged ({found}): the index has to be rebuilt", .path.display())]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// What is wrong with it.
        found: &'static str,
    },
    /// An entry's row number does not fit. Files that large have to be split.
    #[error(
        "row {row} of file {file} is beyond the {} rows that the key index can tell apart",
        super::ROWS_PER_FILE_MAX
    )]
    RowTooLarge {
        /// Number of the data file.
        file: FileNumber,
        /// Row within the file.
        row: RowNumber,
    },
    /// A run was attached to an index that it was not built for; the index lacks its entries and has to be rebuilt.
    #[error("the key index in {} was given a run of another index: it has to be rebuilt", .folder.display())]
    ForeignRun {
        /// The index's folder.
        folder: PathBuf,
    },
}

impl IndexError {
    /// For `map_err`: the file system refused to do something with a file.
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }

    pub(super) fn corrupt(path: &Path, found: &'static str) -> Self {
        Self::Corrupt { path: path.to_owned(), found }
    }
}

//! Which file of a Delta table a path is.

use object_store::path::Path;

/// The files of a table that tests tell apart by their paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableFile {
    /// A Parquet file with rows.
    Data,
    /// An entry of the log.
    Commit,
    /// A checkpoint of the log.
    Checkpoint,
}

impl TableFile {
    /// Whether a path is that of such a file.
    pub fn is_at(self, path: &Path) -> bool {
        let in_log = path.parts().any(|part| part.as_ref() == "_delta_log");
        match self {
            Self::Data => !in_log && path.extension() == Some("parquet"),
            Self::Commit => in_log && path.extension() == Some("json"),
            Self::Checkpoint => in_log && path.extension() == Some("parquet"),
        }
    }
}

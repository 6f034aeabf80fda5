//! What a checkpoint of the key index stands for: the files that its entries may point to.
//!
//! On opening, the files of the snapshot are compared with those of the tables: files that are gone take their entries with them, files
//! that are new are read. That is right whatever happened in between (commits of a crashed process or of another program, a log that was
//! cleaned up, a table that was replaced), because a path never stands for two different files, and as long as the deleted rows
//! of a file only become more. Where they became fewer (an old version was restored) the file is read like a new one.

use std::collections::HashMap;

use deltalake::kernel::DeletionVectorDescriptor;
use serde::{Deserialize, Serialize};

use crate::key_index::{FileNumber, Position, RowNumber};
use crate::table_store::delta::files::data_file::DataFile;

/// Changed whenever the meaning of an entry changes; an index with another one is built anew.
const FORMAT: u32 = 2;

/// A checkpoint may hold entries of commits that were made while it was written. Their files are not in the snapshot, so they are not
/// live after it is opened; their numbers must not be given to other files.
const NUMBERS_AHEAD: u32 = 100_000;

/// One file that entries may point to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotFile {
    pub(crate) number: FileNumber,
    /// Path within the table, decoded.
    pub(crate) path: String,
    pub(crate) deleted: Option<DeletionVectorDescriptor>,
}

impl SnapshotFile {
    pub(crate) fn of(file: &DataFile) -> Self {
        let deleted = file.deleted.as_ref().map(|deleted| deleted.descriptor.clone());
        Self { number: file.number, path: file.path.clone(), deleted }
    }
}

/// The files of one table.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotTable {
    /// Folder, relative to the lake's root.
    pub(crate) path: String,
    /// Identity of the table; absent in snapshots of older versions.
    #[serde(default)]
    pub(crate) id: Option<String>,
    pub(crate) files: Vec<SnapshotFile>,
}

/// The files of one table by path.
#[derive(Debug, Default)]
pub(crate) struct SnapshotFiles {
    id: Option<String>,
    files: HashMap<String, SnapshotFile>,
}

impl SnapshotFiles {
    /// The files if they are of this table and not of one that had its folder before.
    pub(crate) fn of_table(self, id: &str) -> HashMap<String, SnapshotFile> {
        if self.id.is_some_and(|held| held != id) { HashMap::new() } else { self.files }
    }
}

/// What one checkpoint stands for.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct IndexSnapshot {
    format: u32,
    /// No file has a greater number.
    pub(crate) last_number: FileNumber,
    /// File and row numbers of stale rows.
    #[serde(rename = "strays")]
    stale_rows: Vec<(FileNumber, RowNumber)>,
    tables: Vec<SnapshotTable>,
}

impl IndexSnapshot {
    /// `last_number`: the greatest number of a file so far.
    pub(crate) fn new(
        last_number: FileNumber,
        stale_rows: impl Iterator<Item = Position>,
        tables: Vec<SnapshotTable>,
    ) -> Self {
        let stale_rows = stale_rows.map(|position| (position.file, position.row)).collect();
        Self { format: FORMAT, last_number: last_number.ahead(NUMBERS_AHEAD), stale_rows, tables }
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        // Structures of numbers and texts always become JSON.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The inverse of [`Self::to_bytes`]; `None` for another format.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice::<Self>(bytes).ok().filter(|snapshot| snapshot.format == FORMAT)
    }

    /// Takes the files out, by folder of their table.
    pub(crate) fn take_files(&mut self) -> HashMap<String, SnapshotFiles> {
        let tables = std::mem::take(&mut self.tables).into_iter().map(|table| {
            let files = table.files.into_iter().map(|file| (file.path.clone(), file)).collect();
            (table.path, SnapshotFiles { id: table.id, files })
        });
        tables.collect()
    }

    /// Rows that had to leave with the next commit of their tables.
    pub(crate) fn stale_rows(&self) -> impl Iterator<Item = Position> + '_ {
        self.stale_rows.iter().map(|&(file, row)| Position { file, row })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_stored_text_does_not_change() {
        let file = SnapshotFile { number: FileNumber::new(7), path: "part.parquet".to_owned(), deleted: None };
        let table = SnapshotTable { path: "demo/person".to_owned(), id: Some("a".to_owned()), files: vec![file] };
        let snapshot = IndexSnapshot::new(FileNumber::new(8), [Position::new(7, 3)].into_iter(), vec![table]);
        let text = concat!(
            r#"{"format":2,"last_number":100008,"strays":[[7,3]],"tables":[{"path":"demo/person","id":"a","#,
            r#""files":[{"number":7,"path":"part.parquet","deleted":null}]}]}"#
        );
        assert_eq!(String::from_utf8(snapshot.to_bytes()).unwrap(), text);
        let read = IndexSnapshot::of_bytes(text.as_bytes()).unwrap();
        assert_eq!(read.last_number, FileNumber::new(100_008));
        assert_eq!(read.stale_rows().collect::<Vec<_>>(), [Position::new(7, 3)]);
    }
}

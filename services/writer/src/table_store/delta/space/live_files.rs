//! Which positions of a space hold a live row: the files of its tables and what is deleted in them.
//!
//! The key index keeps entries of rows that are gone; this is what tells them from the others. A *stale row* is a row that a reader
//! still sees but that must leave with the next commit of its table (an older copy in another table after a type move, a row whose
//! tombstone was remembered just before a crash); to the index it is gone already.

use std::collections::HashMap;
use std::sync::Arc;

use roaring::RoaringBitmap;

use crate::key_index::{FileNumber, Liveness, Position};
use crate::table_store::delta::table_number::TableNumber;

/// One file.
#[derive(Clone, Debug)]
struct LiveFile {
    table: TableNumber,
    deleted: Option<Arc<RoaringBitmap>>,
}

/// The files of a space, by number. Cheap enough to be cloned for a merge of the index.
#[derive(Clone, Debug, Default)]
pub(crate) struct LiveFiles {
    files: HashMap<FileNumber, LiveFile>,
    stale_rows: HashMap<FileNumber, RoaringBitmap>,
}

impl LiveFiles {
    /// A file is part of a table, with these rows deleted.
    pub(crate) fn set(&mut self, file: FileNumber, table: TableNumber, deleted: Option<Arc<RoaringBitmap>>) {
        if let (Some(stale_rows), Some(deleted)) = (self.stale_rows.get_mut(&file), &deleted) {
            *stale_rows -= deleted.as_ref();
            if stale_rows.is_empty() {
                self.stale_rows.remove(&file);
            }
        }
        self.files.insert(file, LiveFile { table, deleted });
    }

    /// A file is part of its table no more.
    pub(crate) fn remove(&mut self, file: FileNumber) {
        self.files.remove(&file);
        self.stale_rows.remove(&file);
    }

    /// A table has no files any more.
    pub(crate) fn remove_table(&mut self, table: TableNumber) {
        let Self { files, stale_rows } = self;
        files.retain(|_, file| file.table != table);
        stale_rows.retain(|file, _| files.contains_key(file));
    }

    /// The row at a position must leave.
    pub(crate) fn mark_stale(&mut self, position: Position) {
        if self.is_live(position) {
            self.stale_rows.entry(position.file).or_default().insert(position.row.get());
        }
    }

    /// Whether readers see the row at a position.
    fn is_in_table(&self, position: Position) -> bool {
        let Some(file) = self.files.get(&position.file) else { return false };
        !file.deleted.as_ref().is_some_and(|rows| rows.contains(position.row.get()))
    }

    /// The table of a file.
    pub(crate) fn table(&self, file: FileNumber) -> Option<TableNumber> {
        self.files.get(&file).map(|file| file.table)
    }

    /// The stale rows of a table, by file.
    pub(crate) fn stale_rows_of(&self, table: TableNumber) -> impl Iterator<Item = (FileNumber, &RoaringBitmap)> {
        self.stale_rows
            .iter()
            .filter(move |(file, _)| self.table(**file) == Some(table))
            .map(|(file, rows)| (*file, rows))
    }

    /// Tables with stale rows, each once.
    pub(crate) fn tables_with_stale_rows(&self) -> Vec<TableNumber> {
        let mut tables: Vec<TableNumber> = self.stale_rows.keys().filter_map(|file| self.table(*file)).collect();
        tables.sort_unstable();
        tables.dedup();
        tables
    }
}

/// The view of a merge of the index. Stale rows are known in memory only, until the commit that takes them away: the index on disk must
/// still have them after a crash.
pub(crate) struct WithStaleRows(pub(crate) Arc<LiveFiles>);

impl Liveness for WithStaleRows {
    fn is_live(&self, position: Position) -> bool {
        self.0.is_in_table(position)
    }

    fn file_is_live(&self, file: FileNumber) -> bool {
        self.0.file_is_live(file)
    }
}

impl Liveness for LiveFiles {
    fn is_live(&self, position: Position) -> bool {
        self.is_in_table(position)
            && !self.stale_rows.get(&position.file).is_some_and(|rows| rows.contains(position.row.get()))
    }

    fn file_is_live(&self, file: FileNumber) -> bool {
        self.files.contains_key(&file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(file: u32, row: u32) -> Position {
        Position::new(file, row)
    }

    #[test]
    fn a_stale_row_is_gone_for_the_index_until_it_has_left() {
        let [file_1, file_2, file_3] = [1, 2, 3].map(FileNumber::new);
        let [table_7, table_8] = [7, 8].map(TableNumber::of_index);
        let mut live = LiveFiles::default();
        live.set(file_1, table_7, None);
        live.set(file_2, table_8, Some(Arc::new([4].into_iter().collect())));
        assert!(live.is_live(at(1, 3)) && live.is_live(at(2, 3)));
        assert!(!live.is_live(at(2, 4)) && !live.is_live(at(3, 0)));
        live.mark_stale(at(1, 3));
        live.mark_stale(at(2, 4));
        assert!(!live.is_live(at(1, 3)) && live.file_is_live(file_1));
        assert!(WithStaleRows(Arc::new(live.clone())).is_live(at(1, 3)));
        assert_eq!(live.tables_with_stale_rows(), [table_7]);
        live.set(file_1, table_7, Some(Arc::new([3].into_iter().collect())));
        assert!(live.tables_with_stale_rows().is_empty());
        live.remove(file_1);
        assert!(!live.file_is_live(file_1));
        live.set(file_3, table_8, None);
        live.mark_stale(at(3, 1));
        live.remove_table(table_8);
        assert!(!live.file_is_live(file_2) && !live.file_is_live(file_3) && live.tables_with_stale_rows().is_empty());
    }
}

//! A change of one table: what is to happen to it, and what was written for it.

use std::collections::BTreeMap;

use roaring::RoaringBitmap;

use crate::key_index::{FileNumber, FinishedRun, IndexEntry};
use crate::table_store::delta::files::deletion_vectors::DeletionVector;
use crate::table_store::delta::files::new_files::{NewFile, NewFiles};
use crate::table_store::delta::log::base_version::OwnEntry;
use crate::table_store::delta::table_number::TableNumber;
use crate::table_store::delta::upsert::rows::incoming::IncomingRows;
use crate::table_store::schema_plan::SchemaPlan;

/// What is to happen to a table.
#[derive(Debug)]
pub(crate) struct Change {
    /// Which table of the space.
    pub(crate) number: TableNumber,
    /// Rows that enter.
    pub(crate) incoming: IncomingRows,
    /// Rows of this table that must leave, by file; replaced and stale ones included.
    pub(crate) dead: BTreeMap<FileNumber, RoaringBitmap>,
    /// How many rows leave without being replaced.
    pub(crate) deleted: u64,
}

/// A change whose files are written and durable, but not yet part of the table.
pub(crate) struct WrittenChange {
    pub(crate) plan: SchemaPlan,
    pub(crate) partition_columns: Vec<String>,
    pub(crate) added: Vec<NewFile>,
    /// Numbers of files that leave.
    pub(crate) removed: Vec<FileNumber>,
    /// Numbers of files with another deletion vector than before.
    pub(crate) marked: Vec<(FileNumber, DeletionVector)>,
    /// Index entries of the new rows.
    pub(crate) inserted: Vec<IndexEntry>,
    /// Index entries of the copied rows.
    pub(crate) copied: Vec<IndexEntry>,
    /// The same where they are very many.
    pub(crate) copied_run: Option<FinishedRun>,
}

impl WrittenChange {
    /// The files that no version names yet.
    pub(crate) fn new_files(&self) -> NewFiles {
        NewFiles::new(&self.added, self.marked.iter().map(|(_, vector)| vector))
    }
}

/// A change that is in the log of its table, and not yet in the state of the space.
pub(crate) struct CommittedChange {
    pub(crate) change: Change,
    pub(crate) written: WrittenChange,
    /// Its entry in the log.
    pub(crate) entry: OwnEntry,
    /// Identity of the table, if the commit said it.
    pub(crate) id: Option<String>,
}

impl CommittedChange {
    /// How many index entries it holds.
    pub(crate) fn entries(&self) -> usize {
        self.written.inserted.len() + self.written.copied.len()
    }
}

//! The key index of a space, on local disk: where the row of each id lives. 24 bytes a key on disk, bounded memory.
//!
//! It is derived data with implicit deletion. An entry says "the row of this id, observed then, is at this position", and counts
//! only while that position is *live*: its file is part of its table and the row is not deleted in it. The engine answers that
//! ([`Liveness`]). A dead position never becomes live again, and of the positions of one id at most one is live (two for a
//! moment, while a row moves between tables). So to look up an id is to find *any* entry of it that is live; the order
//! in which entries came does not matter, a deletion needs no entry, and dead entries leave when runs are merged.
//!
//! New entries are gathered in memory and written as *runs*: immutable sorted files. A checkpoint writes what is in memory, makes
//! the runs durable and names them in the *manifest*, with a stamp of the engine's (the table versions). After a crash
//! the index is what it was at the last checkpoint, and the engine puts again what the tables' logs have beyond the stamp.
//!
//! Invariants:
//! - The files that the manifest names are not changed or deleted until another manifest is durable.
//! - All bytes are under a checksum; what does not fit is an error or an absent index, never a wrong answer.
//! - No lock is held while [`Liveness`] is asked or a run is read or merged.

mod entry;
mod error;
mod folder;
mod index;
mod manifest;
mod memory;
mod merge;
mod page;
mod position;
mod run;
mod run_builder;
mod run_writer;
#[cfg(test)]
mod tests;

pub use entry::{IdHash, IndexEntry, Located, id_hash};
pub use error::IndexError;
pub use index::KeyIndex;
pub use merge::{MergeJob, MergedRuns};
pub use position::{FileNumber, Position, ROWS_PER_FILE_MAX, RowNumber};
pub use run_builder::{FinishedRun, RunBuilder};

/// Tells the live positions from the dead ones. Dead is for ever: an index forgets entries whose position was called dead, so a
/// file must be called live from before its entries are put or attached, and the answers must be those of now, not
/// of a view that is older than the last put.
pub trait Liveness: Send + Sync {
    /// Whether the file is part of its table and the row is not deleted in it.
    fn is_live(&self, position: Position) -> bool;
    /// Whether the file is part of its table. Asked once for each file of a merge.
    fn file_is_live(&self, file: FileNumber) -> bool;
}

/// Limits of an index.
#[derive(Clone, Copy, Debug)]
pub struct IndexOptions {
    /// Entries in memory (about 26 bytes each) before they are written as a run. Twice as many for moments, while a run is written.
    pub entries_in_memory_max: usize,
    /// Memory of a [`RunBuilder`] in bytes.
    pub builder_memory_bytes: usize,
    /// A run is merged with all smaller ones when it is less than this times as large as they are together. Greater: fewer
    /// runs to look through, more bytes written.
    pub run_size_ratio: u64,
    /// Threads that read for one look-up of many thousand ids.
    pub lookup_threads: usize,
}

impl Default for IndexOptions {
    fn default() -> Self {
        Self { entries_in_memory_max: 1_000_000, builder_memory_bytes: 64 << 20, run_size_ratio: 2, lookup_threads: 4 }
    }
}

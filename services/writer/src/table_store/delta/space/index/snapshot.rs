//! What a checkpoint of the key index stands for: the files that its entries may point to.
//!
//! On opening, the files of the stamp are compared with those of the tables: files that are gone take their entries with them, files
//! that are new are read. That is right whatever happened in between (commits of a crashed process, of somebody else, a log that was
//! cleaned up, a table that was replaced), because a path never stands for two different files, and as long as the deleted rows
//! of a file only become more. Where they became fewer (somebody restored an old version) the file is read like a new one.

use std::collections::HashMap;

use deltalake::kernel::DeletionVectorDescriptor;
use serde::{Deserialize, Serialize};

use crate::key_index::Position;
use crate::table_store::delta::space::state::SpaceState;

/// Changed whenever the meaning of an entry changes; an index with another one is built anew.
const FORMAT: u32 = 1;

/// A checkpoint may hold entries of commits that were made while it was written. Their files are not in the stamp, so they are not live
/// after it is opened; their numbers must not be given to other files.
const NUMBERS_AHEAD: u32 = 100_000;

/// One file that entries may point to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StampedFile {
    pub(crate) number: u32,
    pub(crate) path: String,
    pub(crate) deleted: Option<DeletionVectorDescriptor>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StampedTable {
    path: String,
    /// Identity of the table; absent in older stamps.
    #[serde(default)]
    id: Option<String>,
    files: Vec<StampedFile>,
}

/// The files of one table by path.
#[derive(Debug, Default)]
pub(crate) struct StampedFiles {
    id: Option<String>,
    files: HashMap<String, StampedFile>,
}

impl StampedFiles {
    /// The files if they are of this table and not of one that had its place before.
    pub(crate) fn of_table(self, id: &str) -> HashMap<String, StampedFile> {
        if self.id.is_some_and(|held| held != id) { HashMap::new() } else { self.files }
    }
}

/// The stamp of one checkpoint.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Stamp {
    format: u32,
    /// No file has a greater number.
    pub(crate) last_number: u32,
    /// Positions of strays.
    strays: Vec<(u32, u32)>,
    tables: Vec<StampedTable>,
}

impl Stamp {
    /// The stamp of a state.
    pub(crate) fn of(state: &SpaceState) -> Self {
        let tables = state.slots.iter().map(|slot| StampedTable {
            path: slot.path.clone(),
            id: slot.id.clone(),
            files: slot
                .files
                .values()
                .map(|file| StampedFile {
                    number: file.number,
                    path: file.path.clone(),
                    deleted: file.deleted.as_ref().map(|deleted| deleted.descriptor.clone()),
                })
                .collect(),
        });
        let strays = (0..state.slots.len() as u32)
            .flat_map(|number| state.live.strays_of(number))
            .flat_map(|(file, rows)| rows.iter().map(move |row| (file, row)))
            .collect();
        let last_number = state.numbers.last().saturating_add(NUMBERS_AHEAD);
        Self { format: FORMAT, last_number, strays, tables: tables.collect() }
    }

    /// As bytes.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        // Structures of numbers and texts always become JSON.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The inverse; `None` for another format.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice::<Self>(bytes).ok().filter(|stamp| stamp.format == FORMAT)
    }

    /// The files by folder of their table, then by path.
    pub(crate) fn files(&mut self) -> HashMap<String, StampedFiles> {
        let tables = std::mem::take(&mut self.tables).into_iter().map(|table| {
            let files = table.files.into_iter().map(|file| (file.path.clone(), file)).collect();
            (table.path, StampedFiles { id: table.id, files })
        });
        tables.collect()
    }

    /// Rows that had to leave.
    pub(crate) fn strays(&self) -> impl Iterator<Item = Position> + '_ {
        self.strays.iter().map(|&(file, row)| Position { file, row })
    }
}

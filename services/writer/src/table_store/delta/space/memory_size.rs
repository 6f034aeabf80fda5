//! How much memory the state of a space takes, about.

use crate::table_store::delta::files::data_file::DataFile;
use crate::table_store::delta::space::state::SpaceState;
use crate::table_store::delta::space::table::TableState;

/// What a data file takes beside its path and its vector, its places in maps included.
const FILE_BYTES: usize = 320;

/// What a column takes, its names included. Not counted out, as wide tables have thousands and this is asked after every batch.
const COLUMN_BYTES: usize = 144;

/// What a table takes beside its files and columns.
const TABLE_BYTES: usize = 1_024;

impl SpaceState {
    /// About how many bytes it takes in memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        let tables: usize = self.tables().iter().map(table_bytes).sum();
        self.index().memory_bytes() + self.tombstones().bytes() + tables
    }
}

fn table_bytes(table: &TableState) -> usize {
    let columns = COLUMN_BYTES * table.schema().columns.len();
    let vector = |file: &DataFile| file.deleted_rows().map_or(0, |rows| rows.serialized_size());
    let files: usize = table.files().map(|file| FILE_BYTES + file.path.len() + vector(file)).sum();
    TABLE_BYTES + columns + files
}

//! The transaction log of a table: commits, entries, checkpoints, what a table asks of a writer, open tables.

pub(crate) mod base_version;
pub(crate) mod checkpoint_files;
pub(crate) mod checkpoints;
pub(crate) mod commit;
pub(crate) mod entry;
pub(crate) mod file_actions;
pub(crate) mod history;
pub(crate) mod metadata;
pub(crate) mod open_tables;
pub(crate) mod protocol;
pub(crate) mod table_access;

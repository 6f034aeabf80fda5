//! Files of tables: data files, deletion vectors, partitions, and the memory that writing them takes.

pub(crate) mod data_file;
pub(crate) mod deletion_vectors;
pub(crate) mod file_writer;
pub(crate) mod key_columns;
pub(crate) mod new_files;
pub(crate) mod partition;
pub(crate) mod write_memory_budget;

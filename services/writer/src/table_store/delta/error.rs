//! What goes wrong inside the engine.

use std::any::Any;

use deltalake::DeltaTableError;
use lake_shared::identity::{DocumentType, Space, TableKey};
use lake_shared::panics;

use crate::consent::StalePlan;
use crate::key_index::IndexError;
use crate::metastore::MetastoreError;
use crate::metastore::fence::LeaseLost;
use crate::table_store::delta::table_number::TableNumber;
use crate::table_store::lake_store::LakeStoreError;

/// What goes wrong inside the engine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    #[error("{0}")]
    BadRows(String),
    #[error("table {table} cannot be used: {reason}")]
    Unusable { table: TableKey, reason: String },
    /// More types than a space may have. Those beyond are named.
    #[error("the space has {types_max} types, and there is no place for {} more", .refused.len())]
    TooManyTypes { types_max: usize, refused: Vec<DocumentType> },
    /// Lasting trouble with the files of a table, met while something else was done.
    #[error("files of a table cannot be used")]
    Broken { number: TableNumber, source: Box<EngineError> },
    #[error("the table is not as the lake writes it: {0}")]
    Corrupt(String),
    /// Its protocol asks for what the engine does not do. Trying again is of no use before the table has been changed.
    #[error("{0}")]
    Unwritable(String),
    #[error("table log or data file cannot be read or written")]
    Delta(#[source] Box<DeltaTableError>),
    /// Whatever the store answers to a put, it says nothing about what the table holds.
    #[error("a file cannot be written")]
    Unwritten(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("data file cannot be read")]
    File(#[source] parquet::errors::ParquetError),
    #[error("rows cannot be rearranged")]
    Arrow(#[source] arrow::error::ArrowError),
    #[error("metadata of a table cannot be understood")]
    Json(#[source] serde_json::Error),
    #[error("object store cannot be read or written")]
    Store(#[source] object_store::Error),
    #[error("lake root cannot be used")]
    Lake(#[source] LakeStoreError),
    #[error("metastore failed")]
    Metastore(#[source] MetastoreError),
    #[error("nothing may be committed any more")]
    LeaseLost(#[source] LeaseLost),
    #[error("files cannot be merged")]
    Merge(#[source] crate::compaction::MergeError),
    #[error("key index failed")]
    Index(#[source] IndexError),
    #[error("the space {0} left memory meanwhile; try again")]
    NotLoaded(Space),
    /// A fault of the engine, or of a library, that values or files bring about.
    #[error("the engine panicked: {0}")]
    Panicked(String),
    #[error("a task of the engine was interrupted")]
    Interrupted(#[source] tokio::task::JoinError),
    /// A version that a table cannot be brought back to.
    #[error("{0}")]
    NotRestorable(String),
    #[error("{0}")]
    StalePlan(StalePlan),
    #[error("another program commits to table {0} all the time; is a second writer running?")]
    Contended(TableKey),
}

impl EngineError {
    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt(what.into())
    }

    pub(crate) fn delta(error: DeltaTableError) -> Self {
        Self::Delta(Box::new(error))
    }

    pub(crate) fn unwritten(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Unwritten(error.into())
    }

    pub(crate) fn read_file(error: parquet::errors::ParquetError) -> Self {
        Self::File(error)
    }

    pub(crate) fn arrow(error: arrow::error::ArrowError) -> Self {
        Self::Arrow(error)
    }

    pub(crate) fn json(error: serde_json::Error) -> Self {
        Self::Json(error)
    }

    pub(crate) fn interrupted(error: tokio::task::JoinError) -> Self {
        error.try_into_panic().map_or_else(Self::Interrupted, |panic| Self::panicked(panic.as_ref()))
    }

    pub(crate) fn panicked(panic: &(dyn Any + Send)) -> Self {
        Self::Panicked(panics::text(panic).to_owned())
    }

    /// Whether the index on disk cannot be used any more.
    pub(crate) fn is_index_lost(&self) -> bool {
        let Self::Index(error) = self else { return false };
        // A file with too many rows would be refused by the next index as well.
        !matches!(error, IndexError::Io { .. } | IndexError::Locked { .. } | IndexError::RowTooLarge { .. })
    }
}

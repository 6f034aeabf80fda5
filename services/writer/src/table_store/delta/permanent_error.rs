//! Whether trouble with one table passes by itself. Pure.
//!
//! What lasts (a log that cannot be read, a feature that the engine cannot write, a file that is missing or broken) concerns one table, until
//! it is repaired. Everything else (time-outs, refused connections, answers 5xx, the metastore, the disk of the key index, tasks
//! that were interrupted) is passing, and so are errors of unknown kinds. Rows wait while trouble passes, and go to quarantine where it lasts.

use std::error::Error;

use arrow::error::ArrowError;
use delta_kernel::error::Error as KernelError;
use deltalake::DeltaTableError;
use deltalake::kernel::Error as ActionError;
use deltalake::kernel::transaction::TransactionError;
use object_store::Error as StoreError;
use parquet::errors::ParquetError;
use tokio::task::JoinError;

use crate::compaction::MergeError;
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::table_number::TableNumber;

/// Whether trying again is of no use before the table has been changed.
pub(crate) fn is_permanent(error: &EngineError) -> bool {
    match error {
        EngineError::Corrupt(_) | EngineError::Unwritable(_) | EngineError::Json(_) | EngineError::Broken { .. } => {
            true
        }
        EngineError::Delta(error) => of_delta(error),
        EngineError::File(error) => of_parquet(error),
        EngineError::Arrow(error) => of_arrow(error),
        EngineError::Store(error) => of_store(error),
        EngineError::Merge(error) => of_merge(error),
        EngineError::BadRows(_)
        | EngineError::Unusable { .. }
        | EngineError::TooManyTypes { .. }
        | EngineError::Unwritten(_)
        | EngineError::Lake(_)
        | EngineError::Metastore(_)
        | EngineError::LeaseLost(_)
        | EngineError::Index(_)
        | EngineError::Panicked(_)
        | EngineError::Interrupted(_)
        | EngineError::NotLoaded(_)
        | EngineError::NotRestorable(_)
        | EngineError::StalePlan(_)
        | EngineError::Contended(_) => false,
    }
}

/// Whether what is being applied may be the cause, although nothing says so: values that Arrow, a library or the metastore refuse, a panic.
/// It is worth a few tries with the space loaded anew. What comes again and again then is not passing.
pub(crate) fn may_be_due_to_rows(error: &EngineError) -> bool {
    match error {
        EngineError::Panicked(_) => true,
        error if is_panic_of_task(error) => true,
        EngineError::Metastore(error) => error.is_refusal(),
        // Of a table that cannot be used it is said elsewhere; what is left concerns no table for certain.
        EngineError::Broken { .. } | EngineError::Unwritable(_) => false,
        error => is_permanent(error),
    }
}

/// Whether a task that a library began has panicked.
fn is_panic_of_task(error: &EngineError) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if error.downcast_ref::<JoinError>().is_some_and(JoinError::is_panic) {
            return true;
        }
        cause = error.source();
    }
    false
}

impl EngineError {
    /// Says which table an error is about, if its files cannot be read and that lasts.
    pub(crate) fn of_table(self, number: TableNumber) -> Self {
        let is_about_files = matches!(self, Self::File(_) | Self::Corrupt(_) | Self::Store(_));
        if is_about_files && is_permanent(&self) {
            return Self::Broken { number, source: Box::new(self) };
        }
        self
    }
}

fn of_merge(error: &MergeError) -> bool {
    match error {
        MergeError::Read { source, .. } | MergeError::Rows { source, .. } => of_arrow(source),
        MergeError::ColumnType { .. } | MergeError::TooManyRows { .. } => true,
    }
}

/// An object that is named by the log and is not there will not come back by itself.
fn of_store(error: &StoreError) -> bool {
    matches!(error, StoreError::NotFound { .. } | StoreError::InvalidPath { .. })
}

fn of_parquet(error: &ParquetError) -> bool {
    match error {
        ParquetError::External(error) => of_any(error.as_ref()),
        // What could not be fetched comes as an external error; all else was fetched and makes no sense.
        _ => true,
    }
}

fn of_arrow(error: &ArrowError) -> bool {
    match error {
        ArrowError::ExternalError(error) => of_any(error.as_ref()),
        ArrowError::IoError(..) | ArrowError::MemoryError(_) => false,
        // The cause is only a text by now.
        ArrowError::ParquetError(text) => !text.contains("External: "),
        _ => true,
    }
}

/// Errors without a type. Those of the store, which may pass, keep theirs; a codec that fails has been given wrong bytes.
fn of_any(error: &(dyn Error + Send + Sync + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<StoreError>() {
        return of_store(error);
    }
    if let Some(error) = error.downcast_ref::<ParquetError>() {
        return of_parquet(error);
    }
    if let Some(error) = error.downcast_ref::<ArrowError>() {
        return of_arrow(error);
    }
    if let Some(error) = error.downcast_ref::<DeltaTableError>() {
        return of_delta(error);
    }
    if let Some(error) = error.downcast_ref::<KernelError>() {
        return of_kernel(error);
    }
    if let Some(error) = error.downcast_ref::<std::io::Error>() {
        use std::io::ErrorKind::{InvalidData, Other, UnexpectedEof};
        if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<StoreError>()) {
            return of_store(error);
        }
        return matches!(error.kind(), InvalidData | Other | UnexpectedEof);
    }
    error.downcast_ref::<serde_json::Error>().is_some_and(|error| !error.is_io())
}

fn of_delta(error: &DeltaTableError) -> bool {
    match error {
        DeltaTableError::KernelError(error) => of_kernel(error),
        DeltaTableError::Kernel { source } => of_action(source),
        DeltaTableError::ObjectStore { source } => of_store(source),
        DeltaTableError::Parquet { source } => of_parquet(source),
        DeltaTableError::Arrow { source } => of_arrow(source),
        DeltaTableError::GenericError { source } => of_any(source.as_ref()),
        DeltaTableError::Transaction { source } => of_transaction(source),
        DeltaTableError::InvalidJsonLog { .. }
        | DeltaTableError::InvalidStatsJson { .. }
        | DeltaTableError::InvalidDateTimeString { .. }
        | DeltaTableError::InvalidData { .. }
        | DeltaTableError::NotATable(_)
        | DeltaTableError::NoSchema
        | DeltaTableError::SchemaMismatch { .. }
        | DeltaTableError::PartitionError { .. }
        | DeltaTableError::Generic(_)
        | DeltaTableError::MetadataError(_)
        | DeltaTableError::UnsupportedColumnMapping { .. } => true,
        _ => false,
    }
}

fn of_transaction(error: &TransactionError) -> bool {
    match error {
        TransactionError::ObjectStore { source } => of_store(source),
        TransactionError::DeltaTableAppendOnly
        | TransactionError::UnsupportedTableFeatures(_)
        | TransactionError::TableFeaturesRequired(_) => true,
        _ => false,
    }
}

fn of_kernel(error: &KernelError) -> bool {
    match error {
        KernelError::Backtraced { source, .. } => of_kernel(source),
        KernelError::ObjectStore(error) => of_store(error),
        KernelError::Parquet(error) => of_parquet(error),
        KernelError::Arrow(error) => of_arrow(error),
        KernelError::GenericError { source } => of_any(source.as_ref()),
        KernelError::MalformedJson(error) => !error.is_io(),
        KernelError::IOError(_) | KernelError::Reqwest(_) | KernelError::JoinFailure(_) | KernelError::Cancelled => {
            false
        }
        _ => true,
    }
}

fn of_action(error: &ActionError) -> bool {
    match error {
        ActionError::ObjectStore(error) => of_store(error),
        ActionError::Parquet(error) => of_parquet(error),
        ActionError::Arrow(error) => of_arrow(error),
        ActionError::GenericError { source } => of_any(source.as_ref()),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::metastore::MetastoreError;
    use crate::metastore::fence::LeaseLost;
    use crate::table_store::lake_store::LakeStoreError;

    fn lost() -> StoreError {
        StoreError::Generic { store: "S3", source: "connection reset".into() }
    }

    fn absent() -> StoreError {
        StoreError::NotFound { path: "x.parquet".into(), source: "404".into() }
    }

    fn external(error: StoreError) -> ParquetError {
        ParquetError::External(Box::new(error))
    }

    #[test]
    fn trouble_with_the_store_passes_however_it_is_wrapped() {
        let passing = [
            EngineError::Store(lost()),
            EngineError::File(external(lost())),
            EngineError::Arrow(ArrowError::ExternalError(Box::new(external(lost())))),
            EngineError::Arrow(ArrowError::ParquetError(external(lost()).to_string())),
            EngineError::delta(lost().into()),
            EngineError::delta(DeltaTableError::KernelError(lost().into())),
            EngineError::delta(DeltaTableError::KernelError(KernelError::Parquet(external(lost())))),
            EngineError::delta(DeltaTableError::KernelError(KernelError::Arrow(ArrowError::ExternalError(Box::new(
                KernelError::ObjectStore(lost()),
            ))))),
            EngineError::delta(DeltaTableError::KernelError(io::Error::from(io::ErrorKind::TimedOut).into())),
            EngineError::delta(TransactionError::ObjectStore { source: lost() }.into()),
            EngineError::delta(DeltaTableError::Parquet {
                source: ParquetError::External(Box::new(io::Error::other(lost()))),
            }),
            EngineError::delta(DeltaTableError::Io { source: io::Error::from(io::ErrorKind::PermissionDenied) }),
            // A store that tries an upload again may be told that it is not known any more.
            EngineError::unwritten(DeltaTableError::Parquet { source: external(absent()) }),
            EngineError::unwritten(absent()),
            EngineError::Lake(LakeStoreError::Root { root: String::new(), reason: String::new() }),
            EngineError::Metastore(MetastoreError { action: "x".into(), source: "y".into() }),
            EngineError::LeaseLost(LeaseLost),
        ];
        for error in passing {
            assert!(!is_permanent(&error), "{error:?}");
        }
    }

    #[test]
    fn what_comes_again_and_again_may_be_due_to_rows_and_an_outage_is_not() {
        let io = |kind| MetastoreError { action: "x".into(), source: Box::new(sqlx::Error::Io(io::Error::from(kind))) };
        let outages = [
            EngineError::Store(lost()),
            EngineError::Metastore(io(io::ErrorKind::ConnectionReset)),
            EngineError::Metastore(MetastoreError { action: "x".into(), source: Box::new(sqlx::Error::PoolTimedOut) }),
            EngineError::unwritten(lost()),
        ];
        for error in outages {
            assert!(!may_be_due_to_rows(&error), "{error:?}");
        }
        let due = [
            EngineError::Panicked("index out of bounds".into()),
            EngineError::Arrow(ArrowError::ComputeError("overflow".into())),
            EngineError::corrupt("a column holds Utf8, which is no Int64"),
        ];
        for error in due {
            assert!(may_be_due_to_rows(&error), "{error:?}");
        }
    }

    #[test]
    fn what_was_done_to_the_table_lasts() {
        let json = || serde_json::from_str::<u8>("{").map(drop).err();
        let lasting = [
            Some(EngineError::corrupt("a column has a type that the lake does not write")),
            Some(EngineError::Store(absent())),
            Some(EngineError::File(external(absent()))),
            Some(EngineError::File(ParquetError::General("Invalid Parquet file. Corrupt footer".into()))),
            Some(EngineError::File(ParquetError::External(Box::new(io::Error::other("Data corruption detected"))))),
            Some(EngineError::delta(DeltaTableError::KernelError(absent().into()))),
            Some(EngineError::delta(DeltaTableError::KernelError(KernelError::Unsupported("feature x".into())))),
            Some(EngineError::delta(DeltaTableError::KernelError(KernelError::MissingProtocol))),
            json().map(|error| EngineError::delta(DeltaTableError::KernelError(error.into()))),
            json().map(EngineError::Json),
            Some(EngineError::delta(TransactionError::UnsupportedTableFeatures(Vec::new()).into())),
            Some(EngineError::delta(TransactionError::DeltaTableAppendOnly.into())),
        ];
        for error in lasting.into_iter().flatten() {
            assert!(is_permanent(&error), "{error:?}");
        }
    }
}

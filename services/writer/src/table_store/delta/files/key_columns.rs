//! The columns by which the engine knows a row: its id, its version, when it was observed.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;

use crate::key_index::{IdHash, id_hash};
use crate::order_guard::{RowOrder, comparable_instant};
use crate::table_store::conversion::{ColumnType, converted};
use crate::table_store::schema_plan::{ID_SOURCE, OBSERVED_SOURCE, TableSchema, VERSION_SOURCE};

/// Names of the columns of id, version and observation.
pub(crate) fn key_names(schema: &TableSchema) -> [String; 3] {
    [ID_SOURCE, VERSION_SOURCE, OBSERVED_SOURCE]
        .map(|source| schema.column(source).map(|column| column.name.clone()).unwrap_or_default())
}

/// The columns that the engine itself reads.
pub(crate) struct KeyColumns {
    ids: ArrayRef,
    versions: Option<ArrayRef>,
    observed: ArrayRef,
}

impl KeyColumns {
    /// Finds the columns under these names. The error names the one that is missing or has the wrong type.
    pub(crate) fn of(batch: &RecordBatch, id: &str, version: &str, observed: &str) -> Result<Self, String> {
        let versions = typed_column(batch, version, ColumnType::Long)?;
        Ok(Self { versions: Some(versions), ..Self::without_version(batch, id, observed)? })
    }

    /// The same where the versions do not matter.
    pub(crate) fn without_version(batch: &RecordBatch, id: &str, observed: &str) -> Result<Self, String> {
        let ids = typed_column(batch, id, ColumnType::String)?;
        Ok(Self { ids, versions: None, observed: typed_column(batch, observed, ColumnType::Timestamp)? })
    }

    /// Id of a row; `None` where it is NULL.
    pub(crate) fn id(&self, row: usize) -> Option<&str> {
        let ids = self.ids.as_string::<i32>();
        ids.is_valid(row).then(|| ids.value(row))
    }

    /// What the index knows a row by; `None` for one without an id, which another program wrote.
    pub(crate) fn id_hash(&self, row: usize) -> Option<IdHash> {
        self.id(row).filter(|id| !id.is_empty()).map(id_hash)
    }

    /// Order of a row. NULL is older than anything.
    pub(crate) fn order(&self, row: usize) -> RowOrder {
        let observed = self.observed.as_primitive::<TimestampMicrosecondType>();
        let observed = observed.is_valid(row).then(|| observed.value(row));
        let versions = self.versions.as_ref().map(|versions| versions.as_primitive::<Int64Type>());
        let version = versions.filter(|versions| versions.is_valid(row)).map(|versions| versions.value(row));
        RowOrder { observed_us: comparable_instant(observed), version_us: version.unwrap_or(i64::MIN) }
    }
}

fn typed_column(batch: &RecordBatch, name: &str, column_type: ColumnType) -> Result<ArrayRef, String> {
    let array = batch.column_by_name(name).ok_or_else(|| format!("field {name} is missing"))?;
    converted(array, column_type).ok_or_else(|| format!("field {name} is not of type {column_type:?}"))
}

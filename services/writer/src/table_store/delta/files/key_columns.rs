//! The columns by which the engine knows a row: its id, its version, when it was observed.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;

use crate::key_index::{IdHash, id_hash};
use crate::order_guard::{RowOrder, comparable_version};
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
    versions: ArrayRef,
    observed: Option<ArrayRef>,
}

impl KeyColumns {
    /// Finds the columns under these names. The error names the one that is missing or has the wrong type.
    pub(crate) fn of(batch: &RecordBatch, id: &str, version: &str, observed: &str) -> Result<Self, String> {
        let observed = typed_column(batch, observed, ColumnType::Timestamp)?;
        Ok(Self { observed: Some(observed), ..Self::without_observation(batch, id, version)? })
    }

    /// The same where the instants of observation do not matter.
    pub(crate) fn without_observation(batch: &RecordBatch, id: &str, version: &str) -> Result<Self, String> {
        let ids = typed_column(batch, id, ColumnType::String)?;
        Ok(Self { ids, versions: typed_column(batch, version, ColumnType::Long)?, observed: None })
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
        let versions = self.versions.as_primitive::<Int64Type>();
        let observed = self.observed.as_ref().map(|observed| observed.as_primitive::<TimestampMicrosecondType>());
        let observed = observed.filter(|observed| observed.is_valid(row)).map(|observed| observed.value(row));
        let version = versions.is_valid(row).then(|| versions.value(row));
        RowOrder { version_us: comparable_version(version), observed_us: observed.unwrap_or(i64::MIN) }
    }
}

fn typed_column(batch: &RecordBatch, name: &str, column_type: ColumnType) -> Result<ArrayRef, String> {
    let array = batch.column_by_name(name).ok_or_else(|| format!("field {name} is missing"))?;
    converted(array, column_type).ok_or_else(|| format!("field {name} is not of type {column_type:?}"))
}

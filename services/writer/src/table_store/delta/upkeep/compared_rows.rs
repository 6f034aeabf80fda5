//! Rows as they are compared with HQ: what readers see of each, out of the few columns that change with every save.
//!
//! The tables are first brought in step with their logs, as other programs may have changed them. Then their files are read beside batches, one
//! after the other, of each a few thousand rows at a time; batches of the space wait for the list of files only.

use std::sync::Arc;

use arrow::array::{Array, AsArray, PrimitiveArray};
use arrow::datatypes::TimestampMicrosecondType;
use arrow::record_batch::RecordBatch;
use futures::TryStreamExt;
use lake_shared::comparison::{BucketSums, ComparedDocument, time_columns};
use lake_shared::identity::{DocumentType, Kind, Space, TableKey};
use object_store::ObjectStore;

use crate::table_store::compared_rows::{ComparedScope, RowState, WantedRows};
use crate::table_store::conversion::{ColumnType, converted};
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::data_file::{self, DataFile};
use crate::table_store::delta::space::cell::Spaces;
use crate::table_store::delta::space::loader::SpaceLoader;
use crate::table_store::delta::upkeep::external_changes::ExternalChanges;
use crate::table_store::schema_plan::{ID_SOURCE, TableSchema};

/// Reads rows that are compared.
pub(crate) struct RowComparer {
    loader: Arc<SpaceLoader>,
    external_changes: Arc<ExternalChanges>,
}

/// A table as it was when the comparison began.
struct ComparedTable {
    document_type: DocumentType,
    store: Arc<dyn ObjectStore>,
    files: Vec<DataFile>,
    columns: ComparedColumns,
}

/// Names of the columns that are read; `None`: the table has no such column.
struct ComparedColumns {
    id: String,
    times: [Option<String>; 2],
}

impl ComparedColumns {
    fn of(schema: &TableSchema, kind: Kind) -> Option<Self> {
        let name = |source: &str| schema.column(source).map(|column| column.name.clone());
        let time = |column: Option<&str>| name(&format!("/{}", column?));
        Some(Self { id: name(ID_SOURCE)?, times: time_columns(kind).map(time) })
    }

    fn names(&self) -> Vec<&str> {
        std::iter::once(&self.id).chain(self.times.iter().flatten()).map(String::as_str).collect()
    }
}

impl RowComparer {
    pub(crate) const fn new(loader: Arc<SpaceLoader>, external_changes: Arc<ExternalChanges>) -> Self {
        Self { loader, external_changes }
    }

    /// Brings the tables of a space in step with what other programs did to them. The space is loaded where it is not in memory.
    pub(crate) async fn follow(&self, spaces: &Spaces, space: &Space) -> Result<(), EngineError> {
        self.loader.load_if_absent(spaces, space).await?;
        let cell = spaces.cell(space);
        let keys: Vec<TableKey> = {
            let guard = cell.state.lock().await;
            let tables = guard.as_ref().map(|state| state.tables()).unwrap_or_default();
            tables.iter().map(|table| table.key().clone()).collect()
        };
        for key in keys {
            self.external_changes.follow(&cell, &key).await?;
        }
        Ok(())
    }

    /// Sums of the rows of a scope.
    pub(crate) async fn sums(
        &self,
        spaces: &Spaces,
        scope: &ComparedScope,
        bucket_count: u32,
    ) -> Result<BucketSums, EngineError> {
        let mut sums = BucketSums::new(bucket_count);
        self.each(spaces, scope, |document, _| sums.add(document)).await?;
        Ok(sums)
    }

    /// The rows of a scope that are wanted.
    pub(crate) async fn states(
        &self,
        spaces: &Spaces,
        scope: &ComparedScope,
        wanted: WantedRows<'_>,
    ) -> Result<Vec<RowState>, EngineError> {
        let mut states = Vec::new();
        self.each(spaces, scope, |document, document_type| {
            if wanted.has(document.id) {
                states.push(RowState {
                    id: document.id.to_owned(),
                    document_type: document_type.clone(),
                    fingerprint: document.fingerprint(),
                    saved_us: document.times_us[0],
                });
            }
        })
        .await?;
        Ok(states)
    }

    /// Hands over every row of a scope that readers see and that has an id.
    async fn each(
        &self,
        spaces: &Spaces,
        scope: &ComparedScope,
        mut take: impl FnMut(&ComparedDocument<'_>, &DocumentType) + Send,
    ) -> Result<(), EngineError> {
        for table in self.tables(spaces, scope).await? {
            for file in &table.files {
                let mut batches = data_file::open(&table.store, file, Some(&table.columns.names())).await?;
                let mut first = 0;
                while let Some(batch) = batches.try_next().await.map_err(EngineError::read_file)? {
                    table.take_batch(file, &batch, first, scope, &mut take)?;
                    first += batch.num_rows();
                    // Summing up is work that keeps a thread busy.
                    tokio::task::yield_now().await;
                }
            }
        }
        Ok(())
    }

    /// The tables of a scope as they are now.
    async fn tables(&self, spaces: &Spaces, scope: &ComparedScope) -> Result<Vec<ComparedTable>, EngineError> {
        self.loader.load_if_absent(spaces, &scope.space).await?;
        let cell = spaces.cell(&scope.space);
        let guard = cell.state.lock().await;
        let Some(state) = guard.as_ref().filter(|state| !state.is_poisoned()) else {
            return Err(EngineError::NotLoaded(scope.space.clone()));
        };
        let mut compared = Vec::new();
        for (number, table) in state.numbered_tables() {
            let document_type = &table.key().document_type;
            if !scope.has_type(document_type) {
                continue;
            }
            // Its rows would look as if they were missing.
            state.check_usable(&[number])?;
            let Some(columns) = ComparedColumns::of(table.schema(), scope.space.kind) else { continue };
            let store = self.loader.access().unloaded(table.path())?.object_store();
            let files = table.files().cloned().collect();
            compared.push(ComparedTable { document_type: document_type.clone(), store, files, columns });
        }
        Ok(compared)
    }
}

impl ComparedTable {
    /// Hands over the rows of a batch, the first of which is this one of the file.
    fn take_batch(
        &self,
        file: &DataFile,
        batch: &RecordBatch,
        first: usize,
        scope: &ComparedScope,
        take: &mut impl FnMut(&ComparedDocument<'_>, &DocumentType),
    ) -> Result<(), EngineError> {
        let ids = batch.column_by_name(&self.columns.id).and_then(|ids| converted(ids, ColumnType::String));
        let ids = ids.ok_or_else(|| EngineError::corrupt(format!("file {} has no ids", file.path)))?;
        let times = self.columns.times.each_ref().map(|name| name.as_deref().and_then(|name| times(batch, name)));
        for (at, id) in ids.as_string::<i32>().iter().enumerate() {
            let is_deleted = |row: usize| {
                let row = u32::try_from(row).unwrap_or(u32::MAX);
                file.deleted_rows().is_some_and(|deleted| deleted.contains(row))
            };
            let Some(id) = id.filter(|id| !id.is_empty() && scope.has_id(id)) else { continue };
            if is_deleted(first + at) {
                continue;
            }
            let times_us = times.each_ref().map(|times| {
                let times = times.as_ref().filter(|times| times.is_valid(at))?;
                Some(times.value(at))
            });
            let document_type = self.document_type.as_str();
            take(&ComparedDocument { id, document_type, times_us }, &self.document_type);
        }
        Ok(())
    }
}

/// The instants of a column; `None` where it has none, or somebody has made something else of it.
fn times(batch: &RecordBatch, name: &str) -> Option<PrimitiveArray<TimestampMicrosecondType>> {
    let column = converted(batch.column_by_name(name)?, ColumnType::Timestamp)?;
    Some(column.as_primitive::<TimestampMicrosecondType>().clone())
}

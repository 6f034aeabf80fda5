//! Where single rows are: by the key index, and out of the one row that it points to.

use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use lake_shared::identity::Space;

use crate::key_index::id_hash;
use crate::table_store::LocatedRow;
use crate::table_store::conversion::{ColumnType, converted};
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::data_file;
use crate::table_store::delta::space::cell::Spaces;
use crate::table_store::delta::space::loader::SpaceLoader;
use crate::table_store::schema_plan::{
    COMMITTED_SOURCE, ID_SOURCE, INCOMPLETE_SOURCE, OBSERVED_SOURCE, TableSchema, VERSION_SOURCE,
};

const TOPIC_SOURCE: &str = "+_lake_topic";
const PARTITION_SOURCE: &str = "+_lake_partition";
const OFFSET_SOURCE: &str = "+_lake_offset";
const PUBLISHED_SOURCE: &str = "+_lake_published_at";
const FETCHED_SOURCE: &str = "+_lake_fetched_at";

/// What is read of a row: nothing that people have entered.
const SOURCES: [&str; 10] = [
    ID_SOURCE,
    VERSION_SOURCE,
    OBSERVED_SOURCE,
    COMMITTED_SOURCE,
    INCOMPLETE_SOURCE,
    TOPIC_SOURCE,
    PARTITION_SOURCE,
    OFFSET_SOURCE,
    PUBLISHED_SOURCE,
    FETCHED_SOURCE,
];

/// Finds rows.
pub(crate) struct RowLocator {
    loader: Arc<SpaceLoader>,
}

impl RowLocator {
    pub(crate) const fn new(loader: Arc<SpaceLoader>) -> Self {
        Self { loader }
    }

    /// When the rows of ids were observed, in the order of the ids. The space is loaded where it is not in memory.
    pub(crate) async fn observed(
        &self,
        spaces: &Spaces,
        space: &Space,
        ids: &[String],
    ) -> Result<Vec<Option<i64>>, EngineError> {
        self.loader.load_if_absent(spaces, space).await?;
        let cell = spaces.cell(space);
        let guard = cell.state.lock().await;
        let Some(state) = guard.as_ref() else { return Ok(vec![None; ids.len()]) };
        let hashes: Vec<_> = ids.iter().map(|id| id_hash(id)).collect();
        let found = state.find(hashes.clone()).await?;
        Ok(hashes.iter().map(|hash| found.get(hash).map(|row| row.order.observed_us)).collect())
    }

    /// The row of an id, of which the columns are read that the lake has added. Batches of its space wait only for the look into the index.
    pub(crate) async fn locate(
        &self,
        spaces: &Spaces,
        space: &Space,
        id: &str,
    ) -> Result<Option<LocatedRow>, EngineError> {
        self.loader.load_if_absent(spaces, space).await?;
        let cell = spaces.cell(space);
        let (mut located, file, schema, path) = {
            let guard = cell.state.lock().await;
            let Some(state) = guard.as_ref() else { return Ok(None) };
            let hash = id_hash(id);
            let found = state.find(vec![hash]).await?;
            let Some(row) = found.get(&hash) else { return Ok(None) };
            let table = state.table(row.table);
            let Some(file) = table.file(row.position.file) else { return Ok(None) };
            let located = LocatedRow {
                table: table.key().clone(),
                table_name: table.name().to_owned(),
                version: table.version(),
                file: file.path.clone(),
                row: row.position.row.get(),
                observed_us: row.order.observed_us,
                version_us: None,
                topic: None,
                partition: None,
                offset: None,
                published_us: None,
                fetched_us: None,
                committed_us: None,
                incomplete: None,
            };
            (located, file.clone(), table.schema().clone(), table.path().to_owned())
        };
        let store = self.loader.access().unloaded(&path)?.object_store();
        let columns = Columns::of(&schema);
        let row = data_file::row(&store, &file, &columns.names(), located.row).await?;
        // Another id has the same hash.
        if columns.text(&row, ID_SOURCE).is_some_and(|found| found != id) {
            return Ok(None);
        }
        columns.describe(&row, &mut located);
        Ok(Some(located))
    }
}

/// The columns that say which change made a row what it is.
struct Columns<'a>(&'a TableSchema);

impl<'a> Columns<'a> {
    const fn of(schema: &'a TableSchema) -> Self {
        Self(schema)
    }

    fn names(&self) -> Vec<&'a str> {
        SOURCES.iter().filter_map(|source| Some(self.0.column(source)?.name.as_str())).collect()
    }

    fn describe(&self, row: &RecordBatch, located: &mut LocatedRow) {
        located.observed_us = self.instant(row, OBSERVED_SOURCE).unwrap_or(located.observed_us);
        located.version_us = self.number(row, VERSION_SOURCE);
        located.topic = self.text(row, TOPIC_SOURCE);
        located.partition = self.number(row, PARTITION_SOURCE);
        located.offset = self.number(row, OFFSET_SOURCE);
        located.published_us = self.instant(row, PUBLISHED_SOURCE);
        located.fetched_us = self.instant(row, FETCHED_SOURCE);
        located.committed_us = self.instant(row, COMMITTED_SOURCE);
        located.incomplete = self.text(row, INCOMPLETE_SOURCE);
    }

    /// A cell, unless it is NULL or the table has no such column.
    fn cell(&self, row: &RecordBatch, source: &str, column_type: ColumnType) -> Option<arrow::array::ArrayRef> {
        let column = row.column_by_name(&self.0.column(source)?.name)?;
        converted(column, column_type).filter(|column| column.is_valid(0))
    }

    fn text(&self, row: &RecordBatch, source: &str) -> Option<String> {
        self.cell(row, source, ColumnType::String).map(|column| column.as_string::<i32>().value(0).to_owned())
    }

    fn number(&self, row: &RecordBatch, source: &str) -> Option<i64> {
        self.cell(row, source, ColumnType::Long).map(|column| column.as_primitive::<Int64Type>().value(0))
    }

    fn instant(&self, row: &RecordBatch, source: &str) -> Option<i64> {
        let column = self.cell(row, source, ColumnType::Timestamp);
        column.map(|column| column.as_primitive::<TimestampMicrosecondType>().value(0))
    }
}

//! Documents of one table into one Arrow batch. Pure.
//!
//! A field's name is its source path. First come the columns that every batch of the kind has, in a fixed order, then those that this
//! batch has a value for, sorted by path. Every column is nullable. The work grows with cells plus rows times columns, and with nothing else.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{Field, Schema};
use arrow::error::ArrowError;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use chrono::NaiveDate;
use lake_proto::queue::v1::Lineage;
use lake_shared::identity::{DocumentType, Domain, Kind};
use serde_json::{Map, Value};

use self::column::{Column, ColumnType, Put};
use crate::fields::{self, FieldType};
use crate::flatten::{CaseJson, Cell, Flattening};
use crate::location_columns::{self, DomainLocations, SUPERVISOR_ID, TypeColumns};
use crate::timestamp::EPOCH;

mod column;
pub mod message;

/// A batch is closed when its texts reach this many bytes, well below what Arrow's 32 bit offsets hold.
const TEXT_SIZE_MAX: usize = 64 << 20;

/// One table, and what is needed to make its rows.
#[derive(Clone, Debug)]
pub struct Table {
    /// Project space of its rows.
    pub domain: Domain,
    /// Kind of its documents.
    pub kind: Kind,
    /// Type of its rows.
    pub document_type: DocumentType,
    /// Locations of the domain.
    pub locations: Arc<DomainLocations>,
    /// What to show of the nested copy of a case's properties.
    pub case_json: CaseJson,
}

/// What becomes one row.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Id of the document; it counts, whatever the document itself says.
    pub id: &'a str,
    /// The document's version, in microseconds since 1970: of two rows with one id the greater one wins.
    pub version_us: i64,
    /// When it was read, in microseconds of the database's clock.
    pub observed_us: i64,
    /// The change message that the row comes from.
    pub lineage: Option<&'a Lineage>,
    /// First day of the month that the row is clustered by.
    pub month: Option<NaiveDate>,
    /// Location of its user; of a location row itself.
    pub location_id: Option<&'a str>,
    /// Reason of the quarantine why the document lacks a part of what HQ has; `None` where it is whole. Such rows have batches of their own.
    pub incomplete: Option<&'a str>,
    /// The document after the transforms.
    pub document: &'a Map<String, Value>,
}

/// Index of a column among those of the batch under construction.
type ColumnIndex = usize;

/// The columns that say which row it is; every batch begins with them.
struct IdentityColumns {
    id: ColumnIndex,
    domain: ColumnIndex,
    document_type: ColumnIndex,
    month: ColumnIndex,
    supervisor_id: ColumnIndex,
}

impl IdentityColumns {
    /// Adds the columns, in the order of the fields.
    fn add(columns: &mut BatchColumns) -> Self {
        let id = columns.add("/_id", ColumnType::Text);
        let domain = columns.add("/domain", ColumnType::Text);
        let document_type = columns.add("+type", ColumnType::Text);
        // Filled from the document.
        columns.add("/doc_type", ColumnType::Text);
        let month = columns.add("+month", ColumnType::Date);
        let supervisor_id = columns.add(SUPERVISOR_ID, ColumnType::Text);
        Self { id, domain, document_type, month, supervisor_id }
    }
}

/// The columns of one location type.
struct LocationTypeColumns {
    /// Id of the ancestor of that type.
    id: ColumnIndex,
    /// What else a location row shows of the ancestor; `None` in rows of cases and forms.
    details: Option<AncestorColumns>,
}

/// What a location row shows of each of its ancestors.
struct AncestorColumns {
    name: ColumnIndex,
    site_code: ColumnIndex,
    latitude: ColumnIndex,
    longitude: ColumnIndex,
    is_archived: ColumnIndex,
}

impl AncestorColumns {
    /// Adds the columns, in the order of the fields.
    fn add(columns: &mut BatchColumns, paths: &TypeColumns) -> Self {
        Self {
            name: columns.add(&paths.name, ColumnType::Text),
            site_code: columns.add(&paths.site_code, ColumnType::Text),
            latitude: columns.add(&paths.latitude, ColumnType::Double),
            longitude: columns.add(&paths.longitude, ColumnType::Double),
            is_archived: columns.add(&paths.is_archived, ColumnType::Boolean),
        }
    }
}

/// The columns that say which change made the row what it is.
struct LineageColumns {
    version: ColumnIndex,
    observed_at: ColumnIndex,
    topic: ColumnIndex,
    partition: ColumnIndex,
    offset: ColumnIndex,
    published_at: ColumnIndex,
    fetched_at: ColumnIndex,
    incomplete: ColumnIndex,
}

impl LineageColumns {
    /// Adds the columns, in the order of the fields.
    fn add(columns: &mut BatchColumns) -> Self {
        Self {
            version: columns.add("+_lake_version", ColumnType::Long),
            observed_at: columns.add("+_lake_observed_at", ColumnType::Timestamp),
            topic: columns.add("+_lake_topic", ColumnType::Text),
            partition: columns.add("+_lake_partition", ColumnType::Int),
            offset: columns.add("+_lake_offset", ColumnType::Long),
            published_at: columns.add("+_lake_published_at", ColumnType::Timestamp),
            fetched_at: columns.add("+_lake_fetched_at", ColumnType::Timestamp),
            incomplete: columns.add("+_lake_incomplete", ColumnType::Text),
        }
    }
}

/// All columns of a batch under construction.
#[derive(Default)]
struct BatchColumns {
    columns: Vec<(Box<str>, Column)>,
    /// BatchColumns of the document by path; those that the lake adds are found by index.
    by_path: HashMap<Box<str>, ColumnIndex>,
    /// Rows that are complete.
    rows: usize,
    /// Bytes of all texts.
    text_size: usize,
}

impl BatchColumns {
    fn add(&mut self, path: &str, column_type: ColumnType) -> ColumnIndex {
        let index = self.columns.len();
        if path.starts_with('/') {
            self.by_path.insert(path.into(), index);
        }
        self.columns.push((path.into(), Column::new(column_type)));
        index
    }

    /// Puts a cell into the row that is being added.
    fn put(&mut self, index: ColumnIndex, cell: Put<'_>) {
        if let Put::Text(text) = cell {
            self.text_size += text.len();
        }
        self.columns[index].1.put(self.rows, cell);
    }

    fn put_cell(&mut self, path: &str, cell: &Cell<'_>) {
        let index = match self.by_path.get(path) {
            Some(index) => *index,
            None => self.add(path, ColumnType::Text),
        };
        let put = match cell {
            Cell::Text(text) => Put::Text(text),
            Cell::Timestamp(micros) => Put::Long(*micros),
            Cell::Integer(number) => Put::Long(*number),
            Cell::Boolean(truth) => Put::Boolean(*truth),
            Cell::Double(number) => Put::Double(*number),
        };
        self.put(index, put);
    }
}

/// A batch under construction.
pub struct RowsBuilder<'t> {
    table: &'t Table,
    columns: BatchColumns,
    identity: IdentityColumns,
    /// In the order of the location types.
    location_types: Vec<LocationTypeColumns>,
    lineage: LineageColumns,
    /// Number of columns that every batch of the table has.
    fixed_count: usize,
    /// Whether a row is incomplete.
    incomplete: bool,
}

impl<'t> RowsBuilder<'t> {
    /// A batch without rows, with the columns that every batch of the table has.
    pub fn new(table: &'t Table) -> Self {
        let mut columns = BatchColumns::default();
        let identity = IdentityColumns::add(&mut columns);
        // The first three fixed fields of every kind are among the identity's columns.
        for field in fields::fixed(table.kind).iter().skip(3) {
            columns.add(field.path, column_type(field.field_type));
        }
        let location_types = table.locations.type_columns().iter().map(|paths| {
            let id = if &*paths.id == SUPERVISOR_ID {
                identity.supervisor_id
            } else {
                columns.add(&paths.id, ColumnType::Text)
            };
            let details = match table.kind {
                Kind::Location => Some(AncestorColumns::add(&mut columns, paths)),
                Kind::Case | Kind::Form => None,
            };
            LocationTypeColumns { id, details }
        });
        let location_types = location_types.collect();
        let lineage = LineageColumns::add(&mut columns);
        let fixed_count = columns.columns.len();
        Self { table, columns, identity, location_types, lineage, fixed_count, incomplete: false }
    }

    /// Number of rows added so far.
    pub fn rows(&self) -> usize {
        self.columns.rows
    }

    /// Whether the batch should be finished before the next row: enough columns or enough text.
    pub fn is_full(&self, columns_max: usize) -> bool {
        self.columns.columns.len() - self.fixed_count >= columns_max || self.columns.text_size >= TEXT_SIZE_MAX
    }

    /// Adds a row. Cells of the document that have no column yet add one.
    pub fn push(&mut self, row: &Row<'_>) {
        let (table, columns) = (self.table, &mut self.columns);
        columns.put(self.identity.id, Put::Text(row.id));
        columns.put(self.identity.domain, Put::Text(table.domain.as_str()));
        columns.put(self.identity.document_type, Put::Text(table.document_type.as_str()));
        if let Some(month) = row.month {
            let days = month.signed_duration_since(EPOCH).num_days();
            columns.put(self.identity.month, Put::Int(i32::try_from(days).unwrap_or(i32::MAX)));
        }
        self.put_locations(row.location_id);
        self.put_lineage(row);
        self.incomplete |= row.incomplete.is_some();
        let flattening =
            Flattening { kind: table.kind, lake_columns: table.locations.column_names(), case_json: table.case_json };
        // `_id` and `domain` stand already: the second cell of a row is not taken.
        flattening.cells(row.document, |path, cell| self.columns.put_cell(path, &cell));
        self.columns.rows += 1;
    }

    fn put_locations(&mut self, location_id: Option<&str>) {
        let columns = &mut self.columns;
        let ancestors = self.table.locations.ancestors_by_type(location_id);
        for (type_columns, ancestor) in self.location_types.iter().zip(ancestors) {
            let Some(ancestor) = ancestor else { continue };
            columns.put(type_columns.id, Put::Text(ancestor.location_id));
            let Some(details) = &type_columns.details else { continue };
            if let Some(name) = ancestor.name {
                columns.put(details.name, Put::Text(name));
            }
            columns.put(details.site_code, Put::Text(ancestor.site_code));
            for (index, degrees) in [(details.latitude, ancestor.latitude), (details.longitude, ancestor.longitude)] {
                if let Some(degrees) = location_columns::coordinate(degrees) {
                    columns.put(index, Put::Double(degrees));
                }
            }
            columns.put(details.is_archived, Put::Boolean(ancestor.is_archived));
        }
    }

    fn put_lineage(&mut self, row: &Row<'_>) {
        let (to, columns) = (&self.lineage, &mut self.columns);
        columns.put(to.version, Put::Long(row.version_us));
        columns.put(to.observed_at, Put::Long(row.observed_us));
        if let Some(reason) = row.incomplete {
            columns.put(to.incomplete, Put::Text(reason));
        }
        let Some(lineage) = row.lineage else { return };
        // What the lake itself asked for has no position.
        if !lineage.topic.is_empty() {
            columns.put(to.topic, Put::Text(&lineage.topic));
            columns.put(to.partition, Put::Int(lineage.partition));
            columns.put(to.offset, Put::Long(lineage.offset));
        }
        if lineage.published_us != 0 {
            columns.put(to.published_at, Put::Long(lineage.published_us));
        }
        columns.put(to.fetched_at, Put::Long(lineage.fetched_us));
    }

    /// The batch with all its rows.
    ///
    /// # Errors
    /// Where Arrow refuses the columns, which is a bug.
    pub fn finish(self) -> Result<RecordBatch, ArrowError> {
        let BatchColumns { mut columns, rows, .. } = self.columns;
        columns[self.fixed_count..].sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let mut fields = Vec::with_capacity(columns.len());
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(columns.len());
        for (path, column) in columns {
            if self.incomplete && column.is_without_cells() && is_list(self.table.kind, &path) {
                continue;
            }
            fields.push(Field::new(String::from(path), column.column_type().data_type(), true));
            arrays.push(column.finish(rows)?);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options)
    }
}

/// Whether this is a column for one of HQ's lists of related records. HQ has an empty list rather than none: where no row has one, the lists
/// were not read, and those of the rows before stay, as the writer takes a column that is there for what HQ has now.
fn is_list(kind: Kind, path: &str) -> bool {
    fields::fixed(kind).iter().any(|field| field.path == path && field.field_type == FieldType::JsonText)
}

const fn column_type(field_type: FieldType) -> ColumnType {
    match field_type {
        FieldType::Text | FieldType::JsonText => ColumnType::Text,
        FieldType::Timestamp => ColumnType::Timestamp,
        FieldType::Boolean => ColumnType::Boolean,
        FieldType::Integer => ColumnType::Long,
        FieldType::Double => ColumnType::Double,
    }
}

#[cfg(test)]
mod tests;

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
use crate::place::{self, DomainPlaces, SUPERVISOR_ID};
use crate::timestamp::EPOCH;

mod column;
pub mod message;

/// A batch is closed when its texts reach this many bytes, well below what Arrow's 32 bit offsets hold.
const TEXT_SIZE_MAX: usize = 64 << 20;

/// One table, and what is needed to make its rows.
#[derive(Clone, Debug)]
pub struct Table {
    /// Project space.
    pub domain: Domain,
    /// What its rows are.
    pub kind: Kind,
    /// Type of its rows.
    pub document_type: DocumentType,
    /// Locations of the domain.
    pub places: Arc<DomainPlaces>,
    /// What to show of the nested copy of a case's properties.
    pub case_json: CaseJson,
}

/// What becomes one row.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Identity; stands above what the document says.
    pub id: &'a str,
    /// Version, in microseconds.
    pub version_us: i64,
    /// When it was read, in microseconds of the database's clock.
    pub observed_us: i64,
    /// Where it came from.
    pub lineage: Option<&'a Lineage>,
    /// First of the month.
    pub month: Option<NaiveDate>,
    /// Location of its user; of a location row itself.
    pub location_id: Option<&'a str>,
    /// The document after the transforms.
    pub document: &'a Map<String, Value>,
}

/// Places of the columns that every batch begins with.
mod first {
    pub(super) const ID: usize = 0;
    pub(super) const DOMAIN: usize = 1;
    pub(super) const TYPE: usize = 2;
    pub(super) const MONTH: usize = 4;
    pub(super) const SUPERVISOR_ID: usize = 5;
}

/// The lineage columns, in their order.
const LINEAGE: [(&str, ColumnType); 7] = [
    ("+_lake_version", ColumnType::Long),
    ("+_lake_observed_at", ColumnType::Timestamp),
    ("+_lake_topic", ColumnType::Text),
    ("+_lake_partition", ColumnType::Int),
    ("+_lake_offset", ColumnType::Long),
    ("+_lake_published_at", ColumnType::Timestamp),
    ("+_lake_fetched_at", ColumnType::Timestamp),
];

/// A batch under construction.
pub struct RowsBuilder<'t> {
    table: &'t Table,
    columns: Vec<(Box<str>, Column)>,
    /// Columns of the document by path; those that the lake adds are found by place.
    by_path: HashMap<Box<str>, usize>,
    /// First column of each location type, in the order of the types.
    type_places: Vec<usize>,
    lineage_place: usize,
    fixed_count: usize,
    rows: usize,
    text_size: usize,
}

impl<'t> RowsBuilder<'t> {
    /// An empty batch.
    pub fn new(table: &'t Table) -> Self {
        let mut builder = Self {
            table,
            columns: Vec::new(),
            by_path: HashMap::new(),
            type_places: Vec::new(),
            lineage_place: 0,
            fixed_count: 0,
            rows: 0,
            text_size: 0,
        };
        builder.add_fixed_columns();
        builder
    }

    fn add_fixed_columns(&mut self) {
        let kind = self.table.kind;
        self.add("/_id", ColumnType::Text);
        self.add("/domain", ColumnType::Text);
        self.add("+type", ColumnType::Text);
        self.add("/doc_type", ColumnType::Text);
        self.add("+month", ColumnType::Date);
        self.add(SUPERVISOR_ID, ColumnType::Text);
        for field in fields::fixed(kind).iter().skip(3) {
            self.add(field.path, column_type(field.field_type));
        }
        let places = Arc::clone(&self.table.places);
        for columns in places.type_columns() {
            let place = if &*columns.id == SUPERVISOR_ID {
                first::SUPERVISOR_ID
            } else {
                self.add(&columns.id, ColumnType::Text)
            };
            self.type_places.push(place);
            if kind == Kind::Location {
                let details = self.add(&columns.name, ColumnType::Text);
                self.add(&columns.site_code, ColumnType::Text);
                self.add(&columns.latitude, ColumnType::Double);
                self.add(&columns.longitude, ColumnType::Double);
                self.add(&columns.is_archived, ColumnType::Boolean);
                self.type_places.push(details);
            }
        }
        self.lineage_place = self.columns.len();
        for (path, column_type) in LINEAGE {
            self.add(path, column_type);
        }
        self.fixed_count = self.columns.len();
    }

    fn add(&mut self, path: &str, column_type: ColumnType) -> usize {
        let place = self.columns.len();
        if path.starts_with('/') {
            self.by_path.insert(path.into(), place);
        }
        self.columns.push((path.into(), Column::new(column_type)));
        place
    }

    /// Rows so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Whether the batch should be finished before the next row: enough columns or enough text.
    pub fn is_full(&self, columns_max: usize) -> bool {
        self.columns.len() - self.fixed_count >= columns_max || self.text_size >= TEXT_SIZE_MAX
    }

    /// Adds a row.
    pub fn push(&mut self, row: &Row<'_>) {
        let table = self.table;
        self.put(first::ID, Put::Text(row.id));
        self.put(first::DOMAIN, Put::Text(table.domain.as_str()));
        self.put(first::TYPE, Put::Text(table.document_type.as_str()));
        if let Some(month) = row.month {
            let days = month.signed_duration_since(EPOCH).num_days();
            self.put(first::MONTH, Put::Int(i32::try_from(days).unwrap_or(i32::MAX)));
        }
        self.put_places(row.location_id);
        self.put_lineage(row);
        let flattening =
            Flattening { kind: table.kind, lake_columns: table.places.column_names(), case_json: table.case_json };
        // `_id` and `domain` stand already: the second cell of a row is not taken.
        flattening.cells(row.document, |path, cell| self.put_cell(path, &cell));
        self.rows += 1;
    }

    fn put(&mut self, place: usize, cell: Put<'_>) {
        if let Put::Text(text) = cell {
            self.text_size += text.len();
        }
        self.columns[place].1.put(self.rows, cell);
    }

    fn put_cell(&mut self, path: &str, cell: &Cell<'_>) {
        let place = match self.by_path.get(path) {
            Some(place) => *place,
            None => self.add(path, ColumnType::Text),
        };
        let put = match cell {
            Cell::Text(text) => Put::Text(text),
            Cell::Timestamp(micros) => Put::Long(*micros),
            Cell::Integer(number) => Put::Long(*number),
            Cell::Boolean(truth) => Put::Boolean(*truth),
            Cell::Double(number) => Put::Double(*number),
        };
        self.put(place, put);
    }

    fn put_places(&mut self, location_id: Option<&str>) {
        let table = self.table;
        let per_type = if table.kind == Kind::Location { 2 } else { 1 };
        for (number, ancestor) in table.places.ancestors_by_type(location_id).into_iter().enumerate() {
            let Some(ancestor) = ancestor else { continue };
            self.put(self.type_places[number * per_type], Put::Text(ancestor.location_id));
            if table.kind != Kind::Location {
                continue;
            }
            let details = self.type_places[number * per_type + 1];
            if let Some(name) = ancestor.name {
                self.put(details, Put::Text(name));
            }
            self.put(details + 1, Put::Text(ancestor.site_code));
            for (place, degrees) in [(details + 2, ancestor.latitude), (details + 3, ancestor.longitude)] {
                if let Some(degrees) = place::coordinate(degrees) {
                    self.put(place, Put::Double(degrees));
                }
            }
            self.put(details + 4, Put::Boolean(ancestor.is_archived));
        }
    }

    fn put_lineage(&mut self, row: &Row<'_>) {
        let place = self.lineage_place;
        self.put(place, Put::Long(row.version_us));
        self.put(place + 1, Put::Long(row.observed_us));
        let Some(lineage) = row.lineage else { return };
        self.put(place + 2, Put::Text(&lineage.topic));
        self.put(place + 3, Put::Int(lineage.partition));
        self.put(place + 4, Put::Long(lineage.offset));
        self.put(place + 5, Put::Long(lineage.published_us));
        self.put(place + 6, Put::Long(lineage.fetched_us));
    }

    /// The batch.
    pub fn finish(mut self) -> Result<RecordBatch, ArrowError> {
        self.columns[self.fixed_count..].sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let mut fields = Vec::with_capacity(self.columns.len());
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(self.columns.len());
        for (path, column) in self.columns {
            fields.push(Field::new(String::from(path), column.column_type().data_type(), true));
            arrays.push(column.finish(self.rows)?);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows));
        RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options)
    }
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

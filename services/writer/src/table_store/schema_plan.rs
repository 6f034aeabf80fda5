//! What a table looks like, and what it must look like after a batch. Pure: decided before delta-rs sees anything.
//!
//! A column belongs to one source path for good. New fields become columns in the order in which they arrive; a column whose
//! type cannot take a batch without loss becomes text; fields beyond the limit go into the column of [`OVERFLOW_SOURCE`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;
use serde_json::{Value, json};

use super::column_name;
use super::conversion::{ColumnType, converted};
use super::foreign_type::ForeignType;

/// Most columns of a table, unless configured otherwise.
pub const COLUMNS_MAX: usize = 2_000;

/// Key in a Delta field's metadata that holds the source path.
pub const SOURCE_KEY: &str = "lake.source";

/// Source path of the column that holds, as one JSON object of source path to text, what found no column of its own.
pub const OVERFLOW_SOURCE: &str = "+_lake_overflow";

/// Source path of the key.
pub const ID_SOURCE: &str = "/_id";
/// Source path of the version.
pub const VERSION_SOURCE: &str = "+_lake_version";
/// Source path of the time of observation.
pub const OBSERVED_SOURCE: &str = "+_lake_observed_at";
/// Source path of the time of the commit, added by the writer.
pub const COMMITTED_SOURCE: &str = "+_lake_committed_at";

/// Source path of the column that says why a row does not show all that HQ has now; NULL in rows that do. What such a row does not bring stays
/// as it was.
pub const INCOMPLETE_SOURCE: &str = "+_lake_incomplete";

/// Begins the source paths of the lake's own columns about the record, which are new with each row.
pub const LAKE_PREFIX: &str = "+_lake_";

/// Columns that stand first in a new table, in this order.
const FIRST: [&str; 6] = [ID_SOURCE, "/domain", "+type", "/doc_type", "+month", "+supervisor_id"];

/// Columns with statistics in the log. Few, as they are held in memory for every file.
const FILTERED: [&str; 6] =
    [ID_SOURCE, "+month", "+supervisor_id", "/server_modified_on", "/received_on", "/last_modified"];

/// Source paths of the columns by which rows are sorted within files and files are kept apart.
pub fn clustering() -> impl Iterator<Item = &'static str> {
    ["+month", "+supervisor_id", ID_SOURCE].into_iter()
}

/// The types that may never change, as the engine itself reads these columns.
const FIXED: [(&str, ColumnType); 4] = [
    (ID_SOURCE, ColumnType::String),
    (VERSION_SOURCE, ColumnType::Long),
    (OBSERVED_SOURCE, ColumnType::Timestamp),
    (COMMITTED_SOURCE, ColumnType::Timestamp),
];

/// One column of a table. All are nullable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Name that readers see.
    pub name: String,
    /// Where its values come from.
    pub source: String,
    /// What it holds; text where that is foreign.
    pub column_type: ColumnType,
    /// What it holds where somebody else added it and the lake does not write such.
    pub foreign: Option<Arc<ForeignType>>,
}

impl Column {
    /// A column of the lake.
    pub fn new(name: String, source: String, column_type: ColumnType) -> Self {
        Self { name, source, column_type, foreign: None }
    }

    /// The arrow type in data files.
    pub fn arrow(&self) -> DataType {
        self.foreign.as_ref().map_or_else(|| self.column_type.arrow(), |foreign| foreign.arrow().clone())
    }

    /// An array in exactly this type, with every value kept; `None` where that cannot be.
    pub fn fitted(&self, array: &ArrayRef) -> Option<ArrayRef> {
        self.foreign.as_ref().map_or_else(|| converted(array, self.column_type), |foreign| foreign.kept(array))
    }

    /// Whether it can partition a table: text and dates are written as partition values by every engine in the same way, other types are not.
    pub fn can_partition(&self) -> bool {
        self.foreign.is_none() && matches!(self.column_type, ColumnType::String | ColumnType::Date)
    }
}

/// The columns of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableSchema {
    /// In the order of the Delta schema.
    pub columns: Vec<Column>,
}

impl TableSchema {
    /// Position of the column of a source path.
    pub fn position(&self, source: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.source == source)
    }

    /// The column of a source path.
    pub fn column(&self, source: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.source == source)
    }

    /// Names of the columns that get statistics.
    pub fn filtered(&self) -> Vec<String> {
        FILTERED.iter().filter_map(|source| self.column(source)).map(|column| column.name.clone()).collect()
    }

    /// The schema as the Delta protocol writes it.
    pub fn to_delta(&self) -> Value {
        let fields: Vec<Value> = self
            .columns
            .iter()
            .map(|column| {
                let data_type = column
                    .foreign
                    .as_ref()
                    .map_or_else(|| Value::from(column.column_type.delta_name()), |foreign| foreign.delta().clone());
                let metadata =
                    if is_foreign(&column.source) { json!({}) } else { json!({ SOURCE_KEY: column.source }) };
                json!({ "name": column.name, "type": data_type, "nullable": true, "metadata": metadata })
            })
            .collect();
        json!({ "type": "struct", "fields": fields })
    }

    /// The inverse of [`TableSchema::to_delta`]. The error names the column that the lake cannot have written.
    pub fn of_delta(schema: &Value) -> Result<Self, String> {
        let fields = schema["fields"].as_array().ok_or("the schema has no fields")?;
        let mut sources = HashSet::new();
        let columns = fields.iter().map(|field| {
            let name = field["name"].as_str().ok_or("a column has no name")?.to_owned();
            // A column that somebody else added has no source, or that of the column that it was copied from; nothing will ever arrive
            // for it.
            let source = field["metadata"][SOURCE_KEY].as_str();
            let source = source.filter(|source| !is_foreign(source) && sources.insert((*source).to_owned()));
            let column_type = field["type"].as_str().and_then(ColumnType::of_delta_name);
            let strange = || format!("column {name} has a type that the lake does not write");
            match (source, column_type) {
                (Some(source), Some(column_type)) => Ok(Column::new(name, source.to_owned(), column_type)),
                (Some(_), None) => Err(strange()),
                (None, Some(column_type)) => Ok(Column::new(name.clone(), foreign_source(&name), column_type)),
                (None, None) => {
                    let foreign = ForeignType::of_delta(&field["type"]).ok_or_else(strange)?;
                    let source = foreign_source(&name);
                    Ok(Column { foreign: Some(Arc::new(foreign)), ..Column::new(name, source, ColumnType::String) })
                }
            }
        });
        Ok(Self { columns: columns.collect::<Result<_, String>>()? })
    }
}

/// Begins the source paths of columns that somebody else added; those of fields begin otherwise.
const FOREIGN: &str = "foreign:";

fn foreign_source(name: &str) -> String {
    format!("{FOREIGN}{name}")
}

/// Whether a column was added by somebody else.
pub fn is_foreign(source: &str) -> bool {
    source.starts_with(FOREIGN)
}

/// A field of the arriving batches, over all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncomingField {
    /// Source path.
    pub source: String,
    /// The type it would get as a new column.
    pub column_type: ColumnType,
    /// Whether an existing column of another type takes all its values; not looked at where there is none.
    pub fits: bool,
}

/// What the table must look like for a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchemaPlan {
    /// All columns after the change.
    pub schema: TableSchema,
    /// Whether the schema differs from the one before.
    pub changed: bool,
    /// Whether a column of existing files changes its type, so that all files must be rewritten.
    pub rewrites: bool,
    /// Source paths whose values go into the overflow column.
    pub overflow: HashSet<String>,
}

/// Plans the schema. The error is for a batch that can never be stored.
pub fn plan(current: &TableSchema, arriving: &[IncomingField], columns_max: usize) -> Result<SchemaPlan, String> {
    for (source, fixed) in FIXED {
        if arriving.iter().any(|field| field.source == source && field.column_type != fixed) {
            return Err(format!("field {source} must be of type {}", fixed.delta_name()));
        }
    }
    let mut schema = current.clone();
    let mut rewrites = false;
    let mut new_fields = Vec::new();
    let positions: HashMap<&str, usize> =
        current.columns.iter().enumerate().map(|(position, column)| (column.source.as_str(), position)).collect();
    for field in arriving {
        match positions.get(field.source.as_str()) {
            None => new_fields.push(field),
            Some(&position) if !field.fits && schema.columns[position].column_type != ColumnType::String => {
                schema.columns[position].column_type = ColumnType::String;
                rewrites = true;
            }
            Some(_) => {}
        }
    }
    if current.columns.is_empty() {
        new_fields.sort_by_key(|field| FIRST.iter().position(|first| *first == field.source).unwrap_or(FIRST.len()));
    }
    let overflow = add_columns(&mut schema, &new_fields, columns_max);
    let changed = schema != *current;
    Ok(SchemaPlan { schema, changed, rewrites, overflow })
}

/// Columns that a table may have beyond its limit for fields that are not plain text: HQ's fixed ones and those of location types are worth a column
/// in a table that text has filled.
const BEYOND_LIMIT_MAX: usize = 200;

/// What a field can claim.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Claim {
    /// The engine or everyone who reads needs it: it always gets a column. A dozen.
    Needed,
    /// The lake's columns of locations, and HQ's fields that are not text: usually few, but a project decides how many location types it has.
    Preferred,
    /// Text of HQ.
    Text,
}

impl Claim {
    fn of(field: &IncomingField) -> Self {
        let source = field.source.as_str();
        if source.starts_with("+_lake_") || FIRST.contains(&source) || FIXED.iter().any(|(fixed, _)| *fixed == source) {
            Self::Needed
        } else if source.starts_with('+') || field.column_type != ColumnType::String {
            Self::Preferred
        } else {
            Self::Text
        }
    }
}

/// Adds the columns that still fit, and names the fields that do not.
fn add_columns(schema: &mut TableSchema, fields: &[&IncomingField], columns_max: usize) -> HashSet<String> {
    let mut taken: HashSet<String> = schema.columns.iter().map(|column| column.name.to_lowercase()).collect();
    let mut add = |schema: &mut TableSchema, source: &str, column_type: ColumnType| {
        let name = column_name::unique(source, |name| taken.contains(name));
        taken.insert(name.to_lowercase());
        schema.columns.push(Column::new(name, source.to_owned(), column_type));
    };
    let mut overflow = HashSet::new();
    let count = |claim: Claim| fields.iter().filter(|field| Claim::of(field) == claim).count();
    // The place of the overflow column itself is kept free until it is there.
    let reserved = usize::from(schema.position(OVERFLOW_SOURCE).is_none());
    let needed = schema.columns.len() + count(Claim::Needed) + reserved;
    let mut room_preferred = (columns_max + BEYOND_LIMIT_MAX).saturating_sub(needed);
    let mut room = columns_max.saturating_sub(needed + count(Claim::Preferred).min(room_preferred));
    for field in fields {
        let room = match Claim::of(field) {
            Claim::Needed => {
                add(schema, &field.source, field.column_type);
                continue;
            }
            Claim::Preferred => &mut room_preferred,
            Claim::Text => &mut room,
        };
        if *room > 0 {
            *room -= 1;
            add(schema, &field.source, field.column_type);
        } else {
            overflow.insert(field.source.clone());
        }
    }
    if !overflow.is_empty() && reserved == 1 {
        add(schema, OVERFLOW_SOURCE, ColumnType::String);
    }
    overflow
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn field(source: &str, column_type: ColumnType) -> IncomingField {
        IncomingField { source: source.into(), column_type, fits: true }
    }

    fn names(plan: &SchemaPlan) -> Vec<&str> {
        plan.schema.columns.iter().map(|column| column.name.as_str()).collect()
    }

    #[test]
    fn a_new_table_begins_with_the_columns_everyone_filters_by() {
        let arriving = ["/b", "+supervisor_id", "/a", "+month", "/doc_type", "+type", "/domain", "/_id"];
        let arriving = arriving.map(|source| field(source, ColumnType::String));
        let planned = plan(&TableSchema::default(), &arriving, 100).unwrap();
        assert_eq!(names(&planned), ["_id", "domain", "type", "doc_type", "month", "supervisor_id", "b", "a"]);
        assert!(planned.changed && !planned.rewrites && planned.overflow.is_empty());
        assert_eq!(planned.schema.filtered(), ["_id", "month", "supervisor_id"]);
    }

    #[test]
    fn columns_keep_place_and_name_and_survive_the_log() {
        let first = plan(&TableSchema::default(), &[field("/Name", ColumnType::String)], 100).unwrap().schema;
        let arriving = [field("/name", ColumnType::String), field("/Name", ColumnType::String)];
        let second = plan(&first, &arriving, 100).unwrap();
        assert_eq!(second.schema.columns[0], first.columns[0]);
        assert!(second.schema.columns[1].name.starts_with("name__"));
        assert_eq!(TableSchema::of_delta(&second.schema.to_delta()).unwrap(), second.schema);
        assert!(!plan(&second.schema, &arriving, 100).unwrap().changed);
    }

    #[test]
    fn a_type_that_does_not_fit_turns_the_column_to_text_once() {
        let table = plan(&TableSchema::default(), &[field("/state", ColumnType::Long)], 100).unwrap().schema;
        let fitting = IncomingField { source: "/state".into(), column_type: ColumnType::String, fits: true };
        assert!(!plan(&table, std::slice::from_ref(&fitting), 100).unwrap().changed);
        let planned = plan(&table, &[IncomingField { fits: false, ..fitting.clone() }], 100).unwrap();
        assert!(planned.changed && planned.rewrites);
        assert_eq!(planned.schema.columns[0].column_type, ColumnType::String);
        assert!(!plan(&planned.schema, &[IncomingField { fits: false, ..fitting }], 100).unwrap().changed);
    }

    #[test]
    fn columns_of_others_keep_their_types_and_nothing_arrives_for_them() {
        let own = plan(&TableSchema::default(), &[field("/a", ColumnType::Long)], 100).unwrap().schema.to_delta();
        let mut schema = own.clone();
        let fields = schema["fields"].as_array_mut().unwrap();
        fields.push(json!({"name": "price", "type": "decimal(10,2)", "nullable": true, "metadata": {}}));
        fields.push(json!({"name": "tags", "type": {"type": "array", "elementType": "string", "containsNull": true},
            "nullable": true, "metadata": {"comment": "x"}}));
        // Copied with everything that was noted of it.
        fields.push(json!({"name": "b", "type": "string", "nullable": true, "metadata": {SOURCE_KEY: "/a"}}));
        let table = TableSchema::of_delta(&schema).unwrap();
        let sources: Vec<_> = table.columns.iter().map(|column| column.source.as_str()).collect();
        assert_eq!(sources, ["/a", "foreign:price", "foreign:tags", "foreign:b"]);
        assert!(!table.columns[1].can_partition() && table.columns[3].can_partition());
        let planned = plan(&table, &[IncomingField { fits: false, ..field("/a", ColumnType::String) }], 100).unwrap();
        let types: Vec<_> =
            planned.schema.to_delta()["fields"].as_array().unwrap().iter().map(|it| it["type"].clone()).collect();
        assert_eq!(
            (&types[0], &types[1], &types[2]),
            (&json!("string"), &json!("decimal(10,2)"), &schema["fields"][2]["type"])
        );
        assert_eq!(TableSchema::of_delta(&planned.schema.to_delta()).unwrap(), planned.schema);
        for (name, strange) in [("a", json!("decimal(10,2)")), ("c", json!("void"))] {
            let mut schema = own.clone();
            let metadata = if name == "a" { json!({SOURCE_KEY: "/a"}) } else { json!({}) };
            schema["fields"] = json!([{"name": name, "type": strange, "nullable": true, "metadata": metadata}]);
            assert!(TableSchema::of_delta(&schema).unwrap_err().contains(name));
        }
    }

    #[test]
    fn text_beyond_the_limit_overflows_before_anything_else() {
        let mut arriving: Vec<_> = (0..10).map(|n| field(&format!("/p{n}"), ColumnType::String)).collect();
        arriving.push(field("/closed", ColumnType::Boolean));
        arriving.push(field("+month", ColumnType::Date));
        let planned = plan(&TableSchema::default(), &arriving, 6).unwrap();
        assert_eq!(names(&planned), ["month", "p0", "p1", "p2", "closed", "_lake_overflow"]);
        assert_eq!(planned.overflow.len(), 7);
        let again = plan(&planned.schema, &arriving, 6).unwrap();
        assert!(!again.changed && again.overflow == planned.overflow);
    }

    /// A project can have as many location types as it likes, each of which is six columns.
    #[test]
    fn columns_of_locations_and_numbers_have_a_limit_too() {
        let mut arriving: Vec<_> = (0..1_000).map(|n| field(&format!("+level {n}_id"), ColumnType::String)).collect();
        arriving.extend((0..1_000).map(|n| field(&format!("/number{n}"), ColumnType::Long)));
        arriving.extend([field(ID_SOURCE, ColumnType::String), field(VERSION_SOURCE, ColumnType::Long)]);
        arriving.extend([field("+month", ColumnType::Date), field("/text", ColumnType::String)]);
        let planned = plan(&TableSchema::default(), &arriving, 100).unwrap();
        assert_eq!(planned.schema.columns.len(), 100 + BEYOND_LIMIT_MAX);
        for needed in [ID_SOURCE, VERSION_SOURCE, "+month", OVERFLOW_SOURCE] {
            assert!(planned.schema.position(needed).is_some(), "{needed}");
        }
        // Each field has its place: a column, or the overflow.
        let stored = |source: &str| planned.schema.position(source).is_some() != planned.overflow.contains(source);
        assert!(arriving.iter().all(|field| stored(&field.source)));
        let again = plan(&planned.schema, &arriving, 100).unwrap();
        assert!(!again.changed && again.overflow == planned.overflow);
        // What the engine needs comes even later than all places are taken.
        let late = [field(OBSERVED_SOURCE, ColumnType::Timestamp), field("/late", ColumnType::Boolean)];
        let later = plan(&planned.schema, &late, 100).unwrap();
        assert!(later.schema.position(OBSERVED_SOURCE).is_some() && later.overflow.contains("/late"));
    }

    #[test]
    fn the_engines_own_columns_never_change_their_type() {
        let error = plan(&TableSchema::default(), &[field("+_lake_version", ColumnType::String)], 100).unwrap_err();
        assert!(error.contains("+_lake_version"), "{error}");
    }
}

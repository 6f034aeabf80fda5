//! A table as the Hive Metastore keeps it. Pure.
//!
//! The layout is Spark's own for a table that it cannot read as a Hive table (HiveExternalCatalog): an external table with the parameter
//! `spark.sql.sources.provider` and the location in the serde's parameter `path`. Trino's Delta connector looks for the same two. Numbers of
//! fields are those of `hive_metastore.thrift`, which are the same from 2.3 to 4.

use std::collections::BTreeMap;

use super::super::columns::Columns;
use super::super::{CatalogName, HeldTable, Mark, Registration};
use super::wire::{Fields, Value};
use thrift::protocol::TType;

/// Fields of a table.
const NAME: i16 = 1;
const DATABASE: i16 = 2;
const OWNER: i16 = 3;
const CREATED_SECONDS: i16 = 4;
const STORAGE: i16 = 7;
const PARTITION_KEYS: i16 = 8;
const PARAMETERS: i16 = 9;
const KIND: i16 = 12;

/// Fields of its storage.
const COLUMNS: i16 = 1;
const LOCATION: i16 = 2;
const INPUT_FORMAT: i16 = 3;
const OUTPUT_FORMAT: i16 = 4;
const COMPRESSED: i16 = 5;
const BUCKETS: i16 = 6;
const SERDE: i16 = 7;
const BUCKET_COLUMNS: i16 = 8;
const SORT_COLUMNS: i16 = 9;
const STORAGE_PARAMETERS: i16 = 10;

/// Fields of its serde.
const LIBRARY: i16 = 2;
const SERDE_PARAMETERS: i16 = 3;

/// The serde's parameter with the location.
const PATH: &str = "path";

/// The marks of the lake, also that of a database.
pub(super) const MARK_ROOT: &str = "commcare_lake.root";
const MARK_TABLE: &str = "commcare_lake.table";
const MARK_COLUMNS: &str = "commcare_lake.columns";

/// Has the metastore not list the folder of the table to count its files; it takes the parameter away itself.
const NO_STATISTICS: &str = "DO_NOT_UPDATE_STATS";

/// A new table.
pub(super) fn new_table(table: &Registration, now_seconds: i32) -> Fields {
    let column = Fields::from([(1, Value::text("col")), (2, Value::text("array<string>")), (3, Value::text(""))]);
    let nothing = || Value::text_map([]);
    let serde = Fields::from([
        (LIBRARY, Value::text("org.apache.hadoop.hive.serde2.lazy.LazySimpleSerDe")),
        (SERDE_PARAMETERS, nothing()),
    ]);
    let storage = Fields::from([
        // Hive wants a column; Spark writes this one where it keeps none.
        (COLUMNS, Value::List(TType::Struct, vec![Value::Struct(column)])),
        (INPUT_FORMAT, Value::text("org.apache.hadoop.mapred.SequenceFileInputFormat")),
        (OUTPUT_FORMAT, Value::text("org.apache.hadoop.hive.ql.io.HiveSequenceFileOutputFormat")),
        (COMPRESSED, Value::Bool(false)),
        (BUCKETS, Value::I32(-1)),
        (SERDE, Value::Struct(serde)),
        (BUCKET_COLUMNS, Value::texts([])),
        (SORT_COLUMNS, Value::List(TType::Struct, Vec::new())),
        (STORAGE_PARAMETERS, nothing()),
    ]);
    let fields = Fields::from([
        (NAME, Value::text(&table.name.table)),
        (DATABASE, Value::text(&table.name.database)),
        (OWNER, Value::text("commcare-lake")),
        (CREATED_SECONDS, Value::I32(now_seconds)),
        (STORAGE, Value::Struct(storage)),
        (PARTITION_KEYS, Value::List(TType::Struct, Vec::new())),
        (PARAMETERS, nothing()),
        (KIND, Value::text("EXTERNAL_TABLE")),
    ]);
    as_registered(fields, table)
}

/// The table with the mark, location and columns that it is to have, and everything else as it is.
pub(super) fn as_registered(mut fields: Fields, table: &Registration) -> Fields {
    let mut parameters = parameters_of(&fields);
    parameters.retain(|name, _| !Columns::is_parameter(name) && name != MARK_COLUMNS);
    let mut set = |name: &str, value: &str| parameters.insert(name.to_owned(), value.to_owned());
    set("EXTERNAL", "TRUE");
    set("spark.sql.sources.provider", "delta");
    set(MARK_ROOT, &table.mark.root);
    set(MARK_TABLE, &table.mark.table);
    set(NO_STATISTICS, "true");
    if let Some(columns) = &table.columns {
        set(MARK_COLUMNS, &columns.digest);
        for (name, value) in &columns.parameters {
            set(name, value);
        }
    }
    fields.insert(PARAMETERS, text_map(&parameters));
    if let Some(Value::Struct(storage)) = fields.get_mut(&STORAGE) {
        storage.insert(LOCATION, Value::text(&table.location));
        if let Some(Value::Struct(serde)) = storage.get_mut(&SERDE) {
            let mut parameters = serde.get(&SERDE_PARAMETERS).map(Value::as_text_map).unwrap_or_default();
            parameters.insert(PATH.into(), table.location.clone());
            // Spark's own, and what Hive's formats are told.
            parameters.insert("serialization.format".into(), "1".into());
            serde.insert(SERDE_PARAMETERS, text_map(&parameters));
        }
    }
    fields
}

/// A table as the port describes it; `None` where the metastore gives no names.
pub(super) fn held(fields: &Fields) -> Option<HeldTable> {
    let text = |number| fields.get(&number).and_then(Value::as_text);
    let name = CatalogName { database: text(DATABASE)?.to_lowercase(), table: text(NAME)?.to_lowercase() };
    let mut parameters = parameters_of(fields);
    let mark = parameters.remove(MARK_ROOT).zip(parameters.remove(MARK_TABLE));
    let storage = fields.get(&STORAGE).and_then(Value::as_fields);
    let serde = storage.and_then(|storage| storage.get(&SERDE)).and_then(Value::as_fields);
    let path = serde.and_then(|serde| serde.get(&SERDE_PARAMETERS)).and_then(|map| map.as_text_map().remove(PATH));
    let location = || storage.and_then(|storage| storage.get(&LOCATION)).and_then(Value::as_text).map(str::to_owned);
    Some(HeldTable {
        name,
        mark: mark.map(|(root, table)| Mark { root, table }),
        location: path.or_else(location).unwrap_or_default(),
        columns: parameters.remove(MARK_COLUMNS).unwrap_or_default(),
    })
}

pub(super) fn parameters_of(fields: &Fields) -> BTreeMap<String, String> {
    fields.get(&PARAMETERS).map(Value::as_text_map).unwrap_or_default()
}

fn text_map(entries: &BTreeMap<String, String>) -> Value {
    Value::text_map(entries.iter().map(|(name, value)| (name.as_str(), value.as_str())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::super::super::differences;
    use super::*;

    fn registration(location: &str, columns: Option<&str>) -> Registration {
        Registration {
            name: CatalogName { database: "demo".into(), table: "case_sql_person".into() },
            mark: Mark { root: "s3://lake".into(), table: "demo/case/person".into() },
            location: location.into(),
            columns: columns.map(Columns::of_schema),
        }
    }

    #[test]
    fn what_is_made_is_found_again() {
        for columns in [None, Some("{}")] {
            let wanted = registration("s3a://lake/demo/case-sql/person", columns);
            let made = new_table(&wanted, 1);
            assert_eq!(held(&made).unwrap(), differences::as_registered(&wanted));
        }
    }

    #[test]
    fn a_change_leaves_the_rest_as_it_is() {
        let mut made = new_table(&registration("s3a://old/person", Some("{\"long\": 1}")), 1);
        // What a newer metastore has, and what somebody has set.
        made.insert(99, Value::I64(5));
        let mut parameters = parameters_of(&made);
        parameters.insert("comment".into(), "people".into());
        made.insert(PARAMETERS, text_map(&parameters));
        let wanted = registration("s3a://new/person", None);
        let altered = as_registered(made, &wanted);
        assert_eq!(held(&altered).unwrap(), differences::as_registered(&wanted));
        assert_eq!(altered[&99], Value::I64(5));
        let parameters = parameters_of(&altered);
        assert_eq!(parameters["comment"], "people");
        assert!(!parameters.keys().any(|name| Columns::is_parameter(name)), "{parameters:?}");
        let location = altered[&STORAGE].as_fields().unwrap()[&LOCATION].as_text();
        assert_eq!(location, Some("s3a://new/person"));
    }

    #[test]
    fn a_table_of_others_has_no_mark() {
        let mut theirs = new_table(&registration("s3a://x/person", None), 1);
        theirs.insert(PARAMETERS, Value::text_map([(MARK_ROOT, "half a mark")]));
        theirs.insert(STORAGE, Value::Struct(Fields::new()));
        let found = held(&theirs).unwrap();
        assert_eq!((found.mark, found.location), (None, String::new()));
        assert_eq!(held(&Fields::new()), None);
    }
}

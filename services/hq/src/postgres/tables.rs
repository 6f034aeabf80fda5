//! HQ's tables as they are in this installation: which columns there are, how they are selected, and rows as [`Columns`].
//!
//! Columns have been added over the years, and newer ones are not known here. So nothing but what decisions need is required.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use serde_json::Value;
use sqlx::postgres::{PgRow, PgValueFormat};
use sqlx::{Column as _, Row, TypeInfo, ValueRef};

use super::database::Snapshot;
use super::key::Key;
use crate::source::{Columns, SourceError};
use crate::timestamp;

/// Microseconds from 1970 to 2000, where Postgres counts from.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// What is needed of a table. Everything else it has is taken along.
pub(super) struct TableNeed {
    pub name: &'static str,
    pub columns: &'static [&'static str],
    /// A table that some installations do without.
    pub optional: bool,
}

/// A table that was found.
#[derive(Clone, Debug)]
pub(super) struct Table {
    name: &'static str,
    columns: Vec<(String, String)>,
}

impl Table {
    #[cfg(test)]
    pub fn of(name: &'static str, columns: &[&str]) -> Self {
        Self { name, columns: columns.iter().map(|column| ((*column).to_owned(), "text".to_owned())).collect() }
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn has(&self, column: &str) -> bool {
        self.columns.iter().any(|(name, _)| name == column)
    }

    /// `select <all columns> from <table>`; what has no fixed binary form here is cast to text, JSON included: `jsonb` would not take
    /// `\u0000`, and numerics keep their digits.
    pub fn select(&self) -> String {
        let columns: Vec<String> = self.columns.iter().map(|(name, type_name)| selected(name, type_name)).collect();
        format!("select {} from {}", columns.join(", "), self.name)
    }

    /// The same with only these columns, leaving out those that are not there.
    pub fn select_only(&self, wanted: &[&str]) -> String {
        let columns: Vec<(String, String)> =
            self.columns.iter().filter(|(name, _)| wanted.contains(&name.as_str())).cloned().collect();
        Self { name: self.name, columns }.select()
    }
}

fn selected(name: &str, type_name: &str) -> String {
    let quoted = format!("\"{}\"", name.replace('"', "\"\""));
    match type_name {
        "smallint"
        | "integer"
        | "bigint"
        | "boolean"
        | "text"
        | "character varying"
        | "timestamp with time zone"
        | "timestamp without time zone" => quoted,
        _ => format!("{quoted}::text as {quoted}"),
    }
}

/// Only columns that may be read; only tables that a plain name finds.
static COLUMNS_SQL: LazyLock<Arc<str>> = LazyLock::new(|| {
    "select t.name as table_name, to_regclass(t.name) is not null as exists, a.attname::text as column_name, \
     format_type(a.atttypid, null) as type_name \
     from unnest($1::text[]) as t(name) left join pg_attribute a on a.attrelid = to_regclass(t.name) \
     and a.attnum > 0 and not a.attisdropped and has_column_privilege(a.attrelid, a.attnum, 'select') \
     order by t.name, a.attnum"
        .into()
});

/// Finds the tables and checks that they have what is needed.
pub(super) async fn find_tables(
    snapshot: &mut Snapshot<'_>,
    database: &str,
    needs: &[TableNeed],
) -> Result<HashMap<&'static str, Table>, SourceError> {
    let names: Vec<String> = needs.iter().map(|need| need.name.to_owned()).collect();
    let mut found: HashMap<String, (bool, Vec<(String, String)>)> = HashMap::new();
    snapshot
        .read(&COLUMNS_SQL, Key::Ids(&names), |row| {
            let table = found.entry(row.try_get("table_name")?).or_insert((row.try_get("exists")?, Vec::new()));
            if let Some(column) = row.try_get::<Option<String>, _>("column_name")? {
                table.1.push((column, row.try_get("type_name")?));
            }
            Ok(())
        })
        .await?;
    let mut tables = HashMap::new();
    for need in needs {
        let (exists, columns) = found.remove(need.name).unwrap_or_default();
        if !exists && need.optional {
            continue;
        }
        check_table(need, exists, &columns)
            .map_err(|reason| SourceError::Refused { action: format!("read HQ's tables in {database}"), reason })?;
        tables.insert(need.name, Table { name: need.name, columns });
    }
    Ok(tables)
}

fn check_table(need: &TableNeed, exists: bool, columns: &[(String, String)]) -> Result<(), String> {
    let name = need.name;
    if !exists {
        return Err(format!("there is no table {name}; check the address, and search_path of its role"));
    }
    if columns.is_empty() {
        return Err(format!("no permission to read table {name}; grant SELECT on it to the role of the address"));
    }
    match need.columns.iter().find(|needed| !columns.iter().any(|(column, _)| column == *needed)) {
        Some(missing) => Err(format!(
            "table {name} has no column {missing}, or it may not be read; this is no version of HQ that is known"
        )),
        None => Ok(()),
    }
}

/// A row as [`Columns`].
pub(super) fn columns_of(row: &PgRow) -> Result<Columns, sqlx::Error> {
    let mut columns = Columns::with_capacity(row.len());
    for column in row.columns() {
        let column_index = column.ordinal();
        let value = match column.type_info().name() {
            "INT2" => row.try_get::<Option<i16>, _>(column_index)?.map(Value::from),
            "INT4" => row.try_get::<Option<i32>, _>(column_index)?.map(Value::from),
            "INT8" => row.try_get::<Option<i64>, _>(column_index)?.map(Value::from),
            "BOOL" => row.try_get::<Option<bool>, _>(column_index)?.map(Value::from),
            "TIMESTAMPTZ" | "TIMESTAMP" => instant(row, column_index)?.and_then(timestamp::format_us).map(Value::from),
            _ => row.try_get::<Option<String>, _>(column_index)?.map(Value::from),
        };
        columns.insert(column.name().to_owned(), value.unwrap_or(Value::Null));
    }
    Ok(columns)
}

/// A timestamp column in microseconds since 1970. `None` for null, and for infinity, which HQ cannot hold either.
pub(super) fn instant(row: &PgRow, column_index: usize) -> Result<Option<i64>, sqlx::Error> {
    let value = row.try_get_raw(column_index)?;
    if value.is_null() {
        return Ok(None);
    }
    // Bound statements answer in binary: 8 bytes, big-endian.
    let bytes = value.as_bytes().map_err(sqlx::Error::Decode)?;
    match (value.format(), <[u8; 8]>::try_from(bytes)) {
        (PgValueFormat::Binary, Ok(bytes)) => Ok(i64::from_be_bytes(bytes).checked_add(POSTGRES_EPOCH_US)),
        _ => Err(sqlx::Error::Decode("a timestamp is not 8 bytes long".into())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const NEED: TableNeed = TableNeed { name: "some_table", columns: &["a", "b"], optional: false };

    fn columns(of: &[(&str, &str)]) -> Vec<(String, String)> {
        of.iter().map(|(name, type_name)| ((*name).to_owned(), (*type_name).to_owned())).collect()
    }

    #[test]
    fn odd_types_are_cast_and_odd_names_quoted() {
        let table = Table {
            name: "t",
            columns: columns(&[("id", "integer"), ("js", "jsonb"), ("n", "numeric"), ("od\"d", "character varying")]),
        };
        assert_eq!(table.select(), r#"select "id", "js"::text as "js", "n"::text as "n", "od""d" from t"#);
        assert_eq!(table.select_only(&["n", "not there"]), r#"select "n"::text as "n" from t"#);
        assert!(table.has("js") && !table.has("JS"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let both = columns(&[("a", "text"), ("b", "text"), ("new", "text")]);
        assert_eq!(check_table(&NEED, true, &both), Ok(()));
        assert!(check_table(&NEED, false, &[]).unwrap_err().contains("no table some_table"));
        assert!(check_table(&NEED, true, &[]).unwrap_err().contains("grant SELECT"));
        assert!(check_table(&NEED, true, &both[..1]).unwrap_err().contains("no column b"));
    }
}

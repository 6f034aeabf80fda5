//! Views for Spark SQL that give tables the names and types of the lake's predecessor, `dimagi_lake`, so that what was written for it still runs.
//!
//! It kept what HQ's JSON says: lists as arrays, times and coordinates as text; and it wrote the month as text without a zero before the day. The
//! lake's own columns are left out.

use std::fmt::Write;

use anyhow::{Context, Result};
use lake_proto::admin::v1 as proto;

use crate::client::Clients;
use crate::command_line::table::ViewArguments;
use crate::exit;
use crate::output;

/// Lists that every case has, and what they are lists of.
const LISTS: [(&str, &str); 3] = [("/actions", OBJECTS), ("/indices", OBJECTS), ("/xform_ids", "array<string>")];
/// Members of any names; what is in them is text, as JSON where it is no text.
const OBJECTS: &str = "array<map<string,string>>";
/// As Django's REST framework writes times, always in UTC.
const TIME: &str = r"yyyy-MM-dd\'T\'HH:mm:ss.SSSSSS\'Z\'";
/// What the name of a column says after the type of a location.
const OF_LOCATIONS: [&str; 5] = ["id", "name", "site_code", "latitude", "longitude"];

pub(super) async fn run(clients: &mut Clients, arguments: ViewArguments) -> Result<u8> {
    let mut sql = format!("CREATE DATABASE IF NOT EXISTS {};\n", quoted(&arguments.database));
    for table in super::all(clients, &arguments.filter).await? {
        let name = table.name;
        let answer = clients.tables.get_table(proto::GetTableRequest { name: name.clone() }).await;
        let answer = answer.with_context(|| format!("get table {name}"))?.into_inner();
        let columns = answer.columns;
        if let Some(table) = answer.table.filter(|_| !columns.is_empty()) {
            sql.push_str(&view(&table, &columns, &arguments));
        }
    }
    output::print(&sql)?;
    Ok(exit::DONE)
}

fn view(table: &proto::Table, columns: &[proto::Column], arguments: &ViewArguments) -> String {
    let key = table.key.clone().unwrap_or_default();
    let is_case = key.space.is_some_and(|space| space.kind() == proto::Kind::Case);
    let mut sql = format!("CREATE OR REPLACE VIEW {}.{} AS SELECT", quoted(&arguments.database), quoted(&table.name));
    let mut between = "\n  ";
    for column in columns.iter().filter(|column| !column.name.starts_with("_lake_")) {
        let list = LISTS.iter().find(|(source, _)| is_case && column.source == *source).map(|(_, list)| *list);
        let list = list.or_else(|| arguments.arrays.contains(&column.name).then_some(OBJECTS));
        let old = old_name(&column.name, &arguments.location_types);
        let value = value(column, list);
        // Writing to a text cannot fail.
        let _ = write!(sql, "{between}{value} AS {}", quoted(&old));
        between = ",\n  ";
    }
    // Spark reads S3 by Hadoop's `s3a`.
    let location = match table.location.strip_prefix("s3://") {
        Some(place) => format!("s3a://{place}"),
        None => table.location.clone(),
    };
    sql + &format!("\nFROM delta.{};\n", quoted(&location))
}

/// An expression with the predecessor's type.
fn value(column: &proto::Column, list: Option<&str>) -> String {
    let name = quoted(&column.name);
    match (column.r#type.as_str(), list) {
        ("string", Some(list)) => format!("from_json({name}, '{list}')"),
        ("date", _) if column.name == "month" => format!("concat(date_format({name}, 'yyyy-MM'), '-1')"),
        ("timestamp", _) => format!("date_format(to_utc_timestamp({name}, current_timezone()), '{TIME}')"),
        // HQ has ten digits after the point.
        ("double", _) => format!("CAST(CAST({name} AS DECIMAL(20, 10)) AS STRING)"),
        _ => name,
    }
}

/// The predecessor named columns of locations by the name of their type, the lake does by its code.
fn old_name(name: &str, location_types: &[(String, String)]) -> String {
    let of_type = |(code, old): &(String, String)| {
        let what = name.strip_prefix(code.as_str())?.strip_prefix('_')?;
        OF_LOCATIONS.contains(&what).then(|| format!("{old}_{what}"))
    };
    location_types.iter().find_map(of_type).unwrap_or_else(|| name.to_owned())
}

fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command_line::TableFilter;

    fn column(name: &str, of_type: &str, source: &str) -> proto::Column {
        proto::Column { name: name.into(), r#type: of_type.into(), source: source.into() }
    }

    #[test]
    fn a_view_has_the_names_and_types_of_the_predecessor() {
        let space = proto::Space { domain: "demo".into(), kind: proto::Kind::Case.into() };
        let table = proto::Table {
            name: "demo_case_sql_person".into(),
            key: Some(proto::TableKey { space: Some(space), r#type: "person".into() }),
            location: "s3://lake/demo/case-sql/person".into(),
            ..proto::Table::default()
        };
        let columns = [
            column("_id", "string", "/_id"),
            column("month", "date", ""),
            column("opened_on", "timestamp", "/opened_on"),
            column("xform_ids", "string", "/xform_ids"),
            column("Actions_2", "string", "/form/actions"),
            column("visits", "string", "/visits"),
            column("odd`name", "long", "/odd`name"),
            column("health-post_id", "string", ""),
            column("health-post_latitude", "double", ""),
            column("health-post_other", "string", "/health-post_other"),
            column("_lake_version", "long", ""),
        ];
        let arguments = ViewArguments {
            filter: TableFilter::default(),
            database: "old".into(),
            arrays: vec!["visits".into()],
            location_types: vec![("health-post".into(), "Health Post".into())],
        };
        let wanted = r"CREATE OR REPLACE VIEW `old`.`demo_case_sql_person` AS SELECT
  `_id` AS `_id`,
  concat(date_format(`month`, 'yyyy-MM'), '-1') AS `month`,
  date_format(to_utc_timestamp(`opened_on`, current_timezone()), 'yyyy-MM-dd\'T\'HH:mm:ss.SSSSSS\'Z\'') AS `opened_on`,
  from_json(`xform_ids`, 'array<string>') AS `xform_ids`,
  `Actions_2` AS `Actions_2`,
  from_json(`visits`, 'array<map<string,string>>') AS `visits`,
  `odd``name` AS `odd``name`,
  `health-post_id` AS `Health Post_id`,
  CAST(CAST(`health-post_latitude` AS DECIMAL(20, 10)) AS STRING) AS `Health Post_latitude`,
  `health-post_other` AS `health-post_other`
FROM delta.`s3a://lake/demo/case-sql/person`;
";
        assert_eq!(view(&table, &columns, &arguments), wanted);
    }
}

//! Which documents a scan finds.

use lake_hq::scan::ScanScope;
use lake_hq::source::Columns;
use lake_hq::timestamp;
use lake_shared::identity::Kind;
use serde_json::Value;

use super::{Rows, field};
use crate::turn::Table;

/// Name of the one database.
pub(super) const SHARD: &str = "memory";

/// Primary keys and ids of the documents of a scope, by primary key.
pub(super) fn keys(tables: &[Rows; Table::ALL.len()], scope: &ScanScope) -> Vec<(i64, String)> {
    let (table, id, time, type_column) = match scope.kind {
        Kind::Case => (Table::Case, "case_id", "server_modified_on", "type"),
        Kind::Form => (Table::Form, "form_id", "received_on", "xmlns"),
        Kind::Location => (Table::Location, "location_id", "last_modified", ""),
    };
    let is_live = |row: &Columns| match scope.kind {
        Kind::Case => row.get("deleted") != Some(&Value::Bool(true)),
        Kind::Form => row.get("state").and_then(Value::as_i64) == Some(1),
        Kind::Location => true,
    };
    let is_meant = |row: &&Columns| {
        let saved_us = timestamp::parse_us(field(row, time)).unwrap_or(0);
        let is_of_type = |types: &Vec<String>| types.iter().any(|name| name == field(row, type_column));
        field(row, "domain") == scope.domain.as_str()
            && is_live(row)
            && scope.types.as_ref().is_none_or(is_of_type)
            && scope.from_us.is_none_or(|from_us| saved_us >= from_us)
            && scope.until_us.is_none_or(|until_us| saved_us < until_us)
    };
    let rows = tables[table as usize].values().flatten().filter(is_meant);
    let mut keys: Vec<(i64, String)> =
        rows.filter_map(|row| Some((row.get("id")?.as_i64()?, field(row, id).to_owned()))).collect();
    keys.sort_unstable();
    keys
}

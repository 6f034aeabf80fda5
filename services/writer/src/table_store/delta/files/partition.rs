//! Partitions of a table: values, folders, and which of them every reader gets right.

use std::collections::HashMap;
use std::fmt::Write;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Date32Type};
use chrono::{Days, NaiveDate};
use object_store::path::Path;
use siphasher::sip::SipHasher24;
use std::hash::Hasher;

use crate::table_store::delta::error::EngineError;
use crate::table_store::schema_plan::TableSchema;

/// Name of the folder of NULL, by the convention of Hive.
const NULL_FOLDER: &str = "__HIVE_DEFAULT_PARTITION__";

/// Longest folder name; file systems take 255 bytes.
const FOLDER_LENGTH_MAX: usize = 220;

/// What is kept free at the end of a folder that is cut.
const HASH_LENGTH: usize = 20;

/// The values of the partition columns of one file, in the order of the columns. Without columns: the whole table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Partition(Vec<Option<String>>);

impl Partition {
    /// Out of an action of the log.
    pub(crate) fn of_values(columns: &[String], values: &HashMap<String, Option<String>>) -> Self {
        Self(columns.iter().map(|column| present(values.get(column).cloned().flatten())).collect())
    }

    /// Of one row; the arrays are those of the partition columns.
    pub(crate) fn of_row(arrays: &[ArrayRef], row: usize) -> Self {
        Self(arrays.iter().map(|array| present(text(array, row))).collect())
    }

    /// As an action of the log has them.
    pub(crate) fn values(&self, columns: &[String]) -> HashMap<String, Option<String>> {
        columns.iter().cloned().zip(self.0.iter().cloned()).collect()
    }

    /// The folder of its files within the table.
    pub(crate) fn folder(&self, columns: &[String]) -> Path {
        let folders = columns.iter().zip(&self.0).map(|(column, value)| {
            let value = value.as_deref().map_or_else(|| NULL_FOLDER.to_owned(), folder_value);
            shortened(format!("{}={value}", escaped(column)))
        });
        // Escaped already, so that nothing in it is escaped again.
        Path::parse(folders.collect::<Vec<_>>().join("/")).unwrap_or_default()
    }

    /// Whether its folder holds no escaped character. Polars 2.1 does not find the deletion vectors of files in other folders and shows
    /// deleted rows, so such files are rewritten instead.
    pub(crate) fn is_plain(&self) -> bool {
        let is_plain =
            |value: &String| value.len() < FOLDER_LENGTH_MAX / 2 && value.chars().all(is_plain) && value != NULL_FOLDER;
        self.0.iter().flatten().all(is_plain)
    }
}

/// Whether a folder holds files of a partition by one of these columns, written by the lake or by a program that escapes less.
pub(crate) fn is_partition_folder(name: &str, columns: &[String]) -> bool {
    columns.iter().any(|column| {
        let mut own = format!("{}=", escaped(column));
        // What is left of the name in a folder that was cut.
        own.truncate(FOLDER_LENGTH_MAX - HASH_LENGTH);
        name.starts_with(&own) || name.strip_prefix(column.as_str()).is_some_and(|rest| rest.starts_with('='))
    })
}

/// Refuses partition columns that the lake cannot write: another program may have made the table anew.
pub(crate) fn check_types(columns: &[String], schema: &TableSchema) -> Result<(), EngineError> {
    let strange = columns.iter().find(|name| {
        let column = schema.columns.iter().find(|column| column.name == **name);
        column.is_none_or(|column| !column.can_partition())
    });
    strange.map_or(Ok(()), |name| {
        let advice = "make the table anew with partitions of text or dates, or without";
        Err(EngineError::corrupt(format!("the table is partitioned by {name}, which is no text or date; {advice}")))
    })
}

/// Delta has no empty text as a partition value: it is NULL there.
fn present(value: Option<String>) -> Option<String> {
    value.filter(|value| !value.is_empty())
}

/// The value of a row as the protocol writes it.
fn text(array: &ArrayRef, row: usize) -> Option<String> {
    if array.is_null(row) {
        return None;
    }
    match array.data_type() {
        DataType::Date32 => {
            let days = array.as_primitive::<Date32Type>().value(row);
            let epoch = NaiveDate::default();
            let distance = Days::new(u64::from(days.unsigned_abs()));
            let date = if days < 0 { epoch.checked_sub_days(distance) } else { epoch.checked_add_days(distance) };
            date.map(|date| date.format("%Y-%m-%d").to_string())
        }
        DataType::Utf8 => Some(array.as_string::<i32>().value(row).to_owned()),
        _ => None,
    }
}

const fn is_plain(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-')
}

/// A value in the name of a folder. The text that stands for NULL there is told apart from it by its first character.
fn folder_value(value: &str) -> String {
    match value.strip_prefix('_').filter(|_| value == NULL_FOLDER) {
        Some(rest) => format!("%5F{rest}"),
        None => escaped(value),
    }
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if is_plain(character) {
            escaped.push(character);
        } else {
            let mut bytes = [0; 4];
            for byte in character.encode_utf8(&mut bytes).bytes() {
                // Writing to a string cannot fail.
                let _ = write!(escaped, "%{byte:02X}");
            }
        }
    }
    escaped
}

/// A name that a file system takes; cut ones are told apart by a hash.
fn shortened(name: String) -> String {
    if name.len() <= FOLDER_LENGTH_MAX {
        return name;
    }
    let mut hasher = SipHasher24::new_with_keys(0, 0);
    hasher.write(name.as_bytes());
    // Escaped names are ASCII.
    format!("{}~{:016x}", &name[..FOLDER_LENGTH_MAX - HASH_LENGTH], hasher.finish())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::sync::Arc;

    use arrow::array::{Date32Array, StringArray};

    use super::*;

    #[test]
    fn rows_become_values_and_folders() {
        let months: ArrayRef = Arc::new(Date32Array::from(vec![Some(19_844), None, Some(-1)]));
        let supervisors: ArrayRef = Arc::new(StringArray::from(vec![Some("a b/ü"), Some(""), Some("x-1.y_2")]));
        let arrays = [months, supervisors];
        let columns = ["month".to_owned(), "supervisor_id".to_owned()];
        let cases = [
            ("month=2024-05-01/supervisor_id=a%20b%2F%C3%BC", Some("2024-05-01"), Some("a b/ü"), false),
            ("month=__HIVE_DEFAULT_PARTITION__/supervisor_id=__HIVE_DEFAULT_PARTITION__", None, None, true),
            ("month=1969-12-31/supervisor_id=x-1.y_2", Some("1969-12-31"), Some("x-1.y_2"), true),
        ];
        for (row, (folder, month, supervisor, plain)) in cases.into_iter().enumerate() {
            let partition = Partition::of_row(&arrays, row);
            assert_eq!(partition.folder(&columns).as_ref(), folder);
            assert_eq!(partition.is_plain(), plain);
            let values = partition.values(&columns);
            assert_eq!(values["month"].as_deref(), month);
            assert_eq!(values["supervisor_id"].as_deref(), supervisor);
            assert_eq!(Partition::of_values(&columns, &values), partition);
        }
        assert_eq!(Partition::default().folder(&[]).as_ref(), "");
    }

    #[test]
    fn the_text_that_stands_for_null_is_no_null() {
        let columns = ["supervisor_id".to_owned()];
        let (text, null) = (Partition(vec![Some(NULL_FOLDER.into())]), Partition(vec![None]));
        assert_eq!(text.folder(&columns).as_ref(), "supervisor_id=%5F_HIVE_DEFAULT_PARTITION__");
        assert_eq!(text.values(&columns)["supervisor_id"].as_deref(), Some(NULL_FOLDER));
        assert!(null.is_plain() && !text.is_plain());
        assert_ne!(null.folder(&columns), text.folder(&columns));
    }

    #[test]
    fn folders_of_partitions_are_known_by_their_columns() {
        let columns = ["_id", "month", "_@x#", &format!("_{}", "é".repeat(59))].map(str::to_owned);
        for column in &columns {
            let folder = Partition(vec![Some("a".repeat(200))]).folder(std::slice::from_ref(column));
            assert!(is_partition_folder(folder.as_ref(), &columns), "{folder}");
        }
        assert!(is_partition_folder("_@x#=by another program", &columns));
        for other in ["_delta_log", "_lake", "_change_data", "_", "_idle=1", ".month=2024", "_delta_log=1"] {
            assert!(!is_partition_folder(other, &columns), "{other}");
        }
        assert!(!is_partition_folder("_id=1", &[]));
    }

    #[test]
    fn long_values_get_short_folders_of_their_own() {
        let columns = ["supervisor_id".to_owned()];
        let folder = |last: &str| Partition(vec![Some("/".repeat(5_000) + last)]).folder(&columns).to_string();
        assert_ne!(folder("a"), folder("b"));
        assert!(folder("a").len() <= FOLDER_LENGTH_MAX);
    }
}

//! The forms in which answers are written to standard output.

use std::io::{ErrorKind, Write};

use anyhow::Result;
use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;

/// The form of an answer.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub(crate) enum Format {
    /// Columns for people
    Table,
    /// The same with more columns
    Wide,
    /// JSON
    Json,
    /// JSON, one object a line
    Jsonl,
    /// YAML
    Yaml,
    /// Names alone, one a line
    Name,
}

/// Which fields of a list are columns, by the names that they have in JSON. The first one is the name of an entry.
pub(crate) struct Columns {
    /// For [`Format::Table`].
    pub(crate) table: &'static [&'static str],
    /// What [`Format::Wide`] has more.
    pub(crate) wide: &'static [&'static str],
}

/// A list as text.
///
/// # Errors
/// A value cannot be written in the form.
pub(crate) fn list<T: Serialize>(format: Format, columns: &Columns, entries: &[T]) -> Result<String> {
    let values = entries.iter().map(serde_json::to_value).collect::<Result<Vec<Value>, _>>()?;
    Ok(match format {
        Format::Json => format!("{}\n", serde_json::to_string_pretty(&values)?),
        Format::Jsonl => lines(values.iter().map(Value::to_string)),
        Format::Yaml => serde_norway::to_string(&values)?,
        Format::Name => lines(values.iter().map(|value| cell(columns.table[0], &value[columns.table[0]]))),
        Format::Table => grid(columns.table, &values),
        Format::Wide => grid(&columns.table.iter().chain(columns.wide).copied().collect::<Vec<_>>(), &values),
    })
}

/// One object as text. `name`: the field that is its name.
///
/// # Errors
/// A value cannot be written in the form.
pub(crate) fn one<T: Serialize>(format: Format, name: &str, object: &T) -> Result<String> {
    let value = serde_json::to_value(object)?;
    Ok(match format {
        Format::Json => format!("{}\n", serde_json::to_string_pretty(&value)?),
        Format::Jsonl => format!("{value}\n"),
        Format::Yaml => serde_norway::to_string(&value)?,
        Format::Name => format!("{}\n", cell(name, &value[name])),
        Format::Table | Format::Wide => described(&value),
    })
}

/// Writes text to standard output; a reader that has left is no error.
///
/// # Errors
/// It cannot be written.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

fn lines(lines: impl Iterator<Item = String>) -> String {
    lines.map(|line| line + "\n").collect()
}

fn grid(columns: &[&str], rows: &[Value]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|column| column.replace('_', " ").to_uppercase()));
    for row in rows {
        table.add_row(columns.iter().map(|column| cell(column, &row[*column])));
    }
    lines(table.lines().map(|line| line.trim_end().to_owned()))
}

/// Fields one below the other, then what they hold more of.
fn described(value: &Value) -> String {
    let Value::Object(fields) = value else { return format!("{value}\n") };
    let is_list = |value: &Value| value.as_array().is_some_and(|list| list.iter().any(Value::is_object));
    let width = fields.keys().map(|key| key.len()).max().unwrap_or_default();
    let mut text = String::new();
    for (key, field) in fields.iter().filter(|(_, field)| !is_list(field) && !field.is_object()) {
        text += format!("{:width$}  {}", key.replace('_', " "), cell(key, field)).trim_end();
        text.push('\n');
    }
    for (key, field) in fields {
        if let Value::Object(_) = field {
            text += &format!("\n{}\n{}", key.replace('_', " "), indented(&described(field)));
        } else if let Some(list) = field.as_array().filter(|_| is_list(field)) {
            let columns: Vec<&str> =
                list[0].as_object().map(|first| first.keys().map(String::as_str).collect()).unwrap_or_default();
            text += &format!("\n{}\n{}", key.replace('_', " "), indented(&grid(&columns, list)));
        }
    }
    text
}

fn indented(text: &str) -> String {
    lines(text.lines().map(|line| format!("  {line}").trim_end().to_owned()))
}

/// A value as people read it: control characters, which could change the terminal, are shown as escapes.
fn cell(name: &str, value: &Value) -> String {
    let text = match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) if name == "bytes" || name.starts_with("bytes_") => {
            number.as_f64().map_or_else(|| number.to_string(), bytes)
        }
        Value::Array(values) => values.iter().map(|value| cell(name, value)).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| format!("{key}={}", cell(key, value))).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    };
    text.chars()
        .map(|letter| if letter.is_control() { letter.escape_default().to_string() } else { letter.to_string() })
        .collect()
}

fn bytes(count: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut count, mut unit) = (count, 0);
    while count >= 1_024.0 && unit + 1 < units.len() {
        (count, unit) = (count / 1_024.0, unit + 1);
    }
    if unit == 0 { format!("{count} B") } else { format!("{count:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use serde_json::json;

    use super::*;

    const COLUMNS: Columns = Columns { table: &["name", "rows"], wide: &["bytes"] };

    #[test]
    fn every_form_has_all_entries() {
        let entries =
            [json!({"name": "a", "rows": 5, "bytes": 2_048}), json!({"name": "long name", "rows": null, "bytes": 0})];
        let text = |format| list(format, &COLUMNS, &entries).unwrap();
        assert_eq!(text(Format::Name), "a\nlong name\n");
        let table = text(Format::Table);
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
        assert_eq!(table.lines().map(words).collect::<Vec<_>>(), ["NAME ROWS", "a 5", "long name -"]);
        assert!(text(Format::Wide).contains("2.0 KiB") && !table.contains("KiB"));
        assert_eq!(serde_json::from_str::<Value>(&text(Format::Json)).unwrap(), json!(entries));
        assert_eq!(text(Format::Jsonl).lines().count(), 2);
        assert_eq!(serde_norway::from_str::<Value>(&text(Format::Yaml)).unwrap(), json!(entries));
        assert_eq!(list::<Value>(Format::Json, &COLUMNS, &[]).unwrap(), "[]\n");
    }

    #[test]
    fn one_object_shows_what_it_holds() {
        let object = json!({"name": "a", "in_memory": {"rows_waiting": 3}, "columns": [{"name": "age", "type": "string", "made": {"bytes": 2_048}}]});
        let text = one(Format::Table, "name", &object).unwrap();
        assert!(text.contains("bytes=2.0 KiB") && !text.contains('{'), "{text}");
        assert!(text.contains("rows waiting  3") && text.contains("age") && text.contains("in memory"), "{text}");
        assert_eq!(one(Format::Name, "name", &object).unwrap(), "a\n");
    }

    #[test]
    fn names_cannot_steer_the_terminal() {
        let entries = [json!({"name": "a\u{1b}[31mb\nc", "rows": 1})];
        for format in [Format::Table, Format::Wide, Format::Name] {
            let text = list(format, &COLUMNS, &entries).unwrap();
            assert!(!text.contains('\u{1b}') && text.contains("\\u{1b}[31mb\\nc"), "{text}");
        }
    }
}

//! The name that people gave a form, for a list of tables.
//!
//! The xmlns of a form is an identifier; its name is in each submission, as the attribute `name` of the XML's root. So it is in the table, and
//! the newest submission has the newest name. The end of the log and one data file are read, from any object store.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use lake_writer::metastore::RecordedState;
use lake_writer::table_store::schema_plan::{TableSchema, VERSION_SOURCE};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

/// Source path of a form's name, as the column's metadata has it.
const NAME_SOURCE: &str = "/form/@name";

/// Most commits that are looked at for one that added rows; some only delete or compact.
const COMMITS_READ_MAX: i64 = 20;

/// The name in the newest submission of a table of forms. `None` where the table has no such column or no recent commit added a row with a name.
///
/// `table` is the store of the table's folder.
///
/// # Errors
/// The log or a data file cannot be read.
pub async fn newest(table: &dyn ObjectStore, state: &RecordedState) -> anyhow::Result<Option<String>> {
    let (Some(latest), Some(schema)) = (state.version, &state.schema) else { return Ok(None) };
    let schema = TableSchema::of_delta(&serde_json::from_str(schema)?).map_err(anyhow::Error::msg)?;
    let (Some(name), Some(version)) = (schema.column(NAME_SOURCE), schema.column(VERSION_SOURCE)) else {
        return Ok(None);
    };
    for commit in (0..=latest).rev().take(usize::try_from(COMMITS_READ_MAX)?) {
        let entry = Path::from(format!("_delta_log/{commit:020}.json"));
        let entry = match table.get(&entry).await {
            Ok(found) => found.bytes().await?,
            // Clean-up has deleted the log from here on.
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let Some(file) = added_file(&String::from_utf8_lossy(&entry)) else { continue };
        let path = Path::from_url_path(file)?;
        if let Some(name) = name_of_newest_row(table, path, &name.name, &version.name).await? {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Path of a file with new rows that a commit added. Files of a compaction have old rows.
fn added_file(entry: &str) -> Option<String> {
    let actions = entry.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut added = actions.map(|mut action| action["add"].take()).filter(|add| add["dataChange"] == true);
    added.find_map(|add| add["path"].as_str().map(str::to_owned))
}

async fn name_of_newest_row(
    table: &dyn ObjectStore,
    file: Path,
    name: &str,
    version: &str,
) -> anyhow::Result<Option<String>> {
    // Whole: what one batch brought is small.
    let bytes = table.get(&file).await?.bytes().await?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes)?;
    let columns = ProjectionMask::columns(builder.parquet_schema(), [name, version]);
    let batches: Vec<RecordBatch> = builder.with_projection(columns).build()?.collect::<Result<_, _>>()?;
    let newest = batches.iter().filter_map(|batch| {
        let names = batch.column_by_name(name)?.as_string_opt::<i32>()?;
        let versions = batch.column_by_name(version)?.as_primitive_opt::<Int64Type>()?;
        let newest = (0..batch.num_rows()).filter(|row| names.is_valid(*row)).max_by_key(|row| versions.value(*row))?;
        Some((versions.value(newest), names.value(newest)))
    });
    Ok(newest.max_by_key(|(version, _)| *version).map(|(_, name)| name.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};
    use lake_writer::table_store::conversion::ColumnType;
    use lake_writer::table_store::schema_plan::Column;
    use object_store::memory::InMemory;
    use parquet::arrow::ArrowWriter;

    use super::*;

    /// Rows of one data file: name and version.
    type Rows = [(Option<&'static str>, i64)];

    /// A table of one commit for each data file; `false`: the commit compacts.
    async fn table(files: &[(&Rows, bool)]) -> (InMemory, RecordedState) {
        let store = InMemory::new();
        for (commit, (rows, changes_data)) in files.iter().enumerate() {
            let names: ArrayRef = Arc::new(rows.iter().map(|(name, _)| *name).collect::<StringArray>());
            let versions: ArrayRef = Arc::new(rows.iter().map(|(_, version)| *version).collect::<Int64Array>());
            let batch = RecordBatch::try_from_iter_with_nullable([
                ("form__@name", names, true),
                ("_lake_version", versions, true),
            ]);
            let batch = batch.unwrap();
            let mut bytes = Vec::new();
            let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
            writer.write(&batch).unwrap();
            writer.close().unwrap();
            store.put(&Path::from(format!("part {commit}.parquet")), bytes.into()).await.unwrap();
            let add =
                serde_json::json!({"add": {"path": format!("part%20{commit}.parquet"), "dataChange": changes_data}});
            let entry = format!("{{\"commitInfo\":{{}}}}\n{add}\n");
            store.put(&Path::from(format!("_delta_log/{commit:020}.json")), entry.into_bytes().into()).await.unwrap();
        }
        let column = |name: &str, source: &str, column_type| Column::new(name.into(), source.into(), column_type);
        let columns = vec![
            column("form__@name", NAME_SOURCE, ColumnType::String),
            column("_lake_version", VERSION_SOURCE, ColumnType::Long),
        ];
        let schema = TableSchema { columns }.to_delta().to_string();
        let version = i64::try_from(files.len()).unwrap() - 1;
        (store, RecordedState { version: Some(version), schema: Some(schema), ..RecordedState::default() })
    }

    #[tokio::test]
    async fn the_newest_row_of_the_newest_file_with_new_rows_has_the_name() {
        let (store, state) = table(&[
            (&[(Some("Visit"), 1), (Some("Household visit"), 9), (None, 10)], true),
            (&[(Some("Old visit"), 0)], false),
            (&[(None, 11)], true),
        ])
        .await;
        assert_eq!(newest(&store, &state).await.unwrap().as_deref(), Some("Household visit"));
    }

    #[tokio::test]
    async fn a_table_without_names_or_without_its_log_has_none() {
        let (store, state) = table(&[(&[(None, 1)], true)]).await;
        assert_eq!(newest(&store, &state).await.unwrap(), None);
        let later = RecordedState { version: Some(70), ..state.clone() };
        assert_eq!(newest(&store, &later).await.unwrap(), None);
        let other_columns = TableSchema { columns: Vec::new() }.to_delta().to_string();
        let without_column = RecordedState { schema: Some(other_columns), ..state };
        assert_eq!(newest(&store, &without_column).await.unwrap(), None);
    }
}

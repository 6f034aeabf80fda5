//! The readers are judged before they judge: on tables that Spark wrote, with deletion vectors and partitions, now and in the past, every one
//! must see what Spark sees; where one is known not to, the test says what it sees instead.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::path::Path;

use lake_tests::parts::{Spark, sql_name};
use lake_tests::readers::{Inquiry, Reader, Readers, Row, Snapshot};

/// 1,000 rows over two months and none, and over the given supervisors, in files of many rows; the last supervisor is NULL.
fn write_table(folder: &Path, supervisors: &[&str], partition_by: &str) {
    let table = sql_name(folder);
    let supervisors: String =
        supervisors.iter().enumerate().fold(String::new(), |text, (n, name)| format!("{text} WHEN {n} THEN '{name}'"));
    let statements = [
        format!(
            "CREATE TABLE {table} (_id STRING, month DATE, supervisor_id STRING, visits BIGINT, closed BOOLEAN, weight DOUBLE, \
             `@odd#é` STRING, opened_on TIMESTAMP) USING delta {partition_by} \
             TBLPROPERTIES ('delta.enableDeletionVectors' = 'true', 'delta.checkpointInterval' = '3')"
        ),
        format!(
            "INSERT INTO {table} SELECT concat('id-', id), CASE id % 3 WHEN 0 THEN date'2024-01-01' WHEN 1 THEN date'2024-02-01' END, \
             CASE id % 5 {supervisors} END, id, id % 2 = 0, id / 8, CASE WHEN id % 7 > 0 THEN concat('text ', id, ' \\'') END, \
             timestamp_micros(id * 1000000007) FROM range(0, 1000, 1, 1)"
        ),
        format!("DELETE FROM {table} WHERE visits % 11 = 0"),
        format!("UPDATE {table} SET `@odd#é` = 'updated' WHERE visits % 13 = 0"),
        format!("DELETE FROM {table} WHERE visits % 17 = 0"),
        format!("ALTER TABLE {table} ADD COLUMN later STRING"),
        format!("INSERT INTO {table} (_id, visits, later) VALUES ('last', -1, '')"),
    ];
    let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
    Spark::shared(|spark| spark.sql(&statements)).unwrap();
}

/// What Spark sees, which the quick look must see too.
async fn by_spark(folder: &Path, version: Option<u64>) -> Vec<Row> {
    let rows = Spark::shared(|spark| spark.read(folder, version)).unwrap().sorted().unwrap();
    let snapshot = Snapshot::read(folder, version).await.unwrap().unwrap();
    assert_eq!(snapshot.rows, rows);
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reader_sees_what_spark_sees() {
    let lake = tempfile::tempdir().unwrap();
    let mut readers = Readers::of_folders().unwrap();
    for (name, partition_by) in [("plain", ""), ("partitioned", "PARTITIONED BY (month, supervisor_id)")] {
        let folder = lake.path().join(name);
        write_table(&folder, &["anna", "B-0_1.x", "0"], partition_by);
        let snapshot = Snapshot::read(&folder, None).await.unwrap().unwrap();
        assert_eq!(snapshot.version, 6);
        assert!(snapshot.hidden_rows > 100, "{} rows are hidden", snapshot.hidden_rows);
        for version in [Some(1), Some(2), Some(3), None] {
            let rows = by_spark(&folder, version).await;
            if version == Some(2) {
                assert_eq!(rows.len(), 909);
            }
            for reader in Reader::QUICK {
                let content = readers.read(reader, &folder, version).unwrap();
                content.ensure_is(&rows).unwrap_or_else(|error| panic!("{reader}, {name}, {version:?}: {error}"));
            }
        }
        // And by conditions, for which they leave files and rows out.
        let columns = ["_id", "month", "supervisor_id", "visits", "closed", "weight", "@odd#é", "opened_on", "later"];
        let inquiry = Inquiry::of_columns(&snapshot, &columns, 4);
        let few = Inquiry { questions: inquiry.questions.iter().step_by(5).cloned().collect(), ..inquiry.clone() };
        for reader in Reader::ALL {
            let asked = if reader == Reader::Spark { &few } else { &inquiry };
            let seen = readers.ensure_sees(reader, &folder, None, asked, &snapshot.rows);
            seen.unwrap_or_else(|error| panic!("{name}: {error:#}"));
        }
        // deltalake's full VACUUM does not know which vectors are in use: nobody may run it on tables that have some.
        let would = readers.vacuum(&folder, 0, true, true).unwrap();
        let used = would.iter().any(|path| snapshot.used.iter().any(|used| used.ends_with(path)));
        assert!(used, "deltalake keeps the vectors in use now: let the strangers of the model run it");
    }
}

/// Values that must be escaped in a path. Polars looks for the deletion vectors of such a file under another name than it has, finds none,
/// and shows the deleted rows: <https://github.com/pola-rs/polars>, seen in 2.1.0. Everybody else is right.
#[tokio::test(flavor = "multi_thread")]
async fn odd_partition_values_are_right_in_all_readers_but_polars() {
    let lake = tempfile::tempdir().unwrap();
    let folder = lake.path().join("odd");
    write_table(&folder, &["a b", "c/d", "100%", "é=&"], "PARTITIONED BY (month, supervisor_id)");
    let rows = by_spark(&folder, None).await;
    let mut readers = Readers::of_folders().unwrap();
    for reader in [Reader::DuckDb, Reader::DataFusion] {
        let content = readers.read(reader, &folder, None).unwrap();
        content.ensure_is(&rows).unwrap_or_else(|error| panic!("{reader}: {error}"));
    }
    let polars = readers.read(Reader::Polars, &folder, None).unwrap();
    let shown = polars.sorted().unwrap();
    assert!(rows.iter().all(|row| shown.binary_search(row).is_ok()), "Polars misses rows as well");
    let extra: Vec<&Row> = shown.iter().filter(|row| rows.binary_search(row).is_err()).collect();
    println!("Polars shows {} rows too many", extra.len());
    assert!(!extra.is_empty(), "Polars reads odd partition values now: take it into the readers above");
    assert!(extra.iter().all(|row| row.contains_key("supervisor_id")), "{extra:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_change_tables() {
    let lake = tempfile::tempdir().unwrap();
    let mut readers = Readers::of_folders().unwrap();
    let folder = lake.path().join("changed");
    write_table(&folder, &["anna"], "");
    let table = sql_name(&folder);
    let rows = |condition: &'static str| {
        let query = format!("SELECT count(*) FROM {} WHERE {condition}", sql_name(&lake.path().join("changed")));
        Spark::shared(|spark| spark.sql(&[&query])).unwrap()[0][0].clone().unwrap()
    };
    // Both write a parquet file first: one row that leaves, one that changes, one that is new and has a new column.
    let batch = lake.path().join("batch");
    let select = "SELECT column1 AS _id, column2 AS visits, column3 AS __deleted, column4 AS brought";
    let write = format!(
        "INSERT OVERWRITE DIRECTORY '{}' USING parquet {select} FROM VALUES ('id-1', NULL, true, NULL), ('id-2', 7000, false, NULL), ('new', 1, false, 'x') \
         AS source(column1, column2, column3, column4)",
        batch.display()
    );
    Spark::shared(|spark| {
        spark.sql(&["SELECT 1"])?;
        spark.sql(&[&write])?;
        spark.merge(&folder, &batch)
    })
    .unwrap();
    assert_eq!((rows("_id = 'id-1'"), rows("visits = 7000 AND closed IS NULL"), rows("brought = 'x'")), one_each());
    let merged_by_spark = by_spark(&folder, None).await;

    Spark::shared(|spark| spark.sql(&[&format!("RESTORE TABLE {table} TO VERSION AS OF 6")])).unwrap();
    assert_eq!(rows("_id = 'id-1'"), "1");
    readers.merge(&folder, &batch).unwrap();
    let merged_by_deltalake = by_spark(&folder, None).await;
    assert_eq!(merged_by_deltalake, merged_by_spark);
    for reader in Reader::ALL {
        readers.read(reader, &folder, None).unwrap().ensure_is(&merged_by_spark).unwrap();
    }

    readers.delete(&folder, "_id = 'id-2'").unwrap();
    readers.update(&folder, "brought", "'y'", "_id = 'new'").unwrap();
    readers.add_column(&folder, "foreign").unwrap();
    readers.optimize(&folder).unwrap();
    assert_eq!((rows("_id = 'id-2'"), rows("brought = 'y'"), rows("foreign IS NULL AND _id = 'new'")), one_each());

    Spark::shared(|spark| {
        spark.sql(&[&format!("DELETE FROM {table} WHERE _id = 'id-4'"), &format!("OPTIMIZE {table}")])?;
        spark.sql(&[&format!("VACUUM {table} RETAIN 0 HOURS")])
    })
    .unwrap();
    let left = by_spark(&folder, None).await;
    for reader in Reader::ALL {
        readers.read(reader, &folder, None).unwrap().ensure_is(&left).unwrap();
    }
    let error = format!("{:#}", readers.read(Reader::DuckDb, &folder, Some(1)).unwrap_err());
    assert!(error.contains("duckdb reads"), "{error}");
}

/// One row gone, one changed, one new.
fn one_each() -> (String, String, String) {
    ("0".into(), "1".into(), "1".into())
}

//! What is different in Spark 3.5: the calendar of old dates, which it asks for by default, and the old form of instants, which it writes by default.

use std::collections::BTreeMap;
use std::fs::File;

use chrono::{DateTime, NaiveDate};
use lake_test_kit::hostile_names::hostile_names;
use lake_test_kit::rows::new_row;
use lake_tests::engine::{
    Cell, DeletionVectors, DeltaOptions, EngineLake, NewRow, batch, space, tombstone, write_parquet,
};
use lake_tests::parts::{Spark, SparkRelease, sql_name};
use lake_tests::readers::{Inquiry, Reader, Readers, Snapshot};
use lake_writer::table_store::TableStore;
use lake_writer::table_store::column_name;
use parquet::basic::Type;
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::{TYPE, ensure_seen, expected, marking, row, told};

/// Days that calendars disagree about: the first year, the last century of the Julian calendar, its last day and the first of the Gregorian,
/// times of a place that no zone had yet, the first day of Excel (HQ's `opened_on` has it), and today's. Not the ten days that the reform left
/// out: those are read, but no condition in Spark finds them, as it takes conditions to files in Java's old calendar.
const DAYS: [&str; 10] = [
    "0001-01-01",
    "1500-02-28",
    "1582-10-04",
    "1582-10-15",
    "1677-09-21",
    "1883-11-18",
    "1899-12-30",
    "1900-01-01",
    "2024-02-29",
    "9999-12-31",
];

fn day(text: &str) -> NaiveDate {
    text.parse().unwrap()
}

/// A moment of that day, not a whole second.
fn moment(text: &str) -> Cell {
    Cell::Moment(DateTime::parse_from_rfc3339(&format!("{text}T03:04:05.678901Z")).unwrap().timestamp_micros())
}

/// One row a day; each has its day as a date, as an instant, and as the month by which a table may be partitioned.
fn rows_of_days(version: i64) -> Vec<NewRow> {
    let of = |day_text: &&str| {
        let cells = [
            ("/opened_on", moment(day_text)),
            ("/born", Cell::Date(day(day_text))),
            ("+month", Cell::Date(day(day_text))),
            ("/note", Cell::Text(format!("{version}"))),
        ];
        row(&format!("id-{day_text}"), version, cells)
    };
    DAYS.iter().map(of).collect()
}

fn by_spark_3(statements: &[&str]) -> anyhow::Result<Vec<Vec<Option<String>>>> {
    Spark::shared_of(SparkRelease::Three, |spark| spark.sql(statements))
}

#[tokio::test(flavor = "multi_thread")]
async fn days_before_1900_stop_nothing_and_are_right() {
    let mut readers = Readers::of_folders().unwrap();
    for columns in [&[] as &[&str], &["month"]] {
        // A checkpoint of each commit, so that the partitions' values are read from there.
        let lake = EngineLake::new().await.unwrap();
        let store = lake.open(&DeltaOptions { checkpoint_every_commits: 1, ..marking(columns) }).unwrap();
        store.apply(batch(&[(TYPE, rows_of_days(1))], Vec::new())).await.unwrap();
        // Half of the rows are replaced, and one leaves.
        let (mut rows, again) = (rows_of_days(1), rows_of_days(2));
        let half: Vec<NewRow> = again.into_iter().step_by(2).collect();
        half.iter().enumerate().for_each(|(number, row)| rows[number * 2] = row.clone());
        let gone = rows.remove(1).id;
        store.apply(batch(&[(TYPE, half)], vec![tombstone(&gone, Some(2), 2)])).await.unwrap();
        let (folder, table) = (lake.table(TYPE), lake.snapshot(TYPE).await.unwrap().unwrap());
        assert_eq!(told(&table, &table.rows), expected(&rows));
        assert!(folder.join("_delta_log/_last_checkpoint").exists());
        let inquiry = Inquiry::of_columns(&table, &["opened_on", "born", "month"], DAYS.len());
        assert!(
            table.hidden_rows == if columns.is_empty() { 6 } else { 0 } && inquiry.questions.len() > 40,
            "{} hidden rows",
            table.hidden_rows
        );
        let few = Inquiry { questions: inquiry.questions.iter().step_by(10).cloned().collect(), ..inquiry.clone() };
        ensure_seen(&mut readers, &Reader::QUICK, &folder, None, &inquiry, &table.rows);
        ensure_seen(&mut readers, &[Reader::Spark3], &folder, None, &few, &table.rows);
        // The place where a reader is changes nothing: its clocks went otherwise before there were zones.
        let content = Spark::shared_of(SparkRelease::Three, |spark| {
            spark.sql(&["SET TIME ZONE 'America/New_York'"])?;
            let content = spark.read(&folder, None);
            spark.sql(&["SET TIME ZONE 'UTC'"])?;
            content
        });
        content.unwrap().ensure_is(&table.rows).unwrap();
    }

    // And these days do stop Spark 3 where a file does not say of which calendar they are.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("silent.parquet");
    write_parquet(&file, &rows_of_days(1), None, column_name::natural).unwrap();
    for column in ["born", "opened_on"] {
        let select = format!("SELECT {column} FROM parquet.`{}`", file.display());
        let error = format!("{:#}", by_spark_3(&[&select]).unwrap_err());
        assert!(error.contains("READ_ANCIENT_DATETIME"), "{error}");
    }
}

/// Whether a data file of the table holds instants as INT96.
fn has_old_instants(table: &Snapshot) -> bool {
    table.used.iter().filter(|path| path.extension().is_some_and(|end| end == "parquet")).any(|path| {
        let file = SerializedFileReader::new(File::open(path).unwrap()).unwrap();
        let columns = file.metadata().file_metadata().schema_descr().columns().to_vec();
        columns.iter().any(|column| column.physical_type() == Type::INT96)
    })
}

fn opened(id: &str, version: i64, on: &str, note: &str) -> NewRow {
    let cells = [
        ("/opened_on", moment(on)),
        ("+month", Cell::Date(day(on))),
        ("/note", Cell::Text(note.to_owned())),
        ("/visits", Cell::Number(version * 10)),
    ];
    row(id, version, cells)
}

/// Spark 3 appends, deletes, updates and adds a column; what is held follows.
fn change_by_spark_3(table: &str, deletion_vectors: DeletionVectors, held: &mut BTreeMap<String, NewRow>) {
    let appended = [("new-1", "1900-01-01"), ("new-2", "1969-12-31"), ("new-3", "2024-02-29"), ("new-4", "2261-12-31")];
    let appended = appended.map(|(id, on)| opened(id, 1, on, "spark"));
    let values = appended.each_ref().map(|row| {
        let (id, month, opened_on) = (&row.id, row.cells["+month"].text(), row.cells["/opened_on"].text());
        format!(
            "('{id}', timestamp'{opened_on}', date'{month}', 'spark', 10, 1, timestamp_micros(1), timestamp_micros(1))"
        )
    });
    let columns = "_id, opened_on, month, note, visits, _lake_version, _lake_observed_at, _lake_published_at";
    let mut statements = vec![
        format!("INSERT INTO {table} ({columns}) VALUES {}", values.join(", ")),
        format!("DELETE FROM {table} WHERE _id IN ('id-03', 'new-3')"),
        format!("UPDATE {table} SET note = 'changed' WHERE _id IN ('id-04', 'id-05', 'new-1')"),
        format!("ALTER TABLE {table} ADD COLUMN foreign STRING"),
    ];
    if deletion_vectors == DeletionVectors::On {
        let allow = format!("ALTER TABLE {table} SET TBLPROPERTIES ('delta.enableDeletionVectors' = 'true')");
        statements.insert(0, allow);
    } else {
        statements.push(format!("OPTIMIZE {table}"));
    }
    by_spark_3(&statements.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    held.extend(appended.map(|row| (row.id.clone(), row)));
    held.retain(|id, _| !["id-03", "new-3"].contains(&id.as_str()));
    for id in ["id-04", "id-05", "new-1"] {
        held.get_mut(id).unwrap().cells.insert("/note".to_owned(), Cell::Text("changed".into()));
    }
}

/// Rows enter; Spark 3 changes the table; rows enter that replace its rows, and leave; then the table is compacted.
async fn goes_on_after_spark_3(deletion_vectors: DeletionVectors, columns: &[&str]) {
    let lake = EngineLake::new().await.unwrap();
    let options = DeltaOptions { deletion_vectors, ..marking(columns) };
    let store = lake.open(&options).unwrap();
    let mut held: BTreeMap<String, NewRow> = BTreeMap::new();
    let first: Vec<NewRow> = (0..20).map(|id| opened(&format!("id-{id:02}"), 1, "2024-02-29", "lake")).collect();
    held.extend(first.iter().map(|row| (row.id.clone(), row.clone())));
    store.apply(batch(&[(TYPE, first)], Vec::new())).await.unwrap();

    let folder = lake.table(TYPE);
    change_by_spark_3(&sql_name(&folder), deletion_vectors, &mut held);
    let by_spark = lake.snapshot(TYPE).await.unwrap().unwrap();
    assert_eq!(told(&by_spark, &by_spark.rows), expected(held.values()), "{options:?}");
    assert!(has_old_instants(&by_spark), "Spark 3 writes other instants by default now");
    assert_eq!(by_spark.hidden_rows > 0, deletion_vectors == DeletionVectors::On, "{options:?}");

    let second = ["id-03", "id-04", "id-10", "new-2", "new-3"].map(|id| opened(id, 2, "1899-12-30", "again"));
    held.extend(second.iter().map(|row| (row.id.clone(), row.clone())));
    held.remove("new-1");
    store.apply(batch(&[(TYPE, second.into())], vec![tombstone("new-1", Some(2), 2)])).await.unwrap();
    let mut readers = Readers::of_folders().unwrap();
    let mut ensure_right = async |whether_compacted: &str| {
        let snapshot = lake.snapshot(TYPE).await.unwrap().unwrap();
        assert_eq!(told(&snapshot, &snapshot.rows), expected(held.values()), "{options:?}, {whether_compacted}");
        let inquiry = Inquiry::of_columns(&snapshot, &["opened_on", "note"], 2);
        ensure_seen(&mut readers, &Reader::QUICK, &folder, None, &inquiry, &snapshot.rows);
        let whole = Inquiry { whole: true, ..Inquiry::default() };
        ensure_seen(&mut readers, &[Reader::Spark3], &folder, None, &whole, &snapshot.rows);
        snapshot
    };
    ensure_right("not compacted").await;
    drop(store);

    let store = lake.open(&DeltaOptions { small_files_max: 0, deleted_share_max: 0.01, ..options.clone() }).unwrap();
    store.apply(batch(&[], Vec::new())).await.unwrap();
    store.maintain(&space()).await.unwrap();
    let compacted = ensure_right("compacted").await;
    // A partition with one file is left as it is.
    assert_eq!(has_old_instants(&compacted), !columns.is_empty(), "{options:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_go_on_after_spark_3_was_there() {
    goes_on_after_spark_3(DeletionVectors::On, &[]).await;
    goes_on_after_spark_3(DeletionVectors::Off, &["month"]).await;
}

/// Spark 3 reads days before 1900, and refuses to write them unless it is told of which calendar they are. As INT96 some readers would still
/// take those before 1677 for others, so it is told to write instants as everybody does, too.
#[tokio::test(flavor = "multi_thread")]
async fn spark_3_writes_days_before_1900_when_it_is_told_how() {
    let lake = EngineLake::new().await.unwrap();
    let store = lake.open(&DeltaOptions { deletion_vectors: DeletionVectors::Off, ..marking(&[]) }).unwrap();
    let mut rows = rows_of_days(1);
    store.apply(batch(&[(TYPE, rows.clone())], Vec::new())).await.unwrap();
    let table = lake.table(TYPE);
    let update = format!("UPDATE {} SET note = 'spark' WHERE born >= '2024-01-01'", sql_name(&table));
    let error = format!("{:#}", by_spark_3(&[&update]).unwrap_err());
    assert!(error.contains("WRITE_ANCIENT_DATETIME"), "{error}");

    let settings = [
        ("spark.sql.parquet.outputTimestampType", "TIMESTAMP_MICROS"),
        ("spark.sql.parquet.datetimeRebaseModeInWrite", "CORRECTED"),
    ];
    Spark::shared_of(SparkRelease::Three, |spark| {
        for (name, value) in settings {
            spark.sql(&[&format!("SET {name} = {value}")])?;
        }
        let updated = spark.sql(&[&update]);
        for (name, _) in settings {
            spark.sql(&[&format!("RESET {name}")])?;
        }
        updated
    })
    .unwrap();
    for row in &mut rows[8..] {
        row.cells.insert("/note".to_owned(), Cell::Text("spark".into()));
    }
    let mut readers = Readers::of_folders().unwrap();
    let mut ensure_right = async |rows: &[NewRow]| {
        let snapshot = lake.snapshot(TYPE).await.unwrap().unwrap();
        assert_eq!(told(&snapshot, &snapshot.rows), expected(rows));
        for reader in Reader::QUICK.into_iter().chain([Reader::Spark3]) {
            readers.read(reader, &table, None).unwrap().ensure_is(&snapshot.rows).unwrap();
        }
    };
    ensure_right(&rows).await;
    // The lake writes the rows again that Spark has written.
    let again = rows_of_days(2).swap_remove(3);
    store.apply(batch(&[(TYPE, vec![again.clone()])], Vec::new())).await.unwrap();
    rows[3] = again;
    ensure_right(&rows).await;
}

/// Names of projects, types and properties that mean something to Spark, to Delta or to file systems.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_names_are_read_by_both_releases() {
    let lake = EngineLake::new().await.unwrap();
    let store = lake.open(&DeltaOptions { columns_max: 1_000, ..marking(&[]) }).unwrap();
    let source = |name: &str| format!("/{}", name.replace('~', "~0").replace('/', "~1"));
    let names = hostile_names().into_iter().filter(|name| name != "_id");
    let cells: BTreeMap<String, Cell> = names.map(|name| (source(&name), Cell::Text(name))).collect();
    for document_type in ["_delta_log", "month=2024-05-01", "घर/100% ?#`'"] {
        let named = NewRow { cells: cells.clone(), ..new_row(document_type, 1, &[]) };
        store.apply(batch(&[(document_type, vec![named])], Vec::new())).await.unwrap();
    }
    let mut readers = Readers::of_folders().unwrap();
    let tables = lake.tables().await.unwrap();
    assert_eq!(tables.len(), 3);
    for record in tables {
        let folder = lake.root().join(&record.path);
        let table = Snapshot::read(&folder, None).await.unwrap().unwrap();
        assert!(table.kinds.len() > 150, "{} columns", table.kinds.len());
        let whole = Inquiry { whole: true, ..Inquiry::default() };
        ensure_seen(&mut readers, &Reader::SPARKS, &folder, None, &whole, &table.rows);
    }
}

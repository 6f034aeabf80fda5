//! The same batches through the engine, through deltalake's MERGE and through Spark's: the same table, cell by cell.
//!
//! The three have nothing in common but the batches: MERGE rewrites files after a join, the engine finds rows by its index. So whatever they
//! agree about is what an upsert means.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};

use chrono::NaiveDate;
use lake_tests::engine::{
    Cell, DeletionVectors, DeltaOptions, EngineLake, LAYOUTS, NewRow, batch, partition_by, small, space, tombstone,
    write_parquet,
};
use lake_tests::parts::{Spark, sql_name};
use lake_tests::readers::{Reader, Readers, Row};
use lake_writer::table_store::TableStore;
use lake_writer::table_store::column_name;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const TYPE: &str = "person";
const BATCHES: i64 = 12;

/// What one batch does: rows that enter, ids that leave. Each id at most once.
struct Step {
    entering: Vec<NewRow>,
    leaving: Vec<String>,
}

fn cells(random: &mut StdRng, step: i64) -> BTreeMap<String, Cell> {
    let mut cells = BTreeMap::new();
    // Always there, so that a table partitioned by them can be made from the first batch.
    let month = NaiveDate::from_ymd_opt(2024, random.random_range(1..4), 1).unwrap();
    cells.insert("+month".to_owned(), Cell::Date(month));
    let supervisor = ["anna", "B-0_1.x", "0"][random.random_range(0..3)];
    cells.insert("+supervisor_id".to_owned(), Cell::Text(supervisor.to_owned()));
    cells.insert("/visits".to_owned(), Cell::Number(random.random_range(-9..9)));
    if random.random_range(0..4) == 0 {
        cells.remove(["+month", "+supervisor_id", "/visits"][random.random_range(0..3)]);
    }
    // Fields come in the course of time, and are not always there.
    for field in 0..=step {
        if random.random_range(0..3) == 0 {
            cells.insert(format!("/answers/q{field}"), Cell::Text(format!("text {}", random.random_range(0..100))));
        }
    }
    cells
}

fn step(random: &mut StdRng, number: i64) -> Step {
    let mut ids: BTreeSet<u32> = BTreeSet::new();
    for _ in 0..random.random_range(1..60) {
        ids.insert(random.random_range(0..150));
    }
    let mut step = Step { entering: Vec::new(), leaving: Vec::new() };
    for id in ids {
        let id = format!("id-{id}");
        if number > 0 && random.random_range(0..4) == 0 {
            step.leaving.push(id);
        } else {
            let version_us = 1_000 * (number + 1);
            step.entering.push(NewRow { id, version_us, observed_us: version_us, cells: cells(random, number) });
        }
    }
    step
}

/// What DuckDB sees, but for the columns that only the engine fills.
fn rows(readers: &mut Readers, reader: Reader, table: &std::path::Path) -> Vec<Row> {
    let mut rows = readers.read(reader, table, None).unwrap().sorted().unwrap();
    for row in &mut rows {
        row.remove("_lake_committed_at");
    }
    rows
}

/// One history. Spark is slow, so it takes part on request.
async fn agree(seed: u64, options: &DeltaOptions, with_spark: bool) {
    let mut random = StdRng::seed_from_u64(seed);
    let lake = EngineLake::new().await.unwrap();
    let mut store = lake.open(options).unwrap();
    let mut readers = Readers::of_folders().unwrap();
    let (ours, merged, by_spark) =
        (lake.table(TYPE), lake.scratch().join("deltalake-merge"), lake.scratch().join("spark-merge"));
    for number in 0..BATCHES {
        let step = step(&mut random, number);
        let file = lake.scratch().join("batch.parquet");
        write_parquet(&file, &step.entering, Some(&step.leaving), column_name::natural).unwrap();
        if number == 0 {
            readers.create(&merged, &file, &options.partition_by).unwrap();
            readers.create(&by_spark, &file, &options.partition_by).unwrap();
        }
        readers.merge(&merged, &file).unwrap();
        if with_spark {
            Spark::shared(|spark| spark.merge(&by_spark, &file)).unwrap();
        }
        let version_us = 1_000 * (number + 1);
        let tombstones = step.leaving.iter().map(|id| tombstone(id, Some(version_us), version_us)).collect();
        store.apply(batch(&[(TYPE, step.entering)], tombstones)).await.unwrap();
        if random.random_range(0..4) == 0 {
            store.maintain(&space()).await.unwrap();
        }
        if random.random_range(0..4) == 0 {
            store = lake.open(options).unwrap();
        }
        let expected = rows(&mut readers, Reader::DuckDb, &merged);
        assert_eq!(rows(&mut readers, Reader::DuckDb, &ours), expected, "seed {seed}, batch {number}, {options:?}");
    }
    let expected = rows(&mut readers, Reader::DuckDb, &merged);
    assert!(expected.len() > 50, "only {} rows are left", expected.len());
    for reader in [Reader::Polars, Reader::DataFusion] {
        assert_eq!(rows(&mut readers, reader, &ours), expected, "seed {seed}, {reader}, {options:?}");
    }
    if with_spark {
        assert_eq!(rows(&mut readers, Reader::Spark, &by_spark), expected, "seed {seed}, {options:?}");
        assert_eq!(rows(&mut readers, Reader::Spark, &ours), expected, "seed {seed}, {options:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn upserts_are_what_deltalake_merges() {
    for (seed, columns) in (0..6).zip(LAYOUTS.into_iter().cycle()) {
        for deletion_vectors in [DeletionVectors::On, DeletionVectors::Off] {
            let partition_by = partition_by(columns);
            let options = DeltaOptions { partition_by, deletion_vectors, columns_max: 100, ..small() };
            agree(seed, &options, false).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn upserts_are_what_spark_merges() {
    for (seed, columns) in (100..).zip(LAYOUTS) {
        let deletion_vectors = DeletionVectors::Auto;
        let partition_by = partition_by(columns);
        let options = DeltaOptions { partition_by, deletion_vectors, columns_max: 100, ..small() };
        agree(seed, &options, true).await;
    }
}

/// Spark does to a table what its owner may do; batches go on, and all readers agree about what became of it.
async fn goes_on_after(options: &DeltaOptions, supervisor: &str, by_spark: &[&str]) {
    let lake = EngineLake::new().await.unwrap();
    let store = lake.open(options).unwrap();
    let apply = async |ids: std::ops::Range<i64>, version_us: i64| {
        let rows = ids.map(|id| {
            let cells = BTreeMap::from([("+supervisor_id".to_owned(), Cell::Text(supervisor.to_owned()))]);
            NewRow { id: format!("id-{id:02}"), version_us, observed_us: version_us, cells }
        });
        store.apply(batch(&[(TYPE, rows.collect())], Vec::new())).await.unwrap();
    };
    apply(0..20, 1).await;
    apply(20..40, 1).await;
    let table = lake.table(TYPE);
    let statements: Vec<String> = by_spark.iter().map(|text| text.replace("{}", &sql_name(&table))).collect();
    let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
    Spark::shared(|spark| spark.sql(&statements)).unwrap();
    // `id-03` may be gone by now.
    apply(10..30, 2).await;
    apply(3..4, 3).await;
    let mut readers = Readers::of_folders().unwrap();
    let expected = readers.read(Reader::Spark, &table, None).unwrap().sorted().unwrap();
    let versions = |version: &str| expected.iter().filter(|row| row["_lake_version"] == version).count();
    assert_eq!((versions("1"), versions("2"), versions("3"), expected.len()), (19, 20, 1, 40), "{by_spark:?}");
    for reader in Reader::ALL {
        let content = readers.read(reader, &table, None).unwrap();
        content.ensure_is(&expected).unwrap_or_else(|error| panic!("{reader}, {by_spark:?}: {error}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_go_on_after_spark_was_there() {
    let options = |columns: &[&str], deletion_vectors| DeltaOptions {
        partition_by: partition_by(columns),
        deletion_vectors,
        small_files_max: 1_000,
        overlap_max: 1_000,
        ..small()
    };
    let allow = "ALTER TABLE {} SET TBLPROPERTIES ('delta.enableDeletionVectors' = 'true')";
    let delete = "DELETE FROM {} WHERE _id = 'id-03'";
    let optimize = "OPTIMIZE {}";
    goes_on_after(&options(&[], DeletionVectors::Off), "anna", &[allow, delete]).await;
    goes_on_after(&options(&[], DeletionVectors::On), "anna", &[allow, delete]).await;
    for supervisor in ["ü", "a b/é"] {
        goes_on_after(&options(&["supervisor_id"], DeletionVectors::Off), supervisor, &[optimize]).await;
    }
}

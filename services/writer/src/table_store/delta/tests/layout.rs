//! Layouts: partitions, odd values, wide tables, and the order of rows within files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

use arrow::array::{Array, AsArray};
use lake_test_kit::rows::ODD_TEXTS;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

use super::lake::{Cell, Lake, NewRow, batch, new_row, numbered, numbered_id, space, tombstone, versions};
use super::log::Log;
use crate::table_store::TableStore;
use crate::table_store::delta::{DeletionVectors, DeltaOptions};

/// Rows are marked; nothing is compacted.
pub(super) fn options() -> DeltaOptions {
    DeltaOptions {
        deletion_vectors: DeletionVectors::On,
        small_files_max: 1_000,
        deleted_share_max: 1.0,
        overlap_max: 1_000,
        ..DeltaOptions::default()
    }
}

fn partitioned() -> DeltaOptions {
    DeltaOptions { partition_by: vec!["month".into(), "supervisor_id".into()], ..options() }
}

/// Month, supervisor and id of the rows of a data file, as far as they are in it.
pub(super) fn keys_in_order(path: &Path) -> Vec<(Option<String>, Option<String>, String)> {
    let mut keys = Vec::new();
    for batch in ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap().build().unwrap() {
        let batch = batch.unwrap();
        let text = |name: &str, row: usize| {
            let array = batch.column_by_name(name)?.as_string::<i32>();
            array.is_valid(row).then(|| array.value(row).to_owned())
        };
        keys.extend(
            (0..batch.num_rows())
                .map(|row| (text("month", row), text("supervisor_id", row), text("_id", row).unwrap())),
        );
    }
    keys
}

/// Odd texts, texts that are too long for the name of a folder, and the name that Hive gives to the folder of NULL.
fn odd_values() -> Vec<String> {
    let long = ["x".repeat(300), "ü/".repeat(150), "x".repeat(299) + "y"];
    ODD_TEXTS.into_iter().chain(["__HIVE_DEFAULT_PARTITION__"]).map(str::to_owned).chain(long).collect()
}

fn supervised(n: usize, version_us: i64, month: Option<&str>, supervisor: Option<&str>) -> NewRow {
    let cells = [("+month", month), ("+supervisor_id", supervisor)];
    let cells: Vec<(&str, &str)> = cells.into_iter().filter_map(|(source, text)| Some((source, text?))).collect();
    new_row(&numbered_id(n), version_us, &cells)
}

#[tokio::test]
async fn odd_partition_values_are_kept_and_found_again() {
    let lake = Lake::new().await;
    let values = odd_values();
    let rows = |version: i64| {
        let both = values.iter().enumerate().flat_map(|(n, value)| {
            [
                supervised(2 * n, version, Some("2024-01-01"), Some(value)),
                supervised(2 * n + 1, version, None, Some(value)),
            ]
        });
        let nulls = [supervised(900, version, Some("2024-01-01"), None), supervised(901, version, None, None)];
        both.chain(nulls).collect::<Vec<_>>()
    };
    let store = lake.open(partitioned());
    store.apply(batch(&[("t", rows(1))], vec![])).await.unwrap();
    let log = Log::of(&lake, "t");
    let partitions: BTreeSet<String> = log.active().values().map(|add| add["partitionValues"].to_string()).collect();
    assert_eq!((log.active().len(), partitions.len()), (2 * values.len() + 2, 2 * values.len() + 2));
    let check = async |version: i64| {
        let read = lake.read("t").await;
        assert_eq!(read.len(), 2 * values.len() + 2);
        for (n, value) in values.iter().enumerate() {
            for (id, month) in [(2 * n, Some("2024-01-01")), (2 * n + 1, None)] {
                let row = &read[&numbered_id(id)];
                assert_eq!(row.get("+supervisor_id"), Some(value));
                assert_eq!(row.get("+month").map(String::as_str), month, "{value}");
                assert_eq!(row["+_lake_version"], version.to_string(), "{value}");
            }
        }
        assert_eq!(read[&numbered_id(900)].get("+supervisor_id"), None);
        assert_eq!(
            (read[&numbered_id(901)].get("+month"), read[&numbered_id(901)].get("+supervisor_id")),
            (None, None)
        );
    };
    check(1).await;
    assert!(store.apply(batch(&[("t", rows(1))], vec![])).await.unwrap().tables.is_empty());
    store.apply(batch(&[("t", rows(2))], vec![])).await.unwrap();
    check(2).await;
    drop(store);
    // An index that is built out of the files, and the clean-up.
    let store = lake.open_elsewhere(DeltaOptions { retention_hours: 0, orphan_hours: 0, ..partitioned() });
    assert!(store.apply(batch(&[("t", rows(2))], vec![])).await.unwrap().tables.is_empty());
    store.maintain(&space()).await.unwrap();
    check(2).await;
    assert_eq!(log.files("parquet").len(), 2 * values.len() + 2);
    store.apply(batch(&[("t", rows(3))], vec![])).await.unwrap();
    check(3).await;
}

#[tokio::test]
async fn a_row_moves_to_another_partition() {
    for deletion_vectors in [DeletionVectors::On, DeletionVectors::Off] {
        let lake = Lake::new().await;
        let store = lake.open(DeltaOptions { deletion_vectors, ..partitioned() });
        let rows = (0..20).map(|n| supervised(n, 1, Some("2024-01-01"), Some(["s0", "s1"][n % 2]))).collect();
        store.apply(batch(&[("t", rows)], vec![])).await.unwrap();
        let remapped_deletes = vec![
            supervised(0, 2, Some("2024-02-01"), Some("s0")),
            supervised(1, 2, None, Some("s1")),
            supervised(2, 2, Some("2024-01-01"), Some("s1")),
            supervised(3, 2, Some("2024-01-01"), Some("new / one")),
        ];
        let applied = store.apply(batch(&[("t", remapped_deletes)], vec![])).await.unwrap();
        assert_eq!((applied.tables[0].rows_upserted, applied.tables[0].rows_total), (4, 20));
        let read = lake.read("t").await;
        let of = |n: usize| {
            let row = &read[&numbered_id(n)];
            ["+month", "+supervisor_id"].map(|source| row.get(source).map(String::as_str))
        };
        assert_eq!(of(0), [Some("2024-02-01"), Some("s0")]);
        assert_eq!(of(1), [None, Some("s1")]);
        assert_eq!(of(2), [Some("2024-01-01"), Some("s1")]);
        assert_eq!(of(3), [Some("2024-01-01"), Some("new / one")]);
        // And back, where the partitions that it leaves become empty.
        let back = (0..4).map(|n| supervised(n, 3, Some("2024-01-01"), Some(["s0", "s1"][n % 2]))).collect();
        store.apply(batch(&[("t", back)], vec![])).await.unwrap();
        let active = Log::of(&lake, "t").active();
        let months: BTreeSet<String> = active.values().map(|add| add["partitionValues"]["month"].to_string()).collect();
        assert_eq!((months.len(), lake.read("t").await.len()), (1, 20));
    }
}

/// Polars does not find the vectors of files in folders with escaped characters and shows deleted rows.
#[tokio::test]
async fn a_file_in_an_escaped_folder_never_gets_a_vector() {
    let lake = Lake::new().await;
    let store = lake.open(partitioned());
    let values = odd_values();
    let rows = |ids: std::ops::Range<usize>, version: i64| {
        let row = |n: usize| supervised(n, version, Some("2024-01-01"), Some(&values[n % values.len()]));
        ids.map(row).collect::<Vec<_>>()
    };
    let all = 4 * values.len();
    store.apply(batch(&[("t", rows(0..all, 1))], vec![])).await.unwrap();
    let gone = (0..values.len()).map(|n| tombstone(&numbered_id(n), None, 5)).collect();
    store.apply(batch(&[("t", rows(values.len()..2 * values.len(), 2))], gone)).await.unwrap();
    let log = Log::of(&lake, "t");
    let mut marked = BTreeSet::new();
    for version in log.versions() {
        for add in log.actions(version, "add") {
            if !add.get("deletionVector").is_none_or(Value::is_null) {
                assert!(!add["path"].as_str().unwrap().contains(['%', '~']), "{}", add["path"]);
                marked.insert(add["partitionValues"]["supervisor_id"].as_str().unwrap().to_owned());
            }
        }
    }
    let plain: BTreeSet<String> =
        ["plain", "Plain", "PLAIN", "__HIVE_DEFAULT_PARTITION__", "..", "."].map(str::to_owned).into();
    assert!(marked.is_subset(&plain) && marked.contains("plain"), "{marked:?}");
    let read = lake.read("t").await;
    assert_eq!(read.len(), all - values.len());
    assert!((values.len()..2 * values.len()).all(|n| versions(&read)[numbered_id(n).as_str()] == 2));
}

#[tokio::test]
async fn thousands_of_partitions_in_one_batch() {
    let lake = Lake::new().await;
    let store = lake.open(partitioned());
    let rows = |ids: std::ops::Range<usize>, version: i64| {
        let row = |n: usize| {
            supervised(n, version, Some(["2024-01-01", "2024-02-01"][n % 2]), Some(&format!("s{}", n % 2_000 / 2)))
        };
        ids.map(row).collect::<Vec<_>>()
    };
    let applied = store.apply(batch(&[("t", rows(0..4_000, 1))], vec![])).await.unwrap();
    assert_eq!((applied.tables[0].files, applied.tables[0].rows_total, applied.tables[0].version), (2_000, 4_000, 0));
    let log = Log::of(&lake, "t");
    assert_eq!(
        log.active().values().map(|add| add["partitionValues"].to_string()).collect::<BTreeSet<_>>().len(),
        2_000
    );
    let applied = store.apply(batch(&[("t", rows(0..2_000, 2))], vec![])).await.unwrap();
    assert_eq!((applied.tables[0].files, applied.tables[0].rows_total, applied.tables[0].version), (4_000, 4_000, 1));
    assert_eq!((log.files("bin").len(), log.deleted_rows()), (1, 2_000));
    let read = lake.read("t").await;
    assert!(read.len() == 4_000 && versions(&read)["id-01999"] == 2 && versions(&read)["id-02000"] == 1);
    assert!(store.apply(batch(&[("t", rows(0..4_000, 1))], vec![])).await.unwrap().tables.is_empty());
}

#[tokio::test]
async fn tables_are_two_thousand_columns_wide() {
    let lake = Lake::new().await;
    let store = lake.open(DeltaOptions { deleted_share_max: 0.3, ..options() });
    let sources: Vec<String> = (0..2_050).map(|n| format!("/group/question_{n}")).collect();
    let wide = |n: usize, version: i64, columns: std::ops::Range<usize>| {
        let texts: Vec<String> = columns.clone().map(|column| format!("{n}.{column}.{version}")).collect();
        let cells: Vec<(&str, &str)> =
            sources[columns].iter().zip(&texts).map(|(source, text)| (source.as_str(), text.as_str())).collect();
        new_row(&numbered_id(n), version, &cells)
    };
    store.apply(batch(&[("t", vec![wide(0, 1, 0..2_050), wide(1, 1, 0..2_050)])], vec![])).await.unwrap();
    let log = Log::of(&lake, "t");
    let schema: Value = serde_json::from_str(log.newest("metaData")["schemaString"].as_str().unwrap()).unwrap();
    assert_eq!(schema["fields"].as_array().unwrap().len(), 2_000);
    // A narrow batch makes a narrow file.
    store.apply(batch(&[("t", vec![wide(1, 2, 5..8), wide(2, 2, 7..9)])], vec![])).await.unwrap();
    let narrow = log.actions(1, "add").into_iter().find(|add| add["deletionVector"].is_null()).unwrap();
    let file = File::open(log.folder.join(narrow["path"].as_str().unwrap())).unwrap();
    assert!(ParquetRecordBatchReaderBuilder::try_new(file).unwrap().schema().fields().len() < 12);
    let check = async || {
        let read = lake.read("t").await;
        let overflow: BTreeMap<String, String> = serde_json::from_str(&read["id-00000"]["+_lake_overflow"]).unwrap();
        for (n, source) in sources.iter().enumerate() {
            let shown = read["id-00000"].get(source).or_else(|| overflow.get(source)).unwrap();
            assert_eq!(shown, &format!("0.{n}.1"));
        }
        let of = |id: &str, column: usize| read[id].get(&sources[column]).map(String::as_str);
        assert_eq!((of("id-00001", 4), of("id-00001", 5), of("id-00001", 8)), (None, Some("1.5.2"), None));
        assert_eq!((of("id-00002", 8), of("id-00002", 9), read.len()), (Some("2.8.2"), None, 3));
    };
    check().await;
    let compacted = store.compact(&space()).await.unwrap();
    assert_eq!((compacted.files_before, Log::of(&lake, "t").deleted_rows()), (1, 0));
    check().await;
}

#[tokio::test]
async fn names_that_differ_by_case_are_columns_of_their_own() {
    let lake = Lake::new().await;
    for options in [options(), DeltaOptions { deletion_vectors: DeletionVectors::Off, ..options() }] {
        let store = lake.open_elsewhere(options);
        let names =
            ["/Name", "/name", "/NAME", "/n\u{e4}me", "/N\u{c4}ME", "/a/b", "/a__b", "/A/B", "/domain", "/Domain"];
        for round in 0..3_i64 {
            let texts: Vec<String> = names.iter().map(|name| format!("{name} {round}")).collect();
            let cells: Vec<(&str, &str)> = names.into_iter().zip(texts.iter().map(String::as_str)).collect();
            store
                .apply(batch(
                    &[("t", vec![new_row("a", round, &cells), new_row("b", round, &cells[round as usize..])])],
                    vec![],
                ))
                .await
                .unwrap();
        }
        let read = lake.read("t").await;
        for (n, name) in names.into_iter().enumerate() {
            assert_eq!(read["a"][name], format!("{name} 2"));
            assert_eq!(read["b"].get(name).cloned(), (n >= 2).then(|| format!("{name} 2")));
        }
        let schema: Value =
            serde_json::from_str(Log::of(&lake, "t").newest("metaData")["schemaString"].as_str().unwrap()).unwrap();
        let columns: Vec<String> = schema["fields"]
            .as_array()
            .unwrap()
            .iter()
            .map(|field| field["name"].as_str().unwrap().to_lowercase())
            .collect();
        assert_eq!(columns.iter().collect::<BTreeSet<_>>().len(), columns.len(), "{columns:?}");
        drop(store);
        std::fs::remove_dir_all(lake.table_folder("t")).unwrap();
    }
}

#[tokio::test]
async fn a_column_of_a_partitioned_table_changes_its_type() {
    let lake = Lake::new().await;
    let store = lake.open(partitioned());
    let row = |n: usize, version: i64, cell: Cell| {
        let mut row = supervised(n, version, Some("2024-01-01"), Some(["s0", "a b", "s2"][n % 3]));
        row.cells.insert("/n".into(), cell);
        row
    };
    let numbers = |ids: std::ops::Range<usize>, version| ids.map(|n| row(n, version, Cell::Number(n as i64))).collect();
    store.apply(batch(&[("t", numbers(0..30, 1))], vec![])).await.unwrap();
    store.apply(batch(&[("t", numbers(0..6, 2))], vec![])).await.unwrap();
    let log = Log::of(&lake, "t");
    let (before, version) = (lake.read("t").await, log.latest());
    let old: BTreeSet<String> = log.active().into_keys().collect();
    store.apply(batch(&[("t", vec![row(1, 3, Cell::Text("007".into()))])], vec![])).await.unwrap();
    assert_eq!(log.latest(), version + 1, "one commit");
    assert!(log.active().keys().all(|path| !old.contains(path)), "all files are written anew");
    assert_eq!((log.deleted_rows(), log.active().len()), (0, 3));
    let read = lake.read("t").await;
    for (id, row) in &before {
        let expected = if *id == numbered_id(1) { "007" } else { row["/n"].as_str() };
        assert_eq!(read[id]["/n"], expected);
        assert_eq!(read[id].get("+supervisor_id"), row.get("+supervisor_id"));
    }
    assert_eq!(lake.read_at("t", Some(version)).await, before, "time travel has the old type");
    assert!(store.apply(batch(&[("t", numbers(6..30, 1))], vec![])).await.unwrap().tables.is_empty());
    store.apply(batch(&[("t", numbers(0..30, 4))], vec![])).await.unwrap();
    assert_eq!(lake.read("t").await["id-00001"]["/n"], "1");
}

#[tokio::test]
async fn rows_are_sorted_within_their_file() {
    let lake = Lake::new().await;
    let store = lake.open(options());
    let odd = (200..220).map(|n| supervised(n, 1, ["2024-03-01"].get(n % 2).copied(), ["s1"].get(n % 3).copied()));
    let rows = (0..200).rev().flat_map(|n| numbered([n], 1)).chain(odd).collect();
    let applied = store.apply(batch(&[("t", rows)], vec![])).await.unwrap();
    assert_eq!(applied.tables[0].files, 1, "one file for one commit");
    let log = Log::of(&lake, "t");
    let keys = keys_in_order(&log.folder.join(log.active().keys().next().unwrap()));
    assert!(keys.is_sorted() && keys.len() == 220);
    assert_eq!((&keys[0].0, &keys[0].1), (&None, &None));
}

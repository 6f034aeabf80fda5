//! Flushes of several messages that differ in their fields, put together by the order of their rows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, NullArray, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int32Type, Schema};
use arrow::record_batch::RecordBatch;
use serde_json::Value;

use super::lake::{Cell, Lake, NewRow, ReadRow, new_row, numbered_id, record_batch, small, space};
use super::layout::{keys_in_order, options};
use super::log::Log;
use crate::table_store::delta::files::data_file;
use crate::table_store::delta::{DeletionVectors, DeltaOptions};
use crate::table_store::{Applied, SpaceBatch, TableRows, TableStore};

/// The messages of a flush.
async fn flush(store: &impl TableStore, messages: Vec<RecordBatch>) -> Applied {
    let upserts = vec![TableRows { document_type: "t".into(), rows: messages }];
    store.apply(SpaceBatch { space: space(), upserts, tombstones: vec![] }).await.unwrap()
}

/// A message with another column, whatever its type.
fn with(message: RecordBatch, source: &str, array: ArrayRef) -> RecordBatch {
    let mut fields = message.schema().fields().to_vec();
    fields.push(Arc::new(Field::new(source, array.data_type().clone(), true)));
    let arrays = message.columns().iter().cloned().chain([array]).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap()
}

fn with_nothing_in(message: RecordBatch, source: &str) -> RecordBatch {
    let rows = message.num_rows();
    with(message, source, Arc::new(NullArray::new(rows)))
}

fn numbers(id: &str, version_us: i64, number: i64) -> NewRow {
    NewRow { cells: [("/n".to_owned(), Cell::Number(number))].into(), ..new_row(id, version_us, &[]) }
}

/// What a reader has to see of rows.
fn expected<'a>(rows: impl IntoIterator<Item = &'a NewRow>) -> BTreeMap<String, ReadRow> {
    let row = |row: &NewRow| {
        let cells = row.cells.iter().map(|(source, cell)| (source.clone(), cell.text()));
        let version = ("+_lake_version".to_owned(), row.version_us.to_string());
        (row.id.clone(), cells.chain([("/_id".to_owned(), row.id.clone()), version]).collect())
    };
    rows.into_iter().map(row).collect()
}

/// What a reader sees, times aside.
async fn read(lake: &Lake) -> BTreeMap<String, ReadRow> {
    let mut read = lake.read("t").await;
    for row in read.values_mut() {
        assert!(row.contains_key("+_lake_committed_at") && row.contains_key("+_lake_observed_at"));
        row.retain(|source, _| !source.starts_with("+_lake_") || source == "+_lake_version");
    }
    read
}

fn type_of(lake: &Lake, column: &str) -> String {
    let log = Log::of(lake, "t");
    let schema: Value = serde_json::from_str(log.newest("metaData")["schemaString"].as_str().unwrap()).unwrap();
    let field = schema["fields"].as_array().unwrap().iter().find(|field| field["name"] == column).unwrap();
    field["type"].as_str().unwrap().to_owned()
}

const MESSAGES: usize = 37;
const QUESTIONS: usize = 11;

/// A row whose message has a third of the columns, a third of them NULL; month and supervisor are spread over all messages.
fn answered(n: usize, version_us: i64) -> NewRow {
    let message = n % MESSAGES;
    let mut cells: Vec<(String, String)> = (0..QUESTIONS)
        .filter(|question| (message + question).is_multiple_of(3) && !(n / MESSAGES + question).is_multiple_of(3))
        .map(|question| (format!("/q{question}"), format!("{n} {question} {version_us}")))
        .collect();
    if !n.is_multiple_of(5) {
        cells.push(("+month".into(), format!("2024-{:02}-01", n * 7 % 12 + 1)));
    }
    if !n.is_multiple_of(7) {
        cells.push(("+supervisor_id".into(), format!("s{}", n * 13 % 101)));
    }
    let cells: Vec<(&str, &str)> = cells.iter().map(|(source, text)| (source.as_str(), text.as_str())).collect();
    let row = new_row(&numbered_id(n), version_us, &cells);
    let number = message.is_multiple_of(2).then(|| ("/n".to_owned(), Cell::Number(n as i64)));
    NewRow { cells: row.cells.into_iter().chain(number).collect(), ..row }
}

/// The rows in their messages. Every third says nothing about a column that others have.
fn messages(rows: &[NewRow]) -> Vec<RecordBatch> {
    let number = |row: &NewRow| row.id.trim_start_matches("id-").parse::<usize>().unwrap();
    let of_message = |message: usize| rows.iter().filter(move |row| number(row) % MESSAGES == message);
    let messages = (0..MESSAGES).map(|message| (message, of_message(message).cloned().collect::<Vec<_>>()));
    let made = messages.filter(|(_, rows)| !rows.is_empty()).map(|(message, rows)| {
        let made = record_batch(&rows);
        if message % 3 == 1 { with_nothing_in(made, "/q0") } else { made }
    });
    made.collect()
}

#[tokio::test]
async fn rows_of_many_messages_are_put_together_slice_by_slice() {
    let lake = Lake::new().await;
    let store = lake.open(options());
    let mut rows: Vec<NewRow> = (0..20_000).map(|n| answered(n, 5)).collect();
    assert!(rows.len() > 2 * data_file::ROWS_AT_ONCE);
    // Some rows come twice, the newer or the older one first.
    let again: Vec<NewRow> = (0..20_000).step_by(17).map(|n| answered(n, 4 + (n % 2 * 2) as i64)).collect();
    let mut arriving = messages(&rows);
    arriving.insert(MESSAGES / 2, record_batch(&again));
    let applied = flush(&store, arriving).await;
    assert_eq!((applied.tables[0].files, applied.tables[0].rows_upserted), (1, 20_000));
    for row in again.into_iter().filter(|row| row.version_us > 5) {
        let n: usize = row.id.trim_start_matches("id-").parse().unwrap();
        rows[n] = row;
    }
    assert_eq!(read(&lake).await, expected(&rows));
    let log = Log::of(&lake, "t");
    let keys = keys_in_order(&log.folder.join(log.active().keys().next().unwrap()));
    assert!(keys.is_sorted() && keys.len() == 20_000);

    // The index says where each row stands: what is replaced is marked, and nothing else.
    for n in (0..20_000).step_by(41) {
        rows[n] = answered(n, 9);
    }
    let newer: Vec<NewRow> = (0..20_000).step_by(41).map(|n| rows[n].clone()).collect();
    let applied = flush(&store, messages(&newer)).await;
    assert_eq!((applied.tables[0].files, applied.tables[0].rows_total), (2, 20_000));
    assert_eq!(read(&lake).await, expected(&rows));
    // Copied rows and new ones together in one file.
    drop(store);
    let store = lake.open(DeltaOptions { deletion_vectors: DeletionVectors::Off, ..options() });
    for n in (0..20_000).step_by(1_000) {
        rows[n] = answered(n, 10);
    }
    let newer: Vec<NewRow> = (0..20_000).step_by(1_000).map(|n| rows[n].clone()).collect();
    flush(&store, messages(&newer)).await;
    assert_eq!(read(&lake).await, expected(&rows));
    assert!(flush(&store, messages(&rows)).await.tables.is_empty());
}

#[tokio::test]
async fn big_flushes_fill_several_files_and_every_row_is_found_again() {
    let lake = Lake::new().await;
    let store = lake.open(DeltaOptions { columns_max: 100, copy_on_write_below_bytes: 0, ..small() });
    let mut rows: Vec<NewRow> = (0..20_000).map(|n| answered(n, 5)).collect();
    let applied = flush(&store, messages(&rows)).await;
    assert!(applied.tables[0].files > 3, "{} files", applied.tables[0].files);
    for n in (0..20_000).step_by(29) {
        rows[n] = answered(n, 6);
    }
    let newer: Vec<NewRow> = (0..20_000).step_by(29).map(|n| rows[n].clone()).collect();
    assert_eq!(flush(&store, messages(&newer)).await.tables[0].rows_total, 20_000);
    assert_eq!(read(&lake).await, expected(&rows));
}

#[tokio::test]
async fn one_message_turns_a_column_to_text_while_another_has_its_old_type() {
    let lake = Lake::new().await;
    let store = lake.open(options());
    let before: Vec<NewRow> = (0..10).map(|n| numbers(&numbered_id(n), 1, n as i64)).collect();
    flush(&store, vec![record_batch(&before)]).await;
    assert_eq!(type_of(&lake, "n"), "long");
    let numeric: Vec<NewRow> = (5..12).map(|n| numbers(&numbered_id(n), 2, 100 + n as i64)).collect();
    let texts = [new_row(&numbered_id(3), 2, &[("/n", "007")]), new_row(&numbered_id(20), 2, &[("/n", "8")])];
    let silent = [new_row(&numbered_id(4), 2, &[("/m", "x")]), new_row(&numbered_id(21), 2, &[])];
    let arriving = vec![
        record_batch(&numeric),
        with_nothing_in(record_batch(&silent), "/n"),
        record_batch(&texts),
        record_batch(&[new_row("z", 2, &[])]),
    ];
    flush(&store, arriving).await;
    assert_eq!(type_of(&lake, "n"), "string");
    let other = [new_row("z", 2, &[])];
    let rows = before[..3].iter().chain(&numeric).chain(&texts).chain(&silent).chain(&other);
    assert_eq!(read(&lake).await, expected(rows));
}

#[tokio::test]
async fn a_new_column_takes_what_several_messages_bring() {
    let lake = Lake::new().await;
    let store = lake.open(options());
    let one = [numbers("a", 1, 12), numbers("c", 1, -3)];
    let other = [new_row("b", 1, &[("/n", "five"), ("/kind", "x")]), new_row("d", 1, &[("/n", "6")])];
    let kinds: DictionaryArray<Int32Type> = [Some("y"), None, Some("z")].into_iter().collect();
    let coded = ["e", "f", "g"].map(|id| new_row(id, 1, &[]));
    let coded_message = with(record_batch(&coded), "/kind", Arc::new(kinds));
    let large = cast(&StringArray::from(vec![Some("w")]), &DataType::LargeUtf8).unwrap();
    let large_message = with(record_batch(&[new_row("bb", 1, &[])]), "/kind", large);
    flush(&store, vec![coded_message, record_batch(&one), large_message, record_batch(&other)]).await;
    assert_eq!((type_of(&lake, "n"), type_of(&lake, "kind")), ("string".into(), "string".into()));
    let read = read(&lake).await;
    let of = |source: &str| {
        let shown = read.iter().filter_map(|(id, row)| Some(format!("{id}={}", row.get(source)?)));
        shown.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(of("/n"), "a=12 b=five c=-3 d=6");
    assert_eq!(of("/kind"), "b=x bb=w e=y g=z");
    assert_eq!(read.len(), 8);
}

#[tokio::test]
async fn a_row_that_does_not_enter_has_no_say_in_the_types() {
    let lake = Lake::new().await;
    let store = lake.open(options());
    flush(&store, vec![record_batch(&[numbers("a", 5, 1), numbers("b", 5, 2)])]).await;
    // The older row of `a` is refused; its text is no number. Neither is that of the one of two that loses.
    let older =
        [new_row("a", 4, &[("/n", "many"), ("/seen", "no")]), new_row("b", 6, &[("/n", "22"), ("/seen", "yes")])];
    let twice = [new_row("c", 5, &[("/n", "none")]), new_row("c", 6, &[("/n", "33")])];
    let mut late = new_row("a", 3, &[]);
    late.version_us = 99_000_000;
    let applied = flush(&store, vec![record_batch(&older), record_batch(&twice), record_batch(&[late])]).await;
    assert_eq!(applied.tables[0].newest_published_us, Some(6), "of the rows that enter");
    assert_eq!(type_of(&lake, "n"), "long");
    let read = read(&lake).await;
    let shown: Vec<(&str, &str)> = read.iter().map(|(id, row)| (id.as_str(), row["/n"].as_str())).collect();
    assert_eq!(shown, [("a", "1"), ("b", "22"), ("c", "33")]);
    assert_eq!((read["a"].get("/seen"), read["b"]["/seen"].as_str()), (None, "yes"));
}

#[tokio::test]
async fn partitions_of_text_are_gathered_from_all_messages() {
    let lake = Lake::new().await;
    let by = vec!["supervisor_id".to_owned(), "kind".to_owned()];
    let store = lake.open(DeltaOptions { partition_by: by, ..options() });
    let values = [None, Some(""), Some("a"), Some("b")];
    let row = |n: usize, version_us: i64| {
        let cells = [("+supervisor_id", values[n % 4]), ("/kind", values[n / 4 % 4])];
        let text = format!("{n} {version_us}");
        let cells: Vec<(&str, &str)> = cells
            .iter()
            .filter_map(|(source, text)| Some((*source, (*text)?)))
            .chain([("/text", text.as_str())])
            .collect();
        new_row(&numbered_id(n), version_us, &cells)
    };
    // An empty text is NULL as a partition value.
    let shown = |rows: &[NewRow]| {
        let mut shown = expected(rows);
        shown.values_mut().for_each(|row| row.retain(|_, text| !text.is_empty()));
        shown
    };
    let mut rows: Vec<NewRow> = (0..400).map(|n| row(n, 1)).collect();
    let arriving = |rows: &[NewRow]| rows.chunks(23).map(record_batch).collect::<Vec<_>>();
    flush(&store, arriving(&rows)).await;
    let log = Log::of(&lake, "t");
    let partitions: BTreeSet<String> = log.active().values().map(|add| add["partitionValues"].to_string()).collect();
    assert_eq!((log.active().len(), partitions.len()), (9, 9), "one file a partition");
    assert_eq!(read(&lake).await, shown(&rows));
    for n in (0..400).step_by(3) {
        rows[n] = row(n, 2);
    }
    let newer: Vec<NewRow> = (0..400).step_by(3).map(|n| rows[n].clone()).collect();
    flush(&store, arriving(&newer)).await;
    assert_eq!(read(&lake).await, shown(&rows));
    // Messages without the partition columns.
    let bare = [new_row(&numbered_id(1), 3, &[("/text", "bare")])];
    flush(&store, vec![record_batch(&bare)]).await;
    rows[1] = bare[0].clone();
    assert_eq!(read(&lake).await, shown(&rows));
}

#[tokio::test]
async fn what_overflows_is_kept_whichever_message_brings_it() {
    let lake = Lake::new().await;
    let store = lake.open(DeltaOptions { columns_max: 10, ..options() });
    let cells = |tie_breakers_needed: std::ops::Range<usize>| {
        tie_breakers_needed.map(|n| (format!("/p{n}"), format!("v{n}"))).collect::<Vec<_>>()
    };
    let row = |id: &str, version_us: i64, tie_breakers_needed: std::ops::Range<usize>| {
        let cells = cells(tie_breakers_needed);
        let cells: Vec<(&str, &str)> = cells.iter().map(|(source, text)| (source.as_str(), text.as_str())).collect();
        new_row(id, version_us, &cells)
    };
    let first = [row("c", 2, 0..9), row("a", 2, 0..2), row("c", 1, 0..12)];
    let second = [row("b", 2, 20..24), row("d", 2, 0..1)];
    flush(&store, vec![record_batch(&first), record_batch(&second)]).await;
    let read = read_with_overflow(&lake).await;
    for (id, tie_breakers_needed) in [("a", 0..2), ("b", 20..24), ("c", 0..9), ("d", 0..1)] {
        let shown: Vec<(String, String)> = read[id]
            .iter()
            .filter(|(source, _)| source.starts_with("/p"))
            .map(|(a, b)| (a.clone(), b.clone()))
            .collect();
        let mut wanted = cells(tie_breakers_needed);
        wanted.sort();
        assert_eq!(shown, wanted, "{id}");
    }
}

async fn read_with_overflow(lake: &Lake) -> BTreeMap<String, ReadRow> {
    let mut read = lake.read("t").await;
    for row in read.values_mut() {
        if let Some(overflow) = row.remove("+_lake_overflow") {
            let overflow: ReadRow = serde_json::from_str(&overflow).unwrap();
            row.extend(overflow);
        }
    }
    read
}

#[test]
fn slices_of_wide_tables_have_fewer_rows() {
    assert_eq!(data_file::rows_at_once(20), data_file::ROWS_AT_ONCE);
    assert!((2_000..2_200).contains(&data_file::rows_at_once(2_000)));
    assert_eq!((data_file::rows_at_once(0), data_file::rows_at_once(usize::MAX)), (data_file::ROWS_AT_ONCE, 1));
}

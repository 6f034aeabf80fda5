//! Merging, sorting, keys and positions against a naive model.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use arrow::array::{
    Array, ArrayRef, BooleanArray, Date32Array, Float64Array, Int64Array, RecordBatch, RecordBatchOptions, StringArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use futures::stream::{self, StreamExt, TryStreamExt};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use roaring::RoaringBitmap;

use crate::compaction::{ClusterKeys, ColumnBounds, Input, MergeError, Merged, PositionMap, Source, merge, sorted};
use crate::key_index::{Position, RowNumber};

const ODD: [&str; 9] =
    ["", "a", "a\0", "a\0b", "aa", "é", "\u{10ffff}", "Z", "a longer text that needs more than one block of 32"];

/// Nothing here waits for anything, so polling again is enough.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return output;
        }
    }
}

fn sort_by() -> Vec<String> {
    ["month", "supervisor_id", "_id"].map(str::to_owned).to_vec()
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("_id", DataType::Utf8, true),
        Field::new("number", DataType::Int64, true),
        Field::new("month", DataType::Date32, true),
        Field::new("flag", DataType::Boolean, true),
        Field::new("supervisor_id", DataType::Utf8, true),
        Field::new("ratio", DataType::Float64, true),
    ]))
}

/// A file with random columns of the schema and one that is not in it.
fn file(rng: &mut StdRng, rows: usize, sort: bool) -> RecordBatch {
    let maybe = |rng: &mut StdRng| rng.random_bool(0.8);
    let texts = |rng: &mut StdRng, few: bool| -> ArrayRef {
        let text = |rng: &mut StdRng| {
            if few { ODD[rng.random_range(0..ODD.len())].to_owned() } else { rng.random_range(0..10_000).to_string() }
        };
        Arc::new((0..rows).map(|_| maybe(rng).then(|| text(rng))).collect::<StringArray>())
    };
    let mut columns: Vec<(String, ArrayRef)> = vec![("dropped".into(), texts(rng, true))];
    for field in schema().fields() {
        if rng.random_bool(0.2) {
            continue;
        }
        let column: ArrayRef = match field.data_type() {
            DataType::Int64 => Arc::new((0..rows).map(|_| maybe(rng).then(|| rng.random())).collect::<Int64Array>()),
            DataType::Boolean => {
                Arc::new((0..rows).map(|_| maybe(rng).then(|| rng.random())).collect::<BooleanArray>())
            }
            DataType::Date32 => {
                Arc::new((0..rows).map(|_| maybe(rng).then(|| rng.random_range(-3..3))).collect::<Date32Array>())
            }
            DataType::Float64 => {
                let odd = [f64::NAN, f64::NEG_INFINITY, -0.0, 1.5];
                Arc::new((0..rows).map(|_| maybe(rng).then(|| odd[rng.random_range(0..4)])).collect::<Float64Array>())
            }
            _ => texts(rng, field.name() == "supervisor_id"),
        };
        let at = rng.random_range(0..=columns.len());
        columns.insert(at, (field.name().clone(), column));
    }
    let fields: Vec<Field> =
        columns.iter().map(|(name, column)| Field::new(name, column.data_type().clone(), true)).collect();
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
    if sort { sorted(&batch, &sort_by()).unwrap().0 } else { batch }
}

/// Cut at random places, empty batches included.
fn batches(rng: &mut StdRng, file: &RecordBatch) -> Vec<Result<RecordBatch, ArrowError>> {
    let (mut cut, mut at) = (Vec::new(), 0);
    while at < file.num_rows() {
        let rows = rng.random_range(0..=100.min(file.num_rows() - at));
        cut.push(Ok(file.slice(at, rows)));
        at += rows;
    }
    cut
}

fn input(batches: Vec<Result<RecordBatch, ArrowError>>, deleted: Option<Arc<RoaringBitmap>>) -> Input {
    Input { batches: stream::iter(batches).boxed(), deleted, starts_at: None }
}

fn run(inputs: Vec<Input>, schema: SchemaRef, rows_at_once: usize) -> Result<Vec<Merged>, MergeError> {
    block_on(merge(inputs, schema, &sort_by(), rows_at_once).try_collect())
}

type Key = (Option<i32>, Option<String>, Option<String>);

fn key(file: &RecordBatch, row: usize) -> Key {
    let text = |name| {
        let column = file.column_by_name(name)?.as_any().downcast_ref::<StringArray>().unwrap();
        column.is_valid(row).then(|| column.value(row).to_owned())
    };
    let month = file.column_by_name("month").and_then(|column| {
        let column = column.as_any().downcast_ref::<Date32Array>().unwrap();
        column.is_valid(row).then(|| column.value(row))
    });
    (month, text("supervisor_id"), text("_id"))
}

fn deleted(rng: &mut StdRng, rows: usize) -> Option<Arc<RoaringBitmap>> {
    let share = [0.0, 0.1, 0.9, 1.0][rng.random_range(0..4)];
    let some = rng.random_bool(0.8);
    some.then(|| Arc::new((0..rows as u32).filter(|_| rng.random_bool(share)).collect()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_merge_is_what_a_naive_sort_gives(seed: u64, count in 0_usize..12, rows_at_once in 1_usize..300, sort: bool, bounds: bool) {
        let rng = &mut StdRng::seed_from_u64(seed);
        let rows: Vec<usize> = (0..count).map(|_| [0, 1, 7, 500, 2_000][rng.random_range(0..5)]).collect();
        let files: Vec<RecordBatch> = rows.iter().map(|&rows| file(rng, rows, sort)).collect();
        let dead: Vec<_> = rows.iter().map(|&rows| deleted(rng, rows)).collect();
        let keys = ClusterKeys::new(&[DataType::Date32, DataType::Utf8]).unwrap();
        let mut inputs = Vec::new();
        for (file, dead) in files.iter().zip(&dead) {
            let mut input = input(batches(rng, file), dead.clone());
            let first = (file.num_rows() > 0).then(|| key(file, 0));
            if let (true, Some((month, supervisor, _))) = (bounds, first) {
                let columns: [ArrayRef; 2] = [Arc::new(Date32Array::from(vec![month])), Arc::new(StringArray::from(vec![supervisor]))];
                input.starts_at = Some(keys.of_row(&columns, 0).unwrap());
            }
            inputs.push(input);
        }

        let mut expected: Vec<(Key, u32, u32)> = Vec::new();
        for (number, (file, dead)) in (0..).zip(files.iter().zip(&dead)) {
            let live = (0..file.num_rows() as u32).filter(|row| dead.as_ref().is_none_or(|dead| !dead.contains(*row)));
            expected.extend(live.map(|row| (key(file, row as usize), number, row)));
        }
        expected.sort();

        let outputs = run(inputs, schema(), rows_at_once).unwrap();
        let found: Vec<Source> = outputs.iter().flat_map(|merged| merged.sources.clone()).collect();
        let mut expected: Vec<Source> = expected.into_iter().map(|(_, input, row)| Source { input, row: RowNumber::new(row) }).collect();
        if sort {
            prop_assert_eq!(&found, &expected);
        } else {
            let order = |source: &Source| (source.input, source.row);
            let mut found = found;
            found.sort_by_key(order);
            expected.sort_by_key(order);
            prop_assert_eq!(&found, &expected);
        }
        for Merged { batch, sources } in &outputs {
            prop_assert_eq!(batch.schema(), schema());
            prop_assert_eq!(batch.num_rows(), sources.len());
            prop_assert!(!sources.is_empty() && sources.len() <= rows_at_once);
            for (at, source) in sources.iter().enumerate() {
                let file = &files[source.input as usize];
                for (column, field) in batch.columns().iter().zip(schema().fields()) {
                    match file.column_by_name(field.name()) {
                        None => prop_assert!(column.is_null(at)),
                        Some(origin) => prop_assert_eq!(&column.slice(at, 1), &origin.slice(source.row.index(), 1)),
                    }
                }
            }
        }
    }

    #[test]
    fn rows_deleted_since_are_found_in_the_outputs(seed: u64, rows_per_output in 1_usize..700) {
        let rng = &mut StdRng::seed_from_u64(seed);
        let files: Vec<RecordBatch> = [900, 0, 40, 1].iter().map(|&rows| file(rng, rows, true)).collect();
        let before: Vec<_> = files.iter().map(|file| deleted(rng, file.num_rows())).collect();
        let inputs: Vec<Input> =
            files.iter().zip(&before).map(|(file, before)| input(batches(rng, file), before.clone())).collect();
        let mut map = PositionMap::new(&[900, 0]);
        let mut outputs: Vec<Vec<Source>> = vec![Vec::new()];
        for merged in run(inputs, schema(), 64).unwrap() {
            let (output, row) = (outputs.len() as u32 - 1, outputs.last().unwrap().len() as u32);
            map.record_all(&merged.sources, Position::new(output, row));
            outputs.last_mut().unwrap().extend(merged.sources);
            if outputs.last().unwrap().len() >= rows_per_output {
                outputs.push(Vec::new());
            }
        }
        for (number, (file, before)) in (0..).zip(files.iter().zip(&before)) {
            let mut now: RoaringBitmap = before.as_deref().cloned().unwrap_or_default();
            let since: Vec<u32> = (0..file.num_rows() as u32).filter(|row| !now.contains(*row) && rng.random_bool(0.3)).collect();
            now.extend(since.iter().copied());
            let places = map.remap(number, before.as_deref(), Some(&now));
            prop_assert_eq!(places.len(), since.len());
            for (place, from) in places.into_iter().zip(since.into_iter().map(RowNumber::new)) {
                prop_assert_eq!(outputs[place.file.get() as usize][place.row.index()], Source { input: number, row: from });
                prop_assert_eq!(map.target(number, from), Some(place));
            }
            for row in before.iter().flat_map(|before| before.iter()) {
                prop_assert_eq!(map.target(number, RowNumber::new(row)), None);
            }
            prop_assert!(map.remap(number, before.as_deref(), before.as_deref()).is_empty());
            prop_assert!(map.remap(number, before.as_deref(), None).is_empty());
        }
        prop_assert_eq!(map.target(9, RowNumber::FIRST), None);
    }

    #[test]
    fn sorting_keeps_every_row_and_the_order_of_equals(seed: u64, rows in 0_usize..500) {
        let rng = &mut StdRng::seed_from_u64(seed);
        let batch = file(rng, rows, false);
        let (result, permutation) = sorted(&batch, &sort_by()).unwrap();
        let mut expected: Vec<(Key, u32)> = (0..rows).map(|row| (key(&batch, row), row as u32)).collect();
        expected.sort();
        prop_assert_eq!(&permutation, &expected.into_iter().map(|(_, row)| row).collect::<Vec<_>>());
        for (row, from) in permutation.iter().enumerate() {
            prop_assert_eq!(result.slice(row, 1), batch.slice(*from as usize, 1));
        }
    }

    #[test]
    fn keys_compare_like_values(one in values(), other in values()) {
        let keys = ClusterKeys::new(&[DataType::Date32, DataType::Utf8]).unwrap();
        let of = |values: &(Option<String>, Option<String>)| keys.of_texts(&[values.0.as_deref(), values.1.as_deref()]).unwrap();
        prop_assert_eq!(of(&one).cmp(&of(&other)), one.cmp(&other));
    }
}

fn values() -> impl Strategy<Value = (Option<String>, Option<String>)> {
    let month = (0_u32..3, 1_u32..13).prop_map(|(year, month)| format!("{:04}-{month:02}-01", year * 4_999));
    (
        prop::option::of(month),
        prop::option::of(prop_oneof![prop::sample::select(ODD.map(str::to_owned).to_vec()), any::<String>()]),
    )
}

fn ids(ids: &[&str]) -> RecordBatch {
    let column: ArrayRef = Arc::new(StringArray::from(ids.to_vec()));
    RecordBatch::try_from_iter([("_id", column)]).unwrap()
}

fn id_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("_id", DataType::Utf8, true)]))
}

#[test]
fn statistics_give_ranges_that_hold_null_and_refuse_what_is_unknown() {
    let keys = ClusterKeys::new(&[DataType::Date32, DataType::Utf8]).unwrap();
    let bounds = |min, max, nulls| ColumnBounds { min, max, nulls };
    let january = bounds(Some("2024-01-01"), Some("2024-01-01"), false);
    let range = keys.range(&[january, bounds(Some("a"), Some("m"), true)]).unwrap();
    assert_eq!(range.min, keys.of_texts(&[Some("2024-01-01"), None]).unwrap());
    assert_eq!(range.max, keys.of_texts(&[Some("2024-01-01"), Some("m")]).unwrap());
    // Where the first row has the lowest month, its supervisor can be any.
    let months = [bounds(Some("2024-01-01"), Some("2024-03-01"), false), bounds(Some("a"), Some("m"), true)];
    let several = keys.range(&months).unwrap();
    assert_eq!(several.min, keys.of_texts(&[Some("2024-01-01"), Some("m")]).unwrap());
    assert_eq!(several.max, keys.of_texts(&[Some("2024-03-01"), None]).unwrap());
    assert_eq!(keys.lowest(&months), keys.of_texts(&[Some("2024-01-01"), None]));
    let all_null = keys.range(&[bounds(None, None, true), bounds(None, None, true)]).unwrap();
    assert_eq!(all_null.min, all_null.max);
    assert!(all_null.max < range.min);
    for unknown in [bounds(None, None, false), bounds(Some("a"), None, true), bounds(Some("m"), Some("a"), false)] {
        assert_eq!(keys.range(&[january, unknown]), None);
    }
    assert_eq!(keys.range(&[bounds(Some("soon"), Some("later"), false), january]), None);
    assert_eq!(keys.of_texts(&[None]), None);
}

#[test]
fn another_type_is_an_error_that_names_the_column() {
    let column: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let strange = RecordBatch::try_from_iter([("_id", column)]).unwrap();
    let inputs = vec![input(vec![Ok(ids(&["a"]))], None), input(vec![Ok(strange)], None)];
    let error = run(inputs, id_schema(), 10).unwrap_err();
    assert!(matches!(&error, MergeError::ColumnType { input: 1, column, .. } if column == "_id"), "{error}");
    assert!(error.to_string().contains("_id of input 1"));
}

#[test]
fn a_read_error_ends_the_merge() {
    let broken = vec![Ok(ids(&["a"])), Err(ArrowError::ParquetError("torn".into()))];
    let merging = merge(vec![input(broken, None), input(vec![Ok(ids(&["b"]))], None)], id_schema(), &sort_by(), 1);
    let results: Vec<_> = block_on(merging.collect());
    assert!(results[0].is_ok());
    assert!(matches!(results[1], Err(MergeError::Read { input: 0, .. })));
    assert_eq!(results.len(), 2);
}

#[test]
fn nothing_comes_of_nothing() {
    assert!(run(Vec::new(), schema(), 0).unwrap().is_empty());
    let dead = Arc::new(RoaringBitmap::from_iter([0, 1]));
    let inputs = vec![input(vec![Ok(ids(&["a", "b"]))], Some(dead)), input(vec![Ok(ids(&[]))], None)];
    assert!(run(inputs, schema(), 10).unwrap().is_empty());
}

#[test]
fn rows_without_columns_are_counted() {
    let schema = Arc::new(Schema::empty());
    let outputs = run(vec![input(vec![Ok(ids(&["b", "a"]))], None)], schema.clone(), 10).unwrap();
    let options = RecordBatchOptions::new().with_row_count(Some(2));
    assert_eq!(outputs[0].batch, RecordBatch::try_new_with_options(schema, vec![], &options).unwrap());
    assert_eq!(outputs[0].sources.len(), 2);
}

/// An input that counts how many of its kind are being read, and how many were at most.
fn counted(names: [String; 2], open: &Arc<[AtomicUsize; 2]>, keys: &ClusterKeys) -> Input {
    let starts_at = keys.of_texts(&[Some(&names[0])]);
    let open = Arc::clone(open);
    let batches = stream::unfold((0, open), move |(batch, open)| {
        let name = names.get(batch).cloned();
        async move {
            match batch {
                0 => {
                    let now = open[0].fetch_add(1, Ordering::SeqCst) + 1;
                    open[1].fetch_max(now, Ordering::SeqCst);
                }
                2 => {
                    open[0].fetch_sub(1, Ordering::SeqCst);
                }
                _ => {}
            }
            Some((Ok(ids(&[&name?])), (batch + 1, open)))
        }
    });
    Input { batches: batches.boxed(), deleted: None, starts_at }
}

#[test]
fn files_with_disjoint_ranges_are_opened_one_after_the_other() {
    let keys = ClusterKeys::new(&[DataType::Utf8]).unwrap();
    let open = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let name = |file: usize, row: usize| format!("{file:03}-{row}");
    let inputs = (0..50).rev().map(|file| counted([name(file, 0), name(file, 1)], &open, &keys)).collect();
    let outputs = run(inputs, id_schema(), 10).unwrap();
    let rows: usize = outputs.iter().map(|merged| merged.batch.num_rows()).sum();
    assert_eq!(rows, 100);
    assert_eq!(outputs[0].sources[0], Source { input: 49, row: RowNumber::FIRST });
    assert_eq!(open[1].load(Ordering::SeqCst), 1);
}

#[test]
fn large_rows_make_outputs_with_fewer_of_them() {
    let text = "x".repeat(8 << 20);
    let inputs = (0..3).map(|_| input((0..8).map(|_| Ok(ids(&[&text]))).collect(), None)).collect();
    let outputs = run(inputs, id_schema(), 1_000).unwrap();
    assert_eq!(outputs.iter().map(|merged| merged.sources.len()).sum::<usize>(), 24);
    assert!(outputs.iter().all(|merged| merged.sources.len() <= 9), "an output holds more than 72 MB");
}

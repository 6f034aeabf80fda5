//! What others leave in tables: columns of types that the lake does not write, rows without ids, partitions that it cannot write.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, Decimal128Array, Float32Array, Int8Array, ListArray, StringArray, StructArray,
    new_null_array,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int32Type, Schema, TimeUnit};
use arrow::record_batch::RecordBatch;
use serde_json::{Value, json};

use super::lake::{Cell, Lake, batch, new_row, numbered, numbered_id, space, tombstone};
use super::log::Log;
use crate::table_store::delta::{DeletionVectors, DeltaOptions};
use crate::table_store::{StoreError, TableStore};

fn options(deletion_vectors: DeletionVectors) -> DeltaOptions {
    DeltaOptions {
        deletion_vectors,
        small_files_max: 2,
        tiny_file_bytes: 0,
        retention_hours: 0,
        ..DeltaOptions::default()
    }
}

/// Columns of somebody else: names, types in Delta, values.
fn columns(rows: usize) -> Vec<(&'static str, Value, ArrayRef)> {
    let numbers = || 0..rows as i32;
    let price = Decimal128Array::from_iter_values(numbers().map(i128::from)).with_precision_and_scale(10, 2).unwrap();
    let tags = numbers().map(|n| (n % 3 != 0).then(|| (0..n % 4).map(Some).collect::<Vec<_>>()));
    let field = Arc::new(Field::new("x", DataType::Utf8, true));
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values(numbers().map(|n| format!("x{n}"))));
    let list = json!({"type": "array", "elementType": "integer", "containsNull": true});
    let fields = json!([{"name": "x", "type": "string", "nullable": true, "metadata": {}}]);
    vec![
        ("price", json!("decimal(10,2)"), Arc::new(price)),
        ("tags", list, Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(tags))),
        ("ratio", json!("float"), Arc::new(Float32Array::from_iter_values(numbers().map(|n| n as f32 / 4.0)))),
        ("level", json!("byte"), Arc::new(Int8Array::from_iter_values(numbers().map(|n| n as i8)))),
        ("raw", json!("binary"), Arc::new(BinaryArray::from_iter_values(numbers().map(|n| n.to_be_bytes())))),
        ("pair", json!({"type": "struct", "fields": fields}), Arc::new(StructArray::from(vec![(field, texts)]))),
    ]
}

/// Somebody adds the columns and gives the rows that are there values of them.
fn alter(log: &Log) {
    let rows = log.rows();
    let rows = arrow::compute::concat_batches(&rows[0].schema(), &rows).unwrap();
    let added = columns(rows.num_rows());
    let mut metadata = log.newest("metaData");
    let mut schema: Value = serde_json::from_str(metadata["schemaString"].as_str().unwrap()).unwrap();
    let fields = schema["fields"].as_array_mut().unwrap();
    fields.extend(
        added.iter().map(|(name, delta, _)| json!({"name": name, "type": delta, "nullable": true, "metadata": {}})),
    );
    metadata["schemaString"] = Value::String(schema.to_string());
    log.commit(vec![json!({ "metaData": metadata })]);
    let mut fields: Vec<Arc<Field>> = rows.schema().fields().to_vec();
    fields.extend(added.iter().map(|(name, _, array)| Arc::new(Field::new(*name, array.data_type().clone(), true))));
    let arrays = rows.columns().iter().cloned().chain(added.into_iter().map(|(_, _, array)| array)).collect();
    let rows = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap();
    let paths: Vec<String> = log.active().into_keys().collect();
    log.replace(&paths.iter().map(String::as_str).collect::<Vec<_>>(), &rows);
}

#[tokio::test]
async fn columns_of_others_are_kept_whatever_becomes_of_their_files() {
    for deletion_vectors in [DeletionVectors::On, DeletionVectors::Off] {
        let lake = Lake::new().await;
        let log = Log::of(&lake, "t");
        let store = lake.open(options(deletion_vectors));
        store.apply(batch(&[("t", numbered(0..40, 1))], vec![])).await.unwrap();
        alter(&log);
        let before = lake.read("t").await;
        let of_others = |id: usize| {
            let row = &before[&numbered_id(id)];
            ["price", "tags", "ratio", "level", "raw", "pair"].map(|name| row.get(name).cloned())
        };
        assert!(of_others(5)[0].is_some());
        // New rows, changed ones, a deletion, and a column that changes its type, which writes every file anew.
        let number = |id: usize, n| {
            let mut row = numbered([id], 2).remove(0);
            row.cells.insert("/n".into(), Cell::Number(n));
            row
        };
        store.apply(batch(&[("t", vec![number(100, 1), number(0, 2)])], vec![])).await.unwrap();
        store.apply(batch(&[("t", vec![number(101, 3)])], vec![tombstone(&numbered_id(1), None, 9)])).await.unwrap();
        store.apply(batch(&[("t", vec![new_row("x", 3, &[("/n", "many"), ("/new", "y")])])], vec![])).await.unwrap();
        for id in 102..112 {
            store.apply(batch(&[("t", numbered([id], 4))], vec![])).await.unwrap();
        }
        let compacted = store.compact(&space()).await.unwrap();
        // Without vectors small files are folded by every batch.
        assert!(compacted.files_before > 0 || deletion_vectors == DeletionVectors::Off, "{compacted:?}");
        let read = lake.read("t").await;
        assert_eq!(read.len(), 38 + 1 + 2 + 1 + 10);
        for id in 2..40 {
            let row = &read[&numbered_id(id)];
            let now = ["price", "tags", "ratio", "level", "raw", "pair"].map(|name| row.get(name).cloned());
            assert_eq!(now, of_others(id), "{id}");
        }
        for id in [numbered_id(0), numbered_id(100), "x".to_owned()] {
            assert_eq!(read[&id].get("price"), None, "{id}");
        }
        let schema: Value = serde_json::from_str(log.newest("metaData")["schemaString"].as_str().unwrap()).unwrap();
        let types: Vec<&Value> = schema["fields"].as_array().unwrap().iter().map(|field| &field["type"]).collect();
        assert!(columns(1).iter().all(|(_, delta, _)| types.contains(&delta)), "{schema}");
        drop(store);
        lake.free_index().await;
        let again = lake.open(options(deletion_vectors)).apply(batch(&[("t", numbered(2..40, 1))], vec![])).await;
        assert!(again.unwrap().tables.is_empty());
    }
}

#[tokio::test]
async fn rows_without_ids_stay_where_they_are() {
    let lake = Lake::new().await;
    let log = Log::of(&lake, "t");
    let store = lake.open(options(DeletionVectors::On));
    store.apply(batch(&[("t", numbered(0..4, 1))], vec![])).await.unwrap();
    let rows = log.rows().remove(0);
    let schema = rows.schema();
    let arrays = schema.fields().iter().zip(rows.columns()).map(|(field, array)| {
        if field.name() == "_id" { new_null_array(field.data_type(), array.len()) } else { Arc::clone(array) }
    });
    let nobodys = RecordBatch::try_new(rows.schema(), arrays.collect()).unwrap();
    log.replace(&[], &nobodys);
    for version in 2..8 {
        let gone = vec![tombstone(&numbered_id(version as usize + 10), None, 9)];
        store.apply(batch(&[("t", numbered(0..2, version)), ("u", numbered(4..5, version))], gone)).await.unwrap();
    }
    store.compact(&space()).await.unwrap();
    assert_eq!(lake.read("t").await.len(), 4);
    let live = |add: &Value| {
        let stats: Value = serde_json::from_str(add["stats"].as_str().unwrap()).unwrap();
        stats["numRecords"].as_i64().unwrap() - add["deletionVector"]["cardinality"].as_i64().unwrap_or_default()
    };
    assert_eq!(log.active().values().map(live).sum::<i64>(), 8);
}

/// Statistics of a file say its instants in the unit of the file.
#[tokio::test]
async fn instants_of_others_in_another_unit_are_compared_rightly() {
    let lake = Lake::new().await;
    let log = Log::of(&lake, "t");
    let store = lake.open(options(DeletionVectors::On));
    store.apply(batch(&[("t", vec![new_row("a", 5_000_000, &[])])], vec![])).await.unwrap();
    let rows = log.rows().remove(0);
    let milliseconds = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    let (fields, arrays): (Vec<_>, Vec<_>) = rows
        .schema()
        .fields()
        .iter()
        .zip(rows.columns())
        .map(|(field, array)| match field.name() == "_lake_observed_at" {
            true => (
                Arc::new(field.as_ref().clone().with_data_type(milliseconds.clone())),
                cast(array, &milliseconds).unwrap(),
            ),
            false => (Arc::clone(field), Arc::clone(array)),
        })
        .unzip();
    let rows = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap();
    let path = log.active().into_keys().next().unwrap();
    log.replace(&[&path], &rows);
    drop(store);
    lake.free_index().await;
    let store = lake.open(options(DeletionVectors::On));
    store.apply(batch(&[], vec![tombstone("a", None, 4_000_000)])).await.unwrap();
    assert_eq!(lake.read("t").await.len(), 1, "an older tombstone takes nothing away");
    store.apply(batch(&[], vec![tombstone("a", None, 6_000_000)])).await.unwrap();
    assert_eq!(lake.read("t").await.len(), 0);
}

#[tokio::test]
async fn partitions_that_cannot_be_written_are_refused() {
    let lake = Lake::new().await;
    let log = Log::of(&lake, "t");
    let store = lake.open(options(DeletionVectors::On));
    store.apply(batch(&[("t", numbered(0..4, 1)), ("u", numbered(4..8, 1))], vec![])).await.unwrap();
    let mut metadata = log.newest("metaData");
    metadata["partitionColumns"] = json!(["_lake_version"]);
    log.commit(vec![json!({ "metaData": metadata })]);
    let refused = store.apply(batch(&[("t", numbered(4..5, 2))], vec![])).await.unwrap_err();
    let StoreError::UnusableTable { reason, .. } = refused else { panic!("{refused:?}") };
    assert!(reason.contains("_lake_version"), "{reason}");
    store.apply(batch(&[("u", numbered(4..5, 2))], vec![])).await.unwrap();
}

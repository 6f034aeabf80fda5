//! Files with instants as Spark writes them by default: INT96.

use std::collections::HashMap;
use std::fs::{self, File};
use std::sync::Arc;

use chrono::NaiveDate;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type, Int96, Int96Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};

use super::lake::{Lake, NewRow, batch, new_row, space};
use super::log::Log;
use crate::table_store::TableStore;
use crate::table_store::delta::{DeletionVectors, DeltaOptions};

const JULIAN_DAY_OF_EPOCH: i64 = 2_440_588;

fn int96(year: i32, nanoseconds: u64) -> Int96 {
    let days = NaiveDate::from_ymd_opt(year, 1, 1).unwrap().signed_duration_since(NaiveDate::default()).num_days();
    let mut instant = Int96::new();
    instant.set_data(nanoseconds as u32, (nanoseconds >> 32) as u32, (days + JULIAN_DAY_OF_EPOCH) as u32);
    instant
}

/// Writes a file with one row a year, whose instant of publication is its beginning and a bit.
fn write(log: &Log, name: &str, years: &[i32]) -> Value {
    let schema: Value = serde_json::from_str(log.newest("metaData")["schemaString"].as_str().unwrap()).unwrap();
    let columns: HashMap<&str, &str> = schema["fields"]
        .as_array()
        .unwrap()
        .iter()
        .map(|field| (field["metadata"]["lake.source"].as_str().unwrap(), field["name"].as_str().unwrap()))
        .collect();
    let message = format!(
        "message spark_schema {{ optional binary {} (STRING); optional int64 {}; optional int96 {}; optional int96 {}; }}",
        columns["/_id"], columns["+_lake_version"], columns["+_lake_observed_at"], columns["+_lake_published_at"],
    );
    let message = Arc::new(parse_message_type(&message).unwrap());
    let file = File::create(log.folder.join(name)).unwrap();
    let mut writer = SerializedFileWriter::new(file, message, Arc::new(WriterProperties::default())).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let present = vec![1; years.len()];
    let ids: Vec<ByteArray> = years.iter().map(|year| ByteArray::from(format!("y{year}").as_str())).collect();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&ids, Some(&present), None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(&vec![1; years.len()], Some(&present), None).unwrap();
    column.close().unwrap();
    let observed: Vec<Int96> = years.iter().map(|_| int96(2024, 5_000)).collect();
    let published: Vec<Int96> = years.iter().map(|year| int96(*year, 3_600_000_001_000)).collect();
    for instants in [observed, published] {
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int96Type>().write_batch(&instants, Some(&present), None).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    json!({ "add": {
        "path": name, "partitionValues": {}, "size": fs::metadata(log.folder.join(name)).unwrap().len(),
        "modificationTime": 1, "dataChange": true, "stats": json!({ "numRecords": years.len() }).to_string(),
    } })
}

#[tokio::test]
async fn far_instants_survive_a_copy_and_a_compaction() {
    let years = [1, 1500, 1677, 1969, 1970, 2024, 2263, 9999];
    let expected = |year: i32| format!("{year:04}-01-01T01:00:00.000001Z");
    let options = |small_files_max| DeltaOptions {
        deletion_vectors: DeletionVectors::Off,
        small_files_max,
        ..DeltaOptions::default()
    };
    for is_compacted in [false, true] {
        let lake = Lake::new().await;
        let store = lake.open(options(1_000));
        store.apply(batch(&[("t", vec![new_row("ours", 1, &[])])], vec![])).await.unwrap();
        let log = Log::of(&lake, "t");
        log.commit(vec![write(&log, "spark.parquet", &years)]);
        if is_compacted {
            drop(store);
            let store = lake.open(options(0));
            // Nothing new, but now the table is in use.
            store.apply(batch(&[("t", vec![new_row("ours", 1, &[])])], vec![])).await.unwrap();
            store.compact(&space()).await.unwrap();
        } else {
            // A row of that file is replaced, so the others are copied. An old row is not.
            let newer = NewRow { observed_us: 1_704_067_201_000_000, ..new_row("y2024", 2, &[]) };
            let rows = vec![newer, new_row("y1500", 0, &[])];
            store.apply(batch(&[("t", rows)], vec![])).await.unwrap();
        }
        assert!(!log.active().contains_key("spark.parquet"), "compacted {is_compacted}");
        let read = lake.read("t").await;
        assert_eq!(read.len(), years.len() + 1);
        for year in years.into_iter().filter(|year| is_compacted || *year != 2024) {
            let row = &read[&format!("y{year}")];
            assert_eq!(row["+_lake_published_at"], expected(year));
            assert_eq!(row["+_lake_observed_at"], "2024-01-01T00:00:00.000005Z");
        }
    }
}

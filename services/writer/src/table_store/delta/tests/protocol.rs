//! Tables whose properties somebody else set: batches go on as long as nothing is in use that the engine does not do.

use deltalake::{DeltaTableBuilder, checkpoints};
use lake_shared::error_chain::Chain;
use serde_json::{Value, json};
use url::Url;

use super::lake::{Lake, batch, new_row, numbered, numbered_id, space};
use super::log::Log;
use crate::table_store::delta::space::unusable::tables::make_due;
use crate::table_store::delta::{DeletionVectors, DeltaOptions};
use crate::table_store::{StoreError, TableStore};

fn copying() -> DeltaOptions {
    DeltaOptions { deletion_vectors: DeletionVectors::Off, small_files_max: 1_000, ..DeltaOptions::default() }
}

fn marking() -> DeltaOptions {
    DeltaOptions { deletion_vectors: DeletionVectors::On, ..copying() }
}

/// The protocol that Spark makes of ours for these features.
fn listing(for_readers: &[&str], for_writers: &[&str]) -> Value {
    let writers: Vec<&str> = for_writers.iter().copied().chain(["invariants", "appendOnly"]).collect();
    let mut protocol = json!({ "minReaderVersion": 1, "minWriterVersion": 7, "writerFeatures": writers });
    if !for_readers.is_empty() {
        protocol["minReaderVersion"] = json!(3);
        protocol["readerFeatures"] = json!(for_readers);
    }
    protocol
}

fn legacy(reader: i64, writer: i64) -> Value {
    json!({ "minReaderVersion": reader, "minWriterVersion": writer })
}

/// The newest metadata with other properties; NULL takes one away.
fn with_properties(log: &Log, properties: &Value) -> Value {
    let mut metadata = log.newest("metaData");
    let held = metadata["configuration"].as_object_mut().unwrap();
    for (key, value) in properties.as_object().unwrap() {
        held.remove(key);
        held.extend(value.is_string().then(|| (key.clone(), value.clone())));
    }
    metadata
}

/// The newest metadata with a note at one column.
fn with_note(log: &Log, column: &str, key: &str, value: &Value) -> Value {
    let mut metadata = log.newest("metaData");
    let mut schema: Value = serde_json::from_str(metadata["schemaString"].as_str().unwrap()).unwrap();
    for field in schema["fields"].as_array_mut().unwrap().iter_mut().filter(|field| field["name"] == column) {
        field["metadata"][key] = value.clone();
    }
    metadata["schemaString"] = json!(schema.to_string());
    metadata
}

fn alter(log: &Log, protocol: &Value, metadata: &Value) {
    log.commit(vec![json!({ "protocol": protocol }), json!({ "metaData": metadata })]);
}

async fn checkpoint(log: &Log) {
    let url = Url::from_directory_path(&log.folder).unwrap();
    let table = DeltaTableBuilder::from_url(url).unwrap().load().await.unwrap();
    checkpoints::create_checkpoint(&table, None).await.unwrap();
}

#[tokio::test]
async fn what_spark_lists_and_nobody_uses_stops_nothing() {
    let cases = [
        (listing(&["deletionVectors"], &["deletionVectors"]), json!({ "delta.enableDeletionVectors": "true" })),
        (listing(&["v2Checkpoint"], &["v2Checkpoint"]), json!({ "delta.checkpointPolicy": "v2" })),
        (listing(&["timestampNtz"], &["timestampNtz"]), json!({})),
        (listing(&["columnMapping"], &["columnMapping"]), json!({ "delta.columnMapping.mode": "none" })),
        (listing(&["typeWidening"], &["typeWidening"]), json!({ "delta.enableTypeWidening": "true" })),
        (listing(&["vacuumProtocolCheck"], &["vacuumProtocolCheck"]), json!({})),
        (listing(&[], &["checkpointProtection"]), json!({ "delta.requireCheckpointProtectionBeforeVersion": "1" })),
        (listing(&[], &["changeDataFeed"]), json!({ "delta.enableChangeDataFeed": "false" })),
        (listing(&[], &["checkConstraints", "generatedColumns", "identityColumns", "allowColumnDefaults"]), json!({})),
        (listing(&[], &["rowTracking", "domainMetadata"]), json!({ "delta.rowTrackingSuspended": "true" })),
        (listing(&[], &["icebergCompatV1", "icebergCompatV2"]), json!({ "delta.enableIcebergCompatV2": "false" })),
        (legacy(1, 3), json!({})),
        (legacy(1, 4), json!({ "delta.enableChangeDataFeed": "false" })),
        (legacy(2, 5), json!({ "delta.columnMapping.mode": "none" })),
        (legacy(1, 6), json!({ "delta.appendOnly": "false" })),
    ];
    for (protocol, properties) in cases {
        for options in [copying(), marking()] {
            let lake = Lake::new().await;
            let store = lake.open(options.clone());
            store.apply(batch(&[("t", numbered(0..20, 1))], vec![])).await.unwrap();
            let log = Log::of(&lake, "t");
            alter(&log, &protocol, &with_properties(&log, &properties));
            store.apply(batch(&[("t", numbered(0..5, 2))], vec![])).await.unwrap();
            drop(store);
            let before = log.files("parquet").len();
            let store = lake.open(options.clone());
            store.apply(batch(&[("t", numbered(3..7, 3))], vec![])).await.unwrap();
            assert_eq!(log.files("parquet").len(), before + 1, "{protocol}");
            store.compact(&space()).await.unwrap();
            assert_eq!(lake.read("t").await.len(), 20, "{protocol}");
            assert_eq!(
                log.newest("metaData")["configuration"]["delta.enableChangeDataFeed"],
                properties["delta.enableChangeDataFeed"]
            );
            checkpoint(&log).await;
            store.maintain(&space()).await.unwrap();
            drop(store);
            lake.open(options).apply(batch(&[("t", numbered(5..9, 4))], vec![])).await.unwrap();
            assert_eq!(lake.read("t").await.len(), 20, "{protocol}");
            for list in ["readerFeatures", "writerFeatures"] {
                let listed = |protocol: &Value| protocol[list].as_array().cloned().unwrap_or_default();
                let after = listed(&log.newest("protocol"));
                assert!(listed(&protocol).iter().all(|feature| after.contains(feature)), "{protocol}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_in_use_and_not_done_here_is_refused_before_anything_is_written() {
    let properties = [
        (listing(&[], &[]), "delta.appendOnly", "true", "'delta.appendOnly' = 'false'"),
        (listing(&[], &["changeDataFeed"]), "delta.enableChangeDataFeed", "true", "SET TBLPROPERTIES"),
        (legacy(1, 4), "delta.enableChangeDataFeed", "true", "changeDataFeed"),
        (legacy(1, 3), "delta.constraints.adult", "age > 17", "DROP CONSTRAINT `adult`"),
        (
            listing(&[], &["rowTracking", "domainMetadata"]),
            "delta.enableRowTracking",
            "true",
            "DROP FEATURE `rowTracking`",
        ),
        (listing(&[], &["clustering", "domainMetadata"]), "delta.x", "x", "DROP FEATURE `clustering`"),
        (listing(&[], &["neverHeardOf"]), "delta.x", "x", "neverHeardOf"),
    ];
    let properties =
        properties.map(|(protocol, key, value, expected)| (protocol, json!({ key: value }), None, expected));
    let notes = [
        (legacy(1, 2), "delta.invariants", "invariants"),
        (legacy(1, 4), "delta.generationExpression", "generatedColumns"),
        (legacy(1, 6), "delta.identity.start", "identityColumns"),
        (listing(&[], &["allowColumnDefaults"]), "CURRENT_DEFAULT", "ALTER COLUMN `text` DROP DEFAULT"),
    ];
    let notes = notes.map(|(protocol, key, expected)| (protocol, json!({}), Some(key), expected));
    for (protocol, properties, note, expected) in properties.into_iter().chain(notes) {
        let lake = Lake::new().await;
        let ours = |version| batch(&[("t", numbered(0..5, version))], vec![]);
        lake.open(copying()).apply(ours(1)).await.unwrap();
        let log = Log::of(&lake, "t");
        let harmless = log.newest("metaData");
        let metadata = match note {
            Some(key) => with_note(&log, "text", key, &json!("1")),
            None => with_properties(&log, &properties),
        };
        alter(&log, &protocol, &metadata);
        let before = (log.files("parquet"), log.versions());
        let store = lake.open(copying());
        for _ in 0..2 {
            let error = store.apply(ours(2)).await.unwrap_err();
            let text = Chain(&error).to_string();
            assert!(text.contains("case-sql/t") && text.contains(expected), "{text}");
            assert!(matches!(error, StoreError::UnusableTable { .. }), "{text}");
        }
        assert_eq!((log.files("parquet"), log.versions()), before, "{protocol}");

        // As soon as that is undone, batches go on.
        alter(&log, &listing(&[], &[]), &harmless);
        make_due(&store.spaces.cell(&space())).await;
        store.apply(ours(3)).await.unwrap();
        assert_eq!(lake.read("t").await.len(), 5);
    }
}

#[tokio::test]
async fn vectors_keep_what_the_versions_of_a_table_stood_for() {
    let lake = Lake::new().await;
    let store = lake.open(marking());
    store.apply(batch(&[("t", numbered(0..20, 1))], vec![])).await.unwrap();
    let log = Log::of(&lake, "t");
    alter(&log, &legacy(2, 5), &log.newest("metaData"));
    store.apply(batch(&[("t", numbered(0..5, 2))], vec![])).await.unwrap();
    assert_eq!(log.deleted_rows(), 5);
    let protocol = log.newest("protocol");
    assert_eq!(protocol["readerFeatures"], json!(["columnMapping", "deletionVectors"]));
    for feature in
        ["appendOnly", "invariants", "checkConstraints", "changeDataFeed", "generatedColumns", "columnMapping"]
    {
        assert!(protocol["writerFeatures"].as_array().unwrap().contains(&json!(feature)), "{protocol}");
    }
    assert_eq!(lake.read("t").await.len(), 20);
}

#[tokio::test]
async fn entries_say_their_time_where_the_table_wants_it() {
    let lake = Lake::new().await;
    let store = lake.open(copying());
    store.apply(batch(&[("t", numbered(0..5, 1))], vec![])).await.unwrap();
    let log = Log::of(&lake, "t");
    assert_eq!(log.actions(0, "commitInfo")[0].get("inCommitTimestamp"), None);
    // A clock that is ahead of ours.
    let ahead = 4_000_000_000_000_i64;
    let enabled = json!({
        "delta.enableInCommitTimestamps": "true", "delta.inCommitTimestampEnablementVersion": "1",
        "delta.inCommitTimestampEnablementTimestamp": ahead.to_string(),
    });
    let lines = [
        json!({ "commitInfo": { "inCommitTimestamp": ahead, "timestamp": ahead, "operation": "SET TBLPROPERTIES" } }),
        json!({ "protocol": listing(&[], &["inCommitTimestamp"]) }),
        json!({ "metaData": with_properties(&log, &enabled) }),
    ];
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(log.folder.join("_delta_log/00000000000000000001.json"), text).unwrap();
    for version in 2..5 {
        store.apply(batch(&[("t", numbered(0..5, version as i64))], vec![])).await.unwrap();
        let information = log.actions(version, "commitInfo").remove(0);
        assert_eq!(information["inCommitTimestamp"], json!(ahead + version as i64 - 1));
        let first = std::fs::read_to_string(log.folder.join(format!("_delta_log/{version:020}.json"))).unwrap();
        assert!(first.starts_with("{\"commitInfo\""), "{first}");
    }
    assert_eq!(lake.read("t").await.len(), 5);
}

#[tokio::test]
async fn what_others_noted_of_a_column_stays() {
    let lake = Lake::new().await;
    let store = lake.open(copying());
    store.apply(batch(&[("t", numbered(0..5, 1))], vec![])).await.unwrap();
    let log = Log::of(&lake, "t");
    alter(&log, &legacy(1, 2), &with_note(&log, "text", "comment", &json!("what they said")));
    store.apply(batch(&[("t", vec![new_row("x", 1, &[("/new", "1")])])], vec![])).await.unwrap();
    let metadata = log.newest("metaData");
    let schema: Value = serde_json::from_str(metadata["schemaString"].as_str().unwrap()).unwrap();
    let note = |name: &str| {
        let mut fields = schema["fields"].as_array().unwrap().iter();
        fields.find(|field| field["name"] == name).unwrap()["metadata"].clone()
    };
    assert_eq!(note("text"), json!({ "comment": "what they said", "lake.source": "/text" }));
    assert_eq!(note("new"), json!({ "lake.source": "/new" }));
}

#[tokio::test]
async fn a_file_with_a_vector_says_how_many_rows_it_has() {
    for stats in [None, Some(json!({ "maxValues": { "month": "2024-12-01" } }).to_string())] {
        let lake = Lake::new().await;
        let store = lake.open(marking());
        store.apply(batch(&[("t", numbered(0..20, 1))], vec![])).await.unwrap();
        let log = Log::of(&lake, "t");
        let (path, mut add) = log.active().pop_first().unwrap();
        add["stats"] = json!(stats);
        log.commit(vec![json!({ "add": add })]);
        store.apply(batch(&[("t", numbered(0..5, 2))], vec![])).await.unwrap();
        let after: Value = serde_json::from_str(log.active()[&path]["stats"].as_str().unwrap()).unwrap();
        assert_eq!((&after["numRecords"], &after["tightBounds"]), (&json!(20), &json!(false)));
        assert_eq!(after["maxValues"]["month"].is_null(), stats.is_none());
        assert_eq!(lake.read("t").await.len(), 20);
    }
}

#[tokio::test]
async fn the_property_goes_with_the_last_vector() {
    let lake = Lake::new().await;
    let store = lake.open(marking());
    store.apply(batch(&[("t", numbered(0..20, 1))], vec![])).await.unwrap();
    store.apply(batch(&[("t", numbered(20..40, 1))], vec![])).await.unwrap();
    store.apply(batch(&[("t", numbered([0, 20], 2))], vec![])).await.unwrap();
    let log = Log::of(&lake, "t");
    let enabled = || log.newest("metaData")["configuration"]["delta.enableDeletionVectors"].clone();
    assert_eq!((enabled(), log.deleted_rows()), (json!("true"), 2));
    store.close().await;
    drop(store);
    let store = lake.open(copying());
    store.apply(batch(&[("t", numbered([1], 3))], vec![])).await.unwrap();
    assert_eq!((enabled(), log.deleted_rows()), (json!("true"), 1));
    store.apply(batch(&[("t", numbered([21], 3))], vec![])).await.unwrap();
    assert_eq!((enabled(), log.deleted_rows()), (json!("false"), 0));
    assert_eq!(log.newest("protocol")["minReaderVersion"], json!(3));
    assert_eq!(lake.read("t").await.len(), 40);
}

#[tokio::test]
async fn a_commit_is_made_upon_the_last_version_only() {
    let lake = Lake::new().await;
    let store = lake.open(copying());
    store.apply(batch(&[("t", numbered(0..20, 1))], vec![])).await.unwrap();
    let log = Log::of(&lake, "t");
    // Others went on, and cleaned up behind them.
    for version in 2..5 {
        lake.open_elsewhere(copying()).apply(batch(&[("t", numbered(0..3, version))], vec![])).await.unwrap();
    }
    checkpoint(&log).await;
    for version in 0..3 {
        std::fs::remove_file(log.folder.join(format!("_delta_log/{version:020}.json"))).unwrap();
    }
    let applied = store.apply(batch(&[("t", numbered(2..6, 9))], vec![])).await.unwrap();
    assert_eq!(applied.tables[0].version, 4);
    let versions: Vec<u64> = log.versions().into_iter().collect();
    assert_eq!(versions, [3, 4]);
    let read = lake.read("t").await;
    assert_eq!((read.len(), read[&numbered_id(0)]["+_lake_version"].as_str()), (20, "4"));

    // A last entry that is there as a checkpoint only.
    checkpoint(&log).await;
    std::fs::remove_file(log.folder.join(format!("_delta_log/{:020}.json", 3))).unwrap();
    std::fs::remove_file(log.folder.join(format!("_delta_log/{:020}.json", 4))).unwrap();
    let applied = store.apply(batch(&[("t", numbered(2..6, 10))], vec![])).await.unwrap();
    assert_eq!((applied.tables[0].version, lake.read("t").await.len()), (5, 20));
}

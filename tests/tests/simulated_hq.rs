//! The simulated HQ's sinks on real parts: what they are told is what plain SQL, S3, HTTP and a Kafka consumer find.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use lake_hq::source::{Hq, ReadFrom};
use lake_simulated_hq::blobs::{BlobSink, BucketAddress};
use lake_simulated_hq::kafka::{KafkaSink, TOPICS};
use lake_simulated_hq::life::{Life, LifeOptions};
use lake_simulated_hq::memory_hq::MemoryHq;
use lake_simulated_hq::play::{Pace, RealHq, TurnSource};
use lake_simulated_hq::postgres::PostgresSink;
use lake_simulated_hq::turn::{ChangeMessage, Mutation, Table, Turn};
use lake_simulated_hq::users::{DATABASE, UserDocuments, UserServer};
use lake_tests::parts::{Kafka, ObjectStore, Postgres, with_consumer};
use object_store::ObjectStoreExt;
use rdkafka::ClientConfig;
use rdkafka::consumer::Consumer;
use rdkafka::message::Message;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

const MOMENT: &str = "2026-01-05T10:11:12.240000Z";

/// The ids of HQ's check vectors with their shard of 1024.
const VECTORS: [(&str, u32); 7] = [
    ("0", 586),
    ("1", 978),
    ("abc", 734),
    ("403724ef9fe141f2908363918c62c2ff", 705),
    ("95dece4cd7c945ec83c6d2dd04d38673", 24),
    ("b0916685-7247-4c44-b712-633d3d64e0c0", 184),
    ("统一码", 455),
];

const RANGES: [(u32, u32); 3] = [(0, 340), (341, 681), (682, 1023)];

fn put(table: Table, row: Value) -> Mutation {
    Mutation::Put { table, row: row.as_object().unwrap().clone() }
}

fn remove(table: Table, matching: Value) -> Mutation {
    Mutation::Remove { table, matching: matching.as_object().unwrap().clone() }
}

fn case(id: &str, name: &str) -> Mutation {
    let row = json!({
        "case_id": id, "domain": "demo", "type": "person", "name": name, "owner_id": "loc1", "opened_on": MOMENT, "opened_by": "u1",
        "modified_on": MOMENT, "server_modified_on": MOMENT, "modified_by": "u1", "closed": false, "closed_on": null,
        "closed_by": null, "deleted": false, "deleted_on": null, "deletion_id": null, "external_id": "", "location_id": null,
        "case_json": "{\"village\": \"R\\u00e1mpur\", \"odd\": \"\\u0000\"}",
    });
    put(Table::Case, row)
}

fn case_transaction(case_id: &str, form_id: Option<&str>, revoked: bool) -> Mutation {
    let row = json!({
        "case_id": case_id, "form_id": form_id, "sync_log_id": null, "server_date": MOMENT, "client_date": null, "type": 2,
        "revoked": revoked, "details": "{}",
    });
    put(Table::CaseTransaction, row)
}

fn case_index(case_id: &str, referenced_id: &str) -> Mutation {
    let row = json!({
        "case_id": case_id, "domain": "demo", "identifier": "parent", "referenced_id": referenced_id,
        "referenced_type": "household", "relationship_id": 1,
    });
    put(Table::CaseIndex, row)
}

fn form(id: &str, state: i16) -> Mutation {
    let row = json!({
        "form_id": id, "domain": "demo", "app_id": "app", "xmlns": "http://x", "user_id": "u1", "received_on": MOMENT,
        "server_modified_on": MOMENT, "auth_context": "{}", "openrosa_headers": "{}", "partial_submission": false, "state": state,
        "initial_processing_complete": true, "commcare_version": "2.53.1", "app_version": 17,
    });
    put(Table::Form, row)
}

fn operation(form_id: &str, operation: &str) -> Mutation {
    put(Table::FormOperation, json!({"form_id": form_id, "user_id": "u1", "operation": operation, "date": MOMENT}))
}

fn blob_meta(key: &str, parent_id: &str) -> Mutation {
    let row = json!({
        "domain": "demo", "parent_id": parent_id, "name": "form.xml", "key": key, "type_code": 2, "content_length": 7,
        "compressed_length": 27, "content_type": "text/xml", "properties": "{}", "created_on": MOMENT, "expires_on": null,
    });
    put(Table::BlobMeta, row)
}

fn locations() -> Vec<Mutation> {
    let kind = json!({
        "id": 1, "domain": "demo", "name": "District", "code": "district", "parent_type_id": null, "administrative": false,
        "shares_cases": false, "view_descendants": false, "expand_from_root": false, "has_users": true, "emergency_level": "0.5",
        "understock_threshold": "1.5", "overstock_threshold": "3.0", "last_modified": MOMENT,
    });
    let location = |id: i64, parent: Option<i64>| {
        let row = json!({
            "id": id, "domain": "demo", "name": "Here", "location_id": format!("loc{id}"), "location_type_id": 1,
            "site_code": format!("here{id}"), "external_id": null, "metadata": "{}", "created_at": MOMENT, "last_modified": MOMENT,
            "is_archived": false, "archived_on": null, "latitude": "12.5000000000", "longitude": null, "parent_id": parent,
            "stocks_all_products": true, "supply_point_id": null, "user_id": "",
        });
        put(Table::Location, row)
    };
    // The child comes before its parent: foreign keys are checked at the commit.
    vec![location(2, Some(1)), location(1, None), put(Table::LocationType, kind)]
}

struct Databases {
    server: Postgres,
    sink: PostgresSink,
}

impl Databases {
    async fn start() -> Self {
        let server = Postgres::start().unwrap();
        let main = server.create_database("hq").unwrap();
        let shard = |(place, &(first, last)): (usize, &(u32, u32))| {
            (first, last, server.create_database(&format!("p{place}")).unwrap())
        };
        let shards = RANGES.iter().enumerate().map(shard).collect();
        let sink = PostgresSink::connect(&main, shards).await.unwrap();
        for _ in 0..2 {
            sink.create_schema().await.unwrap();
        }
        Self { server, sink }
    }

    /// The first column of all rows in a database, as text.
    async fn ask(&self, database: &str, statement: &str) -> Vec<String> {
        let mut connection = PgConnection::connect(&self.server.url(database)).await.unwrap();
        sqlx::query_scalar(AssertSqlSafe(statement)).fetch_all(&mut connection).await.unwrap()
    }

    async fn ask_shards(&self, statement: &str) -> Vec<String> {
        let mut found = Vec::new();
        for place in 0..RANGES.len() {
            found.extend(self.ask(&format!("p{place}"), statement).await);
        }
        found
    }
}

#[tokio::test]
async fn rows_are_where_hq_would_have_them() {
    let databases = Databases::start().await;
    let mut mutations = locations();
    mutations.extend(VECTORS.iter().flat_map(|&(id, _)| [case(id, "first"), form(id, 1), blob_meta(id, id)]));
    for _ in 0..2 {
        databases.sink.apply(&mutations).await.unwrap();
    }
    for (place, (first, last)) in RANGES.into_iter().enumerate() {
        let expected: BTreeSet<String> =
            VECTORS.iter().filter(|(_, shard)| (first..=last).contains(shard)).map(|&(id, _)| id.to_owned()).collect();
        for (table, id) in [
            ("form_processor_commcarecasesql", "case_id"),
            ("form_processor_xforminstancesql", "form_id"),
            ("blobs_blobmeta", "key"),
        ] {
            let found = databases.ask(&format!("p{place}"), &format!("select {id} from {table}")).await;
            assert_eq!(found.len(), expected.len(), "{table} of shard database {place}");
            assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected, "{table} of shard database {place}");
        }
    }
    let cases = "select case_json || to_char(server_modified_on at time zone 'UTC', 'HH24:MI:SS.US') \
                 from form_processor_commcarecasesql";
    let case_json = r#"{"village": "R\u00e1mpur", "odd": "\u0000"}10:11:12.240000"#;
    assert_eq!(databases.ask_shards(cases).await, vec![case_json; VECTORS.len()]);
    let tree = "select l.location_id || ' ' || t.name || ' ' || l.latitude from locations_sqllocation l \
                join locations_locationtype t on t.id = l.location_type_id order by l.id";
    assert_eq!(databases.ask("hq", tree).await, ["loc1 District 12.5000000000", "loc2 District 12.5000000000"]);
}

#[tokio::test]
async fn rows_are_replaced_and_removed() {
    let databases = Databases::start().await;
    let first = [
        case("abc", "first"),
        case_index("abc", "h1"),
        case_transaction("abc", None, false),
        case_transaction("abc", Some("f1"), false),
        case("0", "stays"),
        case_index("0", "h1"),
        form("f1", 1),
        operation("f1", "archive"),
        blob_meta("k1", "f1"),
    ];
    databases.sink.apply(&first).await.unwrap();
    let second = [
        case("abc", "second"),
        case_index("abc", ""),
        case_transaction("abc", None, true),
        operation("f1", "archive"),
        operation("f1", "unarchive"),
        remove(Table::BlobMeta, json!({"parent_id": "f1"})),
        blob_meta("k2", "f1"),
    ];
    databases.sink.apply(&second).await.unwrap();
    let name = "select name from form_processor_commcarecasesql where case_id = 'abc'";
    assert_eq!(databases.ask_shards(name).await, ["second"]);
    let index = "select referenced_id from form_processor_commcarecaseindexsql where case_id = 'abc'";
    assert_eq!(databases.ask_shards(index).await, [""]);
    let transactions = "select coalesce(form_id, 'none') || revoked from form_processor_casetransaction order by 1";
    assert_eq!(databases.ask_shards(transactions).await, ["f1false", "nonefalse", "nonetrue"]);
    let operations = "select operation from form_processor_xformoperationsql order by 1";
    assert_eq!(databases.ask_shards(operations).await, ["archive", "unarchive"]);
    assert_eq!(databases.ask_shards("select key from blobs_blobmeta").await, ["k2"]);
    assert_eq!(databases.ask_shards("select key from blobs_deletedblobmeta").await, ["k1"]);

    // Removals take dependent rows with them; one without an id goes to all shards.
    let third = [
        remove(Table::Case, json!({"case_id": "abc"})),
        remove(Table::Form, json!({"form_id": "f1"})),
        remove(Table::BlobMeta, json!({"domain": "demo"})),
    ];
    databases.sink.apply(&third).await.unwrap();
    assert_eq!(databases.ask_shards("select case_id from form_processor_commcarecasesql").await, ["0"]);
    assert_eq!(databases.ask_shards("select case_id from form_processor_commcarecaseindexsql").await, ["0"]);
    for table in ["casetransaction", "xforminstancesql", "xformoperationsql"] {
        let statement = format!("select id::text from form_processor_{table}");
        assert!(databases.ask_shards(&statement).await.is_empty(), "{table}");
    }
    assert!(databases.ask_shards("select key from blobs_blobmeta").await.is_empty());
}

#[tokio::test]
async fn thousands_of_rows_are_one_transaction() {
    let databases = Databases::start().await;
    let cases = |name: &str| (0..5_000).map(|n| case(&format!("case-{n}"), name)).collect::<Vec<_>>();
    for name in ["first", "second"] {
        databases.sink.apply(&cases(name)).await.unwrap();
    }
    let counts = "select count(*)::text || ' ' || min(name) || ' ' || count(distinct xmin::text) from form_processor_commcarecasesql";
    let found = databases.ask_shards(counts).await;
    let mut total = 0;
    for line in &found {
        let (count, rest) = line.split_once(' ').unwrap();
        total += count.parse::<usize>().unwrap();
        assert_eq!(rest, "second 1");
    }
    assert_eq!(total, 5_000);
}

/// What a topic holds: key and value of each message with its partition.
fn consume(bootstrap: &str, count: usize) -> Vec<(String, i32, Option<String>, Vec<u8>)> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("group.id", "test");
    config.set("auto.offset.reset", "earliest").set("enable.auto.commit", "false");
    let consumed = with_consumer(&config, move |consumer| {
        consumer.subscribe(&TOPICS)?;
        let mut found = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(60);
        while found.len() < count {
            anyhow::ensure!(Instant::now() < deadline, "{} of {count} messages in a minute", found.len());
            // Other events of the client end a poll as well.
            let Some(message) = consumer.poll(Duration::from_secs(1)) else { continue };
            let message = message?;
            let key = message.key().map(|key| String::from_utf8(key.to_vec())).transpose()?;
            let value = message.payload().context("a message with a value")?.to_vec();
            found.push((message.topic().to_owned(), message.partition(), key, value));
        }
        Ok(found)
    });
    consumed.unwrap()
}

#[tokio::test]
async fn messages_are_keyed_and_partitioned_as_hq_does() {
    let kafka = Kafka::start().unwrap();
    let sink = KafkaSink::new(&kafka.bootstrap(), &[]).unwrap();
    for _ in 0..2 {
        sink.create_topics(96, 1).await.unwrap();
    }
    // murmur2 check vectors of HQ's partitioner, for 96 partitions.
    let vectors = HashMap::from([
        ("abc", 27),
        ("95dece4cd7c945ec83c6d2dd04d38673", 24),
        ("b0916685-7247-4c44-b712-633d3d64e0c0", 91),
    ]);
    let mut messages = Vec::new();
    for n in 0..100 {
        let message = |key: Option<&str>| ChangeMessage {
            topic: "case-sql",
            key: key.map(str::to_owned),
            value: json!({"document_id": key, "n": n}).to_string().into_bytes(),
        };
        messages.extend(vectors.keys().map(|key| message(Some(key))));
        messages.push(message(None));
    }
    sink.publish(&messages).await.unwrap();
    let bootstrap = kafka.bootstrap();
    let found = tokio::task::spawn_blocking(move || consume(&bootstrap, 400)).await.unwrap();
    let mut next: HashMap<String, i64> = HashMap::new();
    for (topic, partition, key, value) in found {
        assert_eq!(topic, "case-sql");
        let Some(key) = key else { continue };
        assert_eq!(partition, vectors[key.as_str()], "{key}");
        let value: Value = serde_json::from_slice(&value).unwrap();
        let expected = next.entry(key).or_default();
        assert_eq!(value["n"], *expected);
        *expected += 1;
    }
    assert_eq!(next.into_values().collect::<Vec<_>>(), [100, 100, 100]);
}

#[tokio::test]
async fn a_turn_reaches_all_parts() {
    let databases = Databases::start().await;
    let kafka = Kafka::start().unwrap();
    let store = ObjectStore::start().unwrap();
    store.create_bucket("blobdb").unwrap();
    let address = BucketAddress {
        endpoint: store.endpoint(),
        bucket: "blobdb".to_owned(),
        region: store.region().to_owned(),
        access_key: store.access_key().to_owned(),
        secret_key: store.secret_key().into(),
    };
    let (users, url) = UserServer::start().await.unwrap();
    let hq = RealHq {
        postgres: databases.sink.clone(),
        blobs: BlobSink::bucket(&address).unwrap(),
        users: users.documents().clone(),
        kafka: KafkaSink::new(&kafka.bootstrap(), &[]).unwrap(),
        patience: Duration::from_secs(30),
    };
    hq.kafka.create_topics(4, 1).await.unwrap();
    let value = br#"{"document_id": "f1"}"#.to_vec();
    let turn = Turn {
        mutations: vec![
            form("f1", 1),
            blob_meta("b1f2", "f1"),
            Mutation::PutBlob { key: "b1f2".to_owned(), content: b"<data/>".to_vec(), gzip: true },
            Mutation::PutUser { document: json!({"_id": "u1", "location_id": "loc1"}) },
        ],
        messages: vec![ChangeMessage { topic: "form-sql", key: Some("f1".to_owned()), value: value.clone() }],
    };
    hq.apply(&turn).await.unwrap();

    assert_eq!(databases.ask_shards("select form_id from form_processor_xforminstancesql").await, ["f1"]);
    let blob = store.client("blobdb").unwrap().get(&"b1f2".into()).await.unwrap().bytes().await.unwrap();
    assert_eq!(&blob[..2], [0x1f, 0x8b]);
    let user: Value = reqwest::get(format!("{url}/{DATABASE}/u1")).await.unwrap().json().await.unwrap();
    assert_eq!(user["location_id"], "loc1");
    let bootstrap = kafka.bootstrap();
    let found = tokio::task::spawn_blocking(move || consume(&bootstrap, 1)).await.unwrap();
    assert_eq!((found[0].0.as_str(), found[0].2.as_deref(), &found[0].3), ("form-sql", Some("f1"), &value));
}

/// A life that is recorded while it is played.
struct Recorded {
    life: Life,
    turns: Vec<Turn>,
}

impl TurnSource for Recorded {
    fn turn(&mut self) -> Turn {
        let turn = self.life.turn();
        self.turns.push(turn.clone());
        turn
    }

    fn changes(&self) -> u64 {
        self.life.changes()
    }
}

/// Columns of a table as they must be in memory and in Postgres; datetimes are the same moment in both.
async fn rows_of(databases: &Databases, table: Table, id: &str) -> Vec<Value> {
    let (name, column) = (table.name(), table.shard_column().unwrap());
    let pool = databases.sink.database_of(id);
    let statement = format!("select (to_jsonb(t) - 'id')::text from {name} t where {column} = $1 order by id");
    let found: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement)).bind(id).fetch_all(pool).await.unwrap();
    found.iter().map(|row| comparable(serde_json::from_str(row).unwrap())).collect()
}

fn comparable(row: Value) -> Value {
    let Value::Object(mut row) = row else { panic!("not a row: {row}") };
    // A column that HQ may lack is as good as null.
    row.retain(|name, value| name != "id" && !value.is_null());
    row.values_mut().for_each(|value| {
        let moment = value.as_str().and_then(|text| chrono::DateTime::parse_from_rfc3339(text).ok());
        if let Some(moment) = moment {
            *value = moment.timestamp_micros().into();
        }
    });
    Value::Object(row)
}

fn ids_of(turns: &[Turn], table: Table) -> Vec<String> {
    let mutations = turns.iter().flat_map(|turn| &turn.mutations);
    let ids: BTreeSet<&str> = mutations
        .filter_map(|mutation| match mutation {
            Mutation::Put { table: found, row } if *found == table => row[table.shard_column()?].as_str(),
            _ => None,
        })
        .collect();
    ids.into_iter().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_life_in_groups_is_the_same_life_in_memory() {
    let databases = Databases::start().await;
    let kafka = Kafka::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let hq = RealHq {
        postgres: databases.sink.clone(),
        blobs: BlobSink::folder(folder.path()).unwrap(),
        users: UserDocuments::default(),
        kafka: KafkaSink::new(&kafka.bootstrap(), &[]).unwrap(),
        patience: Duration::ZERO,
    };
    hq.kafka.create_topics(2, 1).await.unwrap();
    let options = LifeOptions { seed: 5, sabotage: true, ..LifeOptions::default() };
    let mut life = Recorded { life: Life::new(options), turns: Vec::new() };
    let opening = life.life.opening();
    hq.apply(&opening).await.unwrap();
    life.turns.push(opening);
    let pace =
        Pace { changes: 6_000, rate_per_second: None, turns_per_group_max: 70, account: Some("test".to_owned()) };
    let done = hq.play(&mut life, &pace, |_| ControlFlow::Continue(())).await.unwrap();
    assert!(done.turns > 500 && life.changes() >= 6_000, "{done:?}");
    assert_eq!(hq.postgres.turns("test").await.unwrap(), Some(done.turns));

    let memory = MemoryHq::new();
    life.turns.iter().for_each(|turn| memory.apply(turn));
    let expected = memory.hq();

    assert_same_cases(&databases, &expected, &life.turns).await;
    assert_same_forms(&databases, &expected, &life.turns, folder.path()).await;
}

/// The cases in the databases are those of the HQ in memory.
async fn assert_same_cases(databases: &Databases, expected: &Hq, turns: &[Turn]) {
    let cases = ids_of(turns, Table::Case);
    let mut present = 0;
    for observation in expected.database.cases(&cases, ReadFrom::Primary).await.unwrap() {
        let id = observation.id;
        let case = observation.rows.as_ref().map(|rows| comparable(Value::Object(rows.case.clone())));
        present += usize::from(case.is_some());
        assert_eq!(rows_of(databases, Table::Case, &id).await, Vec::from_iter(case), "case {id}");
        let rows = observation.rows.unwrap_or_default();
        let by_identifier = |mut rows: Vec<Value>| {
            rows.sort_by_key(|row| row["identifier"].to_string());
            rows
        };
        let indices = rows.indices.into_iter().map(|row| comparable(Value::Object(row))).collect();
        let found = rows_of(databases, Table::CaseIndex, &id).await;
        assert_eq!(by_identifier(found), by_identifier(indices), "indices of case {id}");
        let by_date = |mut rows: Vec<Value>| {
            rows.sort_by_key(|row| (row["server_date"].as_i64(), row["form_id"].to_string()));
            rows
        };
        let transactions = rows.transactions.into_iter().map(|row| comparable(Value::Object(row))).collect();
        let mut found = rows_of(databases, Table::CaseTransaction, &id).await;
        found.retain(|row| row["revoked"] == false);
        assert_eq!(by_date(found), by_date(transactions), "transactions of case {id}");
    }
    assert!(present > 100, "{present} cases");
}

/// The forms in the databases, and their XML in the folder, are those of the HQ in memory.
async fn assert_same_forms(databases: &Databases, expected: &Hq, turns: &[Turn], blobs: &Path) {
    let forms = ids_of(turns, Table::Form);
    for observation in expected.database.forms(&forms, ReadFrom::Primary).await.unwrap() {
        let id = observation.id;
        let form = observation.rows.as_ref().map(|rows| comparable(Value::Object(rows.form.clone())));
        assert_eq!(rows_of(databases, Table::Form, &id).await, Vec::from_iter(form), "form {id}");
        let rows = observation.rows.unwrap_or_default();
        let operations = rows.operations.into_iter().map(|row| comparable(Value::Object(row)));
        assert_eq!(rows_of(databases, Table::FormOperation, &id).await, operations.collect::<Vec<_>>(), "form {id}");
        let mut meta = rows_of(databases, Table::BlobMeta, &id).await;
        meta.retain(|row| row["type_code"] == 2);
        let Some(xml) = rows.xml else {
            assert!(meta.is_empty(), "blob of form {id}");
            continue;
        };
        assert_eq!((meta.len(), meta[0]["key"].as_str()), (1, Some(xml.key.as_str())), "blob of form {id}");
        let stored = std::fs::read(blobs.join(&xml.key)).ok();
        let gzip = stored.as_ref().map(|bytes| bytes.starts_with(&[0x1f, 0x8b]));
        match expected.blobs.get(&xml).await.unwrap().bytes() {
            // The simulated life may say one thing and store another, as HQ did: only the bytes decide.
            Some(content) => assert!(gzip == Some(true) || stored.as_deref() == Some(&*content), "blob {}", xml.key),
            None => assert_eq!(stored, None, "blob {}", xml.key),
        }
    }
}

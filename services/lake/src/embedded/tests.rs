//! What each operation of HQ does to the tables: its message goes in, and an id ends up in exactly one table or in none.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::time::Duration;

use lake_fetcher::allow_list::TakeConfig;
use lake_fetcher::change_feed::memory::MemoryFeed;
use lake_fetcher::options::FetchOptions;
use lake_hq::documents::case::CaseOptions;
use lake_shared::identity::{Kind, Space};
use lake_simulated_hq::memory_hq::MemoryHq;
use lake_simulated_hq::turn::{Mutation, Table, Turn};
use lake_writer::catalog::CatalogOptions;
use lake_writer::consent::Consent;
use lake_writer::ingest::IngestOptions;
use lake_writer::key_index::id_hash;
use lake_writer::lease::LeaseOptions;
use lake_writer::maintenance::MaintenanceOptions;
use lake_writer::metastore::Metastore;
use lake_writer::metastore::connect::MetastoreConfig;
use lake_writer::metastore::steering::{NewOperation, OperationKind, OperationRecord, OperationState, OperationTarget};
use lake_writer::table_store::delta::DeltaOptions;
use lake_writer::table_store::lake_store::LakeStoreConfig;
use lake_writer::writer::{BackfillOptions, ReconcileOptions, WriterOptions};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);
const XMLNS: &str = "http://openrosa.org/formdesigner/AAAA";

/// A lake on an HQ in which nothing happens by itself.
struct Lake {
    feed: Arc<MemoryFeed>,
    hq: Arc<MemoryHq>,
    metastore: Arc<dyn Metastore>,
    shutdown: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
    _folder: TempDir,
}

impl Lake {
    async fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let root = folder.path().join("tables");
        std::fs::create_dir(&root).unwrap();
        let writer = Writer::open(WriterOptions {
            store: LakeStoreConfig { sync: false, ..LakeStoreConfig::of_root(root.display().to_string()) },
            metastore: MetastoreConfig {
                url: format!("sqlite:{}", folder.path().join("metastore.sqlite").display()).into(),
                connections_max: 1,
            },
            tables: DeltaOptions { index_folder: Some(folder.path().join("index")), ..DeltaOptions::default() },
            ingest: IngestOptions { flush_age_ms: 5, ..IngestOptions::default() },
            maintenance: MaintenanceOptions::default(),
            backfill: BackfillOptions::default(),
            reconcile: ReconcileOptions { settle_seconds: 0 },
            lease: LeaseOptions::default(),
            admin: None,
            catalog: CatalogOptions::default(),
        })
        .await
        .unwrap();
        let metastore = Arc::clone(&writer.metastore);
        let (feed, hq) = (Arc::new(MemoryFeed::default()), MemoryHq::new());
        let options = FetchOptions { linger_ms: 1, ..FetchOptions::default() };
        let fetcher =
            FetcherOptions { take: TakeConfig::EVERYTHING, case_options: CaseOptions::default(), fetch: options };
        let enricher = EnricherOptions::default();
        let shutdown = CancellationToken::new();
        let lake = Embedded::build(Arc::<MemoryFeed>::clone(&feed), hq.hq(), fetcher, enricher, writer);
        let asked: Vec<&str> = lake.checks().iter().map(|check| check.name).collect();
        assert_eq!(asked, ["kafka", "queue", "hq database", "hq blobs", "form xml", "hq users", "metastore", "store"]);
        let running = tokio::spawn(lake.run(shutdown.clone()));
        Self { feed, hq, metastore, shutdown, running, _folder: folder }
    }

    /// Changes HQ, lets it say what it says, and waits until that is in the tables.
    async fn play(&self, mutations: Vec<Mutation>, messages: &[(&'static str, Value)]) {
        self.hq.apply(&Turn { mutations, messages: Vec::new() });
        for (topic, message) in messages {
            self.feed.publish(topic, message.to_string());
        }
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.feed.unfinished() > 0 {
            assert!(tokio::time::Instant::now() < deadline && !self.running.is_finished(), "the lake stands still");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Rows by type, of the tables that have some.
    async fn rows(&self) -> BTreeMap<String, i64> {
        let tables = self.metastore.tables(None).await.unwrap();
        let rows = tables.into_iter().map(|table| (table.key.document_type.as_str().to_owned(), table.state.rows));
        rows.filter(|(_, rows)| *rows > 0).collect()
    }

    /// Has something done to the cases of a project, and waits for its end.
    async fn ask(&self, kind: OperationKind, request_id: &str, domain: &str, details: &str) -> OperationRecord {
        let new = NewOperation {
            request_id: request_id.into(),
            kind,
            target: OperationTarget::space(Space { domain: domain.into(), kind: Kind::Case }),
            asked_by: "test".into(),
            consent: Consent::Given,
            details: details.into(),
        };
        let asked = self.metastore.ask_operation(&new).await.unwrap();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let now = self.metastore.operation(&asked.id).await.unwrap().unwrap();
            if now.state.is_end() {
                return now;
            }
            assert!(tokio::time::Instant::now() < deadline && !self.running.is_finished(), "it stands still: {now:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.running.await.unwrap().unwrap();
    }
}

/// Cases of the backfill, in more than one portion.
const PAST_CASES: usize = 2_500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_hq_never_announced_is_filled_from_its_tables() {
    let lake = Lake::start().await;
    let row = |number: usize, changes: Value| {
        let mut row = json!({"case_id": format!("c{number}"), "domain": "demo", "type": "person", "name": "Asha", "modified_by": "u1",
            "closed": false, "deleted": number % 10 == 9, "opened_on": instant(0), "modified_on": instant(0),
            "server_modified_on": instant(1), "case_json": "{}"});
        row.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        put(Table::Case, row)
    };
    let mut past: Vec<Mutation> = (0..PAST_CASES).map(|number| row(number, json!({}))).collect();
    past.push(row(PAST_CASES, json!({"domain": "another"})));
    past.push(row(PAST_CASES + 1, json!({"type": "child"})));
    lake.play(past, &[]).await;
    assert_eq!(lake.rows().await, BTreeMap::new());
    let ask = async |request_id: &str, domain: &str, details: &str| {
        lake.ask(OperationKind::Backfill, request_id, domain, details).await
    };
    // In one process the requests are done when their rows are in the tables.
    let typed = ask("1", "demo", "{\"types\":[\"child\"]}").await;
    assert_eq!((typed.state, typed.done), (OperationState::Succeeded, 1));
    assert_eq!(lake.rows().await, one("child"));
    let live = (PAST_CASES - PAST_CASES / 10) as i64;
    let filled = ask("2", "demo", "{}").await;
    assert_eq!((filled.state, filled.done, filled.total), (OperationState::Succeeded, live + 1, Some(live + 1)));
    let all = BTreeMap::from([("child".to_owned(), 1), ("person".to_owned(), live)]);
    assert_eq!(lake.rows().await, all);
    // Twice changes nothing; nor does what HQ does not know.
    assert_eq!(ask("3", "demo", "{}").await.state, OperationState::Succeeded);
    assert_eq!(ask("4", "demo", "{\"ids\":[\"nothing\",\"c1\",\"c9\"]}").await.state, OperationState::Succeeded);
    assert_eq!(lake.rows().await, all);
    let (space, ids) = (Space { domain: "demo".into(), kind: Kind::Case }, ["nothing", "c9"].map(id_hash));
    let unknown = lake.metastore.tombstones_of(&space, &ids).await.unwrap();
    assert_eq!(unknown, [], "what was never there left nothing behind");
    lake.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_hq_did_without_a_word_is_found_by_a_comparison_and_healed() {
    let lake = Lake::start().await;
    let row = |id: &str, changes: Value| {
        let mut row = json!({"case_id": id, "domain": "demo", "type": "person", "name": "Asha", "modified_by": "u1", "closed": false,
            "deleted": false, "opened_on": instant(0), "modified_on": instant(0), "server_modified_on": instant(30), "case_json": "{}"});
        row.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        put(Table::Case, row)
    };
    lake.play((0..300).map(|number| row(&format!("c{number}"), json!({}))).collect(), &[]).await;
    lake.ask(OperationKind::Backfill, "filled", "demo", "{}").await;
    let compare = async |request_id: &str, details: &str| {
        let ended = lake.ask(OperationKind::Reconcile, request_id, "demo", details).await;
        assert_eq!(ended.state, OperationState::Succeeded, "{ended:?}");
        let found = lake.metastore.differences(&ended.id, "", 100).await.unwrap();
        let found =
            found.into_iter().map(|of| format!("{} {} {}>{}", of.id, of.class.code(), of.lake_type, of.hq_type));
        found.collect::<Vec<_>>()
    };
    assert_eq!(compare("nothing", "{}").await, [""; 0]);
    let silent = vec![
        remove(Table::Case, json!({"case_id": "c1"})),
        row("c2", json!({"type": "child"})),
        // Its time goes back.
        row("c3", json!({"name": "Binta", "server_modified_on": instant(20)})),
        row("c4", json!({"deleted": true, "deleted_on": instant(31)})),
        row("new", json!({})),
    ];
    lake.play(silent, &[]).await;
    let all = [
        "c1 extra person>",
        "c2 moved person>child",
        "c3 stale person>person",
        "c4 extra person>",
        "new missing >person",
    ];
    assert_eq!(compare("found", "{}").await, all);
    assert_eq!(compare("some", r#"{"from_id":"c2","until_id":"c3"}"#).await, all[1..2]);
    assert_eq!(compare("typed", r#"{"types":["child"]}"#).await, all[1..2]);
    assert_eq!(lake.rows().await, BTreeMap::from([("person".to_owned(), 300)]), "nothing was changed");
    assert_eq!(compare("healed", r#"{"heal":true}"#).await, all);
    let healed = BTreeMap::from([("child".to_owned(), 1), ("person".to_owned(), 298)]);
    assert_eq!(lake.rows().await, healed);
    assert_eq!(compare("again", "{}").await, [""; 0]);
    lake.end().await;
}

fn one(document_type: &str) -> BTreeMap<String, i64> {
    BTreeMap::from([(document_type.to_owned(), 1)])
}

fn put(table: Table, row: Value) -> Mutation {
    Mutation::Put { table, row: row.as_object().unwrap().clone() }
}

fn remove(table: Table, matching: Value) -> Mutation {
    Mutation::Remove { table, matching: matching.as_object().unwrap().clone() }
}

/// A later second of the server's clock for each number.
fn instant(number: usize) -> String {
    format!("2026-01-05T10:{number:02}:00.000000Z")
}

fn says(id: &str, document_type: &str, subtype: Value, is_deletion: bool) -> Value {
    json!({"document_id": id, "data_source_type": "sql", "document_type": document_type, "document_subtype": subtype,
        "domain": "demo", "is_deletion": is_deletion, "publish_timestamp": instant(0)})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_case_is_in_the_table_of_its_type_or_nowhere() {
    let lake = Lake::start().await;
    let saved = |case_type: &str| ("case-sql", says("c1", "CommCareCase", json!(case_type), false));
    let deleted = || ("case-sql", says("c1", "CommCareCase-Deleted", Value::Null, true));
    let row = |number: usize, case_type: &str, changes: Value| {
        let mut row = json!({"case_id": "c1", "domain": "demo", "type": case_type, "name": "Asha", "modified_by": "u1", "closed": false,
            "deleted": false, "opened_on": instant(0), "modified_on": instant(0), "server_modified_on": instant(number),
            "case_json": "{}"});
        row.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        vec![put(Table::Case, row)]
    };
    let nowhere = BTreeMap::new;
    let gone = || vec![remove(Table::Case, json!({"case_id": "c1"}))];
    for (operation, mutations, message, expected) in [
        ("create", row(1, "person", json!({})), saved("person"), one("person")),
        ("update", row(2, "person", json!({"case_json": "{\"a\": \"1\"}"})), saved("person"), one("person")),
        ("the same message again", Vec::new(), saved("person"), one("person")),
        ("close", row(3, "person", json!({"closed": true})), saved("person"), one("person")),
        ("type change", row(4, "child", json!({})), saved("child"), one("child")),
        ("late message of the old type", Vec::new(), saved("person"), one("child")),
        // Older HQ does not touch server_modified_on then.
        ("soft delete", row(4, "child", json!({"deleted": true, "deleted_on": instant(5)})), deleted(), nowhere()),
        ("late message of before the delete", Vec::new(), saved("child"), nowhere()),
        ("undelete, same version", row(4, "child", json!({})), saved("child"), one("child")),
        ("old delete message again", Vec::new(), deleted(), one("child")),
        ("type change and back", row(6, "person", json!({})), saved("person"), one("person")),
        ("rebuilt, no form left", row(7, "person", json!({"deleted": true})), saved("person"), nowhere()),
        ("its form came back", row(8, "person", json!({})), saved("person"), one("person")),
        ("hard delete", gone(), deleted(), nowhere()),
        ("old save message after the hard delete", Vec::new(), saved("person"), nowhere()),
        ("restored from a backup, with its old version", row(3, "person", json!({})), saved("person"), one("person")),
        ("purge, seen by a replayed message", gone(), saved("person"), nowhere()),
    ] {
        lake.play(mutations, &[message]).await;
        assert_eq!(lake.rows().await, expected, "{operation}");
    }
    lake.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_form_is_in_its_table_while_it_is_live() {
    let lake = Lake::start().await;
    let saved = |id: &str, document_type: &str| ("form-sql", says(id, document_type, json!(XMLNS), false));
    let deleted = || ("form-sql", says("f1", "XFormInstance-Deleted", Value::Null, true));
    let row = |id: &str, number: usize, changes: Value| {
        let mut row = json!({"form_id": id, "domain": "demo", "xmlns": XMLNS, "user_id": "u1", "received_on": instant(0), "state": 1,
            "server_modified_on": instant(number), "deleted_on": null, "auth_context": "{}", "openrosa_headers": "{}"});
        row.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        put(Table::Form, row)
    };
    let blob = |id: &str, key: &str| {
        put(
            Table::BlobMeta,
            json!({"domain": "demo", "parent_id": id, "name": "form.xml", "key": key, "type_code": 2, "content_length": 9}),
        )
    };
    let xml = |key: &str| Mutation::PutBlob { key: key.into(), content: b"<data/>".to_vec(), gzip: false };
    let nowhere = BTreeMap::new;
    for (operation, mutations, message, expected) in [
        (
            "new form",
            vec![row("f1", 1, json!({})), blob("f1", "k1"), xml("k1")],
            saved("f1", "XFormInstance"),
            one("AAAA"),
        ),
        (
            "edit: same id, the old version under a new one",
            vec![
                remove(Table::BlobMeta, json!({"parent_id": "f1"})),
                blob("f0", "k1"),
                row("f0", 2, json!({"state": 4, "orig_id": "f1"})),
                blob("f1", "k2"),
                xml("k2"),
                row("f1", 2, json!({"edited_on": instant(2), "deprecated_form_id": "f0"})),
            ],
            saved("f1", "XFormInstance"),
            one("AAAA"),
        ),
        ("the old version, announced all the same", Vec::new(), saved("f0", "XFormDeprecated"), one("AAAA")),
        // Old SQL functions did not touch server_modified_on.
        ("archive", vec![row("f1", 2, json!({"state": 2}))], saved("f1", "XFormArchived"), nowhere()),
        ("late message of before", Vec::new(), saved("f1", "XFormInstance"), nowhere()),
        ("unarchive", vec![row("f1", 2, json!({}))], saved("f1", "XFormInstance"), one("AAAA")),
        ("archived again, message late", Vec::new(), saved("f1", "XFormArchived"), one("AAAA")),
        ("soft delete", vec![row("f1", 3, json!({"deleted_on": instant(3)}))], deleted(), nowhere()),
        ("undelete", vec![row("f1", 4, json!({"problem": "Restored on"}))], saved("f1", "XFormInstance"), one("AAAA")),
        ("error", vec![row("f1", 5, json!({"state": 16}))], saved("f1", "XFormError"), nowhere()),
        ("reprocessed", vec![row("f1", 6, json!({}))], saved("f1", "XFormInstance"), one("AAAA")),
        ("duplicate of it", vec![row("f2", 7, json!({"state": 8}))], saved("f2", "XFormDuplicate"), one("AAAA")),
        ("hard delete", vec![remove(Table::Form, json!({"form_id": "f1"}))], deleted(), nowhere()),
    ] {
        lake.play(mutations, &[message]).await;
        assert_eq!(lake.rows().await, expected, "{operation}");
    }
    lake.end().await;
}

/// The predecessor's sink of locations never worked, and its deletes went to a table named after the message's doc_type.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_location_is_in_the_one_table_of_locations_until_it_is_deleted() {
    let lake = Lake::start().await;
    let message = |is_deletion| ("location", says("l1", "Location", Value::Null, is_deletion));
    let row = |number: usize, archived: bool| {
        put(
            Table::Location,
            json!({"id": 7, "domain": "demo", "name": "North", "location_id": "l1", "location_type_id": 3, "site_code": "north",
                "external_id": null, "metadata": "{}", "last_modified": instant(number), "is_archived": archived, "archived_on": null,
                "latitude": null, "longitude": null, "parent_id": null}),
        )
    };
    let place_type =
        put(Table::LocationType, json!({"id": 3, "domain": "demo", "name": "district", "code": "district"}));
    for (operation, mutations, message, expected) in [
        ("save", vec![place_type, row(1, false)], message(false), one("Location")),
        ("archive: still the way up of others", vec![row(2, true)], message(false), one("Location")),
        ("unarchive", vec![row(3, false)], message(false), one("Location")),
        ("old delete message", Vec::new(), message(true), one("Location")),
        ("delete", vec![remove(Table::Location, json!({"id": 7}))], message(true), BTreeMap::new()),
        ("old save message", Vec::new(), message(false), BTreeMap::new()),
    ] {
        lake.play(mutations, &[message]).await;
        assert_eq!(lake.rows().await, expected, "{operation}");
    }
    lake.end().await;
}

/// The predecessor wrote ids into the text of its deletes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_is_never_part_of_a_statement() {
    let lake = Lake::start().await;
    let ids = ["x' or '1'='1", "b", "', 'b", "\"b\""];
    let row = |id: &str| {
        put(
            Table::Case,
            json!({"case_id": id, "domain": "demo", "type": "person", "modified_by": "u1", "deleted": false,
                "server_modified_on": instant(1), "case_json": "{}"}),
        )
    };
    let messages = |document_type, is_deletion| {
        ids.map(|id| ("case-sql", says(id, document_type, Value::Null, is_deletion)))
            .into_iter()
            .filter(move |(_, message)| !is_deletion || message["document_id"] != "b")
    };
    lake.play(ids.map(row).to_vec(), &messages("CommCareCase", false).collect::<Vec<_>>()).await;
    assert_eq!(lake.rows().await, BTreeMap::from([("person".to_owned(), 4)]));
    let gone = ids.iter().filter(|id| **id != "b").map(|id| remove(Table::Case, json!({"case_id": id}))).collect();
    lake.play(gone, &messages("CommCareCase-Deleted", true).collect::<Vec<_>>()).await;
    assert_eq!(lake.rows().await, one("person"));
    lake.end().await;
}
